"""State and figures of the gateway, for list, status and stats."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig, TLSConfig
from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostStates
from poolctl.features.gateway.process.backends.route_backends import READY, SLEEPING, STARTING
from poolctl.features.gateway.process.counts import TrafficCounts
from poolctl.features.gateway.process.settings import UDP, ListenerSettings, ServerFacts
from poolctl.features.gateway.supervision.computed_routes import RouteSet
from poolctl.features.gateway.supervision.gateway_statistics import GatewayStatistics, RouteReporter
from poolctl.features.gateway.supervision.pool_gateway import PoolGateway
from poolctl.features.gateway.table import GatewayConfig
from poolctl.platform import age_seconds
from poolctl.routing.route import REGISTRATION, ExcludedRoute, Header, Redirect, Route, StreamRoute, Target
from poolctl.routing.route_health import HEALTHY, UNHEALTHY, RouteHealth
from poolctl.routing.route_report import SERVING, SILENT, RegisteredServiceReport, RouteReport
from poolctl.routing.route_table import write_table
from poolctl.runners.process_link import Descriptor, identity
from poolctl.states import Status
from poolctl.worker import tally
from tests.manual_clock import ManualClock
from tests.needs import needs
from tests.serving import blank_page
from tests.unit.core.ordered_core import run, web
from tests.unit.supervisor.desk import Desk, part_site
from tests.unit.supervisor.whole_supervisor import InTheSameThread
from tests.virtual_loop import VirtualLoop


async def _unchanged(result: Result) -> Result:
    return result


class Process:
    """The gateway's, which answers as long as it is not `hung`."""

    def __init__(self) -> None:
        self.known = identity(os.getpid())
        self.counts = TrafficCounts()
        self.hung = False
        self.asked = 0
        self.more: dict[str, int] = {}

    async def fetch_request_totals(self) -> dict[str, Any]:
        self.asked += 1
        if self.hung:
            raise TimeoutError
        slots = self.counts.total()
        refused = list(self.counts.route_and_other_refusals)
        return {
            "slots": slots, "refused": refused, "connections": 5, "streamed": 2, "stream_errors": 1, **self.more,
        }  # fmt: skip

    def serve(self, count: int, status: int = 200, seconds: float = 0.001) -> None:
        for _ in range(count):
            self.counts.route("shop").count_start()
            self.counts.route("shop").count_response(status, seconds)


class Stage(Desk):
    """A pool with a gateway."""

    def __init__(self) -> None:
        super().__init__(web())
        self.process = Process()
        routes = RouteSet(http=(Route(alias="shop", to=(Target(server="web"),)),), servers=frozenset({"web"}))
        listeners = [
            ListenerSettings(bind="0.0.0.0:80"),
            ListenerSettings(bind="0.0.0.0:443", tls=True),
            ListenerSettings(bind="127.0.0.1:53", protocol=UDP),
            ListenerSettings(bind="unix:/run/shop.sock"),
        ]
        self.manager: Any = SimpleNamespace(
            gateway=self.process, problem="", instability="", restarts=2, listeners=listeners,
            routes=SimpleNamespace(routes=routes), tables=Tables(gateway=GatewayConfig()),
        )  # fmt: skip
        totals: Any = SimpleNamespace(counts_by_route_of_ended_workers=lambda entry: {1: 7})
        self.statistics = GatewayStatistics(self.manager, self.core, totals)
        part = PoolGateway(part_site(self.core, self.events))
        verbs: Any = SimpleNamespace(
            with_unhealthy_route_warning=_unchanged, gateway=self.manager, statistics=self.statistics
        )
        part._verbs = verbs
        self.await_effects_and_extend_result = part.extend  # type: ignore[method-assign]

    async def gateway(self, verb: str, *targets: str) -> Any:
        return (await self.ask(verb, *targets)).get("gateway")


