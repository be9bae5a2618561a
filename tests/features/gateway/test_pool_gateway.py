"""The gateway's part of the supervisor: orders for hosts, and imports after a start, before files may be replaced."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.control.server_answers import ServerDetails, ShowResult
from poolctl.errors import ServerError
from poolctl.exit_codes import DONE, FAILED, INVALID_CONFIGURATION, NOT_AS_DESIRED, NOTHING_MATCHED
from poolctl.features.gateway.process.counts import TrafficCounts
from poolctl.features.gateway.supervision.computed_routes import RouteSet
from poolctl.features.gateway.supervision.gateway_statistics import GatewayStatistics
from poolctl.features.gateway.supervision.pool_gateway import GatewayVerbs, PoolGateway, parse_host_change
from poolctl.features.gateway.table import GatewayConfig, RouteConfig
from poolctl.json_form import Table, from_json
from poolctl.routing.route import ExcludedRoute, Route, StreamRoute, Target
from poolctl.runners.helper_process import Helpers
from poolctl.runners.process_link import identity
from poolctl.selection.selector import Selector, SelectorError
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.feature_parts import FeatureParts
from poolctl.supervisor.verbs.verb import Call
from tests.serving import blank_page
from tests.stand_in import item
from tests.unit.core.ordered_core import run, web
from tests.unit.runners.scripted_runner import SlowRunner
from tests.unit.supervisor.desk import Desk, part_site

LOOK = """
import sys
import poolctl.supervisor.supervisor
import poolctl.runners.local.local_runner
routes = {"poolctl.routing.match", "poolctl.features.gateway.table"}
assert not routes & set(sys.modules)
for name in poolctl.supervisor.feature_parts.modules():
    __import__(name)
assert not {"pydantic", "pydantic_core"} & set(sys.modules)
# Files of the package may be replaced from now on.
assert routes <= set(sys.modules)
there = set(sys.modules)
from poolctl.features.gateway.supervision import computed_routes, gateway_adoption, gateway_metrics, gateway_process
late = set(sys.modules) - there
assert not late, late
"""


@pytest.mark.slow
def test_supervisor_imports_the_parts_of_the_gateway_after_its_start() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_order_names_an_operation_hosts_and_a_time() -> None:
    for seconds in (None, 0, 1.5):
        order = {"op": "disable", "hosts": ["users", "http://10.0.0.7:9000"], "for": seconds}
        assert parse_host_change({**order, "timeout": None}) == order
    assert parse_host_change({"op": "enable", "hosts": ["users"]})["for"] is None


NO_ORDER = ("no such order for backends", "op is one of disable, enable, drain; hosts is a list")


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
HOSTS = [
    {"host": "web", "routes": ["shop"], "connections": 1},
    {"host": "http://10.0.0.7:80", "routes": ["out"], "connections": 2},
]


class Process:
    """The gateway's process, which answers unless it is `hung`."""

    def __init__(self) -> None:
        self.known = identity(os.getpid())
        self.hung = False
        self.orders: list[Table] = []
        self.answer: Table = {"hosts": ["web"]}
        self.reopened = 0

    def _answer(self) -> None:
        if self.hung:
            raise TimeoutError

    async def fetch_report(self) -> Table:
        self._answer()
        return {
            "counts": {"routes": {}, "refused": {"route": 3}}, "hosts": HOSTS, "healths": {},
            "queues": {"shop": 2}, "streams": {"out": {"opened": 4}},
        }  # fmt: skip

    async def fetch_request_totals(self) -> Table:
        self._answer()
        return {
            "slots": TrafficCounts().total(),
            "refused": list(TrafficCounts().route_and_other_refusals),
            "connections": 5,
            "streamed": 0,
            "stream_errors": 0,
        }

    async def change_host_states(self, order: Table) -> Table:
        self._answer()
        self.orders.append(order)
        return self.answer

    async def reopen_log(self) -> None:
        self._answer()
        self.reopened += 1


