"""Which changes HAProxy follows by commands, and for which it is started again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poolctl.features.gateway.process.settings import Endpoint, GatewaySettings
from poolctl.features.haproxy._configuration import HaproxyListener, HaproxySetup, changes, configuration_of
from poolctl.routing.route import Route, Target

ONE, TWO = Target(server="one"), Target(server="two")
PORTS = {"one": 8081, "two": 8082}


def setup(
    *targets: Target,
    states: dict[str, str] | None = None,
    hosts: dict[str, str] | None = None,
    bundle: bytes = b"A\n\nB\n",
    inode: int = 1,
    **rules: Any,
) -> HaproxySetup:
    """Of one route "r" with these targets; all of its servers are ready but for those with other states."""
    endpoints = {
        name: Endpoint("tcp", (hosts or {}).get(name, "127.0.0.1"), port) for name, port in PORTS.items()
    }
    if "unix" in (hosts or {}):
        endpoints["one"] = Endpoint("unix", path="/run/one.sock")
    route = Route(alias="r", to=targets, **rules)
    made = configuration_of(
        GatewaySettings(directory=""), [HaproxyListener(("fd@3",))], [route], [], endpoints
    )
    names = [server.name for section in made.backends for server in section.servers]
    all_states = {("route:r", name): (states or {}).get(name, "ready") for name in names}
    return HaproxySetup(made, all_states, {"c.pem": bundle}, {}, ((3, inode),))


URL = Target(url="http://10.0.0.7:9000")
CHECKED = "check inter 10000ms fall 2 rise 1 observe layer4 error-limit 5 on-error mark-down"


@pytest.mark.parametrize(
    ("before", "after", "commands"),
    [
        (setup(ONE), setup(ONE), []),
        (setup(ONE), setup(ONE, states={"one": "maint"}), ["set server route:r/one state maint"]),
        (
            setup(ONE, states={"one": "drain"}),
            setup(ONE),
            ["set server route:r/one state ready"],
        ),
        (
            setup(ONE),
            setup(ONE, hosts={"one": "10.0.0.1"}),
            ["set server route:r/one addr 10.0.0.1 port 8081"],
        ),
        (setup(ONE), setup(ONE, hosts={"one": "::1"}), ["set server route:r/one addr ::1 port 8081"]),
        (
            setup(ONE, TWO),
            setup(ONE, replace(TWO, weight=3)),
            ["set weight route:r/two 3"],
        ),
        (
            setup(ONE),
            setup(ONE, TWO),
            ["add server route:r/two 127.0.0.1:8082", "set server route:r/two state ready"],
        ),
        (
            setup(ONE),
            setup(ONE, URL),
            [
                f"add server route:r/10.0.0.7:9000 10.0.0.7:9000 {CHECKED}",
                "enable health route:r/10.0.0.7:9000",
                "set server route:r/10.0.0.7:9000 state ready",
            ],
        ),
        (
            setup(ONE, TWO),
            setup(TWO),
            ["set server route:r/one state maint", "del server route:r/one"],
        ),
        (
            setup(ONE),
            setup(ONE, bundle=b"C\n\nD\n"),
            ["set ssl cert c.pem <<\nC\nD\n", "commit ssl cert c.pem"],
        ),
    ],
)
def test_change_of_servers_and_certificates_is_made_by_commands(
    before: HaproxySetup, after: HaproxySetup, commands: list[str]
) -> None:
    assert changes(before, after) == commands


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (setup(ONE), setup(ONE, path="/v1")),
        (setup(ONE), setup(ONE, policy="least-connections")),
        (setup(ONE), setup(ONE, inode=2)),
        (setup(ONE), setup(ONE, hosts={"one": "localhost"})),
        (setup(ONE), setup(ONE, hosts={"unix": ""})),
        (setup(ONE, sticky_cookie="c"), setup(ONE, TWO, sticky_cookie="c")),
        (setup(ONE, policy="first"), setup(ONE, TWO, policy="first")),
    ],
)
def test_other_changes_need_another_start(before: HaproxySetup, after: HaproxySetup) -> None:
    assert changes(before, after) is None


def test_start_rests_servers_that_are_not_ready_and_drains_those_that_are_to_be() -> None:
    made = setup(ONE, TWO, states={"one": "maint", "two": "drain"})
    assert "server one 127.0.0.1:8081 disabled" in made.text
    assert "server two 127.0.0.1:8082 disabled" in made.text
    assert made.drained() == ["set server route:r/two state drain"]