def test_state_and_addresses_are_those_of_the_process() -> None:
    async def scenario() -> None:
        stage = Stage()
        found = await stage.gateway("list")
        whole = {
            "state": "running", "problem": "", "pid": os.getpid(), "routes": 1, "restarts": 2,
            "addresses": [
                "http://0.0.0.0:80", "https://0.0.0.0:443", "udp://127.0.0.1:53", "unix:/run/shop.sock",
            ],
        }  # fmt: skip
        assert found.pop("uptime_seconds") > 0
        assert found == whole
        stage.manager.instability = "it was restarted twice"
        routes = stage.manager.routes.routes
        stage.manager.routes.routes = routes._replace(streams=(StreamRoute(alias="db", bind=":1"),))
        found = await stage.gateway("list")
        assert (found["state"], found["problem"], found["routes"]) == ("running", "it was restarted twice", 2)
        stage.manager.gateway = None
        away = {"state": "starting", "problem": "it was restarted twice", "pid": None, "routes": 2}
        assert await stage.gateway("list") == {**whole, **away, "uptime_seconds": 0.0}
        stage.manager.problem = "port 80 is in use"
        found = await stage.gateway("status")
        assert (found["state"], found["problem"], found["pid"]) == ("failed", "port 80 is in use", None)
        stage.manager.tables = Tables()
        assert await stage.gateway("list") is await stage.gateway("status") is None

    run(scenario())


def test_uptime_is_the_age_of_the_process() -> None:
    async def scenario() -> None:
        stage = Stage()
        before = age_seconds(os.getpid())
        assert round(before, 3) <= (await stage.gateway("list"))["uptime_seconds"] < before + 60

    run(scenario())


def test_selection_of_servers_is_without_the_gateway() -> None:
    async def scenario() -> None:
        stage = Stage()
        for verb in ("list", "status"):
            assert await stage.gateway(verb, "*") is None
            assert await stage.gateway(verb, "web") is None

    run(scenario())


def test_figures_are_sums_and_rates_of_the_last_seconds() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.process.serve(10)
        first = (await stage.gateway("status"))["stats"]
        assert (first["requests_total"], first["passed_total"], first["proxied_total"]) == (19, 7, 12)
        assert (first["errors_total"], first["connections"]) == (1, 5)
        assert first["requests_per_second"] is None, "there is nothing to compare with"
        stage.process.counts.count_refusal("404")
        stage.process.counts.count_refusal("503", "shop")
        refused = (await stage.gateway("status"))["stats"]
        assert (refused["requests_total"], refused["proxied_total"], refused["refused_total"]) == (21, 12, 2)
        stage.process.serve(20, 500)
        stage.clock.advance(10)
        second = (await stage.gateway("status"))["stats"]
        assert (second["requests_per_second"], second["errors_per_second"]) == (2.2, 2.1)
        assert 0.0005 < second["latency_p50_seconds"] <= 0.001
        stage.process.hung = True
        assert "stats" not in await stage.gateway("status"), "a hung gateway holds up no status"

    run(scenario())


def test_status_has_all_figures() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.process.serve(3)
        stage.process.serve(1, 502)
        stage.process.counts.count_refusal("404")
        stage.process.counts.count_refusal("503", "shop")
        found = (await stage.gateway("status"))["stats"]
        assert found.pop("memory_bytes") > 1_000_000
        assert found.pop("cpu_percent") > 0
        latencies = found.pop("latency_p50_seconds"), found.pop("latency_p99_seconds")
        assert 0.0005 < latencies[0] < latencies[1] <= 0.001
        assert found == {
            "requests_total": 15, "passed_total": 7, "proxied_total": 6, "refused_total": 2, "errors_total": 3,
            "requests_per_second": None, "errors_per_second": None, "connections": 5, "replaced_processes": 0,
        }  # fmt: skip

    run(scenario())