class Manager(SimpleNamespace):
    """The gateway's manager with a process that serves, and without everything else."""

    def __init__(self) -> None:
        routes = SimpleNamespace(
            routes=ROUTES, generation=7, services=None, table=None, wait_until_current=self._done,
            masked_table_descriptor=self._table, subscribed=self._followed,
        )  # fmt: skip
        super().__init__(
            gateway=Process(), tables=Tables(gateway=GatewayConfig()), routes=routes, machines=None, listeners=[],
            restarts=0, problem="", instability="", failures=[], why_unavailable="port 80 is in use", calls=[],
            reports=SimpleNamespace(count_worker_connections=lambda host: 9, held_connections=dict),
            passes_to=lambda server: True, probes=SimpleNamespace(latency_seconds=lambda url: None), late="",
        )  # fmt: skip
        self.table: socket.socket | None = None
        self.reported: list[Callable[[int], None]] = []

    async def _done(self) -> None:
        self.calls.append("settled")

    async def _table(self) -> socket.socket | None:
        return self.table

    @contextmanager
    def _followed(self, report: Callable[[int], None]) -> Iterator[None]:
        self.reported.append(report)
        yield
        self.reported.remove(report)

    async def wait_briefly_until_serving(self) -> Process | None:
        return self.gateway

    async def try_fetch_report(self) -> Table | None:
        try:
            return None if self.gateway is None else await self.gateway.fetch_report()
        except TimeoutError:
            return None

    async def wait_for_opening_attempt(self) -> None:
        self.calls.append("attempted")

    async def await_applied_or_warning(self, limit_seconds: float | None) -> str:
        self.calls.append(limit_seconds)
        return self.late

    async def finish(self) -> None:
        self.calls.append("finish")

    async def aclose(self) -> None:
        self.calls.append("close")


