"""The health of a pool over the control socket and over HTTP."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.http.http_client import exchange
from poolctl.json_form import to_json
from poolctl.routing.route_health import ERROR, HEALTHY, UNHEALTHY, RouteHealth
from poolctl.selection.selector import Selector, SelectorError
from poolctl.supervisor.observers.metrics_server import MetricsServer, PoolHealth, _is_local
from poolctl.supervisor.verbs.verb import Call
from tests.unit.core.ordered_core import run, web
from tests.unit.supervisor.desk import Desk

WELL = RouteHealth(status=HEALTHY, uptime_seconds=3.0, latency_seconds=0.01)
BROKEN = RouteHealth(status=UNHEALTHY, detail="http://10.0.0.7:9000: no connection")


class Routes:
    """A gateway whose routes have this health."""

    def __init__(self, **healths: RouteHealth) -> None:
        self.found = healths

    async def healths(self) -> dict[str, RouteHealth]:
        return self.found


async def asked(health: PoolHealth, **options: Any) -> tuple[int, list[dict[str, Any]]]:
    answer = to_json(await health.verb(Call(Selector(), options, lambda line: None)))
    return answer["exit_code"], answer["items"]


def test_health_of_routes_is_shown_in_three_depths() -> None:
    async def work() -> None:
        health = PoolHealth(Desk().core, Routes(users=WELL, old=BROKEN).healths)
        code, items = await asked(health)
        assert (code, items[0]["uptime_seconds"], items[1]["detail"]) == (3, 3.0, BROKEN.detail)
        assert "detail" not in (await asked(health, depth="summary"))[1][1]
        assert (await asked(health, depth="simple"))[1] == [
            {"name": "users", "kind": "route", "status": "healthy"},
            {"name": "old", "kind": "route", "status": "unhealthy"},
        ]
        with pytest.raises(SelectorError, match="no depth 'deep'"):
            await asked(health, depth="deep")

    run(work())


def test_pool_without_a_gateway_has_the_health_of_its_servers() -> None:
    async def work() -> None:
        desk = Desk(web("good"), web("bad"), web("off", disabled=True))
        health = PoolHealth(desk.core, Routes().healths)
        code, items = await asked(health, depth="simple")
        assert (code, [each["status"] for each in items]) == (3, ["unhealthy", "unhealthy", "unknown"])
        await desk.ask("start", "good")
        await desk.ask("stop", "bad")
        assert await asked(health, depth="simple") == (0, [
            {"name": "good", "kind": "server", "status": "healthy"},
            {"name": "bad", "kind": "server", "status": "unknown"},
            {"name": "off", "kind": "server", "status": "unknown"},
        ])  # fmt: skip

    run(work())


def test_health_is_served_next_to_the_metrics_with_503_for_what_does_not_serve() -> None:
    async def work() -> None:
        routes = Routes(users=WELL)
        server = MetricsServer(Any, PoolHealth(Desk().core, routes.healths), "/metrics")  # type: ignore[arg-type]
        listener = socket.create_server(("127.0.0.1", 0))
        where = listener.getsockname()
        server.serve([listener], 10)

        async def get(path: str) -> tuple[int, Any]:
            async with exchange(where, "GET", path, [("Host", "x"), ("Connection", "close")]) as response:
                body = b"".join([piece async for piece in response.body()])
                return response.status, json.loads(body) if response.status in (200, 503) else body

        assert await get("/health") == (200, {"users": "healthy"})
        server._latest_health = None
        routes.found = {"users": WELL, "old": RouteHealth(status=ERROR, detail="why")}
        assert await get("/health") == (503, {"users": "healthy", "old": "error"})
        assert await get("/health/summary") == (503, {
            "users": {"status": "healthy", "uptime_seconds": 3.0, "latency_seconds": 0.01},
            "old": {"status": "error", "uptime_seconds": 0.0, "latency_seconds": None},
        })  # fmt: skip
        assert (await get("/health/full"))[1]["old"]["detail"] == "why"
        assert (await get("/health/other"))[0] == 404
        server.close()

    run(work())


def test_details_are_for_clients_of_this_machine() -> None:
    def client(family: int, address: str) -> bool:
        sock: Any = SimpleNamespace(family=family, getpeername=lambda: (address, 1))
        return _is_local(sock)

    assert client(socket.AF_UNIX, "")
    assert [client(socket.AF_INET, each) for each in ("127.0.0.1", "127.9.9.9", "10.0.0.7")] == [
        True,
        True,
        False,
    ]
    six = "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.7", "fe80::1%eth0"
    assert [client(socket.AF_INET6, each) for each in six] == [True, True, False, False]


def test_health_of_the_servers_agrees_with_status() -> None:
    async def work() -> None:
        desk = Desk(web("web"))
        health = PoolHealth(desk.core, Routes().healths)
        seen = []
        for verb in ("start", "drain", "undrain", "stop", "start", "disable", "enable"):
            await desk.ask(verb, "web")
            status, (code, items) = await desk.ask("status", "web"), await asked(health, depth="simple")
            assert status["exit_code"] == code, verb
            seen.append((verb, items[0]["status"], code))
        assert seen == [
            ("start", "healthy", 0), ("drain", "unknown", 3), ("undrain", "healthy", 0), ("stop", "unknown", 0),
            ("start", "healthy", 0), ("disable", "unknown", 0), ("enable", "healthy", 0),
        ]  # fmt: skip

    run(work())


def test_servers_and_routes_are_shown_together_and_their_names_do_not_collide() -> None:
    async def work() -> None:
        desk = Desk(web("users"))
        health = PoolHealth(desk.core, Routes(users=WELL).healths)
        code, items = await asked(health, depth="simple")
        assert (code, items) == (3, [
            {"name": "users", "kind": "route", "status": "healthy"},
            {"name": "users (server)", "kind": "server", "status": "unhealthy"},
        ])  # fmt: skip
        assert await asked(health, depth="simple", routes=True) == (0, items[:1])

    run(work())