@pytest.mark.parametrize(
    ("moments", "compared"),
    [
        ((0, 0.9), None),
        ((0, 1), 0),
        # A sample is kept when the last one is 5 s old, and rates are over at least 4 s if possible.
        ((0, 4, 4.9), 0),
        ((0, 4.9, 5.5), 0),
        ((0, 4.9, 9), 0),
        ((0, 5, 6), 0),
        ((0, 5, 8.9), 0),
        ((0, 5, 9), 5),
        ((0, 5, 10, 15, 18.9), 10),
        ((0, 5, 10, 15, 19), 15),
        ((0, 20, 21), 0),
    ],
)
def test_rates_are_since_a_sample_that_is_some_seconds_old(
    moments: tuple[float, ...], compared: float | None
) -> None:
    async def scenario() -> None:
        stage = Stage()
        passed: dict[float, int] = {}
        for number, moment in enumerate(moments):
            stage.clock.advance(moment - stage.clock.monotonic())
            stage.process.serve(2**number, 200)
            stage.process.serve(10**number, 500)
            passed[moment] = stage.process.counts.total()[tally.STARTED]
            found = (await stage.gateway("status"))["stats"]
        rates = found["requests_per_second"], found["errors_per_second"]
        if compared is None:
            assert rates == (None, None)
        else:
            first, seconds = moments.index(compared) + 1, moments[-1] - compared
            errors = sum(10**number for number in range(first, len(moments)))
            requests = passed[moments[-1]] - passed[compared]
            assert rates == (round(requests / seconds, 3), round(errors / seconds, 3))

    run(scenario())


def test_latencies_are_those_since_the_earlier_sample() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.process.serve(10, seconds=4.0)
        assert (await stage.gateway("status"))["stats"]["latency_p50_seconds"] > 2.5
        stage.clock.advance(5)
        found = (await stage.gateway("status"))["stats"]
        assert (found["requests_per_second"], found["latency_p50_seconds"]) == (0.0, None)
        stage.process.serve(2)
        stage.process.serve(98, seconds=0.004)
        stage.clock.advance(4)
        found = (await stage.gateway("status"))["stats"]
        assert 0.0025 < found["latency_p50_seconds"] < found["latency_p99_seconds"] <= 0.005

    run(scenario())


def test_counts_of_another_process_make_no_negative_rate() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.process.serve(100)
        await stage.gateway("status")
        stage.manager.gateway = stage.process = Process()
        stage.clock.advance(10)
        assert (await stage.gateway("status"))["stats"]["requests_per_second"] is None
        stage.process.serve(5)
        stage.clock.advance(10)
        assert (await stage.gateway("status"))["stats"]["requests_per_second"] == 0.5

    run(scenario())


def test_passed_requests_are_those_of_ended_and_of_running_workers() -> None:
    async def scenario() -> None:
        stage = Stage()
        page = blank_page()
        page[tally.STARTED] = 9
        page[tally.claim_route_slot(page, "shop")] += 4
        page[tally.claim_route_slot(page, "news")] += 5
        page[tally.error_slot(page, "news") or 0] += 3
        pages = {"web.1.0": page.tolist()}
        routes = stage.manager.routes.routes
        stage.manager.routes.routes = routes._replace(servers=frozenset({"removed", "web"}))
        await stage.ask("start")
        assert (await stage.gateway("status"))["stats"]["passed_total"] == 7
        stage.runner.counts = lambda placement: pages.get(placement.id)
        assert (await stage.gateway("status"))["stats"]["passed_total"] == 16
        assert await stage.statistics.passed_requests_by_route_mark() == {
            1: 7, tally.route_mark("shop"): 4, tally.route_mark("news"): 5,
        }  # fmt: skip
        pages.clear()
        assert await stage.statistics.passed_requests_by_route_mark() == {1: 7}, "the worker does not count"

    run(scenario())


