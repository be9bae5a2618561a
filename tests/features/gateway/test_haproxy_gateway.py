"""The gateway of a pool with the real HAProxy, and the keeper, its servers and its routes as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.config import Tables, TLSConfig
from poolctl.features.gateway.supervision.gateway import GatewayManager
from poolctl.features.gateway.supervision.outside_targets import WithServices
from poolctl.features.gateway.table import GatewayConfig, GatewayListener
from poolctl.features.gateway.target import ServerFacts, TargetState
from poolctl.keeper import fd_store, wire
from poolctl.monitor.event_queue import EventBus
from poolctl.routing.route import BreakerRule, Route, StreamRoute, Target, TrafficLimits
from poolctl.runners.helper_process import Helpers
from poolctl.runners.listener_opener import Opener
from poolctl.runners.process_link import LinkLost
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.takeover.state_store import StateStore
from tests.asyncio_server import hang_up, listening, start_server
from tests.certificates import certificate
from tests.deadline import until
from tests.features.gateway.scripted_haproxy import LogFiles, server
from tests.helper_keeper import ExecutingKeeper, HelperKeeper
from tests.ports import claim_port
from tests.programs import program

DEADLINE_SECONDS = 60.0
BOTH = Route(alias="both", to=(Target(server="one"), Target(server="two")))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, DEADLINE_SECONDS))


class Keeper(ExecutingKeeper):
    """Keeps entries as the keeper does, so that another manager finds them; `lost` is one that cannot be read once."""

    lost = ""

    def send(self, message: wire.Message, fds: Sequence[Any] = ()) -> None:
        HelperKeeper.send(self, message, fds)

    async def call(self, message: wire.Message, fds: Sequence[Any] = ()) -> tuple[wire.Message, list[int]]:
        if message["op"] == "list":
            names = sorted(name for name in self.entries if name > message["after"])
            return {"entries": [(name, 0) for name in names]}, []
        if self.lost and message.get("name") == self.lost:
            self.lost = ""
            raise LinkLost("the keeper is being replaced")
        return await super().call(message, fds)


class Manager(GatewayManager):
    """The manager of a pool whose servers and routes are those of a stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        keeper: Any = stage.keeper
        configuration: Any = SimpleNamespace(environment={})
        self.helpers = Helpers(keeper, stage.directory)
        stage.keeper.report = self.helpers.handle_exit_report
        directory = stage.directory
        environment = SupervisorContext(configuration, keeper, directory, directory, self.helpers, Opener())
        routing: Any = SimpleNamespace(publish=lambda *routes: None)
        output: Any = LogFiles()
        super().__init__(environment, stage.core, routing, output, stage.bus, StateStore(keeper, ""))
        services: Any = stage
        self.routes.services = services

    def facts_of_server(self, name: str) -> ServerFacts | None:
        return self.stage.facts.get(name)


