"""The metrics and the health of a pool, over the control socket and over HTTP, and where they are served."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.control.answers import SupervisorIdentity
from poolctl.http.http_client import exchange
from poolctl.http.messages import BadMessage
from poolctl.json_form import from_json, to_json
from poolctl.keeper.keeper import Store
from poolctl.monitor.metrics import OPENMETRICS, TEXT, Family
from poolctl.routing.route_health import ERROR, HEALTHY, UNHEALTHY, RouteHealth
from poolctl.runners.listener_opener import Opener
from poolctl.runners.runner_protocol import Capabilities
from poolctl.selection.selector import Selector, SelectorError
from poolctl.supervisor.observers import held_address, metrics_server
from poolctl.supervisor.observers.metrics_server import (
    HealthReporter,
    MetricsAddressServer,
    MetricsServer,
    PoolMetrics,
    _is_local,
)
from poolctl.supervisor.statistics import Statistics, Totals
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.verbs.verb import Call
from poolctl.worker import tally
from tests.serving import blank_page
from tests.unit.core.ordered_core import run, web
from tests.unit.runners.scripted_runner import SlowRunner
from tests.unit.supervisor.desk import Desk
from tests.unit.supervisor.test_state_store import StoreLink

WELL = RouteHealth(status=HEALTHY, uptime_seconds=3.0, latency_seconds=0.01)
BROKEN = RouteHealth(status=UNHEALTHY, detail="http://10.0.0.7:9000: no connection")


class Routes:
    """A gateway whose routes have this health."""

    def __init__(self, **healths: RouteHealth) -> None:
        self.found = healths

    async def healths(self) -> dict[str, RouteHealth]:
        return self.found


async def asked(health: HealthReporter, **options: Any) -> tuple[int, list[dict[str, Any]]]:
    answer = to_json(await health.answer_health_verb(Call(Selector(), options, lambda line: None)))
    return answer["exit_code"], answer["items"]


def test_health_of_routes_is_shown_in_three_depths() -> None:
    async def work() -> None:
        health = HealthReporter(Desk().core, Routes(users=WELL, old=BROKEN).healths)
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
        health = HealthReporter(desk.core, Routes().healths)
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
        server = MetricsServer(Any, HealthReporter(Desk().core, routes.healths))  # type: ignore[arg-type]
        server.path = "/metrics"
        listener = socket.create_server(("127.0.0.1", 0))
        where = listener.getsockname()
        server.http.listen(listener, 10)

        async def get(path: str) -> tuple[int, Any]:
            async with exchange(where, "GET", path, [("Host", "x"), ("Connection", "close")]) as response:
                body = b"".join([piece async for piece in response.body()])
                return response.status, json.loads(body) if response.status in (200, 503) else body

        assert await get("/health") == (200, {"users": "healthy"})
        server._latest.clear()
        routes.found = {"users": WELL, "old": RouteHealth(status=ERROR, detail="why")}
        assert await get("/health") == (503, {"users": "healthy", "old": "error"})
        assert await get("/health/summary") == (503, {
            "users": {"status": "healthy", "uptime_seconds": 3.0, "latency_seconds": 0.01},
            "old": {"status": "error", "uptime_seconds": 0.0, "latency_seconds": None},
        })  # fmt: skip
        assert (await get("/health/full"))[1]["old"]["detail"] == "why"
        assert (await get("/health/other"))[0] == 404
        server.http.abort()

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
        health = HealthReporter(desk.core, Routes().healths)
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
        health = HealthReporter(desk.core, Routes(users=WELL).healths)
        code, items = await asked(health, depth="simple")
        assert (code, items) == (3, [
            {"name": "users", "kind": "route", "status": "healthy"},
            {"name": "users (server)", "kind": "server", "status": "unhealthy"},
        ])  # fmt: skip
        assert await asked(health, depth="simple", routes=True) == (0, items[:1])

    run(work())


class Counted(SlowRunner):
    """A runner whose workers have all counted seven requests."""

    @property
    def capabilities(self) -> Capabilities:
        counters: Any = SimpleNamespace(
            add_up=None, counts=lambda placement: SEVEN, unsettled=[], settled=lambda: None
        )
        return replace(super().capabilities, counters=counters)


SEVEN = blank_page().tolist()
SEVEN[tally.STARTED] = 7


class Figures:
    """The metrics of a pool with these servers, one part of a feature, and where they are served."""

    def __init__(self, *servers: ServerConfig) -> None:
        self.desk = Desk(*(servers or (web("web"), web("api"))), runner=Counted())
        totals = Totals(self.desk.core, self.desk.events, StateStore(StoreLink(Store()), "/nowhere"))
        self.asked = 0
        parts: Any = [SimpleNamespace(metrics=self._of_feature)]
        self.name = "shop"
        statistics = Statistics(self.desk.core, totals)
        self.metrics = PoolMetrics(self.desk.core, statistics, self._identity, self._processes, parts)
        self.server = MetricsServer(self.metrics, HealthReporter(self.desk.core, Routes().healths))
        self.server.path = "/figures"

    def _identity(self) -> SupervisorIdentity:
        about = {"name": self.name, "python": "3.11.7", "keeper_pid": os.getpid()}
        return from_json(SupervisorIdentity, about)

    def _processes(self) -> dict[str, int]:
        return {"keeper": os.getpid(), "supervisor": os.getpid(), "gateway": os.getppid()}

    async def _of_feature(self) -> list[Family]:
        self.asked += 1
        family = Family("poolctl_routes", "gauge", "Routes.")
        family.add(self.asked)
        return [family]


def test_metrics_are_those_of_the_pool_its_processes_its_servers_and_its_features() -> None:
    async def work() -> None:
        figures = Figures()
        await figures.desk.ask("start", "web")
        lines = (await figures.metrics.text(False)).splitlines()
        assert 'poolctl_servers{state="running"} 1' in lines
        assert any(line.startswith('poolctl_build_info{pool="shop",') for line in lines)
        assert 'poolctl_requests_total{server="web"} 7' in lines
        assert 'poolctl_requests_total{server="api"} 0' in lines
        assert 'poolctl_monitor_status{server="web",status="ok"} 1' in lines
        assert "poolctl_routes 1" in lines
        for process in ("supervisor", "keeper", "gateway"):
            for name in ("memory_bytes", "cpu_seconds_total"):
                mark = f'poolctl_process_{name}{{process="{process}"}} '
                (line,) = [each for each in lines if each.startswith(mark)]
                assert float(line.removeprefix(mark)) >= 0
        helps = [line for line in lines if line.startswith("# HELP poolctl_process")]
        assert helps == [
            "# HELP poolctl_process_memory_bytes Memory (PSS) of the pool's own processes.",
            "# HELP poolctl_process_cpu_seconds_total Processor time of the pool's own processes.",
        ]
        assert "# EOF" not in lines
        assert (await figures.metrics.text(True)).endswith("# EOF\n")

    run(work())


def test_metrics_name_a_pool_that_was_renamed_by_its_new_name() -> None:
    async def work() -> None:
        figures = Figures()
        await figures.metrics.text(False)
        figures.name = "store"
        assert 'poolctl_build_info{pool="store",' in await figures.metrics.text(False)

    run(work())


def test_metrics_of_selected_servers_are_without_the_others_and_without_features() -> None:
    async def work() -> None:
        figures = Figures()
        text = await figures.metrics.text(False, Selector(["web"]))
        assert 'server="web"' in text
        assert 'server="api"' not in text
        assert figures.asked == 0
        await figures.metrics.text(False, Selector())
        assert figures.asked == 1

    run(work())


class Client:
    """A client of the server over HTTP."""

    def __init__(self, server: MetricsServer) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self._where = listener.getsockname()
        server.http.listen(listener, 10)

    async def ask(self, path: str, method: str = "GET", **fields: str) -> tuple[int, dict[str, str], str]:
        given = [("Host", "x"), ("Connection", "close"), *fields.items()]
        async with exchange(self._where, method, path, given) as response:
            body = b"".join([piece async for piece in response.body()])
            lines = response.head.fields.decode().split("\r\n")
            found = {
                name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)
            }
            return response.status, found, body.decode()


def test_metrics_are_served_at_their_path_in_the_form_that_the_client_prefers() -> None:
    async def work() -> None:
        figures = Figures()
        client = Client(figures.server)
        status, fields, body = await client.ask("/figures")
        assert (status, fields["content-type"], fields["vary"]) == (200, TEXT, "accept")
        assert 'poolctl_build_info{pool="shop"' in body
        status, fields, body = await client.ask("/figures", Accept="application/openmetrics-text")
        assert (status, fields["content-type"], body[-6:]) == (200, OPENMETRICS, "# EOF\n")
        status, fields, body = await client.ask("/figures", "HEAD")
        assert (status, body) == (200, "")
        assert kind_and_body(await client.ask("/metrics")) == (
            404,
            "text/plain",
            "the metrics are at /figures\n",
        )
        status, fields, body = await client.ask("/figures", "POST")
        assert (status, fields["allow"], fields["content-type"], body) == (
            405,
            "GET, HEAD",
            "text/plain",
            "only GET\n",
        )
        status, fields, _ = await client.ask("/health")
        assert (status, fields["content-type"], fields["cache-control"]) == (
            503,
            "application/json",
            "no-store",
        )
        figures.server.path = "/health"
        assert "poolctl_build_info" in (await client.ask("/health"))[2]
        figures.server.http.abort()

    run(work())


def kind_and_body(answer: tuple[int, dict[str, str], str]) -> tuple[int, str, str]:
    status, fields, body = answer
    return status, fields["content-type"], body


def test_clients_that_scrape_at_the_same_time_get_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        figures = Figures()
        client = Client(figures.server)
        monkeypatch.setattr(metrics_server, "_FRESH_SECONDS", 60.0)
        texts = {body for _, _, body in await asyncio.gather(*(client.ask("/figures") for _ in range(3)))}
        assert (len(texts), figures.asked) == (1, 1)
        monkeypatch.setattr(metrics_server, "_FRESH_SECONDS", 0.0)
        await client.ask("/figures")
        assert figures.asked == 2
        before = figures.server._health._route_healths
        asked = []

        async def healths() -> dict[str, RouteHealth]:
            asked.append(1)
            return {}

        assert before is not None
        figures.server._health._route_healths = healths
        monkeypatch.setattr(metrics_server, "_FRESH_SECONDS", 60.0)
        for _ in range(2):
            await client.ask("/health")
        assert len(asked) == 1
        figures.server.http.abort()

    run(work())


def test_detailed_health_is_refused_to_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        figures = Figures()
        client = Client(figures.server)
        monkeypatch.setattr(metrics_server, "_is_local", lambda sock: False)
        assert kind_and_body(await client.ask("/health/full")) == (
            403, "text/plain", "addresses and errors are shown to clients of this machine alone: see /health/summary\n",
        )  # fmt: skip
        assert (await client.ask("/health/summary"))[0] == 503
        figures.server.http.abort()

    run(work())


def test_what_is_no_request_is_refused_with_its_reason() -> None:
    async def work() -> None:
        error = BadMessage("a space in a name", 431)
        found = Figures().server.error_response(error)
        assert found == (431, "text/plain", f"not a request: {error}\n".encode())

    run(work())


def table(bind: str, path: str = "/metrics") -> MetricsTable:
    return MetricsTable(bind=bind, path=path)


class Address:
    """Where the metrics of a pool are served, by the supervisors of one keeper."""

    def __init__(self, store: Store, figures: Figures) -> None:
        self.link = StoreLink(store)
        self.recorded: list[str] = []
        figures.desk.events.subscribe(lambda event: self.recorded.append(f"{event.event}: {event.message}"))
        health = HealthReporter(figures.desk.core, Routes().healths)
        environment: Any = SimpleNamespace(keeper=self.link, configuration=SimpleNamespace(environment={}))
        self.served = MetricsAddressServer(environment, figures.desk.events, figures.metrics, health)

    async def get(self, port: int, path: str) -> int:
        async with exchange(
            ("127.0.0.1", port), "GET", path, [("Host", "x"), ("Connection", "close")]
        ) as response:
            return response.status


def test_metrics_move_with_their_table_and_the_next_supervisor_takes_over_the_listener(
    free_port: Callable[..., int],
) -> None:
    async def work() -> None:
        store, figures = Store(), Figures()
        one, other = free_port(), free_port()
        address = Address(store, figures)
        address.served.serve_table(table(f"127.0.0.1:{one}"))
        await address.served.wait_for_opening_attempt()
        assert (address.served.problem, await address.get(one, "/metrics")) == ("", 200)
        assert await address.get(one, "/figures") == 404
        address.served.serve_table(table(f"127.0.0.1:{one}", "/figures"))
        await until_async(
            lambda: address.served._server is not None and address.served._server.path == "/figures"
        )
        assert await address.get(one, "/figures") == 200

        after = Address(store, figures)
        after.served.serve_table(table(f"127.0.0.1:{one}"))
        await after.served.wait_for_opening_attempt()
        assert after.served.problem == "", "it is the same listener"
        after.served.serve_table(table(f"127.0.0.1:{other}"))
        await until_async(lambda: after.served._open == f"127.0.0.1:{other}")
        await until_async(lambda: after.served._server is not None)
        assert await after.get(other, "/metrics") == 200
        after.served.serve_table(None)
        await until_async(lambda: after.served._open is None)
        for each in (address, after):
            await each.served.close()
            each.link.end()

    run(work())


class Occupied(Opener):
    """An address that another program has for a number of attempts."""

    def __init__(self, attempts: int) -> None:
        self.left = attempts

    async def listen(self, *given: Any, **more: Any) -> list[socket.socket]:
        if self.left:
            self.left -= 1
            raise OSError("the address is in use")
        return [socket.create_server(("127.0.0.1", 0))]


def test_address_in_use_is_a_problem_that_is_recorded_once_and_served_when_it_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_address, "_RETRY_SECONDS", 0.001)

    async def work() -> None:
        figures = Figures()
        address = Address(Store(), figures)
        address.served._opener = Occupied(3)
        address.served.serve_table(table("127.0.0.1:9100"))
        await address.served.wait_for_opening_attempt()
        assert address.served.problem == "metrics cannot be served: the address is in use"
        await until_async(lambda: not address.served.problem)
        figures.desk.events.flush()
        assert address.recorded == ["metrics not served: metrics cannot be served: the address is in use"]
        (listener,) = address.served._listeners
        assert await address.get(listener.getsockname()[1], "/metrics") == 200
        await address.served.close()
        address.link.end()

    run(work())


async def until_async(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