def test_program_that_serves_is_measured_in_place_of_its_process() -> None:
    async def scenario(pid: int) -> None:
        stage = Stage()
        assert stage.statistics.serving_pid == os.getpid()
        first = (await stage.gateway("status"))["stats"]
        stage.process.more = {"program_pid": pid}
        found = (await stage.gateway("status"))["stats"]
        assert stage.statistics.serving_pid == pid
        assert 0 < found["memory_bytes"] < first["memory_bytes"] / 2
        stage.manager.gateway = None
        assert stage.statistics.serving_pid is None

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        run(scenario(program.pid))


def test_samples_are_taken_while_there_is_a_gateway() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.statistics.update_sampling()
        await asyncio.sleep(0)
        stage.process.serve(20)
        stage.clock.advance(10)
        while (await stage.gateway("status"))["stats"]["requests_per_second"] is None:
            await asyncio.sleep(0)
        stage.manager.tables = Tables()
        stage.statistics.update_sampling()
        assert stage.statistics._sampling is None

    run(scenario())


def test_samples_are_taken_every_ten_seconds_and_dropped_while_the_gateway_is_hung() -> None:
    loop = VirtualLoop()
    loop.set_default_executor(InTheSameThread())

    async def rate() -> Any:
        return (await stage.gateway("status"))["stats"]["requests_per_second"]

    async def follow() -> None:
        stage.statistics.update_sampling()
        stage.statistics.update_sampling()

    def pass_time(seconds: float) -> None:
        stage.clock.advance(seconds)
        loop.pass_time(seconds)

    try:
        stage = Stage()
        loop.run_until_complete(follow())
        pass_time(0)
        assert stage.process.asked == 1
        pass_time(9.9)
        assert stage.process.asked == 1
        pass_time(0.2)
        assert stage.process.asked == 2
        stage.clock.advance(4)
        stage.process.serve(5)
        assert loop.run_until_complete(rate()) == 1.25
        stage.process.hung = True
        pass_time(10)
        stage.process.hung = False
        assert loop.run_until_complete(rate()) is None, "no sample is left"
        stage.statistics.close()
        asked = stage.process.asked
        pass_time(100)
        assert stage.process.asked == asked
        assert loop.run_until_complete(rate()) is None
    finally:
        loop.close()


SHOP = Route(alias="shop", path="/shop", to=(Target(server="web"),))


NEWS = Route(alias="news", path="/news", to=(Target(server="web"),))


