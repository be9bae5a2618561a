"""State and figures of the gateway, for list, status and stats."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.config import Tables
from poolctl.control.gateway_answers import RoutesResult
from poolctl.features.gateway.settings import ListenerSettings
from poolctl.features.gateway.supervision.route_tables import RouteSet
from poolctl.features.gateway.supervision.statistics import RouteReporter
from poolctl.features.gateway.table import GatewayConfig
from poolctl.features.gateway.target import MachineState, TargetState
from poolctl.platform import age_seconds
from poolctl.routing.route import REGISTRATION, ExcludedRoute, Redirect, Route, StreamRoute, Target
from poolctl.routing.route_health import HEALTHY, UNHEALTHY, RouteHealth
from poolctl.routing.route_report import SERVING, SILENT, RegisteredServiceReport, RouteReport
from poolctl.runners.process_usage import ProcessUsages
from poolctl.selection.selector import Selector
from poolctl.states import Status
from poolctl.supervisor.verbs.verb import Call
from poolctl.worker import tally
from tests.manual_clock import ManualClock
from tests.serving import blank_page
from tests.unit.core.ordered_core import web
from tests.unit.supervisor.desk import Desk, part_context

from .scripted_haproxy import FiguresStage, ScriptedPoolGateway, server


async def _nothing() -> None: ...


SHOP = Route(alias="shop", path="/shop", to=(Target(server="web"),))
NEWS = Route(alias="news", path="/news", to=(Target(server="web"),))
DB = StreamRoute(alias="db", bind="127.0.0.1:5432", to=(Target(url="10.0.0.1:5432"),))


class Stage(Desk):
    """A pool with a gateway."""

    def __init__(self) -> None:
        super().__init__(web())
        self.stage = FiguresStage(SHOP, DB)
        self.runner.usages = ProcessUsages()
        listeners = [
            ListenerSettings(bind="0.0.0.0:80"),
            ListenerSettings(bind="0.0.0.0:443", tls=True),
            ListenerSettings(bind="127.0.0.1:53", protocol="tcp"),
            ListenerSettings(bind="unix:/run/shop.sock"),
        ]
        self.manager: Any = SimpleNamespace(
            gateway=self.stage.haproxy, pid=os.getpid(), problem="", instability="", restarts=2, listeners=listeners,
            routes=SimpleNamespace(
                routes=RouteSet(http=(SHOP,)), services=None, wait_until_current=_nothing, generation=1,
            ),
            machines=None, is_configured=True, apply_tables=lambda tables: None, wait_until_serving=_nothing,
            targets=self.stage.targets, why_unavailable="",
            processes=SimpleNamespace(replaced_pids=[1, 2]), figures=self.stage.figures,
            counts=self.stage.counts,
        )  # fmt: skip
        parts: Any = SimpleNamespace(of=lambda kind: [])
        part = ScriptedPoolGateway(part_context(self.core, self.events)._replace(parts=parts), self.manager)
        part.apply_tables(Tables(gateway=GatewayConfig()))
        self.part = part
        self.wait_for_effects = part.extend  # type: ignore[method-assign]

    async def gateway(self, verb: str, *targets: str) -> Any:
        return (await self.ask(verb, *targets)).get("gateway")

    async def stats(self) -> Any:
        return (await self.gateway("status")).get("stats")

    def serve(self, count: int, status: int = 200) -> None:
        self.stage.count(SHOP, stot=count, **{f"hrsp_{status // 100}xx": count})


async def test_state_and_addresses_are_those_of_the_process() -> None:
    stage = Stage()
    found = await stage.gateway("list")
    whole = {
        "state": "running", "problem": "", "pid": os.getpid(), "routes": 1, "restarts": 2,
        "addresses": [
            "http://0.0.0.0:80", "https://0.0.0.0:443", "tcp://127.0.0.1:53", "unix:/run/shop.sock",
        ],
    }  # fmt: skip
    assert found.pop("uptime_seconds") > 0
    assert found == whole
    stage.manager.instability = "it was restarted twice"
    routes = stage.manager.routes.routes
    stage.manager.routes.routes = routes._replace(streams=(StreamRoute(alias="db", bind=":1"),))
    found = await stage.gateway("list")
    assert (found["state"], found["problem"], found["routes"]) == ("running", "it was restarted twice", 2)
    stage.manager.pid = None
    away = {"state": "starting", "problem": "it was restarted twice", "pid": None, "routes": 2}
    assert await stage.gateway("list") == {**whole, **away, "uptime_seconds": 0.0}
    stage.manager.problem = "port 80 is in use"
    found = await stage.gateway("status")
    assert (found["state"], found["problem"], found["pid"]) == ("failed", "port 80 is in use", None)
    stage.manager.is_configured = False
    assert await stage.gateway("list") is await stage.gateway("status") is None


async def test_routes_that_change_while_haproxy_is_asked_are_listed_as_they_are_then() -> None:
    stage = Stage()

    async def change() -> None:
        stage.stage.set_routes(NEWS)
        stage.manager.routes.routes = RouteSet(http=(NEWS,))

    stage.manager.wait_until_serving = change
    listed = await stage.part.verbs["routes"](Call(Selector(), {}, lambda line: None))
    assert isinstance(listed, RoutesResult)
    assert [report.alias for report in listed.items] == ["news"]


async def test_uptime_is_the_age_of_the_process() -> None:
    stage = Stage()
    before = age_seconds(os.getpid())
    assert round(before, 3) <= (await stage.gateway("list"))["uptime_seconds"] < before + 60


async def test_selection_of_servers_is_without_the_gateway() -> None:
    stage = Stage()
    for verb in ("list", "status"):
        assert await stage.gateway(verb, "*") is None
        assert await stage.gateway(verb, "web") is None


async def test_figures_are_sums_and_rates_of_the_last_seconds() -> None:
    stage = Stage()
    stage.serve(10)
    stage.stage.count(DB, stot=2)
    first = await stage.stats()
    assert (first["requests_total"], first["errors_total"]) == (12, 0)
    assert first["requests_per_second"] is None, "there is nothing to compare with"
    stage.stage.count_unrouted(2)
    refused = await stage.stats()
    assert (refused["requests_total"], refused["refused_total"]) == (14, 2)
    stage.serve(20, 500)
    stage.stage.clock.advance(10)
    second = await stage.stats()
    assert (second["requests_per_second"], second["errors_per_second"]) == (2.2, 2.0)
    stage.stage.haproxy.hung = True
    assert "stats" not in await stage.gateway("status"), "a hung gateway holds up no status"


async def test_status_has_all_figures() -> None:
    stage = Stage()
    stage.serve(3)
    stage.serve(1, 502)
    stage.stage.count_unrouted(1)
    stage.stage.haproxy.count("gateway", "FRONTEND", scur=5)
    found = await stage.stats()
    assert found.pop("memory_bytes") > 1_000_000
    assert found.pop("cpu_percent") > 0
    assert found == {
        "requests_total": 5, "refused_total": 1, "errors_total": 1, "requests_per_second": None,
        "errors_per_second": None, "connections": 5, "replaced_processes": 2,
    }  # fmt: skip


async def test_rates_are_those_of_the_last_four_seconds_and_none_after_the_gateway_was_hung() -> None:
    stage, found = Stage(), []
    for number in range(8):
        found.append((await stage.stats())["requests_per_second"])
        stage.serve(2**number)
        stage.stage.clock.advance(0.5)
        await stage.stats()
        stage.stage.clock.advance(0.5)
    assert found == [None, 1, (1 + 2) / 2, 2.333, 15 / 4, 30 / 4, 60 / 4, 120 / 4]
    stage.stage.haproxy.hung = True
    assert await stage.stats() is None
    stage.stage.haproxy.hung = False
    assert (await stage.stats())["requests_per_second"] is None


async def test_counts_of_another_process_are_added_to_those_before() -> None:
    stage = Stage()
    stage.serve(100)
    await stage.stats()
    stage.stage.replace_haproxy()
    stage.serve(5)
    stage.stage.clock.advance(10)
    found = await stage.stats()
    assert (found["requests_total"], found["requests_per_second"]) == (105, 0.5)


class RoutePool:
    """A gateway before the server "web"; the counts of its ended workers are `counted`."""

    def __init__(self, *routes: Route | StreamRoute) -> None:
        self.routes = RouteSet(
            http=tuple(each for each in routes if isinstance(each, Route)),
            streams=tuple(each for each in routes if isinstance(each, StreamRoute)),
        )
        self.stage = FiguresStage(*routes)
        self.stage.servers["web"] = server(bind="127.0.0.1:9001")
        self.config = ServerConfig(name="web", bind="127.0.0.1:9001", app="any:app")
        self.counted = blank_page().tolist()
        self.services: dict[str, list[Any]] | None = {}
        self.state, self.ready = "running", True
        self.rests = False  # it starts on demand, and was not started
        self.workers: dict[int, list[int] | None] = {}  # their counts by number
        self.answers = True

    def serve(self, route: Route, count: int, **counts: int) -> None:
        self.stage.count(route, stot=count, **counts)
        self.stage.read_now()

    def report(self, route: Route | StreamRoute) -> RouteReport:
        return self.figures().report_of(route)

    def health(self, route: Route) -> RouteHealth:
        return self.figures().health(route)

    def figures(self) -> RouteReporter:
        workers = {number: SimpleNamespace(placement=number or None) for number in self.workers}
        entry = SimpleNamespace(
            config=self.config, observed=SimpleNamespace(workers=workers, failure=None), state=self.state,
            health=Status.OK, ready=self.ready, name="web", uptime_seconds=lambda now: 1.0,
            rests_until_named=self.rests, completed=False, ended=False, present_failure=None,
        )  # fmt: skip
        core: Any = SimpleNamespace(
            clock=ManualClock(),
            health=SimpleNamespace(latency_seconds=lambda entry: 0.25, first_worker_problem=lambda entry: ""),
            entries={"web": entry},
            runner=SimpleNamespace(counts=self.workers.get),
        )
        totals: Any = SimpleNamespace(counts_of_ended_workers=lambda entry: self.counted[: tally.COUNTED])
        gateway: Any = SimpleNamespace(
            routes=SimpleNamespace(routes=self.routes, services=self._service_source()),
            why_unavailable="it does not run",
            probes=SimpleNamespace(latency_seconds={"http://wiki:80": 0.5}.get),
            hosts=self.stage.hosts, targets=self.stage.targets, counts=self.stage.counts,
            figures=self.stage.figures,
        )  # fmt: skip
        return RouteReporter(gateway, core, totals, answered=self.answers)

    def _service_source(self) -> Any:
        services = self.services
        if services is None:
            return None
        return SimpleNamespace(
            of=lambda alias: services.get(alias, []),
            reports=lambda alias: tuple(each.report for each in services.get(alias, ())),
        )


def service(url: str, health: RouteHealth, *, is_serving: bool = False) -> SimpleNamespace:
    """A probed service of the route "users"."""
    report = RegisteredServiceReport(name="users", url=url, state=SERVING if is_serving else SILENT)
    return SimpleNamespace(url=url, health=health, is_serving=is_serving, is_probed=True, report=report)


def page_of(latencies: dict[int, int]) -> list[int]:
    """A worker's counts, with this many requests in each bucket of latencies."""
    page = blank_page()
    for bucket, count in latencies.items():
        page[tally.BUCKETS + bucket] = count
    return page.tolist()


