"""What the supervisor sends to the gateway's process about servers and their canaries."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from poolctl import TLSConfig
from poolctl.core.server_entry import Entry
from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.features.gateway.supervision import gateway_reports
from poolctl.features.gateway.supervision.computed_routes import RouteSet, RouteTableManager
from poolctl.features.gateway.supervision.gateway_process import GatewayProcess
from poolctl.features.gateway.supervision.gateway_reports import (
    GatewayMessageHandler,
    ServerFactsSender,
    canary_name,
    connections_of,
    facts_of,
)
from poolctl.platform import memory_file, read_file
from poolctl.states import State, Status
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.worker import tally
from tests.serving import blank_page
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.supervisor.desk import Desk

CANARY = canary_name("web")


class Process:
    """Records what it is sent, in the order in which it comes."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[ServerFacts, socket.socket | None]] = {}
        self.order: list[str] = []

    @property
    def servers(self) -> set[str]:
        return set(self.known)

    def report_server(self, facts: ServerFacts, give: socket.socket | None) -> None:
        self.known[facts.name] = facts, give
        self.order.append(facts.name)

    def forget_server(self, name: str) -> None:
        if self.known.pop(name, None) is not None:
            self.order.append(f"forget {name}")


class Stage:
    """A server with a route, and one without."""

    def __init__(self) -> None:
        self.desk = Desk(web(), web("other"))
        self.entry: Entry = self.desk.core.entries["web"]
        self.routes: Any = SimpleNamespace(routes=RouteSet(servers=frozenset({"web"})), context_keys={})
        self.reports = ServerFactsSender(self.desk.core, cast(RouteTableManager, self.routes))
        self.process: Any = Process()
        self.pair, self._other = socket.socketpair()
        self.reports.pairs[CANARY] = self.pair

    async def begin(self) -> str:
        """Start the server and a canary of it, whose address is returned."""
        await self.desk.ask("start")
        core = self.desk.core
        apart = await core.open_canary_address(self.entry.config)
        core.begin_canary(self.entry, self.entry.config, 1, share=0.25, apart=apart)
        await turns()
        return apart.key

    def send(self) -> None:
        self.reports.send(cast(GatewayProcess, self.process), "web")

    def close(self) -> None:
        self.pair.close()
        self._other.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


def test_pair_of_a_canary_is_sent_before_its_share_and_forgotten_after_it(stage: Stage) -> None:
    async def work() -> None:
        address = await stage.begin()
        stage.send()
        assert stage.process.order == [CANARY, "web"]
        facts, give = stage.process.known[CANARY]
        assert (facts.bind, give) == (address, stage.pair)
        facts = stage.process.known["web"][0]
        assert (facts.canary, facts.canary_bind, facts.canary_share) == (CANARY, address, 0.25)
        stage.process.order.clear()
        stage.desk.core.withdraw_canary(stage.entry)
        stage.send()
        assert stage.process.known["web"][0].canary == ""
        assert CANARY in stage.process.known  # until its address is closed
        await turns()
        stage.send()
        assert stage.process.order[-2:] == ["web", f"forget {CANARY}"]

    run(work())


def test_canary_gets_no_share_before_a_worker_of_it_is_ready_or_once_it_has_failed(stage: Stage) -> None:
    async def work() -> None:
        await stage.begin()
        (worker,) = (each for each in stage.entry.observed.workers.values() if each.generation == 2)
        phase, worker.phase = worker.phase, type(worker.phase).STARTING
        stage.send()
        assert stage.process.known["web"][0].canary_share == 0.0
        worker.phase = phase
        stage.send()
        assert stage.process.known["web"][0].canary_share == 0.25
        assert stage.entry.desired.canary is not None
        stage.entry.desired.canary.failure = "exited"
        stage.send()
        assert stage.process.known["web"][0].canary_share == 0.0

    run(work())


