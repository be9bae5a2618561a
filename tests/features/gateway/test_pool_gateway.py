"""The gateway's part of the supervisor: orders for hosts, and imports after a start, before files may be replaced."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.exit_codes import DONE, NOT_AS_DESIRED, NOTHING_MATCHED
from poolctl.features.gateway.supervision.pool_gateway import PoolGateway, parse_host_change
from poolctl.features.gateway.supervision.route_tables import RouteSet
from poolctl.features.gateway.table import GatewayConfig
from poolctl.features.gateway.target import TargetState
from poolctl.json_form import Table
from poolctl.routing.route import ExcludedRoute, Route, StreamRoute, Target
from poolctl.selection.selector import Selector, SelectorError
from poolctl.supervisor.verbs.verb import Call
from poolctl.worker import tally
from tests.coroutines import staged_by
from tests.serving import blank_page
from tests.unit.core.ordered_core import run, web
from tests.unit.runners.scripted_runner import SlowRunner
from tests.unit.supervisor.desk import Desk, part_context

from .scripted_haproxy import FiguresStage, ScriptedPoolGateway, server

LOOK = """
import sys
import poolctl.supervisor.supervisor
import poolctl.runners.local.local_runner
routes = {"poolctl.routing.match", "poolctl.features.gateway.table"}
assert not routes & set(sys.modules)
for name in poolctl.supervisor.feature_parts.modules():
    __import__(name)
# Files of the package may be replaced from now on.
assert routes <= set(sys.modules)
there = set(sys.modules)
from poolctl.features.gateway.supervision import figures, gateway, metrics, route_tables
late = set(sys.modules) - there
assert not late, late
"""


@pytest.mark.slow
def test_supervisor_imports_the_parts_of_the_gateway_after_its_start() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NO_ORDER = ("unknown operation on backends", "op is one of disable, enable, drain; hosts is a list")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"op": "stop"}, NO_ORDER),
        ({"op": None}, NO_ORDER),
        ({"hosts": None}, NO_ORDER),
        ({"hosts": [1]}, NO_ORDER),
        ({"for": -1}, ("backends cannot be disabled for -1", "seconds; 0 until they are enabled")),
        ({"for": "1s"}, ("backends cannot be disabled for '1s'", "seconds; 0 until they are enabled")),
        ({"for": float("nan")}, ("backends cannot be disabled for nan", "seconds; 0 until they are enabled")),
    ],
)
def test_other_orders_are_usage_errors(wrong: Table, error: tuple[str, str]) -> None:
    with pytest.raises(SelectorError) as raised:
        parse_host_change({"op": "disable", "hosts": ["users"], "for": None, **wrong})
    assert (raised.value.message, raised.value.hint) == error


ROUTES = RouteSet(
    http=(
        Route(alias="shop", host="a.example", to=(Target(server="web"),)),
        Route(alias="out", host="b.example", to=(Target(url="http://10.0.0.7:80"),)),
    ),
    streams=(StreamRoute(alias="out", bind="127.0.0.1:5432", to=(Target(url="10.0.0.7:5432"),)),),
    excluded=(ExcludedRoute(alias="late", host="a.example", reason="the file does not permit it"),),
    servers=frozenset({"web"}),
)


class Manager(SimpleNamespace):
    """The gateway's manager with a HAProxy that serves, and without everything else."""

    def __init__(self) -> None:
        self.stage = FiguresStage(*ROUTES.served)
        self.first_command = asyncio.Event()
        self.stage.servers["web"] = server()
        routes = SimpleNamespace(
            routes=ROUTES, generation=7, services=None, table=None, wait_until_current=self._done,
            subscribed=self._followed,
        )  # fmt: skip
        super().__init__(
            gateway=self.stage.haproxy, pid=os.getpid(), tables=Tables(gateway=GatewayConfig()), routes=routes,
            machines=None,
            processes=SimpleNamespace(replaced_pids=[]), listeners=[], restarts=0, problem="", instability="",
            failures=[], why_unavailable="port 80 is in use", calls=[], late="", hosts=self.stage.hosts,
            probes=SimpleNamespace(latency_seconds=lambda url: None), targets=self.stage.targets,
            counts=self.stage.counts, figures=self.stage.figures, stage=self.stage,
        )  # fmt: skip
        self.reported: list[Callable[[int], None]] = []

    @property
    def is_configured(self) -> bool:
        return self.tables.get(GatewayConfig) is not None

    def apply_tables(self, tables: Tables) -> None:
        self.tables = tables

    async def _done(self) -> None:
        self.calls.append("settled")

    @contextmanager
    def _followed(self, report: Callable[[int], None]) -> Iterator[None]:
        self.reported.append(report)
        yield
        self.reported.remove(report)

    async def wait_until_serving(self) -> None:
        self.calls.append("waited")

    async def wait_for_opening_attempt(self) -> None:
        self.calls.append("attempted")

    async def wait_until_applied(self, limit_seconds: float | None) -> str:
        self.calls.append(limit_seconds)
        return self.late

    async def finish(self) -> None:
        self.calls.append("finish")

    async def aclose(self) -> None:
        self.calls.append("close")


