"""The gateway's process with the real HAProxy, and the supervisor's side of it, on one loop."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostStates
from poolctl.features.gateway.process.counts import TrafficCounts
from poolctl.features.gateway.process.settings import GatewaySettings, ListenerSettings, ServerFacts
from poolctl.features.gateway.supervision.gateway_manager import GatewayManager
from poolctl.features.gateway.supervision.gateway_process import GatewayProcess
from poolctl.features.gateway.table import GatewayConfig
from poolctl.features.haproxy import _gateway
from poolctl.features.haproxy._configuration import HaproxyBackend, HaproxyServer
from poolctl.features.haproxy._gateway import HaproxyGateway, HaproxyStatisticsAccumulator
from poolctl.keeper import wire
from poolctl.monitor.event_queue import EventBus
from poolctl.routing.route import BreakerRule, Route, StreamRoute, Target, TrafficLimits
from poolctl.routing.route_table import write_table
from poolctl.runners.process_link import Descriptor
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.worker import tally
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.manual_clock import ManualClock
from tests.programs import program

DEADLINE_SECONDS = 60.0
BOTH = Route(alias="both", to=(Target(server="one"), Target(server="two")))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, DEADLINE_SECONDS))


class Stage:
    """HAProxy with one listener, before the servers "one" and "two", which answer with their names."""

    def __init__(self, directory: str, tls: bool) -> None:
        settings = GatewaySettings(
            directory=directory, drain_seconds=5.0, engine="haproxy", program=program("haproxy")
        )
        self.settings = settings
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.binding = ListenerSettings(bind=f"127.0.0.1:{self.port}", tls=tls)
        self.reports: list[wire.Message] = []
        ours, theirs = wire.pair()
        self.server = HaproxyGateway(theirs.detach())
        self.over = asyncio.ensure_future(self.server.serve_supervisor())
        self.process = GatewayProcess(ours, {}, "1")
        self.process.on_report = self.reports.append
        self.facts: dict[str, ServerFacts] = {}
        self.backends: list[asyncio.Server] = []

    async def start(self, *certificates: bytes) -> None:
        self.process.configure(self.settings)
        for name in ("one", "two"):
            await self.add(name)
        self.publish(1, BOTH)
        if certificates:
            self.certify(*certificates)
        self.process.listen(self.binding, None, (1,), [self.listener])
        self.process.begin_serving()
        await self.process.up.wait()
        assert self.haproxy.process is not None

    @property
    def haproxy(self) -> Any:
        return self.server.haproxy

    async def add(self, name: str, status: str = "200 OK") -> None:
        """A server that answers with its name."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    while True:
                        await reader.readuntil(b"\r\n\r\n")
                        writer.write(
                            f"HTTP/1.1 {status}\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode()
                        )
            finally:
                writer.close()

        backend = await asyncio.start_server(answer, "127.0.0.1", 0)
        self.backends.append(backend)
        port = backend.sockets[0].getsockname()[1]
        self.report(ServerFacts(name=name, bind=f"127.0.0.1:{port}", state="running", ready=True))

    def report(self, facts: ServerFacts) -> None:
        self.facts[facts.name] = facts
        self.process.report_server(facts, None)

    def publish(self, generation: int, *routes: Route) -> None:
        table = Descriptor(write_table(routes, generation))
        self.process.publish(generation, table)
        table.close()

    def certify(
        self, cert: bytes, key: bytes, ca: bytes = b"", *, name: str = "localhost", bind: str = ""
    ) -> None:
        """Use the certificate for this name; with a `ca`, clients have to present one of it."""
        tls = {"client_auth": "required" if ca else "none", "min_version": "1.2", "ciphers": None}
        with contextlib.ExitStack() as stack:
            fds = []
            for content in filter(None, (cert, key, ca)):
                file = stack.enter_context(tempfile.TemporaryFile())
                file.write(content)
                file.flush()
                fds.append(file.fileno())
            self.process.use_certificate(bind or self.binding.bind, [name], tls, cert, fds)

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

    async def report_when(self, condition: Callable[[Any], Any]) -> Any:
        """A report for which this is true: HAProxy counts a moment after it has answered."""
        while not condition(report := await self.process.fetch_report()):
            pass
        return report

    async def close(self) -> None:
        self.process.end()
        await self.over
        for each in self.backends:
            each.close()
        self.listener.close()