def test_another_process_gets_everything_and_a_server_without_a_route_is_forgotten(stage: Stage) -> None:
    async def work() -> None:
        await stage.begin()
        process = cast(GatewayProcess, stage.process)
        stage.reports.send_all_routed(process)
        assert stage.process.servers == {"web", CANARY}
        stage.reports.forget_unrouted_servers(process)
        assert stage.process.servers == {"web", CANARY}
        assert [each.name for each in stage.reports.routed_and_canary_configs] == ["web", CANARY]
        assert (
            stage.reports.detect_canary_change(stage.entry),
            stage.reports.detect_canary_change(stage.entry),
        ) == (
            True,
            False,
        )
        stage.routes.routes = RouteSet()
        stage.reports.forget_unrouted_servers(process)
        assert stage.process.servers == set()
        assert stage.reports.routed_and_canary_configs == []

    run(work())


def test_connections_of_a_server_are_those_of_its_workers_that_are_placed() -> None:
    page = blank_page().tolist()
    page[tally.OPEN_CONNECTIONS] = 3
    pages = {"a": page, "b": page, "c": None}

    def count(*placements: str | None) -> int:
        workers = {number: SimpleNamespace(placement=each) for number, each in enumerate(placements)}
        core: Any = SimpleNamespace(runner=SimpleNamespace(counts=lambda placement: pages[placement]))
        entry: Any = SimpleNamespace(observed=SimpleNamespace(workers=workers))
        return connections_of(core, entry)

    assert count("a", None, "b", "c") == 6


