"""State and figures of the gateway, for list, status and stats."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig, TLSConfig
from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostManager
from poolctl.features.gateway.process.backends.route_backends import READY, SLEEPING, STARTING
from poolctl.features.gateway.process.counts import Counts
from poolctl.features.gateway.process.settings import UDP, ListenerSettings, ServerFacts
from poolctl.features.gateway.supervision.computed_routes import RouteSet
from poolctl.features.gateway.supervision.gateway_statistics import GatewayStatistics, RouteFigures
from poolctl.features.gateway.supervision.pool_gateway import PoolGateway
from poolctl.features.gateway.table import GatewayConfig
from poolctl.routing.route import REGISTRATION, ExcludedRoute, Header, Route, Target
from poolctl.routing.route_health import HEALTHY, UNHEALTHY, RouteHealth
from poolctl.routing.route_report import SERVING, SILENT, RegistrationReport, RouteReport
from poolctl.routing.route_table import write_table
from poolctl.runners.process_link import Descriptor, identity
from poolctl.states import Status
from poolctl.worker import tally
from tests.manual_clock import ManualClock
from tests.serving import blank_page
from tests.unit.core.ordered_core import run, web
from tests.unit.supervisor.desk import Desk, part_site


async def _unchanged(result: Result) -> Result:
    return result


class Process:
    """The gateway's, which answers as long as it is not `hung`."""

    def __init__(self) -> None:
        self.known = identity(os.getpid())
        self.counts = Counts()
        self.hung = False

    async def figures(self) -> dict[str, Any]:
        if self.hung:
            raise TimeoutError
        slots = self.counts.total()
        refused = list(self.counts.refusals)
        return {"slots": slots, "refused": refused, "connections": 5, "streamed": 2, "stream_errors": 1}

    def serve(self, count: int, status: int = 200) -> None:
        for _ in range(count):
            self.counts.route("shop").began()
            self.counts.route("shop").answered(status, 0.001)


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
        totals: Any = SimpleNamespace(passed_to_the_ended=lambda entry: {1: 7})
        self.statistics = GatewayStatistics(self.manager, self.core, totals)
        part = PoolGateway(part_site(self.core, self.events))
        verbs: Any = SimpleNamespace(warn=_unchanged, gateway=self.manager, statistics=self.statistics)
        part._verbs = verbs
        self.conclude = part.extend  # type: ignore[method-assign]

    async def gateway(self, verb: str, *targets: str) -> Any:
        return (await self.ask(verb, *targets)).get("gateway")


def test_state_and_addresses_are_those_of_the_process() -> None:
    async def scenario() -> None:
        stage = Stage()
        found = await stage.gateway("list")
        assert (found["state"], found["pid"], found["routes"], found["restarts"]) == (
            "running",
            os.getpid(),
            1,
            2,
        )
        assert found["addresses"] == [
            "http://0.0.0.0:80", "https://0.0.0.0:443", "udp://127.0.0.1:53", "unix:/run/shop.sock",
        ]  # fmt: skip
        assert found["uptime_seconds"] > 0
        assert "stats" not in found
        stage.manager.gateway = None
        assert (await stage.gateway("list"))["state"] == "starting"
        stage.manager.problem = "port 80 is in use"
        found = await stage.gateway("status")
        assert (found["state"], found["problem"], found["pid"]) == ("failed", "port 80 is in use", None)
        stage.manager.tables = Tables()
        assert await stage.gateway("list") is await stage.gateway("status") is None

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
        stage.process.counts.refused("404")
        stage.process.counts.refused("503", "shop")
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