def test_each_route_of_one_server_has_its_own_requests_and_the_latencies_of_the_server() -> None:
    pool = RoutePool(SHOP, NEWS)
    pool.counted = page_of({2: 5})
    pool.workers = {
        0: page_of({9: 100}),
        1: page_of({4: 100}),
        2: None,
    }  # one is not placed, one does not count
    pool.stage.count(SHOP, "web", stot=7, hrsp_2xx=6, hrsp_5xx=1)
    pool.serve(SHOP, 10, hrsp_2xx=6, hrsp_5xx=2, dreq=2, econ=1, qcur=3)
    shop, news = pool.report(SHOP), pool.report(NEWS)
    assert (shop.requests, shop.refused, shop.errors, shop.waiting) == (10, 3, 2, 3)
    assert shop.p50_seconds is not None
    assert shop.p99_seconds is not None
    assert 0.0025 < shop.p50_seconds < shop.p99_seconds <= 0.005
    assert (news.requests, news.errors, news.p50_seconds, news.p99_seconds) == (0, 0, None, None)


def test_report_of_a_route_has_all_of_its_figures() -> None:
    pool = RoutePool(SHOP)
    idle = RouteReport(
        alias="shop", path="/shop", to=("web",), policy="round-robin", way="http", provider="file", state="healthy",
    )  # fmt: skip
    assert pool.report(SHOP) == idle
    pool.counted = page_of({0: 4})
    pool.serve(SHOP, 4)
    assert pool.report(SHOP) == replace(idle, requests=4, p50_seconds=0.000125, p99_seconds=0.000247)