class Stage:
    """HAProxy with one listener, before the servers "one" and "two", which answer with their names."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.port = claim_port()
        self.program = program("haproxy")
        self.tls: list[TLSConfig] = []
        self.keys: dict[str, Any] = {}
        self.facts: dict[str, ServerFacts] = {}
        self.backends: list[asyncio.Server] = []
        self.routes, self.streams = tuple[Route, ...]((BOTH,)), tuple[StreamRoute, ...]()
        self.keeper = Keeper()
        self.core: Any = SimpleNamespace(
            observers=set(), entries={}, servers=SimpleNamespace(revision=-1), split_obstacle=None
        )
        self.bus = EventBus(Clock())
        self._events: list[tuple[str, str]] = []
        self.bus.subscribe(lambda event: self._events.append((event.event, event.message)))
        self.manager = Manager(self)

    async def start(self) -> None:
        for name in ("one", "two"):
            await self.add(name)
        await self.configure()
        assert self.manager.gateway is not None, self.manager.problem

    async def configure(self) -> None:
        """Apply the table and the routes; returns when they are in force."""
        self.publish(*self.routes, streams=self.streams)
        listener = GatewayListener(bind=f"127.0.0.1:{self.port}", tls=tuple(self.tls) or False)
        table = GatewayConfig(bind=(listener,), program=self.program, **self.keys)
        self.manager.apply_tables(Tables(gateway=table))
        assert await self.manager.wait_until_applied() == ""

    @property
    def pid(self) -> int:
        assert self.manager.gateway is not None
        return self.manager.gateway.pid

    @property
    def events(self) -> list[tuple[str, str]]:
        self.bus.flush()
        return self._events

    async def add(self, name: str) -> None:
        """A server that answers with its name."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    while True:
                        await reader.readuntil(b"\r\n\r\n")
                        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode())
            finally:
                writer.close()

        backend = await start_server(answer, "127.0.0.1", 0)
        self.backends.append(backend)
        port = backend.sockets[0].getsockname()[1]
        self.facts[name] = server(bind=f"127.0.0.1:{port}")

    async def change(self, name: str, **changes: Any) -> None:
        """Change what is known of a server; returns when HAProxy knows it."""
        self.facts[name] = replace(self.facts[name], **changes)
        self.manager.update()
        assert await self.manager.wait_until_applied() == ""

    def publish(self, *routes: Route, streams: Sequence[StreamRoute] = ()) -> None:
        self.routes, self.streams = routes, tuple(streams)
        self.manager.routes.schedule_computation()

    async def route_extender(self) -> WithServices:
        return lambda *computed: [*self.routes, *self.streams]

    async def settle(self) -> None:
        """Wait until HAProxy has got what can be changed in it now."""
        await self.manager.routes.wait_until_current()
        for helper in self.manager.helpers:
            await helper.wait_until_settled()

    async def route(self, *routes: Route, streams: Sequence[StreamRoute] = ()) -> None:
        """Have these routes; returns when they are in force."""
        self.publish(*routes, streams=streams)
        assert await self.manager.wait_until_applied() == ""

    async def succeed(self) -> None:
        """Let another supervisor take over."""
        before = self.manager
        for helper in before.helpers:
            helper.stop_attempts()
        before.figures.close()
        before.probes.close()
        before.routes.close()
        assert before.processes.wanted is not None
        for sock in before.processes.wanted.parts.sockets:
            sock.close()
        self.manager = Manager(self)
        await self.configure()

    async def answers(self, count: int = 4, **options: Any) -> set[str]:
        """The bodies of the responses to so many requests on connections of their own."""
        return {await self.get(**options) for _ in range(count)}

    async def get(self, path: str = "/", *, accept: str = "*/*", **options: Any) -> str:
        """The body, or the status of a response without one."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return body if " 200 " in head else head.split()[1]

    async def close(self) -> None:
        await self.manager.aclose()
        await self.keeper.wait_for_exits()
        self.keeper.close()
        for backend in self.backends:
            await hang_up(backend)


@contextlib.asynccontextmanager
async def gateway(directory: Path, *certificates: tuple[Path, Path]) -> AsyncIterator[Stage]:
    stage = Stage(str(directory))
    stage.tls = [TLSConfig(cert=str(cert), key=str(key)) for cert, key in certificates]
    try:
        await stage.start()
        yield stage
    finally:
        await stage.close()


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a path that is short enough for sockets."""
    return tmp_path_factory.mktemp("h")