class RoutePool:
    """A gateway before the server "web", which has a pair; the counts of its ended workers are `counted`."""

    def __init__(self, *routes: Route, **keys: Any) -> None:
        self.routes = routes
        self.table = Descriptor(write_table(routes, 1))
        self.listeners = [SimpleNamespace(tls=False)]
        self.header_for_host = "Host"
        self.engine = "poolctl"
        self.pairs = {"web"}
        self.config = ServerConfig(**{"name": "web", "bind": "127.0.0.1:9001", "app": "any:app"} | keys)
        self.counted = blank_page().tolist()
        self.counts = TrafficCounts()
        self.clock = ManualClock()
        self.hosts = HostStates(self.clock.monotonic, wall=self.clock.time)
        self.backends = Backends(self.hosts, self.clock.monotonic, counts=self.counts)
        self.backends.apply(
            routes, {"web": ServerFacts(name="web", bind=self.config.key, state="running", ready=True)}
        )
        self.services: dict[str, list[Any]] | None = {}
        self.excluded: tuple[ExcludedRoute, ...] = ()
        self.state, self.ready, self.latency = "running", True, 0.25
        self.rests = False  # it starts on demand, and was not started
        self.workers: dict[int, list[int] | None] = {}  # their counts by number
        self.more: dict[str, Any] = {}  # of the report of the gateway's process

    def passed(self, alias: str, count: int, errors: int = 0) -> None:
        page = memoryview(bytearray(tally.SIZE_BYTES)).cast("Q")
        for slot, value in enumerate(self.counted):
            page[slot] = value
        page[tally.claim_route_slot(page, alias)] += count
        page[tally.STARTED] += count
        page[tally.STATUS + 5] += errors
        page[tally.error_slot(page, alias) or 0] += errors
        page[tally.BUCKETS] += count
        self.counted = page.tolist()

    def proxied(self, alias: str, count: int) -> None:
        for _ in range(count):
            for traffic in (self.counts.route(alias), self.counts.backend("web")):
                traffic.count_start()
                traffic.count_response(200, 0.001)

    def report(self, route: Route) -> RouteReport:
        return self.figures().report_of(route)

    def health(self, route: Route) -> RouteHealth:
        return self.figures().health(route)

    def figures(self) -> RouteReporter:
        workers = {number: SimpleNamespace(placement=number or None) for number in self.workers}
        entry = SimpleNamespace(
            config=self.config, observed=SimpleNamespace(workers=workers, failure=None), state=self.state,
            health=Status.OK, ready=self.ready, name="web", uptime_seconds=lambda now: 1.0,
            rests_until_named=self.rests,
        )  # fmt: skip
        core: Any = SimpleNamespace(
            clock=ManualClock(),
            health=SimpleNamespace(
                latency_seconds=lambda entry: self.latency, first_worker_problem=lambda entry: ""
            ),
            entries={"web": entry},
            runner=SimpleNamespace(counts=self.workers.get),
        )
        totals: Any = SimpleNamespace(
            counts_of_ended_workers=lambda entry: self.counted[: tally.COUNTED],
            counts_by_route_of_ended_workers=lambda entry: tally.by_route_mark(self.counted),
        )
        table: Any = SimpleNamespace(
            bind=self.listeners, header_for_host=self.header_for_host, engine=self.engine
        )
        gateway: Any = SimpleNamespace(
            routes=SimpleNamespace(
                table=self.table,
                routes=RouteSet(http=self.routes, excluded=self.excluded),
                services=self._service_source(),
            ),
            why_unavailable="it does not run",
            tables=Tables(gateway=table),
            passes_to=lambda server: server in self.pairs,
            probes=SimpleNamespace(latency_seconds={"http://wiki:80": 0.5}.get),
        )
        report = {
            "counts": self.counts.snapshot(),
            "hosts": self.backends.snapshot(),
            "healths": self.backends.healths(),
            **self.more,
        }
        return RouteReporter(gateway, core, totals, report)

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


@pytest.fixture
def stages() -> Iterator[list[RoutePool]]:
    made: list[RoutePool] = []
    yield made
    for stage in made:
        os.close(stage.table.fileno())


def stage_of(stages: list[RoutePool], *routes: Route, **keys: Any) -> RoutePool:
    stages.append(RoutePool(*routes, **keys))
    return stages[-1]


def test_each_route_of_one_server_has_its_own_requests(stages: list[RoutePool]) -> None:
    stage = stage_of(stages, SHOP, NEWS)
    stage.passed("shop", 5, errors=1)
    stage.passed("gone", 2, errors=2)  # not this route's
    stage.proxied("shop", 3)
    stage.counts.count_refusal("503", "shop")
    shop, news = stage.report(SHOP), stage.report(NEWS)
    assert (shop.requests, shop.passed, shop.proxied, shop.refused, shop.errors) == (9, 5, 3, 1, 2)
    assert (news.requests, news.passed, news.proxied, news.errors) == (0, 0, 0, 0)
    assert (news.p50_seconds, news.p99_seconds) == (None, None)
    assert shop.p50_seconds is not None
    assert shop.p99_seconds is not None
    assert 0 < shop.p50_seconds <= 0.0005 < shop.p99_seconds <= 0.001, "the passed ones were faster"


def test_route_that_passes_says_why_some_of_its_requests_are_proxied(stages: list[RoutePool]) -> None:
    stage = stage_of(stages, SHOP)
    assert (stage.report(SHOP).way, stage.report(SHOP).why) == ("pass", "")
    stage.proxied("shop", 1)
    assert "not in normal form" in stage.report(SHOP).why
    stage.listeners.append(SimpleNamespace(tls=True))
    assert (stage.report(SHOP).way, stage.report(SHOP).why.partition(" its ")[0]) == ("pass", "over TLS")
    secure = stage_of(stages, SHOP, tls=TLSConfig(cert="c.pem"))
    secure.listeners.append(SimpleNamespace(tls=True))
    secure.proxied("shop", 1)
    assert secure.report(SHOP).why.startswith("without TLS")