@contextlib.asynccontextmanager
async def gateway(directory: Path, *certificates: bytes) -> AsyncIterator[Stage]:
    stage = Stage(str(directory), bool(certificates))
    try:
        await stage.start(*certificates)
        yield stage
    finally:
        await stage.close()


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a path that is short enough for sockets."""
    return tmp_path_factory.mktemp("h")


def test_server_that_is_not_ready_gets_nothing_and_returns_without_another_haproxy(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            first = stage.haproxy.process.pid
            assert await stage.answers() == {"one", "two"}
            one = stage.facts["one"]
            stage.report(replace(one, ready=False, state="stopping"))
            await stage.process.wait_until_performed()
            assert await stage.answers() == {"two"}
            stage.report(one)
            await stage.process.wait_until_performed()
            assert await stage.answers() == {"one", "two"}
            # Another address, as after a restart on another port.
            stage.report(replace(one, bind=stage.facts["two"].bind))
            await stage.process.wait_until_performed()
            assert await stage.answers() == {"two"}
            # The same address, written in another way.
            for bind in ("[::1]:9", "[0:0::1]:9"):
                stage.report(replace(one, bind=bind))
                await stage.process.wait_until_performed()
            assert stage.haproxy.process.pid == first

    run(work())


def test_socket_that_is_withdrawn_from_passing_takes_no_requests_from_its_server(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            give, take = wire.pair()
            await stage.process.withdraw_passing_socket("one", give)
            assert await stage.answers() == {"one", "two"}
            give.close()
            take.close()

    run(work())


def test_leaving_server_gets_nothing_after_another_supervisor_has_adopted_the_process_either(
    short: Path,
) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            environment: Any = SimpleNamespace(keeper=None, directory="", state_directory="")
            # Which has no longer an entry for the server.
            core: Any = SimpleNamespace(observers=set(), entries={}, servers=SimpleNamespace(revision=0))
            manager = GatewayManager(
                environment, core, environment, EventBus(Clock()), StateStore(environment.keeper, "")
            )
            manager.tables = Tables(gateway=GatewayConfig(engine="haproxy"))
            manager._process = stage.process
            await manager.announce_workers_exit("one")
            assert await stage.answers() == {"two"}

    run(work())


@pytest.mark.capability
def test_page_that_is_shown_wakes_the_server_and_ends_without_another_haproxy(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            stage.publish(2, Route(alias="paged", to=(Target(server="one"),), waiting_page=True))
            await stage.process.wait_until_performed()
            pid, one = stage.haproxy.process.pid, stage.facts["one"]
            stage.report(replace(one, ready=False, state="sleeping"))
            await stage.process.wait_until_performed()
            assert await stage.get(accept="text/html") == "503"
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not (woken := [each for each in stage.reports if each["t"] == "wake"]):
                    await asyncio.sleep(0.01)
            assert [each["server"] for each in woken] == ["one"]
            stage.report(replace(one, ready=False, state="starting"))
            await stage.process.wait_until_performed()
            assert await stage.get(accept="text/html") == "503"
            stage.report(one)
            await stage.process.wait_until_performed()
            assert await stage.get(accept="text/html") == "one"
            assert stage.haproxy.process.pid == pid
            assert len([each for each in stage.reports if each["t"] == "wake"]) == 1

    run(work())


@pytest.mark.slow
def test_access_log_has_the_requests_to_each_haproxy_in_its_turn(short: Path) -> None:
    async def work() -> None:
        log = short / "access.log"

        def logged(count: int) -> list[str]:
            wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= count)
            return [line.split('"')[1] for line in log.read_text().splitlines()]

        async with gateway(short) as stage:
            for number in range(2):
                stage.settings = replace(stage.settings, access_log=str(log))
                stage.process.configure(stage.settings)
                stage.publish(number + 2, replace(BOTH, path=f"/{number}"))
                await stage.process.wait_until_performed()
                assert await stage.get(f"/{number}/x") in ("one", "two")
                found = await asyncio.to_thread(logged, number + 1)
                assert found == [f"GET /{each}/x HTTP/1.1" for each in range(number + 1)]
            stage.process.configure(replace(stage.settings, access_log=""))
            stage.publish(9, BOTH)
            await stage.process.wait_until_performed()
            await stage.get("/2")
        assert len(logged(2)) == 2

    run(work())


@pytest.mark.slow
def test_sleeping_server_is_used_only_when_no_other_can_serve(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            one, two = stage.facts["one"], stage.facts["two"]
            stage.report(replace(one, ready=False, state="sleeping"))
            await stage.process.wait_until_performed()
            assert await stage.answers() == {"two"}
            stage.report(replace(two, ready=False, state="stopped"))
            await stage.process.wait_until_performed()
            assert await stage.answers() == {"one"}

    run(work())


@pytest.mark.slow
def test_targets_come_and_go_without_another_haproxy_and_routes_with_one_that_refuses_nothing(
    short: Path,
) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            first = stage.haproxy.process
            await stage.add("three")
            stage.publish(2, replace(BOTH, to=(Target(server="two"), Target(server="three"))))
            await stage.process.wait_until_performed()
            assert await stage.answers() == {"two", "three"}
            assert stage.haproxy.process is first

            over = asyncio.Event()
            failed = []

            async def load() -> None:
                while not over.is_set():
                    if (answer := await stage.get()) not in ("two", "three"):
                        failed.append(answer)

            clients = [asyncio.ensure_future(load()) for _ in range(3)]
            for generation in range(3, 6):
                routes = [
                    replace(BOTH, to=(Target(server="three"),)),
                    Route(alias="two", path=f"/{generation}", to=(Target(server="two"),)),
                ]
                stage.publish(generation, *routes)
                await stage.process.wait_until_performed()
                assert await stage.get(f"/{generation}") == "two"
                assert stage.haproxy.process is not first
            over.set()
            await asyncio.gather(*clients)
            assert failed == []
            await first.exited

    run(work())


@pytest.mark.slow
def test_listener_moves_to_another_socket_and_haproxy_ends_without_one(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            first = stage.haproxy.process
            stage.process.listen(stage.binding, None, (2,), [stage.listener])
            await stage.process.wait_until_performed()
            assert stage.haproxy.process is first, "the same socket again"
            with socket.create_server(("127.0.0.1", 0)) as other:
                other.setblocking(False)
                stage.process.listen(stage.binding, None, (3,), [other])
                await stage.process.wait_until_performed()
                stage.port = other.getsockname()[1]
                assert await stage.answers() == {"one", "two"}
                second = stage.haproxy.process
                stage.process.close_listener("no such listener")
                stage.process.close_listener(stage.binding.key)
                await stage.process.wait_until_performed()
                await asyncio.gather(first.exited, second.exited)
            with pytest.raises(ConnectionRefusedError):
                await stage.get()
            assert not stage.over.done()

    run(work())


@pytest.mark.slow
def test_configuration_that_haproxy_refuses_is_reported_and_the_one_before_stays(short: Path) -> None:
    cert, key = (path.read_bytes() for path in certificate(short))
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    async def work() -> None:
        async with gateway(short, cert, key) as stage:
            first = stage.haproxy.process
            stage.certify(b"no certificate", key, name="other")
            await stage.process.wait_until_performed()
            (event,) = [each for each in stage.reports if each["t"] == "event"]
            assert event["kind"] == "gateway configuration refused"
            assert "unable to load certificate from file 'certificate-2.pem'" in event["data"]["message"]
            assert stage.haproxy.process is first
            assert await stage.answers(ssl=context) == {"one", "two"}
            # What comes later is followed.
            stage.process.keep_certificates({stage.binding.bind: [["localhost"]]})
            stage.report(replace(stage.facts["one"], ready=False, state="stopping"))
            await stage.process.wait_until_performed()
            assert await stage.answers(ssl=context) == {"two"}

    run(work())


def test_target_that_haproxy_refuses_is_left_out_and_reported_and_the_others_serve(short: Path) -> None:
    bad = Target(url=f"unix:/{'a' * 100}")

    async def work() -> None:
        async with gateway(short) as stage:
            first = stage.haproxy.process
            routes = [replace(BOTH, to=(*BOTH.to, bad)), Route(alias="bad", path="/bad", to=(bad,))]
            stage.publish(2, *routes)
            await stage.process.wait_until_performed()
            assert stage.haproxy.process is not first
            assert (await stage.answers(), await stage.get("/bad")) == ({"one", "two"}, "503")
            events = [each["data"]["message"] for each in stage.reports if each["t"] == "event"]
            assert len(events) == 2, "of both routes"
            assert all(
                each.startswith(f"{bad.url} gets no requests, as HAProxy does not accept it: ")
                for each in events
            )
            assert "too long" in events[0]
            # Other changes need no other process, and report nothing again.
            second = stage.haproxy.process
            stage.report(replace(stage.facts["one"], ready=False, state="stopping"))
            stage.publish(3, replace(routes[0], to=(Target(server="two"), bad)), routes[1])
            await stage.process.wait_until_performed()
            assert (await stage.answers(), stage.haproxy.process) == ({"two"}, second)
            assert len([each for each in stage.reports if each["t"] == "event"]) == 2

    run(work())


def test_name_server_that_does_not_answer_holds_up_only_the_targets_that_need_it(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, resolve = threading.Event(), _gateway._resolve

    def slow(name: str) -> list[str]:
        if name == "slow.example":
            answers.wait(DEADLINE_SECONDS)
            return ["127.0.0.1"]
        return resolve(name)

    monkeypatch.setattr(_gateway, "_resolve", slow)

    async def work() -> None:
        async with gateway(short) as stage:
            port = stage.facts["one"].bind.rpartition(":")[2]
            names = ("slow.example", "localhost", "no.such.name.invalid")
            routes = [
                Route(alias=name, path=f"/{name}", to=(Target(url=f"http://{name}:{port}"),))
                for name in names
            ]
            stage.publish(2, BOTH, *routes)
            await stage.process.wait_until_performed()
            assert await stage.answers() == {"one", "two"}
            assert [await stage.get(f"/{name}") for name in names] == ["503", "one", "503"]
            before = stage.haproxy.process
            answers.set()
            while await stage.get("/slow.example") != "one":
                pass
            assert stage.haproxy.process is before

    run(work())


def test_body_over_the_limit_or_of_unknown_size_is_refused(short: Path) -> None:
    async def status(stage: Stage, request: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
        writer.write(request.encode())
        line = await reader.readline()
        writer.close()
        return line.decode().split()[1]

    async def work() -> None:
        async with gateway(short) as stage:
            stage.publish(2, replace(BOTH, max_body_bytes=10))
            await stage.process.wait_until_performed()
            post = "POST / HTTP/1.1\r\nHost: localhost\r\n"
            chunked = post + "Transfer-Encoding: chunked\r\n\r\n"
            asked = {
                post + "Content-Length: 10\r\n\r\n0123456789": "200",
                post + "Content-Length: 11\r\n\r\n": "413",
                post + "\r\n": "200",
                "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n": "200",
                chunked + "1\r\nx\r\n0\r\n\r\n": "411",
                chunked + "0\r\n\r\n": "200",
            }
            assert {request: await status(stage, request) for request in asked} == asked

    run(work())


def test_request_that_does_not_fit_into_the_queue_is_refused_at_once(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            held: list[asyncio.StreamWriter] = []

            async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                held.append(writer)

            slow = await asyncio.start_server(hold, "127.0.0.1", 0)
            stage.backends.append(slow)
            port = slow.sockets[0].getsockname()[1]
            limit = TrafficLimits(concurrency=1, queue=1, queue_seconds=DEADLINE_SECONDS)
            stage.publish(
                2, Route(alias="slow", to=(Target(url=f"http://127.0.0.1:{port}"),), backend_limit=limit)
            )
            await stage.process.wait_until_performed()
            process = stage.haproxy.process

            async def waiting(count: int) -> None:
                while True:
                    rows = await process.statistics()
                    (row,) = (
                        each for each in rows if (each["pxname"], each["svname"]) == ("route:slow", "BACKEND")
                    )
                    if (int(row["qcur"]), len(held)) == (count, 1):
                        return

            first = asyncio.ensure_future(stage.get())
            await waiting(0)
            second = asyncio.ensure_future(stage.get())
            await waiting(1)
            assert await stage.get() == "503"
            for answer in (first, second):
                while not held:
                    await asyncio.sleep(0.001)
                writer = held.pop()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
                writer.close()
                assert await answer == "late"

    run(work())


def test_process_is_over_when_haproxy_refuses_its_first_configuration_and_its_log_says_why(
    short: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        stage = Stage(str(short), True)
        stage.process.configure(stage.settings)
        stage.certify(b"no certificate", b"no key")
        stage.process.listen(stage.binding, None, (1,), [stage.listener])
        stage.process.begin_serving()
        await stage.over
        await stage.close()
        assert "HAProxy cannot serve by the new configuration: " in caplog.text

    run(work())


def test_process_keeps_no_pair_of_a_server(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            give, take = socket.socketpair()
            stage.process.report_server(stage.facts["one"], give)
            await stage.process.wait_until_performed()
            give.close()
            with take:
                take.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(take, 1) == b""

    run(work())


@pytest.mark.slow
def test_newest_pair_for_passed_connections_is_held_for_the_next_supervisor(short: Path) -> None:
    def inodes(pair: Iterable[socket.socket]) -> list[int]:
        return [os.fstat(each.fileno()).st_ino for each in pair]

    async def work() -> None:
        async with gateway(short) as stage:
            first, second = wire.pair(), wire.pair()
            for pair in (first, second):
                stage.process.set_return_socket_pair(*pair)
            await stage.process.wait_until_performed()
            held = [
                sockets for message, sockets in stage.server.messages_for_adopter() if message["t"] == "pair"
            ]
            assert [inodes(each) for each in held] == [inodes(second)]
            first[0].close()
            assert wire.receive(first[1]) is None, "of the first pair nothing is left"
            for each in (first[1], *second):
                each.close()

    run(work())


def test_hosts_are_disabled_and_drained_by_order(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            answer = await stage.process.change_host_states({"op": "disable", "hosts": ["one"], "for": 0})
            assert answer["hosts"] == ["one"]
            await stage.process.wait_until_performed()
            assert await stage.answers() == {"two"}
            assert [each["kind"] for each in stage.reports if each["t"] == "event"] == ["host disabled"]
            await stage.process.change_host_states({"op": "enable", "hosts": ["one"]})
            await stage.process.wait_until_performed()
            assert await stage.answers() == {"one", "two"}

    run(work())


@pytest.mark.slow
def test_host_is_disabled_for_the_time_in_the_settings_unless_the_order_names_another(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            stage.process.configure(replace(stage.settings, traffic_re_enable_seconds=1000.0))
            await stage.process.change_host_states({"op": "disable", "hosts": ["one"]})
            await stage.process.change_host_states({"op": "disable", "hosts": ["two"], "for": 2000.0})
            await stage.process.wait_until_performed()
            *_, states = [each["states"]["hosts"] for each in stage.reports if each["t"] == "hosts"]
            found = {each["host"]: round(each["until"] - each["since"]) for each in states}
            assert found == {"one": 1000, "two": 2000}

    run(work())


@pytest.mark.slow
def test_figures_are_those_of_haproxy_and_never_fall(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            await stage.answers(4)
            await stage.report_when(lambda it: it["counts"]["routes"]["both"]["slots"][tally.STATUS + 2] == 4)
            # A change without another process, which goes on counting.
            stage.report(replace(stage.facts["one"], health="warn"))
            await stage.process.wait_until_performed()
            report = await stage.process.fetch_report()
            assert report["counts"]["routes"]["both"]["slots"][tally.STATUS + 2] == 4
            stage.publish(2, BOTH, Route(alias="two", path="/two", to=(Target(server="two"),)))
            await stage.process.wait_until_performed()
            assert await stage.get("/two") == "two"
            report = await stage.report_when(
                lambda it: it["counts"]["routes"]["two"]["slots"][tally.STATUS + 2]
            )
            routes = report["counts"]["routes"]
            assert routes["both"]["slots"][tally.STARTED] == 4
            assert routes["both"]["slots"][tally.STATUS + 2] == 4
            assert routes["two"]["slots"][tally.STARTED] == 1
            assert {row["host"]: row["requests"] for row in report["hosts"]} == {"one": 2, "two": 3}
            figures = await stage.process.fetch_request_totals()
            assert figures["slots"][tally.STARTED] == 5
            assert figures["program_pid"] == stage.haproxy.process.pid
            stage.publish(3, Route(alias="two", path="/two", to=(Target(server="two"),)))
            await stage.process.wait_until_performed()
            assert await stage.get("/other") == "404"
            report = await stage.report_when(lambda it: it["counts"]["refused"])
            assert report["counts"]["refused"] == {"404": 1}
            assert (report["queued"], report["waiting"], report["evicted"]) == ({}, 0, 0)

    run(work())


@pytest.mark.slow
def test_answers_take_no_url_out_and_an_address_without_a_listener_is_shown_with_an_open_breaker(
    short: Path,
) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            await stage.add("busy", "503 Service Unavailable")
            port = stage.backends[-1].sockets[0].getsockname()[1]
            url, rule = f"http://127.0.0.1:{port}", BreakerRule(failures=2, open_seconds=0.1)
            stage.publish(2, Route(alias="busy", to=(Target(url=url),), breaker=rule))
            await stage.process.wait_until_performed()
            for _ in range(20):
                assert await stage.get() == "503"
            report = await stage.report_when(
                lambda it: len(it["hosts"]) == 1 and it["hosts"][0]["requests"] >= 20
            )
            row = report["hosts"][0]
            assert (row["breaker"], row["errors"], row["why"]) == ("closed", 20, "")
            stage.backends.pop().close()
            report = await stage.report_when(lambda it: it["hosts"][0]["breaker"] == "open")
            row = report["hosts"][0]
            assert (row["available"], row["why"]) == (False, "breaker open: HAProxy cannot reach it")
            stage.backends.append(await asyncio.start_server(lambda *_: None, "127.0.0.1", port))
            await stage.report_when(lambda it: it["hosts"][0]["breaker"] == "closed")

    run(work())


@pytest.mark.slow
def test_certificate_is_renewed_without_another_haproxy(short: Path) -> None:
    pairs = []
    for number in (1, 2):
        directory = short / str(number)
        directory.mkdir()
        cert, key = certificate(directory)
        pairs.append((cert.read_bytes(), key.read_bytes()))
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])

    async def shown(stage: Stage) -> tuple[str, str | None]:
        _, writer = await asyncio.open_connection("127.0.0.1", stage.port, ssl=context)
        secure = writer.get_extra_info("ssl_object")
        writer.transport.abort()
        return ssl.DER_cert_to_PEM_cert(secure.getpeercert(True)).strip(), secure.selected_alpn_protocol()

    async def work() -> None:
        async with gateway(short, *pairs[0]) as stage:
            first = stage.haproxy.process
            assert await shown(stage) == (pairs[0][0].decode().strip(), "h2")
            bundle = next((short / "haproxy").glob("*.pem"))
            assert bundle.stat().st_mode & 0o777 == 0o600
            stage.certify(*pairs[1])
            await stage.process.wait_until_performed()
            assert await shown(stage) == (pairs[1][0].decode().strip(), "h2")
            assert stage.haproxy.process is first
            # One that was renewed with other names replaces the one before, too.
            stage.certify(*pairs[0], name="www.localhost")
            stage.process.keep_certificates({stage.binding.bind: [["www.localhost"]]})
            await stage.process.wait_until_performed()
            assert await shown(stage) == (pairs[0][0].decode().strip(), "h2")
            # And back again.
            stage.certify(*pairs[1])
            stage.process.keep_certificates({stage.binding.bind: [["localhost"]]})
            await stage.process.wait_until_performed()
            assert await shown(stage) == (pairs[1][0].decode().strip(), "h2")

    run(work())


@pytest.mark.slow
def test_host_that_demands_a_client_certificate_is_refused_over_the_connection_of_another_host(
    short: Path,
) -> None:
    names = ("open.example", "also.example", "closed.example", "*.closed.example")
    paths = {name: certificate(short, name) for name in names}
    made = {name: (cert.read_bytes(), key.read_bytes()) for name, (cert, key) in paths.items()}
    authorities = short / "authorities.pem"
    authorities.write_bytes(b"".join(cert for cert, _ in made.values()))
    anonymous = ssl.create_default_context(cafile=str(authorities))
    anonymous.check_hostname = False  # a name without a certificate is shown that of another one
    known = ssl.create_default_context(cafile=str(authorities))
    known.load_cert_chain(*paths["closed.example"])
    known_below = ssl.create_default_context(cafile=str(authorities))
    known_below.load_cert_chain(*paths["*.closed.example"])

    async def status(port: int, context: ssl.SSLContext, name: str, *hosts: str) -> list[int]:
        """The statuses of requests for the hosts, over one connection that was made for the name."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        found = []
        for host in hosts:
            writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            found.append(int(head.split()[1]))
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r")[0]))
        writer.close()
        return found

    async def over_http2(port: int, name: str, host: str) -> str:
        asked = ("--http2", "--cacert", str(authorities), "--resolve", f"{name}:{port}:127.0.0.1")
        shown = ("-sS", "-o", "/dev/null", "-w", "%{http_version} %{http_code}")
        url = f"https://{name}:{port}/"
        process = await asyncio.create_subprocess_exec(
            program("curl"), *asked, *shown, "-H", f"Host: {host}", url, stdout=asyncio.subprocess.PIPE
        )
        return (await process.communicate())[0].decode()

    async def work() -> None:
        async with gateway(short, *made["open.example"]) as stage:
            with socket.create_server(("127.0.0.1", 0)) as other:
                elsewhere = other.getsockname()[1]
                second = ListenerSettings(bind=f"127.0.0.1:{elsewhere}", tls=True)
                for name, (cert, key) in made.items():
                    stage.certify(cert, key, cert if "closed" in name else b"", name=name)
                    stage.certify(cert, key, name=name, bind=second.bind)
                stage.process.listen(second, None, (2,), [other])
                await stage.process.wait_until_performed()
                port = stage.port
                hosts = (
                    "open.example",
                    "also.example:443",
                    "unknown.example",
                    "127.0.0.1",
                    "Closed.Example.:443",
                    "x.closed.example",
                )
                for name in ("open.example", "also.example", "unknown.example", "closed.example."):
                    assert await status(port, anonymous, name, *hosts) == [200, 200, 200, 200, 421, 421], name
                assert await status(port, known, "closed.example", "CLOSED.example", "open.example") == [
                    200,
                    200,
                ]
                hosts = ("y.closed.example", "open.example", "closed.example")
                assert await status(port, known_below, "x.closed.example", *hosts) == [200, 200, 421]
                assert await over_http2(port, "open.example", "also.example") == "2 200"
                assert await over_http2(port, "open.example", "closed.example") == "2 421"
                assert await status(elsewhere, anonymous, "open.example", "closed.example") == [200]
                assert await over_http2(elsewhere, "open.example", "closed.example") == "2 200"

    run(work())