class Stage(Desk):
    """A pool of two servers with a gateway."""

    def __init__(self) -> None:
        runner: Any = SlowRunner()
        runner.routing = SimpleNamespace(publish=lambda *routes: None)
        super().__init__(web(), web("other"), runner=runner)
        totals: Any = SimpleNamespace(counts_of_ended_workers=lambda entry: blank_page().tolist())
        self.connected: list[Any] = []
        parts: Any = SimpleNamespace(of=lambda kind: self.connected)
        self.site = part_context(self.core, self.events)._replace(totals=totals, parts=parts)
        self.manager: Any = Manager()
        self.figures: FiguresStage = self.manager.stage
        self.part: PoolGateway = ScriptedPoolGateway(self.site, self.manager)
        self.part.apply_tables(self.manager.tables)

    def call(self, *targets: str, **options: Any) -> Call:
        return Call(Selector.from_dict({"targets": list(targets)}), options, lambda line: None)

    async def extended(self, verb: str, *targets: str, result: Result | None = None) -> Result:
        return await self.part.extend(verb, self.call(*targets), result or Result())

    async def concluded(
        self, verb: str, *targets: str, result: Result | None = None, **options: Any
    ) -> Result:
        return await self.part.wait_for_effect(verb, self.call(*targets, **options), result or Result())

    async def perform(self, verb: str, **options: Any) -> Any:
        return await self.part.verbs[verb](self.call(**options))


def staged(scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        await scene(Stage())

    run(play())


@staged_by(staged)
async def test_routes_are_reported_with_their_figures_and_those_not_served(stage: Stage, /) -> None:
    shop, _, db = ROUTES.served
    stage.figures.count(shop, stot=2, qcur=2)
    stage.figures.count(db, stot=4)
    stage.figures.count_unrouted(3)
    found = await stage.perform("routes")
    assert [(each.alias, each.way) for each in found.items] == [
        ("shop", "http"), ("out", "http"), ("out", "stream"), ("late", "excluded"),
    ]  # fmt: skip
    assert [each.requests for each in found.items] == [2, 0, 4, 0]
    assert found.items[0].waiting == 2
    assert found.items[0].machines is None
    assert (found.generation, found.refused) == (7, {"404": 3})
    assert stage.manager.calls[0] == "settled"
    stage.manager.machines = SimpleNamespace(machines=lambda route: (route.alias,))
    assert (await stage.perform("routes")).items[1].machines == ("out",)
    stage.figures.is_running, stage.manager.gateway = False, None
    found = await stage.perform("routes")
    assert {each.state for each in found.items} == {"error", "unknown"}
    assert found.refused is None


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({"host": "A.example:80"}, "Host"),
        ({"host": "c.example", "headers": {"host": "a.example"}}, "Host"),
        ({"headers": {"x-host": "a.example"}}, "X-Host"),
    ],
)
@pytest.mark.parametrize("many", [False, True])
@staged_by(staged)
async def test_routes_that_a_request_may_take_are_explained(
    stage: Stage, /, options: Table, header: str, many: bool
) -> None:
    stage.manager.tables = Tables(gateway=GatewayConfig(header_for_host=header))
    if many:
        more = tuple(Route(alias=f"r{number}", host=f"h{number}.example") for number in range(1000))
        stage.manager.routes.routes = ROUTES._replace(http=(*ROUTES.http, *more))
    found = await stage.perform("routes", op="explain", **options)
    assert (found.header_for_host, found.generation) == (header, 7)
    assert found.total == (1002 if many else 2)
    # A large table is searched here, a small one by the command.
    assert [each.alias for each in found.routes] == (["shop"] if many else ["shop", "out"])
    assert [each.alias for each in found.excluded] == ["late"]