def test_route_that_its_servers_keep_from_being_passed_is_proxied(stages: list[RoutePool]) -> None:
    program = stage_of(stages, SHOP, app=None, command=["serve", "{fd}"])
    assert (program.report(SHOP).way, program.report(SHOP).why) == ("proxy", "web is a program")
    hidden = stage_of(stages, SHOP)
    hidden.pairs.clear()
    assert hidden.report(SHOP).why == "web has workers that cannot take passed connections"
    secure = stage_of(stages, SHOP, tls=TLSConfig(cert="c.pem"))
    assert secure.report(SHOP).why == "web speaks TLS, and no address of the gateway does"
    odd = stage_of(stages, SHOP)
    odd.header_for_host = "X-Host"
    assert odd.report(SHOP).why == "the host is taken from the header X-Host"
    beta = replace(SHOP, alias="beta", headers=(Header(name="x-beta"),), to=(Target(server="other"),))
    crossed = stage_of(stages, beta, SHOP)
    assert (crossed.report(SHOP).way, crossed.report(SHOP).why) == (
        "proxy", "another route of this host and path has conditions",
    )  # fmt: skip


def test_route_is_as_healthy_as_its_services_and_shows_those_that_it_accepts(stages: list[RoutePool]) -> None:
    users = Route(alias="users", path="/users")
    stage = stage_of(stages, users)
    stage.services = {"users": [service("http://10.0.0.7:9000", RouteHealth(status=UNHEALTHY))]}
    found = stage.report(users)
    assert found.state == "unhealthy"
    assert [each.state for each in found.registrations or ()] == ["silent"]
    stage.excluded = (ExcludedRoute(alias="users", reason="not accepted", provider=REGISTRATION),)
    refused = stage.report(users)
    assert (refused.state, refused.registrations) == ("unknown", None)


@pytest.mark.parametrize(
    ("rank", "state"), [(SLEEPING, "napping"), (STARTING, "starting"), (READY, "unknown")]
)
def test_route_to_a_machine_that_a_request_would_start_is_napping(
    stages: list[RoutePool], rank: int, state: str
) -> None:
    wiki = Route(alias="wiki", to=(Target(url="http://wiki:80"),))
    stage = stage_of(stages, wiki)
    stage.backends.set_rank("http://wiki:80", rank, None)
    assert stage.report(wiki).state == state
    assert stage.health(wiki).latency_seconds == 0.5


def test_service_whose_probe_passes_is_healthy_before_its_first_request(stages: list[RoutePool]) -> None:
    url = "http://10.0.0.7:9000"
    users = Route(alias="users", to=(Target(url=url),), provider=REGISTRATION)
    stage = stage_of(stages, users)
    stage.services = {"users": [service(url, RouteHealth(status=HEALTHY), is_serving=True)]}
    assert stage.report(users).state == "healthy"
    stage.hosts.disable(url)
    assert stage.report(users).state == "unknown"


def test_stream_has_the_counts_of_its_connections(stages: list[RoutePool]) -> None:
    stage = stage_of(stages)
    db = StreamRoute(alias="db", bind="127.0.0.1:5432", to=(Target(url="10.0.0.1:5432"),))
    dns = replace(db, alias="dns", protocol="udp")
    stage.more = {
        "streams": {
            "db": {"accepted": 9, "opened": 1, "passed": 2, "refused": 1, "failed": 3}, "dns": {"opened": 4},
        },
        "healths": {"stream db": {"10.0.0.1:5432": {"status": "napping"}}},
    }  # fmt: skip
    whole = RouteReport(
        alias="db", host="127.0.0.1:5432", to=("10.0.0.1:5432",), policy="round-robin", way="stream",
        provider="file", state="napping", requests=9, passed=2, proxied=6, refused=1, errors=3,
    )  # fmt: skip
    figures = stage.figures()
    assert figures.report_of(db) == whole
    none = {"passed": 0, "refused": 0, "errors": 0, "state": "unknown"}
    assert figures.report_of(dns) == replace(whole, alias="dns", requests=4, proxied=4, **none)
    assert figures.report_of(replace(db, alias="other")) == replace(
        whole, alias="other", requests=0, proxied=0, **none
    )