async def accepts(port: int) -> bool:
    with contextlib.suppress(ConnectionError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


def context() -> ssl.SSLContext:
    """Takes any certificate."""
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


@pytest.mark.loop(run=run)
async def test_server_that_is_not_ready_gets_nothing_and_returns_without_another_haproxy(short: Path) -> None:
    async with gateway(short) as stage:
        first, one = stage.pid, stage.facts["one"]
        assert await stage.answers() == {"one", "two"}
        await stage.change("one", target=server(TargetState.DOWN).target)
        assert await stage.answers() == {"two"}
        await stage.change("one", target=server().target)
        assert await stage.answers() == {"one", "two"}
        # Another address, as after a restart on another port.
        await stage.change("one", bind=stage.facts["two"].bind)
        assert await stage.answers() == {"two"}
        # The same address, written in another way.
        for bind in ("[::1]:9", "[0:0::1]:9", one.bind):
            await stage.change("one", bind=bind)
        assert await stage.answers() == {"one", "two"}
        assert stage.pid == first


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_requests_in_replaced_processes_do_not_count_for_the_limit_of_their_route(short: Path) -> None:
    async with gateway(short) as stage:
        began, writers = asyncio.Semaphore(0), list[asyncio.StreamWriter]()

        async def keep_waiting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await reader.readuntil(b"\r\n\r\n")
            began.release()

        silent = await start_server(keep_waiting, "127.0.0.1", 0)
        stage.backends.append(silent)
        stage.facts["one"] = replace(
            stage.facts["one"], bind=f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        )
        for change in range(3):
            limit = TrafficLimits(concurrency=2)
            await stage.route(Route(alias="one", path=f"/{change}", to=(Target(server="one"),), limit=limit))
            for _ in range(2):
                _, writer = await asyncio.open_connection("127.0.0.1", stage.port)
                writers.append(writer)
                writer.write(f"GET /{change} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                await began.acquire()
            assert await stage.get(f"/{change}") == "503", "each process admits two"
        # The first process has no request, and ends.
        await until(lambda: len(stage.manager.processes.replaced_pids) == 2)
        for writer in writers:
            writer.close()


@pytest.mark.capability
@pytest.mark.loop(run=run)
async def test_page_that_is_shown_wakes_the_server_and_ends_without_another_haproxy(short: Path) -> None:
    async with gateway(short) as stage:
        woken = asyncio.Queue[str]()
        await stage.route(Route(alias="paged", to=(Target(server="one"),), waiting_page=True))
        stage.core.entries["one"], stage.core.wake = "one", woken.put_nowait
        pid = stage.pid
        await stage.change("one", target=server(TargetState.SLEEPING).target)
        assert await stage.get(accept="text/html") == "503"
        assert await woken.get() == "one"
        await stage.change("one", target=server(TargetState.STARTING).target)
        assert await stage.get(accept="text/html") == "503"
        await stage.change("one", target=server().target)
        assert await stage.get(accept="text/html") == "one"
        assert stage.pid == pid
        assert woken.empty()


@pytest.mark.loop(run=run)
async def test_leaving_server_gets_nothing_once_that_is_announced(short: Path) -> None:
    async with gateway(short) as stage:
        stage.facts["one"] = replace(stage.facts["one"], target=server(TargetState.DOWN).target)
        await stage.manager.announce_workers_exit("one")
        assert await stage.answers() == {"two"}
        # With a change of routes another HAProxy serves, and gets what idle clients of the one before still ask.
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"two")
        await stage.add("three")
        stage.publish(Route(alias="new", to=(Target(server="three"),)))
        await stage.manager.announce_workers_exit("two")
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.read()).endswith(b"three")
        writer.close()


