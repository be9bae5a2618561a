"""The metrics and the health of a pool."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.control.answers import SupervisorIdentity
from poolctl.json_form import from_json, to_json
from poolctl.keeper.store import Store
from poolctl.monitor.metrics import Family
from poolctl.routing.route_health import HEALTHY, UNHEALTHY, RouteHealth
from poolctl.runners.runner_protocol import Placement
from poolctl.selection.selector import Selector, SelectorError
from poolctl.supervisor.observers.pool_metrics import (
    HealthReporter,
    PoolMetrics,
)
from poolctl.supervisor.statistics import Statistics, Totals
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.verbs.verb import Call
from poolctl.worker import tally
from tests.serving import blank_page
from tests.unit.core.ordered_core import web
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


async def test_health_of_routes_is_shown_in_three_depths() -> None:
    health = HealthReporter(Desk().core, Routes(users=WELL, old=BROKEN).healths)
    code, items = await asked(health)
    assert (code, items[0]["uptime_seconds"], items[1]["detail"]) == (3, 3.0, BROKEN.detail)
    assert "detail" not in (await asked(health, depth="summary"))[1][1]
    assert (await asked(health, depth="simple"))[1] == [
        {"name": "users", "kind": "route", "status": "healthy"},
        {"name": "old", "kind": "route", "status": "unhealthy"},
    ]
    with pytest.raises(SelectorError, match="'deep' is not a depth"):
        await asked(health, depth="deep")


async def test_pool_without_a_gateway_has_the_health_of_its_servers() -> None:
    desk = Desk(web("good"), web("bad"), web("off", disabled=True))
    health = HealthReporter(desk.core, Routes().healths)
    code, items = await asked(health, depth="simple")
    assert (code, [item["status"] for item in items]) == (3, ["unhealthy", "unhealthy", "unknown"])
    await desk.ask("start", "good")
    await desk.ask("stop", "bad")
    assert await asked(health, depth="simple") == (0, [
        {"name": "good", "kind": "server", "status": "healthy"},
        {"name": "bad", "kind": "server", "status": "unknown"},
        {"name": "off", "kind": "server", "status": "unknown"},
    ])  # fmt: skip


async def test_health_of_the_servers_agrees_with_status() -> None:
    desk = Desk(web("web"))
    health = HealthReporter(desk.core, Routes().healths)
    healths = []
    for verb in ("start", "drain", "undrain", "stop", "start", "disable", "enable"):
        await desk.ask(verb, "web")
        status, (code, items) = await desk.ask("status", "web"), await asked(health, depth="simple")
        assert status["exit_code"] == code, verb
        healths.append((verb, items[0]["status"], code))
    assert healths == [
        ("start", "healthy", 0), ("drain", "unknown", 3), ("undrain", "healthy", 0), ("stop", "unknown", 0),
        ("start", "healthy", 0), ("disable", "unknown", 0), ("enable", "healthy", 0),
    ]  # fmt: skip


async def test_servers_and_routes_are_shown_together_and_their_names_do_not_collide() -> None:
    desk = Desk(web("users"))
    health = HealthReporter(desk.core, Routes(users=WELL).healths)
    code, items = await asked(health, depth="simple")
    assert (code, items) == (3, [
        {"name": "users", "kind": "route", "status": "healthy"},
        {"name": "users (server)", "kind": "server", "status": "unhealthy"},
    ])  # fmt: skip
    assert await asked(health, depth="simple", routes=True) == (0, items[:1])


class Counted(SlowRunner):
    """A runner whose workers have all counted seven requests."""

    def counts(self, placement: Placement) -> list[int]:
        return SEVEN


SEVEN = blank_page().tolist()
SEVEN[tally.STARTED] = 7


class Figures:
    """The metrics and the health of a pool with these servers, and one part of a feature."""

    def __init__(self, *servers: ServerConfig) -> None:
        self.desk = Desk(*(servers or (web("web"), web("api"))), runner=Counted())
        totals = Totals(
            self.desk.core,
            self.desk.runner.tallies,
            self.desk.events,
            StateStore(StoreLink(Store()), "/nowhere"),
        )
        self.asked = 0
        parts: Any = [SimpleNamespace(metrics=self._of_feature)]
        self.name = "shop"
        statistics = Statistics(self.desk.core, totals)
        self.metrics = PoolMetrics(self.desk.core, statistics, self._identity, self._processes, parts)
        self.routes = Routes()
        self.health = HealthReporter(self.desk.core, self.routes.healths)

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


async def test_metrics_are_those_of_the_pool_its_processes_its_servers_and_its_features() -> None:
    figures = Figures()
    await figures.desk.ask("start", "web")
    lines = (await figures.metrics.text()).splitlines()
    assert 'poolctl_servers{state="running"} 1' in lines
    assert any(line.startswith('poolctl_build_info{pool="shop",') for line in lines)
    assert 'poolctl_requests_total{server="web"} 7' in lines
    assert 'poolctl_requests_total{server="api"} 0' in lines
    assert 'poolctl_monitor_status{server="web",status="ok"} 1' in lines
    assert "poolctl_routes 1" in lines
    for process in ("supervisor", "keeper", "gateway"):
        for name in ("memory_bytes", "cpu_seconds_total"):
            mark = f'poolctl_process_{name}{{process="{process}"}} '
            (line,) = [line for line in lines if line.startswith(mark)]
            assert float(line.removeprefix(mark)) >= 0
    helps = [line for line in lines if line.startswith("# HELP poolctl_process")]
    assert helps == [
        "# HELP poolctl_process_memory_bytes Memory (PSS) of the pool's own processes.",
        "# HELP poolctl_process_cpu_seconds_total Processor time of the pool's own processes.",
    ]


async def test_metrics_name_a_pool_that_was_renamed_by_its_new_name() -> None:
    figures = Figures()
    await figures.metrics.text()
    figures.name = "store"
    assert 'poolctl_build_info{pool="store",' in await figures.metrics.text()


async def test_metrics_of_selected_servers_are_without_the_others_and_without_features() -> None:
    figures = Figures()
    text = await figures.metrics.text(Selector(["web"]))
    assert 'server="web"' in text
    assert 'server="api"' not in text
    assert figures.asked == 0
    await figures.metrics.text(Selector())
    assert figures.asked == 1