def test_samples_are_taken_while_there_is_a_gateway() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.statistics.follow()
        await asyncio.sleep(0)
        stage.process.serve(20)
        stage.clock.advance(10)
        while (await stage.gateway("status"))["stats"]["requests_per_second"] is None:
            await asyncio.sleep(0)
        stage.manager.tables = Tables()
        stage.statistics.follow()
        assert stage.statistics._sampling is None

    run(scenario())


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
        self.counts = Counts()
        self.clock = ManualClock()
        self.hosts = HostManager(self.clock.monotonic, wall=self.clock.time)
        self.backends = Backends(self.hosts, self.clock.monotonic, counts=self.counts)
        self.backends.apply(
            routes, {"web": ServerFacts(name="web", bind=self.config.key, state="running", ready=True)}
        )
        self.services: dict[str, list[Any]] = {}
        self.excluded: tuple[ExcludedRoute, ...] = ()

    def passed(self, alias: str, count: int, errors: int = 0) -> None:
        page = memoryview(bytearray(tally.SIZE_BYTES)).cast("Q")
        for slot, value in enumerate(self.counted):
            page[slot] = value
        page[tally.route_slot(page, alias)] += count
        page[tally.STARTED] += count
        page[tally.STATUS + 5] += errors
        page[tally.error_slot(page, alias) or 0] += errors
        page[tally.BUCKETS] += count
        self.counted = page.tolist()

    def proxied(self, alias: str, count: int) -> None:
        for _ in range(count):
            for traffic in (self.counts.route(alias), self.counts.backend("web")):
                traffic.began()
                traffic.answered(200, 0.001)

    def report(self, route: Route) -> RouteReport:
        with self.figures() as figures:
            return figures.of(route)

    def health(self, route: Route) -> RouteHealth:
        with self.figures() as figures:
            return figures.health(route)

    @contextmanager
    def figures(self) -> Iterator[RouteFigures]:
        entry = SimpleNamespace(
            config=self.config, observed=SimpleNamespace(workers={}, failure=None), state="running",
            health=Status.OK, ready=True, name="web", uptime_seconds=lambda now: 1.0,
        )  # fmt: skip
        core: Any = SimpleNamespace(
            clock=ManualClock(),
            health=SimpleNamespace(latency_seconds=lambda entry: None, complaint=lambda entry: ""),
            entries={"web": entry},
            runner=SimpleNamespace(capabilities=SimpleNamespace(counters=None)),
        )
        totals: Any = SimpleNamespace(
            of_the_ended=lambda entry: self.counted[: tally.COUNTED],
            by_route_of_the_ended=lambda entry: tally.by_route(self.counted),
        )
        table: Any = SimpleNamespace(
            bind=self.listeners, header_for_host=self.header_for_host, engine=self.engine
        )
        gateway: Any = SimpleNamespace(
            routes=SimpleNamespace(
                table=self.table,
                routes=RouteSet(http=self.routes, excluded=self.excluded),
                services=SimpleNamespace(
                    of=lambda alias: self.services.get(alias, []),
                    reports=lambda alias: tuple(each.report for each in self.services.get(alias, ())),
                ),
            ),
            tables=Tables(gateway=table),
            passes_to=lambda server: server in self.pairs,
            probes=SimpleNamespace(latency_seconds=lambda url: None),
        )
        report = {
            "counts": self.counts.snapshot(),
            "hosts": self.backends.snapshot(),
            "healths": self.backends.healths(),
        }
        figures = RouteFigures(gateway, core, totals, report)
        try:
            yield figures
        finally:
            figures.close()


def service(url: str, health: RouteHealth, *, is_serving: bool = False) -> SimpleNamespace:
    """A probed service of the route "users"."""
    report = RegistrationReport(name="users", url=url, state=SERVING if is_serving else SILENT)
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
    stage.counts.refused("503", "shop")
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
    stage.services["users"] = [service("http://10.0.0.7:9000", RouteHealth(status=UNHEALTHY))]
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
    stage.backends.rank("http://wiki:80", rank, None)
    assert stage.report(wiki).state == state


def test_service_whose_probe_passes_is_healthy_before_its_first_request(stages: list[RoutePool]) -> None:
    url = "http://10.0.0.7:9000"
    users = Route(alias="users", to=(Target(url=url),), provider=REGISTRATION)
    stage = stage_of(stages, users)
    stage.services["users"] = [service(url, RouteHealth(status=HEALTHY), is_serving=True)]
    assert stage.report(users).state == "healthy"
    stage.hosts.disable(url)
    assert stage.report(users).state == "unknown"