@staged_by(staged)
async def test_hosts_are_the_targets_of_routes_with_the_connections_of_workers(stage: Stage, /) -> None:
    await stage.ask("start")
    page = blank_page()
    page[tally.OPEN_CONNECTIONS] = 9
    stage.runner.counts = lambda placement: page.tolist()
    stage.figures.count(ROUTES.http[1], "http://10.0.0.7:80", scur=2)
    found = await stage.perform("hosts")
    assert [(each.host, each.connections, each.available) for each in found.items] == [
        ("web", 9, True), ("http://10.0.0.7:80", 2, True), ("10.0.0.7:5432", 0, True),
    ]  # fmt: skip
    services = [
        SimpleNamespace(url=url, alias="out", is_serving=serving, problem="silent",
                        health=SimpleNamespace(status="unhealthy"))
        for url, serving in [("http://10.0.0.8:80", False), ("http://10.0.0.9:80", True),
                             ("http://10.0.0.7:80", False)]
    ]  # fmt: skip
    stage.manager.routes.services = services
    *before, added = (await stage.perform("hosts")).items
    assert [each.host for each in before] == ["web", "http://10.0.0.7:80", "10.0.0.7:5432"]
    assert before[1].available, "HAProxy still uses it"
    assert (added.host, added.routes, added.available) == ("http://10.0.0.8:80", ("out",), False)
    assert (added.health, added.why) == ("unhealthy", "silent")


@staged_by(staged)
async def test_gateway_that_does_not_answer_is_reported_with_the_reason(stage: Stage, /) -> None:
    stage.figures.haproxy.hung = True
    for verb, options in [("hosts", {}), ("host", {"op": "disable", "hosts": ["web"]})]:
        found = await stage.perform(verb, **options)
        assert found.exit_code == NOT_AS_DESIRED
        assert found.errors[0].message == "the gateway does not answer: port 80 is in use"
    stage.figures.is_running = False
    assert (await stage.perform("host", op="disable", hosts=["web"])).exit_code == NOT_AS_DESIRED
    stage.manager.tables = Tables()
    assert (await stage.perform("hosts")).exit_code == DONE


@staged_by(staged)
async def test_ordered_hosts_are_returned_and_unknown_ones_are_errors(stage: Stage, /) -> None:
    found = await stage.perform("host", op="disable", hosts=["web"])
    assert stage.figures.hosts.host_record("web").until == stage.figures.clock.time() + 30
    assert ([each.host for each in found.items], found.warnings, found.exit_code) == (["web"], (), DONE)
    assert (found.items[0].state, found.items[0].available) == ("disabled", False)
    await stage.perform("host", op="drain", hosts=["web", "10.0.0.7:80"])
    assert stage.figures.hosts.host_record("http://10.0.0.7:80").state == "draining"
    stage.manager.late = "not everything is in force yet"
    found = await stage.perform("host", op="enable", hosts=["web"])
    assert (found.items[0].state, found.warnings) == ("active", ("not everything is in force yet",))
    found = await stage.perform("host", op="disable", hosts=["web", "x"])
    assert (found.exit_code, found.errors[0].message) == (NOTHING_MATCHED, "no backend is called 'x'")
    assert found.errors[0].hint == "`poolctl backends` lists them"
    assert stage.figures.hosts.host_record("web").state == "active", "none is changed then"
    stage.manager.tables = Tables()
    found = await stage.perform("host", op="disable", hosts=["web"])
    assert (found.exit_code, found.errors[0].message) == (NOTHING_MATCHED, "the pool has no gateway")


@staged_by(staged)
async def test_status_warns_of_routes_that_do_not_serve(stage: Stage, /) -> None:
    stage.figures.servers["web"] = server(TargetState.FAILED, "the server is failed")
    (warning,) = (await stage.extended("status", result=Result(warnings=()))).warnings
    assert warning == "the route shop is error (the server is failed), and 2 more: poolctl health --routes"
    assert (await stage.extended("stats")).warnings == ()
    healths = await stage.part.route_healths()
    assert [*healths] == ["shop", "out", "out (stream)"]
    await stage.ask("start")
    stage.figures.servers["web"] = server()
    stage.manager.routes.routes = ROUTES._replace(http=ROUTES.http[:1], streams=())
    assert (await stage.extended("status")).warnings == ()