class Workers(SlowRunner):
    """Workers, of which those of the servers in `late` have not confirmed the route table yet."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[str] = []
        self.routing = self

    async def list_unconfirmed_servers_after(self, seconds: float) -> list[str]:
        return self.late


class Stage(Desk):
    """A pool of two servers with a gateway."""

    def __init__(self) -> None:
        self.workers = Workers()
        super().__init__(web(), web("other"), runner=self.workers)
        totals: Any = SimpleNamespace(
            counts_of_ended_workers=lambda entry: blank_page().tolist(),
            counts_by_route_of_ended_workers=lambda entry: {},
        )  # fmt: skip
        environment = SimpleNamespace(keeper=None, directory="/")
        self.site = part_site(self.core, self.events, environment)._replace(totals=totals)
        self.part = PoolGateway(self.site)
        self.manager: Any = Manager()
        self.process: Process = self.manager.gateway
        self.gateway = GatewayVerbs(self.site)
        self.manager.routing = self.workers
        self.gateway.gateway = self.manager
        self.gateway.statistics = GatewayStatistics(self.manager, self.core, totals)
        self.part._verbs = self.gateway

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


def test_routes_are_reported_with_their_figures_and_those_not_served() -> None:
    async def scene(stage: Stage) -> None:
        found = await stage.perform("routes")
        assert [(each.alias, each.way) for each in found.items] == [
            ("shop", "pass"), ("out", "proxy"), ("out", "stream"), ("late", "excluded"),
        ]  # fmt: skip
        assert [each.requests for each in found.items] == [0, 0, 4, 0]
        assert found.items[0].waiting == 2
        assert found.items[0].machines is None
        assert (found.generation, found.refused) == (7, {"route": 3})
        assert stage.manager.calls[0] == "settled"
        stage.manager.machines = SimpleNamespace(machines=lambda route: (route.alias,))
        assert (await stage.perform("routes")).items[1].machines == ("out",)
        stage.process.hung = True
        found = await stage.perform("routes")
        assert ([each.requests for each in found.items], found.refused) == ([0, 0, 0, 0], None)
        stage.manager.gateway = None
        assert len((await stage.perform("routes")).items) == 4

    staged(scene)


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({"host": "A.example:80"}, "Host"),
        ({"host": "c.example", "headers": {"host": "a.example"}}, "Host"),
        ({"headers": {"x-host": "a.example"}}, "X-Host"),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_routes_that_a_request_may_take_are_explained(options: Table, header: str, many: bool) -> None:
    async def scene(stage: Stage) -> None:
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

    staged(scene)


def test_registry_is_the_table_as_a_descriptor_or_the_generations_as_lines() -> None:
    async def scene(stage: Stage) -> None:
        attached: list[int] = []
        lines: list[Any] = []
        call = Call(Selector.from_dict({}), {}, lines.append, attach=attached.append)
        assert (await stage.gateway.attach_or_follow_table(call)).generation == 7
        assert attached == []
        with socket.socket() as table:
            stage.manager.table = table
            await stage.gateway.attach_or_follow_table(call)
            assert attached == [table.fileno()]
        following = asyncio.ensure_future(
            stage.gateway.attach_or_follow_table(call._replace(options={"follow": True}))
        )
        while not lines:
            await asyncio.sleep(0)
        (report,) = stage.manager.reported
        report(8)
        assert [line.generation for line in lines] == [7, 8]
        stage.site.over.set()
        assert (await following).generation == 7
        assert stage.manager.reported == []

    staged(scene)


def test_hosts_are_those_of_the_process_with_the_connections_of_workers() -> None:
    async def scene(stage: Stage) -> None:
        found = await stage.perform("hosts")
        assert [(each.host, each.connections, each.available) for each in found.items] == [
            ("web", 9, True), ("http://10.0.0.7:80", 2, True),
        ]  # fmt: skip
        services = [
            SimpleNamespace(url=url, alias="out", is_serving=serving, problem="silent",
                            health=SimpleNamespace(status="unhealthy"))
            for url, serving in [("http://10.0.0.8:80", False), ("http://10.0.0.9:80", True),
                                 ("http://10.0.0.7:80", False)]
        ]  # fmt: skip
        stage.manager.routes.services = services
        *before, added = (await stage.perform("hosts")).items
        assert [each.host for each in before] == ["web", "http://10.0.0.7:80"]
        assert before[1].available, "the process still uses it"
        assert (added.host, added.routes, added.available) == ("http://10.0.0.8:80", ("out",), False)
        assert (added.health, added.why) == ("unhealthy", "silent")

    staged(scene)


def test_unreachable_process_is_reported_with_the_reason() -> None:
    async def scene(stage: Stage) -> None:
        stage.process.hung = True
        for verb, options in [("hosts", {}), ("host", {"op": "disable", "hosts": ["web"]})]:
            found = await stage.perform(verb, **options)
            assert found.exit_code == NOT_AS_DESIRED
            assert found.errors[0].message == "the gateway does not answer: port 80 is in use"
        stage.manager.gateway = None
        assert (await stage.perform("host", op="disable", hosts=["web"])).exit_code == NOT_AS_DESIRED
        stage.manager.tables = Tables()
        assert (await stage.perform("hosts")).exit_code == DONE

    staged(scene)


def test_ordered_hosts_are_returned_and_unknown_ones_are_errors() -> None:
    async def scene(stage: Stage) -> None:
        found = await stage.perform("host", op="disable", hosts=["web"])
        assert stage.process.orders == [{"op": "disable", "hosts": ["web"], "for": None}]
        assert ([each.host for each in found.items], found.warnings, found.exit_code) == (["web"], (), DONE)
        stage.workers.late = ["web", "other"]
        found = await stage.perform("host", op="enable", hosts=["web"])
        assert found.warnings == ("workers of web have not confirmed yet that they give connections back",)
        stage.process.answer = {"problems": [{"message": "no host x", "hint": "hosts: web"}]}
        found = await stage.perform("host", op="disable", hosts=["x"])
        assert (found.exit_code, found.errors[0].message) == (NOTHING_MATCHED, "no host x")
        assert found.errors[0].hint == "hosts: web"
        stage.manager.tables = Tables()
        found = await stage.perform("host", op="disable", hosts=["web"])
        assert (found.exit_code, found.errors[0].message) == (NOTHING_MATCHED, "the pool has no gateway")

    staged(scene)


def test_list_status_and_stats_of_the_whole_pool_have_the_gateway() -> None:
    async def scene(stage: Stage) -> None:
        for verb, has_stats in [("list", False), ("status", True), ("stats", True)]:
            gateway = (await stage.extended(verb)).gateway
            assert gateway["state"] == "running"
            assert ("stats" in gateway) is has_stats
            assert (await stage.extended(verb, "web")).gateway is None, "nothing selects it"
        assert (await stage.extended("start")).gateway is None
        stage.manager.tables = Tables()
        assert (await stage.extended("list")).gateway is None

    staged(scene)


def test_status_warns_of_routes_that_do_not_serve() -> None:
    async def scene(stage: Stage) -> None:
        (warning,) = (await stage.extended("status", result=Result(warnings=()))).warnings
        assert re.fullmatch(r"the route shop is unhealthy.*, and \d more: poolctl health --routes", warning)
        assert (await stage.extended("stats")).warnings == ()
        healths = await stage.part.route_healths()
        assert [*healths] == ["shop", "out", "out (stream)"]
        await stage.ask("start")
        stage.manager.routes.routes = ROUTES._replace(http=ROUTES.http[:1], streams=())
        assert (await stage.extended("status")).warnings == ()

    staged(scene)


def test_shown_servers_have_their_routes() -> None:
    async def scene(stage: Stage) -> None:
        items = tuple(from_json(ServerDetails, {**item(name), "config": {}}) for name in ("web", "other"))
        found = await stage.extended("show", "web", "other", result=ShowResult(items=items))
        assert [[each.alias for each in item.routes] for item in found.items] == [["shop"], []]
        assert (await stage.extended("show")).items == ()

    staged(scene)


def test_access_log_is_reopened_even_if_the_file_has_no_gateway_any_longer() -> None:
    async def scene(stage: Stage) -> None:
        stage.manager.tables = Tables()
        assert (await stage.extended("reopen")).warnings == ()
        assert stage.process.reopened == 1
        stage.process.hung = True
        assert "its access log may not be reopened yet" in (await stage.extended("reopen")).warnings[0]
        stage.manager.gateway = None
        assert (await stage.extended("reopen")).warnings == ()

    staged(scene)


@pytest.mark.parametrize(
    ("verb", "targets", "has"),
    [("start", (), True), ("start", ("web",), False), ("reload", (), False), ("restart", (), False)],
)
def test_start_of_the_whole_pool_waits_for_the_gateway_and_shows_it(
    verb: str, targets: tuple[str, ...], has: bool
) -> None:
    async def scene(stage: Stage) -> None:
        found = await stage.concluded(verb, *targets, timeout=5.0)
        assert stage.manager.calls == [5.0]
        assert (found.gateway is not None) is has
        assert found.warnings == ()
        stage.manager.tables = Tables()
        assert (await stage.concluded(verb, *targets)).gateway is None

    staged(scene)


@pytest.mark.parametrize(
    ("verb", "targets", "error"),
    [
        ("start", (), "ErrorPoolStart"),
        ("restart", (), "ErrorPoolRestart"),
        ("reload", (), "ErrorPoolRestart"),
        ("reload", ("web",), "ErrorPoolRestart"),
        ("start", ("web",), ""),
        ("stop", (), ""),
    ],
)
def test_failures_of_the_gateway_are_errors_of_commands_to_the_whole_pool(
    verb: str, targets: tuple[str, ...], error: str
) -> None:
    async def scene(stage: Stage) -> None:
        stage.manager.problem = "port 80 is in use"
        stage.manager.failures = [ServerError("port 80 is in use", hint="choose another")]
        found = await stage.concluded(verb, *targets)
        assert [(each.error, each.name, each.message) for each in found.errors] == (
            [(error, "[gateway]", "port 80 is in use")] if error else []
        )
        assert found.exit_code == (FAILED if error else DONE)
        assert found.warnings == (("[gateway]: port 80 is in use",) if verb == "start" and not error else ())
        if error:
            failed = await stage.concluded(verb, *targets, result=Result(exit_code=NOTHING_MATCHED))
            assert failed.exit_code == NOTHING_MATCHED

    staged(scene)


def test_command_that_does_not_wait_gets_warnings_only() -> None:
    async def scene(stage: Stage) -> None:
        stage.manager.problem = "port 80 is in use"
        found = await stage.concluded("start", wait=False)
        assert (found.warnings, found.errors) == (("[gateway]: port 80 is in use",), ())
        assert stage.manager.calls == ["attempted"]
        for options, result in [({"dry_run": True}, Result()), ({}, Result(exit_code=INVALID_CONFIGURATION))]:
            assert await stage.concluded("start", result=result, **options) is result
        assert stage.manager.calls == ["attempted"]

    staged(scene)


def test_late_process_or_workers_are_a_warning() -> None:
    async def scene(stage: Stage) -> None:
        stage.manager.late = "not ready within 5 s"
        assert (await stage.concluded("reload")).warnings == ("not ready within 5 s",)
        stage.manager.late = ""
        for servers, named in [(["a", "b", "c"], "a, b, c"), (["a", "b", "c", "d"], "a, b, c …")]:
            stage.workers.late = servers
            (warning,) = (await stage.concluded("reload")).warnings
            assert warning == f"[gateway]: workers of {named} have not confirmed the new routes yet"

    staged(scene)


def test_problems_are_those_of_the_gateway_and_of_the_parts_behind_it() -> None:
    async def scene(stage: Stage) -> None:
        assert stage.part.problems == []
        stage.manager.instability = "restarted 3 times"
        part: Any = SimpleNamespace(not_served=["[registration]: no disk"])
        stage.part._parts.append(part)
        assert stage.part.problems == ["[gateway]: restarted 3 times", "[registration]: no disk"]
        assert stage.part.pids == {"gateway": os.getpid()}
        await stage.part.finish()
        await stage.part.stop_serving()
        assert stage.manager.calls == ["finish", "close"]

    staged(scene)


def test_pool_of_routes_alone_is_served() -> None:
    async def scene(stage: Stage) -> None:
        assert not stage.part.serves_without_servers
        stage.core.entries.clear()
        assert not stage.part.serves_without_servers
        stage.manager.tables = Tables(route=[RouteConfig(to="http://10.0.0.7:80")])
        assert stage.part.serves_without_servers

    staged(scene)


def test_gateway_of_a_changed_file_answers_from_now_on() -> None:
    async def scene(stage: Stage) -> None:
        # It does not answer, and so the gateway does not get any further.
        keeper: Any = SimpleNamespace(send=lambda *message: None, call=lambda message: asyncio.Future())
        environment = SupervisorContext(stage.files, keeper, "/run", "/state", Helpers(keeper, "/run"))
        parts = FeatureParts(environment, stage.events)
        stage.part = PoolGateway(stage.site._replace(environment=environment, parts=parts))
        stage.part.apply_tables(Tables(gateway=GatewayConfig()))
        found = await stage.perform("hosts")
        assert found.errors[0].message == "the gateway does not answer: its process is starting"
        assert found.exit_code == NOT_AS_DESIRED

    staged(scene)


def test_pool_without_a_gateway_has_no_routes_and_changes_none() -> None:
    async def scene(stage: Stage) -> None:
        part = stage.part = PoolGateway(stage.site)
        for verb in ("routes", "hosts", "registry"):
            assert await stage.perform(verb) == Result()
        refused = await stage.perform("host")
        assert (refused.exit_code, refused.errors[0].message) == (NOTHING_MATCHED, "the pool has no gateway")
        assert (refused.errors[0].code, refused.errors[0].error) == (NOTHING_MATCHED, "ErrorUsage")
        assert refused.errors[0].hint == "a [gateway] or [[route]] in the file adds one"
        result = Result(exit_code=3)
        assert await stage.extended("status", result=result) is result
        assert await stage.concluded("start", result=result) is result
        assert (part.problems, part.pids, part.serves_without_servers) == ([], {}, False)
        assert (await part.metrics(), await part.route_healths()) == ([], {})
        part.apply_tables(Tables())
        assert await stage.perform("routes") == Result()
        await part.finish()
        await part.stop_serving()

    staged(scene)