@pytest.mark.slow
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_of_another_host_is_no_way_around_a_client_certificate(
    short: Path, version: ssl.TLSVersion
) -> None:
    made = {}
    for name in ("open.example", "closed.example"):
        cert, key = certificate(short, name)
        made[name] = cert.read_bytes(), key.read_bytes()
    anonymous = ssl.create_default_context()
    anonymous.check_hostname = False
    anonymous.verify_mode = ssl.CERT_NONE
    anonymous.minimum_version = anonymous.maximum_version = version

    def ask(
        port: int, name: str, session: ssl.SSLSession | None = None
    ) -> tuple[bytes, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock,
            anonymous.wrap_socket(sock, server_hostname=name, session=session) as secure,
        ):
            secure.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            return secure.recv(12), secure.session

    async def work() -> None:
        async with gateway(short, *made["open.example"]) as stage:
            for name, (cert, key) in made.items():
                stage.certify(cert, key, cert if name == "closed.example" else b"", name=name)
            await stage.process.wait_until_performed()
            status, session = await asyncio.to_thread(ask, stage.port, "open.example")
            assert status == b"HTTP/1.1 200"
            with pytest.raises(OSError, match="alert"):
                await asyncio.to_thread(ask, stage.port, "closed.example", session)

    run(work())


