"""The gateway's process and the supervisor's side of it, on one loop: what is sent is in force, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import socket
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.process import gateway_server
from poolctl.features.gateway.process.backends.route_backends import Lease, RequestOutcome
from poolctl.features.gateway.process.gateway_server import GatewayServer
from poolctl.features.gateway.process.settings import (
    GatewaySettings,
    ListenerSettings,
    MachineState,
    ServerFacts,
)
from poolctl.features.gateway.supervision import gateway_adoption, gateway_process
from poolctl.features.gateway.supervision.gateway_adoption import OrphanedGateway, find
from poolctl.features.gateway.supervision.gateway_process import GatewayProcess
from poolctl.keeper import connection_handover, wire
from poolctl.keeper.connection_handover import Routed
from poolctl.routing.route import Route, StreamRoute, Target
from poolctl.routing.route_table import write_table
from poolctl.runners import supervised_process
from poolctl.runners.process_link import Descriptor
from poolctl.worker import tally

DEADLINE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks a gateway's process waits for its answer as long as a test does."""
    monkeypatch.setattr(gateway_adoption, "_ANSWER_SECONDS", DEADLINE_SECONDS)
    for name in ("_FIGURES_SECONDS", "_REPORT_SECONDS", "_WITHDRAW_SECONDS"):
        monkeypatch.setattr(gateway_process, name, DEADLINE_SECONDS)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, DEADLINE_SECONDS))