def test_stream_has_the_counts_of_its_connections() -> None:
    pool = RoutePool(DB)
    whole = RouteReport(
        alias="db", host="127.0.0.1:5432", to=("10.0.0.1:5432",), policy="round-robin", way="stream",
        provider="file", state="unknown",
    )  # fmt: skip
    assert pool.report(DB) == whole
    pool.stage.count(DB, "10.0.0.1:5432", stot=3, econ=2, bout=1)
    pool.stage.count(DB, stot=4, econ=3, qcur=1)
    pool.stage.read_now()
    assert pool.report(DB) == replace(whole, requests=4, refused=1, errors=2, waiting=1, state="healthy")


def test_route_is_as_healthy_as_its_services_and_shows_those_that_it_accepts() -> None:
    users = Route(alias="users", path="/users")
    pool = RoutePool(users)
    pool.services = {"users": [service("http://10.0.0.7:9000", RouteHealth(status=UNHEALTHY))]}
    found = pool.report(users)
    assert found.state == "unhealthy"
    assert [each.state for each in found.registrations or ()] == ["silent"]
    excluded = ExcludedRoute(alias="users", reason="not accepted", provider=REGISTRATION)
    pool.routes = pool.routes._replace(excluded=(excluded,))
    refused = pool.report(users)
    assert (refused.state, refused.registrations) == ("unknown", None)