@pytest.mark.slow
def test_streams_are_copied_and_counted(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                bind = f"127.0.0.1:{listener.getsockname()[1]}"
                route = StreamRoute(alias="tcp", bind=bind, to=(Target(server="one"),))
                binding = ListenerSettings(bind=bind, protocol="tcp", alias="tcp")
                stage.process.listen(binding, route, (2,), [listener])
                await stage.process.wait_until_performed()
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                assert (await reader.readuntil(b"one")).startswith(b"HTTP/1.1 200")
                writer.close()
                report = await stage.report_when(lambda it: it["streams"].get("tcp", {}).get("accepted"))
                assert report["streams"]["tcp"]["accepted"] == 1

    run(work())


@pytest.mark.slow
def test_process_is_over_when_haproxy_ends_by_itself(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            os.kill(stage.haproxy.process.pid, 9)
            await stage.over

    run(work())


@pytest.mark.slow
def test_draining_process_answers_what_was_begun(short: Path) -> None:
    async def work() -> None:
        async with gateway(short) as stage:
            held: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

            async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                held.set_result(writer)

            slow = await asyncio.start_server(hold, "127.0.0.1", 0)
            port = slow.sockets[0].getsockname()[1]
            stage.publish(2, Route(alias="slow", to=(Target(url=f"http://127.0.0.1:{port}"),)))
            await stage.process.wait_until_performed()
            answer = asyncio.ensure_future(stage.get())
            writer = await held
            stage.process.drain(30.0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
            assert await answer == "late"
            writer.close()
            await stage.over
            slow.close()

    run(work())


ROUTED = HaproxyBackend(
    "route:both", "both", False, (),
    (
        HaproxyServer("one", "one", "127.0.0.1:1", "", 1, ""),
        HaproxyServer("10.0.0.7:80", "http://10.0.0.7:80", "", "", 1, ""),
    ),
)  # fmt: skip
STREAMED = HaproxyBackend(
    "stream:pg", "pg", True, (), (HaproxyServer("10.0.0.5:5432", "10.0.0.5:5432", "", "", 1, ""),)
)
COLUMNS = (
    "pxname,svname,scur,stot,bin,bout,econ,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,status,check_status,"
)


class Counted:
    """Figures made of rows as HAProxy shows them, each "" where a column does not apply."""

    def __init__(self) -> None:
        clock = ManualClock()
        self.counts = TrafficCounts()
        self.backends = Backends(
            HostStates(clock.monotonic, wall=clock.time), clock.monotonic, counts=self.counts
        )
        servers = (Target(server="one"), Target(url="http://10.0.0.7:80"))
        stream = StreamRoute(alias="pg", bind="127.0.0.1:5432", to=(Target(url="10.0.0.5:5432"),))
        facts = ServerFacts(name="one", bind="127.0.0.1:1", state="running", ready=True)
        self.backends.apply([replace(BOTH, to=servers), stream], {"one": facts})
        self.statistics = HaproxyStatisticsAccumulator(self.counts)

    def add(self, *rows: str) -> None:
        self.statistics.update_from_statistics(
            csv.DictReader([COLUMNS, *rows]), [ROUTED, STREAMED], self.backends
        )

    def hosts(self) -> dict[str, tuple[int, int, int, str]]:
        """Of each host the requests in flight, all requests, errors and the state of its breaker."""
        return {
            row["host"]: (row["in_flight"], row["requests"], row["errors"], row["breaker"])
            for row in self.backends.snapshot()
        }


def slots(started: int, *answered: int) -> list[int]:
    """The counts of a traffic with this number of requests, and of responses with 1xx, 2xx and so on."""
    found = [0] * tally.COUNTED
    found[tally.STARTED] = started
    found[tally.STATUS + 1 : tally.STATUS + 1 + len(answered)] = answered
    return found


def test_counts_of_requests_are_those_of_each_route_and_server() -> None:
    counted = Counted()
    assert counted.statistics.connections == 0
    assert counted.hosts() == {
        "one": (0, 0, 0, "closed"), "http://10.0.0.7:80": (0, 0, 0, "closed"),
        "10.0.0.5:5432": (0, 0, 0, "closed"),
    }  # fmt: skip
    counted.add(
        "gateway,FRONTEND,7,90,1,1,,,,,,,OPEN,,",
        "other,FRONTEND,2,9,1,1,,,,,,,OPEN,,",
        "route:both,one,3,20,300,400,0,1,11,2,3,3,UP,,",
        "route:both,10.0.0.7:80,0,0,0,0,0,0,0,0,0,0,DOWN 1/2,L4CON,",
        "route:both,BACKEND,3,21,310,410,0,1,11,2,3,4,UP,,",
        "no-route,BACKEND,,5,,,,,,,,,UP,,",
        "no-route,FRONTEND,,6,,,,,,,,,UP,,",
    )
    assert counted.statistics.connections == 9
    snapshot = counted.counts.snapshot()
    assert snapshot["refused"] == {"404": 5}
    both = {"slots": slots(21, 1, 11, 2, 3, 4), "errors": {}, "bytes_in": 310, "bytes_out": 410}
    one = {"slots": slots(20, 1, 11, 2, 3, 3), "errors": {}, "bytes_in": 300, "bytes_out": 400}
    assert snapshot["routes"] == {"both": both}
    assert snapshot["backends"]["one"] == one
    assert snapshot["backends"]["http://10.0.0.7:80"]["slots"] == slots(0)
    assert counted.hosts() == {
        "one": (3, 20, 3, "closed"), "http://10.0.0.7:80": (0, 0, 0, "open"), "10.0.0.5:5432": (0, 0, 0, "closed"),
    }  # fmt: skip


def test_counts_grow_by_the_increase_since_the_last_time() -> None:
    counted = Counted()
    counted.add("route:both,BACKEND,1,10,100,200,0,0,8,0,0,2,UP,,")
    counted.add("route:both,BACKEND,0,13,150,260,0,0,10,0,0,3,UP,,")
    whole = {"slots": slots(13, 0, 10, 0, 0, 3), "errors": {}, "bytes_in": 150, "bytes_out": 260}
    assert counted.counts.snapshot()["routes"]["both"] == whole
    counted.add("route:both,BACKEND,0,13,150,260,0,0,10,0,0,3,UP,,")
    assert counted.counts.snapshot()["routes"]["both"] == whole
    # A server of this name was added again.
    counted.add("route:both,BACKEND,0,2,5,6,0,0,1,0,0,1,UP,,")
    grown = {"slots": slots(15, 0, 11, 0, 0, 4), "errors": {}, "bytes_in": 155, "bytes_out": 266}
    assert counted.counts.snapshot()["routes"]["both"] == grown
    counted.statistics.begin_process()
    counted.add("route:both,BACKEND,0,4,5,6,0,0,4,0,0,0,UP,,")
    assert counted.counts.snapshot()["routes"]["both"]["slots"] == slots(19, 0, 15, 0, 0, 4)


def test_counts_of_a_stream_are_those_of_its_listener() -> None:
    counted = Counted()
    counted.add(
        "stream:pg,FRONTEND,4,9,100,200,,,,,,,OPEN,,",
        "stream:pg,10.0.0.5:5432,4,9,90,190,3,,,,,,UP,L4OK,",
        "stream:pg,BACKEND,5,10,80,180,2,,,,,,UP,,",
    )
    whole = {
        "accepted": 9, "open": 4, "failed": 2, "refused": 0, "passed": 0, "bytes_in": 100, "bytes_out": 200,
    }  # fmt: skip
    assert (counted.statistics.streams, counted.statistics.connections) == ({"pg": whole}, 4)
    assert counted.counts.snapshot()["routes"] == {}
    assert counted.hosts()["10.0.0.5:5432"][:2] == (4, 9)
    counted.add("stream:pg,FRONTEND,,12,150,280,,,,,,,OPEN,,", "stream:pg,BACKEND,0,12,0,0,3,,,,,,UP,,")
    whole |= {"accepted": 12, "open": 0, "failed": 3, "bytes_in": 150, "bytes_out": 280}
    assert (counted.statistics.streams, counted.statistics.connections) == ({"pg": whole}, 0)
    assert counted.hosts()["10.0.0.5:5432"][0] == 0


@pytest.mark.parametrize(
    ("columns", "health"),
    [
        (",0,0,0,0,0,UP,", "unknown"),
        (",0,0,0,0,0,UP,L4OK", "healthy"),
        (",0,0,0,0,0,UP,L4CON", "unknown"),
        (",0,1,0,0,0,no check,", "healthy"),
        (",0,0,0,0,1,no check,", "healthy"),
        (",,,,,,no check,", "unknown"),
        (",0,0,0,0,0,DOWN,L4CON", "unhealthy"),
    ],
)
def test_target_is_healthy_once_it_has_answered_or_passed_a_check(columns: str, health: str) -> None:
    counted = Counted()
    counted.add(f"route:both,10.0.0.7:80,0,0,0,0,0{columns},")
    found = counted.backends.healths()
    assert found["both"]["http://10.0.0.7:80"]["status"] == health
    assert found["stream pg"]["10.0.0.5:5432"]["status"] == "unknown"
