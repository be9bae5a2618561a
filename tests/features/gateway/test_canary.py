"""The real program gives a canary its share of the requests, which changes at run time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from poolctl.features.gateway.haproxy.configuration import Canary, ServerAddresses, configuration_of
from poolctl.features.gateway.settings import Endpoint, GatewaySettings
from poolctl.routing.route import Route, Target
from tests.features.gateway.test_haproxy_configuration import (
    ANY,
    WEB,
    HaproxyProgram,
    ask,
    check,
    haproxy_program,
)

DEADLINE = 60.0


async def to_canary(program: HaproxyProgram, count: int, **headers: str) -> int:
    """How many of these requests the canary gets."""
    before = program.requests[program.canary_port]
    for _ in range(count):
        await ask(program.port, "GET", "a.test", "/", headers)
    return program.requests[program.canary_port] - before


@pytest.mark.capability
def test_canary_gets_its_share_unless_it_is_in_maintenance(tmp_path: Path) -> None:
    async def work() -> None:
        route = Route(alias="a", to=WEB, sticky_cookie="c")
        async with haproxy_program(tmp_path, [route], canary_share=0.2) as program:
            assert 60 <= await to_canary(program, 500) <= 140, "4.5 standard deviations"
            assert await to_canary(program, 20, Cookie="c=508009649aa59674") == 0, "the client stays"
            await program.command("set map canaries.map route:a/web 1000")
            assert await to_canary(program, 20) == 20
            await program.command("set server route:a/web:canary state maint")
            assert await to_canary(program, 20) == 0
            await program.command("set server route:a/web:canary state ready")
            await program.command("set map canaries.map route:a/web 0")
            assert await to_canary(program, 20) == 0

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


def test_canaries_of_several_servers_leave_the_others_their_shares(tmp_path: Path) -> None:
    route = Route(
        alias="r", to=(Target(server="a", weight=2), Target(server="b", weight=1), Target(server="c"))
    )
    endpoints = {name: Endpoint("tcp", "127.0.0.1", port) for port, name in enumerate("abc", 8081)}
    canaries = {
        name: Canary(Endpoint("tcp", "127.0.0.1", port), share)
        for name, port, share in (("a", 9081, 0.5), ("b", 9082, 0.2))
    }
    made = configuration_of(GatewaySettings(), [ANY], [route], [], ServerAddresses(endpoints, canaries))
    # a has half of all requests, so its canary a quarter; that of b has 5 % of all, of the other three quarters.
    assert made.maps["canaries.map"] == {"route:r/a": "250", "route:r/b": "67"}
    weights = {server.name: server.weight for server in made.backends[0].servers}
    assert weights == {"a": 128, "a:canary": 0, "b": 102, "b:canary": 0, "c": 128}
    check(made, tmp_path)


def test_canary_alone_leaves_its_server_no_weight(tmp_path: Path) -> None:
    route = Route(alias="r", to=(Target(server="a"), Target(server="b")), sticky_cookie="c")
    canaries = {"a": Canary(Endpoint("unix", path="/run/a.sock"), 1.0)}
    made = configuration_of(GatewaySettings(), [ANY], [route], [], ServerAddresses({}, canaries))
    assert made.maps["canaries.map"] == {"route:r/a": "500"}
    server, canary, _ = made.backends[0].servers
    assert (server.weight, canary.weight, canary.key) == (0, 0, "a:canary")
    assert canary.address == "unix@/run/a.sock"
    assert canary.cookie != server.cookie
    check(made, tmp_path)