def test_report_of_a_route_has_all_of_its_figures(stages: list[RoutePool]) -> None:
    stage = stage_of(stages, SHOP)
    idle = RouteReport(
        alias="shop", path="/shop", to=("web",), policy="round-robin", mode="auto", way="pass", provider="file",
        state="healthy", registrations=None,
    )  # fmt: skip
    assert stage.report(SHOP) == idle
    stage.more = {"queues": {"shop": 3, "news": 2}}
    stage.passed("shop", 4)
    assert stage.report(SHOP) == replace(
        idle, requests=4, passed=4, waiting=3, p50_seconds=0.000125, p99_seconds=0.000247
    )


def test_counts_of_running_workers_are_added_to_those_of_the_ended(stages: list[RoutePool]) -> None:
    stage = stage_of(stages, SHOP)
    stage.passed("shop", 5, errors=1)
    page = blank_page()
    page[tally.claim_route_slot(page, "shop")] += 3
    page[tally.STARTED] += 3
    page[tally.error_slot(page, "shop") or 0] += 2
    page[tally.BUCKETS + 4] += 3
    stage.workers = {0: page.tolist(), 1: page.tolist(), 2: None}  # one is not placed, one does not count
    shop = stage.report(SHOP)
    assert (shop.requests, shop.passed, shop.proxied, shop.errors) == (8, 8, 0, 3)
    assert shop.p99_seconds is not None
    assert 0.0025 < shop.p99_seconds <= 0.005


def test_route_has_no_more_errors_than_passed_requests(stages: list[RoutePool]) -> None:
    stage = stage_of(stages, SHOP)
    stage.passed("shop", 2, errors=5)
    shop = stage.report(SHOP)
    assert (shop.requests, shop.passed, shop.errors) == (2, 2, 2)


def test_requests_that_were_proxied_are_not_among_the_latencies_of_the_workers(
    stages: list[RoutePool],
) -> None:
    stage = stage_of(stages, SHOP)
    stage.passed("shop", 1)
    counted = list(stage.counted)
    counted[tally.BUCKETS + 2] += 100  # as the worker counts requests that the gateway has proxied
    stage.counted = counted
    for _ in range(100):
        stage.counts.backend("web").count_response(200, 0.001)
    assert stage.report(SHOP).p99_seconds == 0.000247


def test_every_route_is_an_error_while_the_gateway_does_not_answer(stages: list[RoutePool]) -> None:
    stage = stage_of(stages, SHOP)
    stage.more = {"healths": None}
    assert stage.health(SHOP) == RouteHealth(
        status="error", detail="the gateway does not answer: it does not run"
    )


def test_redirect_is_healthy(stages: list[RoutePool]) -> None:
    moved = Route(alias="moved", redirect=Redirect(to="https"))
    assert stage_of(stages, moved).health(moved) == RouteHealth(status=HEALTHY)


def test_health_of_a_server_is_the_gateways_verdict_with_what_the_supervisor_knows(
    stages: list[RoutePool],
) -> None:
    stage = stage_of(stages, SHOP)
    own = RouteHealth(status=HEALTHY, uptime_seconds=1.0, latency_seconds=0.25)
    assert stage.health(SHOP) == own
    stage.more = {"healths": {"shop": {"web": {"status": "unhealthy", "detail": "its breaker is open"}}}}
    assert stage.health(SHOP) == replace(own, status=UNHEALTHY, detail="its breaker is open")
    stage.more = {"healths": {}}
    assert stage.health(SHOP) == own, "no request has come yet"
    stage.hosts.disable("web")
    found = stage.health(SHOP)
    assert (found.status, found.uptime_seconds, found.latency_seconds) == ("unknown", 1.0, 0.25)
    assert found.detail.startswith("disabled")