class Stage:
    """A gateway with one listener and one route, to the server "web", which answers "ok"."""

    def __init__(self, directory: Path) -> None:
        self.settings = GatewaySettings(directory=str(directory), drain_seconds=5.0)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.binding = ListenerSettings(bind=f"127.0.0.1:{self.port}")
        self.reports: list[wire.Message] = []
        ours, theirs = wire.pair()
        self.server = GatewayServer(theirs.detach())
        self.over = asyncio.ensure_future(self.server.serve_supervisor())
        self.own = wire.pair()
        self.first = ours

    async def start(self) -> None:
        self.backend = await asyncio.start_server(_answer, "127.0.0.1", 0)
        port = self.backend.sockets[0].getsockname()[1]
        self.facts = ServerFacts(name="web", bind=f"127.0.0.1:{port}", state="running", ready=True)
        self.supervise(self.first)
        await self.begin()

    def supervise(self, sock: socket.socket) -> None:
        """Another supervisor has this end of the link from now on."""
        self.process = GatewayProcess(sock, {}, "1")
        self.process.on_report = self.reports.append

    async def begin(self) -> None:
        process = self.process
        process.configure(self.settings)
        process.set_return_socket_pair(*self.own)
        process.report_server(self.facts, None)
        self.publish(1, Route(alias="web", to=(Target(server="web"),)))
        process.listen(self.binding, None, (1,), [self.listener])
        process.begin_serving()
        await process.up.wait()

    def publish(self, generation: int, *routes: Route) -> None:
        table = Descriptor(write_table(routes, generation))
        self.process.publish(generation, table)
        table.close()

    def stream(
        self, target: str, protocol: str = "tcp"
    ) -> tuple[socket.socket, ListenerSettings, StreamRoute]:
        """A stream to this target: its listener, which the caller has to close, with its settings and its route."""
        listener = socket.socket(type=socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        listener.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            listener.listen()
        listener.setblocking(False)
        bind = f"127.0.0.1:{listener.getsockname()[1]}"
        binding = ListenerSettings(bind=bind, protocol=protocol, alias=protocol)
        route = StreamRoute(alias=protocol, bind=bind, to=(Target(url=target),), protocol=protocol)
        self.process.listen(binding, route, (2,), [listener])
        return listener, binding, route

    async def get(self) -> bytes:
        """The status line and the body of a request on a new connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n")
        try:
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return head.partition(b"\r\n")[0] + b" | " + body
        finally:
            writer.close()

    async def settled(self) -> None:
        """Return once it has followed the orders that were sent: those of one link are followed one after the other."""
        await self.process.fetch_report()

    async def close(self) -> None:
        self.process.end()
        await self.over
        self.backend.close()
        self.listener.close()
        for end in self.own:
            end.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    finally:  # when the loop ends, too: the collector would complain in another test
        writer.close()


@contextlib.asynccontextmanager
async def gateway(directory: Path) -> AsyncIterator[Stage]:
    stage = Stage(directory)
    await stage.start()
    try:
        yield stage
    finally:
        await stage.close()


def test_request_is_proxied_to_a_server_without_a_pair_and_refused_without_a_route(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            stage.publish(2)
            await stage.settled()
            assert (await stage.get()).startswith(b"HTTP/1.1 404 ")

    run(work())


def test_access_log_is_written_to_a_new_file_once_it_was_reopened(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            log, moved = tmp_path / "access.log", tmp_path / "access.log.1"
            await stage.process.reopen_log()  # without one there is nothing to wait for
            stage.process.configure(replace(stage.settings, access_log=str(log)))
            await stage.get()
            while not log.exists():
                await asyncio.sleep(0.01)
            log.rename(moved)
            await stage.process.reopen_log()
            await stage.get()
            while not log.exists():
                await asyncio.sleep(0.01)
            assert moved.read_text().count("\n") == 1

    run(work())


def test_connection_goes_into_the_pair_of_a_server_until_that_is_withdrawn(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            give, take = wire.pair()
            stage.process.report_server(stage.facts, give)
            await stage.settled()
            client = asyncio.ensure_future(stage.get())
            while True:
                try:
                    taken = connection_handover.receive_connection(take)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            assert taken is not None
            with taken:
                taken.setblocking(True)
                assert taken.recv(4096)
                taken.sendall(b"HTTP/1.1 200 OK\r\n\r\npassed")
            assert await client == b"HTTP/1.1 200 OK | passed"
            await stage.process.withdraw_passing_socket("web", give)
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            give.close()
            # Nobody has the give end any more.
            assert wire.receive(take) is None
            take.close()

    run(work())


def test_listener_that_is_sent_again_keeps_accepting(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            for number in range(2, 5):
                stage.process.listen(stage.binding, None, (number,), [stage.listener])
                assert await stage.get() == b"HTTP/1.1 200 OK | ok"

    run(work())


def test_listener_that_is_sent_again_after_a_resync_stays_open_and_others_are_closed(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            other, binding, _ = stage.stream("127.0.0.1:1")
            await stage.settled()
            before = stage.server._listeners[stage.binding.key]
            stage.process.begin_resync()
            stage.process.report_server(stage.facts, None)
            stage.process.listen(stage.binding, None, (1,), [stage.listener])
            stage.process.begin_serving()
            await stage.settled()
            assert stage.server._listeners == {stage.binding.key: before}
            assert binding.key not in stage.server._listeners
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            other.close()

    run(work())


def test_orders_are_confirmed_once_they_apply_to_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            backend = stage.server.backends.of(Route(alias="web", to=(Target(server="web"),))).members[0]
            ready_at_confirmation: list[bool] = []
            send = stage.server.link.send

            def confirm(message: wire.Message, *fds: Any, **options: Any) -> None:
                if message["t"] == "performed":
                    ready_at_confirmation.append(backend.backend.blocked is None)
                send(message, *fds, **options)

            monkeypatch.setattr(stage.server.link, "send", confirm)
            for ready in (False, True):
                stage.process.report_server(replace(stage.facts, ready=ready), None)
                await stage.process.wait_until_performed()
            assert ready_at_confirmation == [False, True]

    run(work())


def test_listener_with_another_socket_of_its_address_is_replaced(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            other = socket.create_server(("127.0.0.1", 0))
            other.setblocking(False)
            stage.process.listen(stage.binding, None, (2,), [other])
            await stage.settled()
            stage.listener, other = other, stage.listener
            stage.port = stage.listener.getsockname()[1]
            other.close()
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"

    run(work())


def test_kernel_keeps_silent_connections_of_http_and_gives_those_of_a_stream_at_once(tmp_path: Path) -> None:
    def deferral(sock: socket.socket) -> int:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)

    async def work() -> None:
        async with gateway(tmp_path) as stage:
            await stage.settled()
            assert deferral(stage.listener)
            binding = replace(stage.binding, protocol="tcp", alias="db")
            route = StreamRoute(alias="db", bind=binding.bind, to=(Target(server="web"),))
            stage.process.listen(binding, route, (1,), [stage.listener])
            await stage.settled()
            assert not deferral(stage.listener)

    run(work())


def test_stream_is_served_and_goes_on_with_another_route(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            listener, binding, route = stage.stream(stage.facts.bind)
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            for idle_seconds in (10.0, 20.0):
                stage.process.listen(binding, replace(route, idle_seconds=idle_seconds), (2,), [listener])
                await stage.settled()
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                assert (await reader.readexactly(40)).endswith(b"ok")
            writer.close()
            listener.close()

    run(work())


def test_table_of_many_routes_keeps_the_backends_of_those_that_had_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_server, "_MOST_LISTED_ROUTES", 1)
    used, unused = (
        Route(alias=each, host=host, to=(Target(server="web"),)) for each, host in (("a", ""), ("b", "b"))
    )

    async def work() -> None:
        async with gateway(tmp_path) as stage:
            stage.publish(2, used, unused)
            await stage.settled()
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            backends = stage.server.edge.backends
            before = backends.of(used)
            stage.publish(3, replace(used, policy="first"), unused)
            await stage.settled()
            assert (backends.aliases, backends.of(replace(used, policy="first"))) == (["a"], before)
            stage.publish(4, unused, replace(unused, alias="c", host="c"))
            await stage.settled()
            assert backends.aliases == []
            stage.publish(5, unused)
            await stage.settled()
            assert backends.aliases == ["b"], "a table of few routes has those of all"

    run(work())


def test_number_of_passed_connections_is_asked_for_and_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_server, "_LOADS_SECONDS", 0.01)

    async def work() -> None:
        async with gateway(tmp_path) as stage:
            route = Route(alias="web", to=(Target(server="web"),), policy="least-connections")
            stage.publish(2, route)
            await stage.settled()
            backends = stage.server.edge.backends
            for _ in range(3):
                lease = backends.of(route).acquire("10.0.0.1")
                assert isinstance(lease, Lease)
                lease.release(RequestOutcome.PASSED)
            while not (asked := [each["servers"] for each in stage.reports if each["t"] == "loads"]):
                await asyncio.sleep(0.001)
            assert (asked, lease.backend.load) == ([["web"]], 3)
            stage.process.report_connections({"web": 1})
            await stage.settled()
            assert lease.backend.load == 1

    run(work())


async def orphans(directory: Path) -> list[OrphanedGateway]:
    """The orphaned gateways, as soon as there is one."""
    while not (found := await asyncio.to_thread(find, str(directory))):
        await asyncio.sleep(0.001)
    return found


def test_gateway_is_found_although_its_directory_was_removed_when_it_became_an_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_process, "_BIND_AGAIN_SECONDS", 0.01)

    async def work() -> None:
        directory = tmp_path / "parent" / "runtime"
        directory.mkdir(parents=True)
        async with gateway(directory) as stage:
            shutil.rmtree(tmp_path / "parent")
            stage.process.link.close()
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            directory.mkdir(parents=True, exist_ok=True)  # it may have made it again itself
            (orphan,) = await orphans(directory)
            stage.supervise(orphan.sock.dup())
            orphan.close()

    run(work())


@pytest.mark.parametrize("contents", [[b"no certificate", b"no key"], [b"", b""]])
def test_certificate_that_cannot_be_used_is_reported(tmp_path: Path, contents: list[bytes]) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            fds = [os.memfd_create("file") for _ in contents]
            for fd, content in zip(fds, contents, strict=True):
                os.write(fd, content)
            stage.process.use_certificate(stage.binding.bind, (), {}, 1, fds)
            for fd in fds:
                os.close(fd)
            await stage.settled()
            assert [each["kind"] for each in stage.reports] == ["gateway certificate failed"]

    run(work())


def test_states_of_machines_are_those_of_the_present_supervisor(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            found = MachineState(host="http://web:80", state="stopped")
            stage.process.report_machines({found.host: found})
            await stage.settled()
            machines = stage.server.edge.machines
            assert machines is not None
            assert found.host in machines
            # It asks the supervisor once a second at most.
            stage.server.edge.wake(found.host)
            stage.server.edge.wake(found.host)
            await stage.settled()
            wakes = [each for each in stage.reports if each["t"] == "wake"]
            assert [each["server"] for each in wakes] == [found.host]

            stage.process.report_machines({})
            await stage.settled()
            assert found.host not in machines
            # Another supervisor does not know them yet.
            stage.process.report_machines({found.host: found})
            await stage.settled()
            assert found.host in machines
            stage.process.begin_resync()
            await stage.begin()
            await stage.settled()
            assert found.host not in machines

    run(work())


def test_forgotten_server_gets_no_request_and_its_pair_is_let_go(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            give, take = wire.pair()
            stage.process.report_server(stage.facts, give)
            await stage.settled()
            edge = stage.server.edge
            assert edge.passing.can_pass_to("web")
            stage.process.forget_server("web")
            stage.process.forget_server("web")
            await stage.settled()
            assert not edge.passing.can_pass_to("web")
            assert await stage.get() == b"HTTP/1.1 503 Service Unavailable | 503 Service Unavailable\n"
            assert [each["available"] for each in edge.backends.snapshot()] == [False]
            give.close()
            take.close()

    run(work())


def test_server_without_a_pair_is_forgotten_and_may_come_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            stage.process.forget_server("web")
            await stage.settled()
            assert (await stage.get()).startswith(b"HTTP/1.1 503 ")
            stage.process.report_server(stage.facts, None)
            await stage.settled()
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"

    run(work())


def test_backends_are_those_of_the_routes_in_the_last_table(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            url = "http://127.0.0.1:1"
            stage.publish(2, Route(alias="out", to=(Target(url=url),)))
            report = await stage.process.fetch_report()
            assert [row["host"] for row in report["hosts"]] == [url]
            assert stage.server.edge.workers_keep
            table = Descriptor(write_table((), 3))
            stage.process.publish(3, table, workers_may_keep=False)
            table.close()
            report = await stage.process.fetch_report()
            assert (report["hosts"], report["queued"], report["streams"]) == ([], {}, {})
            assert not stage.server.edge.workers_keep

    run(work())


def test_listener_that_is_withdrawn_accepts_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            stage.process.close_listener(stage.binding.key)
            await stage.settled()
            assert stage.process.listeners == set()
            client = asyncio.ensure_future(stage.get())
            await stage.settled()
            assert not client.done()
            stage.process.listen(stage.binding, None, (2,), [stage.listener])
            assert await client == b"HTTP/1.1 200 OK | ok"

    run(work())


def test_requests_that_are_queued_for_a_pair_are_reported(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            give, take = wire.pair()
            stage.process.report_server(stage.facts, give)
            await stage.settled()
            with contextlib.suppress(BlockingIOError):
                while True:
                    wire.send(give, {"t": "none"}, [take.fileno()])
            client = asyncio.ensure_future(stage.get())
            while not (await stage.process.fetch_report())["queued"]:
                pass
            assert (await stage.process.fetch_report())["queued"] == {"web": 1}
            client.cancel()
            give.close()
            take.close()

    run(work())


def test_figures_are_the_totals_of_requests_and_of_streams_of_both_protocols(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            stage.publish(2)
            await stage.settled()
            assert (await stage.get()).startswith(b"HTTP/1.1 404 ")
            with contextlib.ExitStack() as sockets:
                backend, client = [
                    sockets.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2)
                ]
                backend.bind(("127.0.0.1", 0))
                backend.setblocking(False)
                udp, binding, _ = stage.stream(f"127.0.0.1:{backend.getsockname()[1]}", "udp")
                tcp, *_ = stage.stream("127.0.0.1:1")
                for listener in (udp, tcp):
                    sockets.enter_context(listener)
                client.sendto(b"x", udp.getsockname())
                assert await asyncio.get_running_loop().sock_recv(backend, 10) == b"x"
                reader, writer = await asyncio.open_connection(*tcp.getsockname())
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()
                figures = await stage.process.fetch_request_totals()
                slots = figures.pop("slots")
                assert (slots[tally.STARTED], slots[tally.STATUS + 2]) == (1, 1)
                del figures["t"], figures["id"]
                assert figures == {"refused": [0, 1], "connections": 1, "streamed": 2, "stream_errors": 2}
                report = await stage.process.fetch_report()
                assert {name: each["open"] for name, each in report["streams"].items()} == {
                    "udp": 1,
                    "tcp": 0,
                }
                stage.process.configure(replace(stage.settings, drain_seconds=0.0))
                stage.process.close_listener(binding.key)
                while stage.server.edge.stream_share.used:
                    await asyncio.sleep(0)

    run(work())


@pytest.mark.parametrize("last", [False, True])
def test_draining_process_ends_with_its_last_stream_and_the_last_process_resets_it(
    tmp_path: Path, last: bool
) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            listener, *_ = stage.stream(stage.facts.bind)
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.readexactly(40)
            if last:
                finishing = asyncio.ensure_future(stage.process.finish(1000.0))
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                await finishing
            else:
                await stage.settled()
                stage.process.drain(1000.0)
                while not stage.server.edge.draining:
                    await asyncio.sleep(0)
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                assert (await reader.readexactly(40)).endswith(b"ok")
            writer.close()
            await stage.over
            listener.close()

    run(work())


def test_pair_of_a_server_stays_when_it_is_sent_again_or_an_earlier_one_is_withdrawn(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            (give, take), (earlier, its_take) = wire.pair(), wire.pair()
            stage.process.report_server(stage.facts, give)
            await stage.process.withdraw_passing_socket("web", earlier)
            assert stage.server.edge.passing.can_pass_to("web")
            stage.process.begin_resync()
            stage.process.report_server(stage.facts, give)
            await stage.settled()
            assert stage.server.edge.passing.can_pass_to("web")
            stage.process.report_server(stage.facts, None)
            await stage.settled()
            assert not stage.server.edge.passing.can_pass_to("web")
            for end in (give, take, earlier, its_take):
                end.close()

    run(work())


def test_backends_of_a_stream_are_reported_before_its_first_connection(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            listener, *_ = stage.stream("10.0.0.5:5432")
            report = await stage.process.fetch_report()
            assert [row["host"] for row in report["hosts"]] == ["web", "10.0.0.5:5432"]
            listener.close()

    run(work())


def test_draining_process_leaves_new_connections_to_the_next_while_it_waits_for_a_head(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: example.com\r\n")
            waiting = stage.server.edge.passing.waiting
            while not len(waiting):
                await asyncio.sleep(0)
            draining = asyncio.ensure_future(stage.server.drain(1000.0, last=False))
            await stage.settled()
            with socket.create_connection(("127.0.0.1", stage.port)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
                assert select.select([stage.listener], [], [], DEADLINE_SECONDS)[0]
                await stage.settled()
                assert len(waiting) == 1
                with stage.listener.accept()[0] as accepted:  # and those that workers give back
                    routed = Routed("web", received=b"", decided=False)
                    connection_handover.send_connection(stage.own[0], accepted.fileno(), routed=routed)
                await stage.settled()
                taken = connection_handover.receive_connection(stage.own[1])
                assert taken is not None
                assert taken.getpeername() == client.getsockname()
                taken.close()
            writer.write(b"Connection: close\r\n\r\n")
            assert (await reader.read()).endswith(b"ok")
            writer.close()
            await draining

    run(work())
