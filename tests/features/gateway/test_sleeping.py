"""What the real program answers while servers sleep and start."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.features.gateway.haproxy.sleeping import ASLEEP, SLEEPING, STARTS, WAKING
from poolctl.routing.route import Route
from tests.features.gateway.test_haproxy_configuration import WEB, HaproxyProgram, ask, haproxy_program

DEADLINE = 60.0
HTML = {"Accept": "application/xml;q=0.9, text/html"}


async def status(port: int, path: str = "/", method: str = "GET", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await ask(port, method, "a.test", path, named))[0]


async def sleep(program: HaproxyProgram, value: str) -> None:
    await program.command(f"{'add' if value == ASLEEP else 'set'} map {SLEEPING} route:a {value}")


@pytest.mark.capability
async def test_probes_and_pages_are_answered_without_a_server_that_sleeps(tmp_path: Path) -> None:
    route = Route(alias="a", path="/app", to=WEB, waiting_page=True, probe_responses=("/app/health",))
    async with haproxy_program(tmp_path, [route]) as program:
        port = program.port
        assert await status(port, "/app", **HTML) == 200
        await sleep(program, ASLEEP)
        assert await status(port, "/app/health", "HEAD") == 200
        assert await status(port, "/app/favicon.ico") == 404
        assert program.requests.total() == 1, "only the one before it slept"
        assert WAKING in await program.command("show map"), "the name that commands use"
        assert await program.command(f"show map {WAKING}") == "\n"
        assert await status(port, "/app", **HTML) == 503
        assert "route:a 1" in await program.command(f"show map {WAKING}")
        await program.command(f"clear map {WAKING}")
        await sleep(program, STARTS)
        assert await status(port, "/app", **HTML, Sec_Fetch_Mode="navigate") == 503
        assert await program.command(f"show map {WAKING}") == "\n", "it starts already"
        assert await status(port, "/app/health") == 200
        assert program.requests.total() == 2
        await program.command(f"del map {SLEEPING} route:a")
        assert await status(port, "/app", **HTML) == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "headers", "waits"),
    [
        ("GET", "/", {}, True),
        ("GET", "/", {"Accept": "*/*"}, True),
        ("GET", "/", {"Accept": "text/htmlx"}, True),
        ("GET", "/", {"Accept": "text/html;q=0.8"}, False),
        ("GET", "/", {"Accept": "TEXT/HTML"}, False),
        ("GET", "/", {**HTML, "Sec-Fetch-Mode": "cors"}, True),
        ("POST", "/", HTML, True),
        ("GET", "/healthy", {}, True),
        ("POST", "/health", {}, True),
        ("GET", "/%68ealth", {}, False),
    ],
)
async def test_all_but_navigation_and_probes_waits_for_the_server(
    tmp_path: Path, method: str, path: str, headers: dict[str, str], waits: bool
) -> None:
    route = Route(alias="a", to=WEB, waiting_page=True, probe_responses=("/health",))
    async with haproxy_program(tmp_path, [route]) as program:
        await sleep(program, ASLEEP)
        await ask(program.port, method, "a.test", path, headers)
        assert program.requests.total() == int(waits)