@pytest.mark.parametrize("verdicts", [{}, {"shop": {"web": {"status": "unhealthy", "detail": "refused"}}}])
def test_route_to_a_server_that_was_not_started_on_demand_is_no_fault(
    stages: list[RoutePool], verdicts: dict[str, Any]
) -> None:
    stage = stage_of(stages, SHOP)
    stage.state, stage.ready, stage.more = "stopped", False, {"healths": verdicts}
    assert stage.health(SHOP).is_faulty
    stage.rests = True
    assert not stage.health(SHOP).is_faulty


def test_excluded_route_lists_its_services_if_they_are_the_cause(stages: list[RoutePool]) -> None:
    stage = stage_of(stages)
    found = service("http://10.0.0.7:9000", RouteHealth())
    stage.services = {"users": [found]}
    route = ExcludedRoute(alias="users", host="a.example", reason="twice", provider=REGISTRATION)
    report = RouteReport(alias="users", host="a.example", way="excluded", why="twice", provider=REGISTRATION)

    def excluded(route: ExcludedRoute) -> RouteReport:
        return stage.figures().report_of_excluded(route)

    assert excluded(route) == replace(report, registrations=(found.report,))
    assert excluded(replace(route, provider="file")) == replace(report, provider="file")
    assert excluded(replace(route, alias="other")) == replace(report, alias="other")
    stage.services = None
    assert excluded(route) == report
    assert stage.report(SHOP).registrations is None


@needs("haproxy")
def test_other_engine_proxies_every_connection(stages: list[RoutePool]) -> None:
    stage = stage_of(stages, SHOP)
    stage.engine = "haproxy"
    found = stage.report(SHOP)
    assert (found.way, found.why) == ("proxy", "HAProxy proxies every connection")


def test_route_passes_while_one_of_its_servers_takes_connections(stages: list[RoutePool]) -> None:
    both = replace(SHOP, to=(Target(server="web"), Target(server="gone")))
    stage = stage_of(stages, both)
    stage.pairs.clear()
    assert stage.report(both).way == "pass", "of the other one nothing is known"
    stage.ready = False
    assert stage.report(SHOP).way == "pass", "workers that start have no pair yet"


@pytest.mark.parametrize("conditions", [{"methods": ("POST",)}, {"headers": (Header(name="x-beta"),)}])
def test_route_with_wildcard_host_is_proxied_where_another_one_has_conditions(
    stages: list[RoutePool], conditions: dict[str, Any]
) -> None:
    every = replace(SHOP, host="*.example")
    beta = replace(every, alias="beta", to=(Target(server="other"),), **conditions)
    stage = stage_of(stages, beta, every)
    found = stage.report(every)
    assert (found.way, found.why) == ("proxy", "another route of this host and path has conditions")
    assert stage_of(stages, every).report(every).way == "pass"


def test_tls_route_is_passed_by_its_host_if_workers_may_not_keep_other_connections(
    stages: list[RoutePool],
) -> None:
    root = replace(SHOP, path="/", other_user="it runs as another user")
    plain, secure = stage_of(stages, root), stage_of(stages, root, tls=TLSConfig(cert="c.pem"))
    secure.listeners.append(SimpleNamespace(tls=True))
    assert (plain.report(root).way, plain.report(root).why) == ("proxy", "it runs as another user")
    assert (secure.report(root).way, secure.report(root).why) == ("pass", "")
    both = replace(root, to=(Target(server="web"), Target(server="gone")))
    assert secure.report(both).why == "it runs as another user"