@pytest.mark.loop(run=run)
async def test_sleeping_server_is_used_only_when_no_other_can_serve(short: Path) -> None:
    async with gateway(short) as stage:
        await stage.change("one", target=server(TargetState.SLEEPING).target)
        assert await stage.answers() == {"two"}
        await stage.change("two", target=server(TargetState.STOPPED).target)
        assert await stage.answers() == {"one"}


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_targets_come_and_go_without_another_haproxy_and_routes_with_one_that_refuses_nothing(
    short: Path,
) -> None:
    async with gateway(short) as stage:
        first = stage.manager.gateway
        assert first is not None
        await stage.add("three")
        await stage.route(replace(BOTH, to=(Target(server="two"), Target(server="three"))))
        assert await stage.answers() == {"two", "three"}
        assert stage.manager.gateway is first

        over = asyncio.Event()
        failed = []

        async def load() -> None:
            while not over.is_set():
                if (answer := await stage.get()) not in ("two", "three"):
                    failed.append(answer)

        clients = [asyncio.ensure_future(load()) for _ in range(3)]
        for number in range(3):
            await stage.route(
                replace(BOTH, to=(Target(server="three"),)),
                Route(alias="two", path=f"/{number}", to=(Target(server="two"),)),
            )
            assert await stage.get(f"/{number}") == "two"
            assert stage.manager.gateway is not first
        over.set()
        await asyncio.gather(*clients)
        assert failed == []
        await first.exited


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_changes_of_routes_within_a_second_start_one_haproxy_and_servers_change_at_once(
    short: Path,
) -> None:
    async with gateway(short) as stage:
        assert stage.manager.gateway is not None
        stage.manager.gateway.began += 4.0  # a busy machine is slow
        await stage.change("one", target=server(TargetState.DOWN).target)
        first = stage.pid
        for number in range(5):
            stage.publish(BOTH, Route(alias="two", path=f"/{number}", to=(Target(server="two"),)))
            await stage.settle()
        stage.facts["one"] = replace(stage.facts["one"], target=server().target)
        stage.facts["two"] = replace(stage.facts["two"], target=server(TargetState.DOWN).target)
        stage.manager.update()
        await stage.settle()
        assert (stage.pid, await stage.answers()) == (first, {"one"})
        assert await stage.manager.wait_until_applied() == ""
        assert stage.pid != first
        assert await stage.get("/4") == "503"
        assert len([each for each in stage.keeper.spawned if "-D" in each["argv"]]) == 2


@pytest.mark.parametrize("files", ["another key", "no certificate", "none"])
@pytest.mark.loop(run=run)
async def test_certificate_is_used_until_its_files_have_another_one(short: Path, files: str) -> None:
    cert, key = certificate(short)
    (short / "other").mkdir()
    used = cert.read_bytes()
    async with gateway(short, (cert, key)) as stage:
        first = stage.pid
        if files == "none":
            cert.unlink()
        else:
            another = certificate(short / "other")[0].read_text()
            cert.write_text(another if files == "another key" else "no certificate")
        await stage.configure()
        assert str(cert) in stage.manager.problem
        assert ("gateway failed", stage.manager.problem) in stage.events
        await stage.change("one", target=server(TargetState.DOWN).target)
        assert await stage.answers(ssl=context()) == {"two"}
        assert stage.pid == first
        before = stage.manager.gateway
        assert before is not None
        os.kill(first, signal.SIGKILL)
        await before.exited
        assert await stage.answers(ssl=context()) == {"two"}
        cert.write_bytes(used)
        await stage.configure()
        assert stage.manager.problem == ""


@pytest.mark.loop(run=run)
async def test_target_that_haproxy_refuses_is_left_out_and_reported_and_the_others_serve(short: Path) -> None:
    bad = Target(url=f"unix:/{'a' * 100}")
    async with gateway(short) as stage:
        first = stage.pid
        routes = [replace(BOTH, to=(*BOTH.to, bad)), Route(alias="bad", path="/bad", to=(bad,))]
        await stage.route(*routes)
        assert stage.pid != first
        assert (await stage.answers(), await stage.get("/bad")) == ({"one", "two"}, "503")
        events = [message for kind, message in stage.events if kind == "backend refused"]
        assert len(events) == 2, "of both routes"
        start = f"{bad.url} gets no requests, as HAProxy does not accept it: "
        assert all(each.startswith(start) for each in events)
        assert "too long" in events[0]
        # Other changes need no other process, and report nothing again.
        second = stage.pid
        await stage.change("one", target=server(TargetState.DOWN).target)
        await stage.route(replace(routes[0], to=(Target(server="two"), bad)), routes[1])
        assert (await stage.answers(), stage.pid) == ({"two"}, second)
        assert len([kind for kind, _ in stage.events if kind == "backend refused"]) == 2