@pytest.mark.parametrize(
    ("machine", "state"), [("stopped", "napping"), ("starting", "starting"), ("running", "unknown")]
)
def test_route_to_a_machine_that_a_request_would_start_is_napping(machine: str, state: str) -> None:
    wiki = Route(alias="wiki", to=(Target(url="http://wiki:80"),))
    pool = RoutePool(wiki)
    pool.stage.targets.machines = {"http://wiki:80": MachineState(state=machine)}
    assert pool.report(wiki).state == state
    assert pool.health(wiki).latency_seconds == 0.5


def test_service_whose_probe_passes_is_healthy_before_its_first_request() -> None:
    url = "http://10.0.0.7:9000"
    users = Route(alias="users", to=(Target(url=url),), provider=REGISTRATION)
    pool = RoutePool(users)
    pool.services = {"users": [service(url, RouteHealth(status=HEALTHY), is_serving=True)]}
    assert pool.report(users).state == "healthy"
    pool.stage.hosts.disable(url)
    assert pool.report(users).state == "unknown"


def test_every_route_is_an_error_while_the_gateway_does_not_answer() -> None:
    pool = RoutePool(SHOP)
    pool.answers = False
    assert pool.health(SHOP) == RouteHealth(
        status="error", detail="the gateway does not answer: it does not run"
    )


def test_redirect_is_healthy() -> None:
    moved = Route(alias="moved", redirect=Redirect(to="https"))
    assert RoutePool(moved).health(moved) == RouteHealth(status=HEALTHY)


def test_health_of_a_server_is_the_gateways_verdict_with_what_the_supervisor_knows() -> None:
    pool = RoutePool(both := replace(SHOP, to=(Target(server="web"), Target(server="other"))))
    own = RouteHealth(status=HEALTHY, uptime_seconds=1.0, latency_seconds=0.25)
    assert pool.health(both) == own
    pool.stage.servers["other"] = server()
    pool.stage.count(both, "web", stot=9, eresp=9)
    pool.stage.read_now()
    pool.stage.servers["other"] = server(TargetState.STOPPED)
    why = "breaker open: 9 failures, 10 s left"
    assert pool.health(both) == replace(own, status=UNHEALTHY, detail=why)
    pool.stage.hosts.disable("web")
    found = pool.health(both)
    assert (found.status, found.uptime_seconds, found.latency_seconds) == ("unknown", 1.0, 0.25)
    assert found.detail == "disabled by request"


def test_route_to_a_server_that_was_not_started_on_demand_is_no_fault() -> None:
    pool = RoutePool(SHOP)
    pool.state, pool.ready = "stopped", False
    pool.stage.servers["web"] = server(TargetState.STOPPED)
    assert pool.health(SHOP).is_faulty
    pool.rests = True
    assert not pool.health(SHOP).is_faulty


def test_excluded_route_lists_its_services_if_they_are_the_cause() -> None:
    pool = RoutePool(SHOP)
    found = service("http://10.0.0.7:9000", RouteHealth())
    pool.services = {"users": [found]}
    route = ExcludedRoute(alias="users", host="a.example", reason="twice", provider=REGISTRATION)
    report = RouteReport(alias="users", host="a.example", way="excluded", why="twice", provider=REGISTRATION)

    def excluded(route: ExcludedRoute) -> RouteReport:
        return pool.figures().report_of_excluded(route)

    assert excluded(route) == replace(report, registrations=(found.report,))
    assert excluded(replace(route, provider="file")) == replace(report, provider="file")
    assert excluded(replace(route, alias="other")) == replace(report, alias="other")
    pool.services = None
    assert excluded(route) == report
    assert pool.report(SHOP).registrations is None