class Keeper:
    """Holds one descriptor's content by name, as the keeper does."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def send(self, message: dict[str, Any], fds: list[int]) -> None:
        self.held[message["name"]] = read_file(fds[0])

    async def call(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        content = self.held.get(message["name"])
        return {}, [] if content is None else [memory_file("test", content)]


def store_of(keeper: Keeper) -> StateStore:
    return StateStore(cast(Any, keeper), "")


def test_states_of_hosts_are_kept_for_the_next_supervisor() -> None:
    async def work() -> None:
        desk, keeper = Desk(web()), Keeper()
        reports = GatewayMessageHandler(store_of(keeper), desk.core, desk.events)
        told: list[str] = []
        reports.on_hosts = lambda: told.append("hosts")
        reports.on_machine_needed = told.append
        process: Any = SimpleNamespace(report_connections=lambda loads: told.append(str(loads)))
        reports.receive_from(process)
        process.on_report({"t": "hosts", "states": {"hosts": [{"host": "web"}]}})
        process.on_report({"t": "loads", "servers": ["web"]})
        process.on_report({"t": "wake", "server": "http://10.0.0.7:80"})
        assert told == ["hosts", "{'web': 0}", "http://10.0.0.7:80"]
        successor = GatewayMessageHandler(store_of(keeper), desk.core, desk.events)
        await successor.load_host_states()
        assert successor.hosts == reports.hosts == {"hosts": [{"host": "web"}]}
        assert (successor.unavailable_hosts, successor.count_worker_connections("gone")) == ({"web"}, 0)

    run(work())


def test_event_about_a_host_is_recorded_with_the_host_and_the_reason() -> None:
    recorded: list[tuple[str, str, dict[str, Any]]] = []
    events: Any = SimpleNamespace(record=lambda kind, event, **data: recorded.append((kind, event, data)))
    reports = GatewayMessageHandler(store_of(Keeper()), cast(Any, None), events)
    process: Any = SimpleNamespace()
    reports.receive_from(process)
    for data in ({"host": "web", "why": "silent"}, {"host": "web"}, {"message": "no descriptor"}):
        process.on_report({"t": "event", "kind": "breaker opened", "data": data})
    assert recorded == [
        ("pool", "breaker opened", {"message": "web", "cause": "silent", "host": "web", "why": "silent"}),
        ("pool", "breaker opened", {"message": "web", "cause": "", "host": "web"}),
        ("pool", "breaker opened", {"message": "no descriptor"}),
    ]


def facts(**changes: Any) -> ServerFacts:
    """The facts about a server that runs, with these changes of its entry."""
    given = {
        "state": "running",
        "ready": True,
        "out": False,
        "armed": None,
        "endpoints": ("10.0.0.1:80",),
    } | changes
    config = web(bind="127.0.0.1:9000", tls=given.get("tls", False))
    entry: Any = SimpleNamespace(
        name="web", config=config, separate_canary_config=None, state=State(given["state"]), ready=given["ready"],
        out_of_rotation=given["out"], health=Status.WARN, listener=SimpleNamespace(armed=given["armed"]),
        desired=SimpleNamespace(canary=None, state="running"), observed=SimpleNamespace(workers={}),
    )  # fmt: skip
    core: Any = SimpleNamespace(endpoints=lambda config: given["endpoints"])
    return facts_of(core, entry)


def test_facts_about_a_server_are_its_state_and_where_it_can_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_reports, "asleep_until", lambda entry: 7.0)
    whole = ServerFacts(
        name="web",
        bind="10.0.0.1:80",
        state="running",
        ready=True,
        health="warn",
        asleep_until=7.0,
        is_app=True,
    )
    assert facts() == whole
    assert facts(endpoints=()) == replace(whole, bind="127.0.0.1:9000")
    assert facts(ready=False) == facts(out=True) == replace(whole, ready=False)
    assert facts(state="starting") == replace(whole, state="starting")
    assert facts(state="starting", endpoints=()) == replace(whole, state="stopped", bind="127.0.0.1:9000")
    assert facts(state="stopping", armed=object()) == replace(whole, state="sleeping")
    assert facts(tls=TLSConfig(cert="c", key="k")) == replace(whole, tls=True)


def test_end_of_a_canary_is_a_change_as_its_begin_is(stage: Stage) -> None:
    async def work() -> None:
        assert not stage.reports.detect_canary_change(stage.entry)
        await stage.begin()
        assert [stage.reports.detect_canary_change(stage.entry) for _ in range(2)] == [True, False]
        stage.desk.core.withdraw_canary(stage.entry)
        await turns()
        assert [stage.reports.detect_canary_change(stage.entry) for _ in range(2)] == [True, False]

    run(work())


def test_server_without_a_route_is_forgotten_with_its_canary(stage: Stage) -> None:
    async def work() -> None:
        await stage.begin()
        stage.send()
        stage.reports.send(cast(GatewayProcess, stage.process), "other")
        assert stage.process.servers == {"web", CANARY}
        stage.routes.routes = RouteSet()
        stage.reports.send(cast(GatewayProcess, stage.process), CANARY)
        assert stage.process.servers == set()

    run(work())


@pytest.mark.parametrize(("command", "key"), [(None, "k"), (["x"], "")])
def test_key_of_the_route_context_is_for_apps_whose_workers_check_it(
    stage: Stage, command: list[str] | None, key: str
) -> None:
    async def work() -> None:
        stage.routes.context_keys = {"web": "k"}
        if command:
            stage.entry.config = web(app=None, command=command)
        stage.send()
        assert stage.process.known["web"][0].context_key == key

    run(work())


def test_reports_leave_no_descriptor_open() -> None:
    async def work() -> None:
        desk, keeper = Desk(web()), Keeper()
        reports = GatewayMessageHandler(store_of(keeper), desk.core, desk.events)
        process: Any = SimpleNamespace()
        reports.receive_from(process)
        before = os.listdir("/proc/self/fd")
        process.on_report({"t": "hosts", "states": {"hosts": []}})
        await reports.load_host_states()
        assert not {*os.listdir("/proc/self/fd")} - {*before}
        assert (reports.hosts, reports.unavailable_hosts) == ({"hosts": []}, frozenset())

    run(work())


def test_request_for_a_sleeping_server_wakes_it() -> None:
    async def work() -> None:
        desk = Desk(web())
        woken: list[str] = []
        core: Any = desk.core
        core.wake = lambda entry: woken.append(entry.name)
        reports = GatewayMessageHandler(store_of(Keeper()), core, desk.events)
        process: Any = SimpleNamespace()
        reports.receive_from(process)
        process.on_report({"t": "wake", "server": "web"})
        process.on_report({"t": "wake", "server": "http://10.0.0.7:80"})
        assert woken == ["web"]

    run(work())