def answer_name(monkeypatch: pytest.MonkeyPatch, asked: str, answer: Callable[[], list[str]]) -> None:
    """Resolve one name as a name server would that gives this answer."""
    resolve = socket.getaddrinfo

    def answered(name: str, *given: Any, **hints: Any) -> Any:
        if name == asked:
            return [(0, 0, 0, "", (address, 0)) for address in answer()]
        return resolve(name, *given, **hints)

    monkeypatch.setattr(socket, "getaddrinfo", answered)


@pytest.mark.loop(run=run)
async def test_name_server_that_does_not_answer_holds_up_only_the_targets_that_need_it(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def slow() -> list[str]:
        answers.wait(DEADLINE_SECONDS)
        return ["127.0.0.1"]

    answer_name(monkeypatch, "slow.example", slow)
    async with gateway(short) as stage:
        port = stage.facts["one"].bind.rpartition(":")[2]
        names = ("slow.example", "localhost", "no.such.name.invalid")
        routes = [
            Route(alias=name, path=f"/{name}", to=(Target(url=f"http://{name}:{port}"),)) for name in names
        ]
        await stage.route(BOTH, *routes)
        assert await stage.answers() == {"one", "two"}
        assert [await stage.get(f"/{name}") for name in names] == ["503", "one", "503"]
        before = stage.pid
        answers.set()
        while await stage.get("/slow.example") != "one":
            pass
        assert stage.pid == before


@pytest.mark.loop(run=run)
async def test_failures_before_a_successor_took_over_open_no_breaker(short: Path) -> None:
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            if await reader.read(65536):
                writer.write(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    never = BreakerRule(failures=0, rate=0.0)
    async with gateway(short) as stage, listening(fail, "127.0.0.1", 0) as failing:
        url = f"http://127.0.0.1:{failing.sockets[0].getsockname()[1]}"
        route = Route(alias="r", to=(Target(server="one"), Target(url=url)), breaker=never)
        await stage.route(route)
        assert await stage.answers(20) == {"one", "503"}
        stage.routes = (replace(route, breaker=BreakerRule()),)
        await stage.succeed()
        assert await stage.manager.figures.read()
        (found,) = (each for each in stage.manager.figures.backends() if each.host == url)
        assert (found.breaker, found.requests, found.errors) == ("closed", 10, 10)


@pytest.mark.slow
def test_changed_routes_are_in_force_and_no_request_is_without_a_route(
    short: Path,
) -> None:
    def routes(*paths: str) -> list[Route]:
        changed = zip(("one", "two"), paths, strict=True)
        found = [Route(alias=name, path=path, to=(Target(server=name),)) for name, path in changed]
        return [*found, *(Route(alias=f"r{number}", path=f"/{number}", to=BOTH.to) for number in range(1000))]

    async def work() -> None:
        async with gateway(short) as stage:
            await stage.route(*routes("/v", "/v/w"))
            over, answers = asyncio.Event(), Counter[str]()

            async def load(path: str) -> None:
                while not over.is_set():
                    answers[await stage.get(path)] += 1

            clients = [asyncio.ensure_future(load(path)) for path in ("/v/w/x", "/998", "/0")]
            for number in range(3):
                paths = ("/v/w", "/v") if number % 2 == 0 else ("/v", "/v/w")
                await stage.route(*routes(*paths))
                assert [await stage.get(path) for path in paths] == ["one", "two"]
            # A route that is removed, and one that is moved.
            await stage.route(*routes("/elsewhere", "/v")[:-1])
            assert [await stage.get(path) for path in ("/elsewhere", "/v/w", "/v")] == ["one", "two", "two"]
            over.set()
            await asyncio.gather(*clients)
            assert answers.keys() == {"one", "two"}
            assert await stage.get("/999") == "404"

    run(work())


@pytest.mark.loop(run=run)
async def test_successor_uses_the_same_haproxy_and_sends_the_states_of_servers_again(short: Path) -> None:
    async with gateway(short) as stage:
        first = stage.pid
        await stage.change("two", bind=stage.facts["one"].bind)  # changed by a command since its start
        stage.facts["one"] = replace(stage.facts["one"], target=server(TargetState.DOWN).target)
        await stage.succeed()
        assert (stage.pid, await stage.answers()) == (first, {"one"})
        await stage.change("two", target=server(TargetState.DOWN).target)
        assert await stage.get() == "503"
        await stage.change("one", target=server().target)
        assert (stage.pid, await stage.answers()) == (first, {"one"})


@pytest.mark.loop(run=run)
async def test_successor_that_cannot_read_everything_at_once_knows_the_disabled_hosts(short: Path) -> None:
    async with gateway(short) as stage:
        stage.manager.hosts.disable("one", 0)
        assert await stage.manager.wait_until_applied() == ""
        stage.keeper.lost = fd_store.GATEWAY_HOSTS
        await stage.succeed()
        assert (stage.keeper.lost, await stage.answers()) == ("", {"two"})


@pytest.mark.loop(run=run)
async def test_successor_with_other_routes_starts_another_haproxy_and_knows_the_replaced_ones(
    short: Path,
) -> None:
    async with gateway(short) as stage:
        first = stage.manager.gateway
        assert first is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n")
        stage.publish(BOTH, Route(alias="two", path="/two", to=(Target(server="two"),)))
        await stage.succeed()
        assert await stage.get("/two") == "two"
        assert stage.manager.processes.replaced_pids == [first.pid], "its client has begun a request"
        await stage.succeed()
        assert stage.manager.processes.replaced_pids == [first.pid]
        writer.write(b"x")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        await first.exited


@pytest.mark.loop(run=run)
async def test_certificate_that_cannot_be_read_leaves_the_listeners_and_the_states_of_servers_follow(
    short: Path,
) -> None:
    async with gateway(short) as stage:
        first, stage.tls = stage.pid, [TLSConfig(cert="/no/such.pem")]
        await stage.configure()
        assert stage.manager.problem == "cannot read /no/such.pem: No such file or directory"
        await stage.change("one", target=server(TargetState.STOPPED).target)
        assert (stage.pid, await stage.answers()) == (first, {"two"})


@pytest.mark.loop(run=run)
async def test_successor_that_cannot_start_another_haproxy_changes_the_states_of_the_adopted_one(
    short: Path,
) -> None:
    async with gateway(short) as stage:
        first, other = stage.pid, Route(alias="other", path="/other", to=(Target(server="two"),))
        stage.program, stage.routes = "/no/such/program", (BOTH, other)
        await stage.succeed()
        assert "No such file or directory" in stage.manager.problem
        assert await stage.answers() == {"one", "two"}
        for name in ("one", "two"):
            await stage.change(name, target=server(TargetState.STOPPED).target)
            assert name not in await stage.answers()
            await stage.change(name, target=server().target)
        assert (stage.pid, await stage.answers()) == (first, {"one", "two"})


def test_successor_knows_the_addresses_of_hosts_while_no_name_server_answers(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there, ends = True, threading.Event()

    def resolve() -> list[str]:
        if not is_there:
            ends.wait(DEADLINE_SECONDS)
            raise OSError("no name server")
        return ["127.0.0.1"]

    answer_name(monkeypatch, "one.example", resolve)

    async def work() -> None:
        nonlocal is_there
        async with gateway(short) as stage:
            port = stage.facts["one"].bind.rpartition(":")[2]
            elsewhere = Route(alias="a", path="/a", to=(Target(url=f"http://one.example:{port}"),))
            await stage.route(BOTH, elsewhere)
            assert await stage.get("/a") == "one"
            first, is_there = stage.pid, False
            await stage.succeed()
            assert (stage.pid, await stage.get("/a")) == (first, "one")
            await stage.change("one", target=server(TargetState.DOWN).target)
            assert await stage.answers() == {"two"}
            ends.set()

    run(work())


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_end_of_the_pool_does_not_wait_for_a_replacement_that_was_put_off(short: Path) -> None:
    async with gateway(short) as stage:
        await stage.route(Route(alias="r", to=(Target(server="one"),)))
        stage.publish(Route(alias="r", retries=2, to=(Target(server="one"),)))
        await stage.settle()
        await stage.manager.finish()
        async with asyncio.timeout(4.0):  # a change is waited for longer
            await stage.manager.announce_workers_exit("one")


@pytest.mark.slow
def test_certificate_is_renewed(short: Path) -> None:
    pairs = []
    for number in (1, 2):
        directory = short / str(number)
        directory.mkdir()
        pairs.append(certificate(directory))
    used = (short / "cert.pem", short / "key.pem")

    def use(pair: tuple[Path, Path]) -> str:
        for source, target in zip(pair, used, strict=True):
            target.write_bytes(source.read_bytes())
        return pair[0].read_text().strip()

    async def shown(stage: Stage) -> tuple[str, str | None]:
        offered = context()
        offered.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await asyncio.open_connection("127.0.0.1", stage.port, ssl=offered)
        secure = writer.get_extra_info("ssl_object")
        writer.transport.abort()
        return ssl.DER_cert_to_PEM_cert(secure.getpeercert(True)).strip(), secure.selected_alpn_protocol()

    async def work() -> None:
        first = use(pairs[0])
        async with gateway(short, used) as stage:
            assert await shown(stage) == (first, "h2")
            bundle = next((short / "haproxy").glob("*.pem"))
            assert bundle.stat().st_mode & 0o777 == 0o600
            second = use(pairs[1])
            await stage.configure()
            assert await shown(stage) == (second, "h2")

    run(work())


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_streams_are_copied(short: Path) -> None:
    async with gateway(short) as stage:
        stream = StreamRoute(alias="tcp", bind=f"127.0.0.1:{claim_port()}", to=(Target(server="one"),))
        await stage.route(BOTH, streams=[stream])
        host, _, port = stream.bind.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert (await reader.readuntil(b"one")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.loop(run=run)
async def test_stream_copies_what_a_client_has_sent_that_leaves_before_its_target_accepts(
    short: Path,
) -> None:
    loop = asyncio.get_running_loop()
    async with gateway(short) as stage:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=0) as target,
            # Linux drops further connections until this one is accepted; they are tried again after a second.
            socket.create_connection(target.getsockname()),
        ):
            target.setblocking(False)
            url = f"127.0.0.1:{target.getsockname()[1]}"
            stream = StreamRoute(alias="tcp", bind=f"127.0.0.1:{claim_port()}", to=(Target(url=url),))
            await stage.route(BOTH, streams=[stream])
            host, _, port = stream.bind.rpartition(":")
            with socket.create_connection((host, int(port))) as client:
                client.sendall(b"requests 1\n")
            syn_sent = f":{target.getsockname()[1]:04X} 02"
            await until(lambda: syn_sent in Path("/proc/net/tcp").read_text())
            (await loop.sock_accept(target))[0].close()
            connection, _ = await loop.sock_accept(target)
            with connection:
                assert await loop.sock_recv(connection, 100) == b"requests 1\n"


@pytest.mark.loop(run=run)
async def test_taken_address_is_a_problem_and_the_others_are_served(short: Path) -> None:
    async with gateway(short) as stage:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            bind = f"127.0.0.1:{taken.getsockname()[1]}"
            stream = StreamRoute(alias="tcp", bind=bind, to=(Target(server="one"),))
            await stage.route(BOTH, streams=[stream])
            assert "is in use" in stage.manager.problem
            assert [kind for kind, _ in stage.events] == ["gateway started", "gateway failed"]
            assert await stage.answers() == {"one", "two"}
        await stage.configure()
        assert stage.manager.problem == ""
        assert {each.bind for each in stage.manager.listeners} == {bind, f"127.0.0.1:{stage.port}"}
