"""State and figures of the gateway, for list, status and stats."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.features.gateway.process.counts import Counts
from poolctl.features.gateway.process.settings import UDP, ListenerSettings
from poolctl.features.gateway.supervision.computed_routes import RouteSet
from poolctl.features.gateway.supervision.gateway_statistics import GatewayStatistics
from poolctl.features.gateway.supervision.pool_gateway import PoolGateway
from poolctl.features.gateway.table import GatewayConfig
from poolctl.routing.route import Route, Target
from poolctl.runners.process_link import identity
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
