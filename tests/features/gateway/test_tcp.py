"""TCP streams: bytes in both directions, ends, failures of backends, limits."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import struct
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.features.gateway.process.streams import tcp as tcp_module
from poolctl.features.gateway.process.streams.tcp import TcpStream
from poolctl.keeper import connection_handover
from poolctl.routing.route import BreakerRule, StreamRoute, Target, Timeouts
from poolctl.routing.route_report import BreakerState
from poolctl.worker import tally

from .stream_stage import Run, StreamEdge, a_route, closed_port, listening, run, tcp, until

__all__ = ["run"]

SECONDS_TO_DRAIN = 15.0

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends everything back, and its end."""
    while data := await reader.read(100_000):
        writer.write(data)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def backend(handler: Handler = echo, path: str = "") -> AsyncIterator[int]:
    """A server on this loop, and its port; 0 for one on a Unix socket."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await handler(reader, writer)
        finally:
            writer.close()

    if path:
        server = await asyncio.start_unix_server(handle, path)
    else:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield 0 if path else server.sockets[0].getsockname()[1]
    finally:
        server.close()


def names(text: bytes) -> Handler:
    """A backend that says who it is and closes the connection."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)

    return handler


@contextlib.asynccontextmanager
async def client(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, closed in any case."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answer(port: int) -> bytes:
    """What a client is sent that sends nothing."""
    async with client(port) as (reader, _):
        return await reader.read()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close it so that the peer sees a reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def test_bytes_are_copied_both_ways_and_counted(run: Run) -> None:
    async def main() -> None:
        data = bytes(range(256)) * 12_000
        async with backend() as port, tcp(a_route(port)) as (stream, at), client(at) as (reader, writer):
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            assert stream.snapshot()["open"] == 1
            writer.write_eof()
            assert await reader.read() == b""
            await until(lambda: not stream.open)
            numbers = stream.snapshot()
            assert (numbers["accepted"], numbers["bytes_in"], numbers["bytes_out"]) == (
                1,
                len(data),
                len(data),
            )
            (row,) = stream.edge.backends.snapshot()
            assert (row["requests"], row["errors"], row["in_flight"]) == (1, 0, 0)

    run(main())


def test_end_of_a_client_is_forwarded_while_the_backend_still_answers(run: Run) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d bytes, then the end" % len(await reader.read()))

    async def main() -> None:
        async with backend(count) as port, tcp(a_route(port)) as (_, at), client(at) as (reader, writer):
            writer.write(b"x" * 300_000)
            writer.write_eof()
            assert await reader.read() == b"300000 bytes, then the end"

    run(main())


def test_end_of_a_backend_is_forwarded_while_the_client_still_sends(run: Run) -> None:
    received = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.write_eof()
        received.append(await reader.read())

    async def main() -> None:
        async with backend(greet) as port, tcp(a_route(port)) as (stream, at), client(at) as (reader, writer):
            assert await reader.read() == b"hello"
            writer.write(b"x" * 300_000)
            writer.write_eof()
            await until(lambda: received)
            assert received == [b"x" * 300_000]
            await until(lambda: not stream.open)

    run(main())


def test_client_that_reads_nothing_stops_the_backend_and_costs_one_buffer(run: Run) -> None:
    sent, enough = 0, False

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while not enough:
            writer.write(bytes(1 << 16))
            sent += 1 << 16
            await writer.drain()

    async def main() -> None:
        nonlocal enough
        async with backend(flood) as port, tcp(a_route(port)) as (stream, at):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                loop = asyncio.get_running_loop()
                tracemalloc.start()
                await loop.sock_connect(client, ("127.0.0.1", at))
                before = -1
                while not sent or before != sent:  # until the buffers of the kernel are full
                    before = sent
                    for _ in range(50):  # in each of which bytes may move
                        await asyncio.sleep(0.001)
                held = tracemalloc.take_snapshot().filter_traces(
                    [tracemalloc.Filter(True, tcp_module.__file__)]
                )
                tracemalloc.stop()
                assert 0 < stream.snapshot()["bytes_out"] < sent
                assert sum(each.size for each in held.statistics("filename")) < 80_000
                enough = True
                received = 0
                while data := await loop.sock_recv(client, 1 << 20):
                    received += len(data)
                assert received == sent

    run(main())


@pytest.mark.parametrize("who", ["client", "backend"])
def test_reset_of_one_side_is_a_reset_for_the_other(run: Run, who: str) -> None:
    seen = []

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        if who == "backend":
            await reader.readexactly(1)
            reset(writer)
        try:
            seen.append(await reader.read())
        except ConnectionResetError as error:
            seen.append(error)

    async def main() -> None:
        async with backend(wait) as port, tcp(a_route(port)) as (_, at), client(at) as (reader, writer):
            writer.write(b"1")
            await reader.readexactly(1)
            if who == "backend":
                writer.write(b"2")
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                reset(writer)
                await until(lambda: seen)
                assert isinstance(seen[0], ConnectionResetError)

    run(main())


def test_answer_arrives_although_the_backend_takes_no_more(run: Run) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"too much")

    async def main() -> None:
        async with (
            backend(refuse) as port,
            tcp(a_route(port)) as (stream, at),
            client(at) as (reader, writer),
        ):
            writer.write(b"x")
            assert await reader.read() == b"too much"
            for _ in range(2):  # the first one is refused, the second one cannot be sent
                writer.write(bytes(100_000))
                await asyncio.sleep(0.01)
            await until(lambda: not stream.open)

    run(main())


def test_backend_that_refuses_is_skipped(run: Run) -> None:
    async def main() -> None:
        with closed_port() as dead:
            async with backend(names(b"second")) as port, tcp(a_route(dead, port)) as (stream, at):
                assert await answer(at) == b"second"
                assert stream.snapshot()["failed"] == 1
                rows = {row["host"]: row for row in stream.edge.backends.snapshot()}
                assert rows[f"127.0.0.1:{dead}"]["errors"] == 1

    run(main())


def test_backend_that_does_not_accept_in_time_is_skipped(run: Run) -> None:
    async def main() -> None:
        with listening() as hung, contextlib.ExitStack() as clients:
            hung.listen(0)
            for _ in range(3):  # its queue is full: further attempts get no reply
                client = clients.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(hung.getsockname())
            # Connecting to a Unix socket takes no time: the limit is for the first backend alone.
            timeouts = Timeouts(connect=0.1)
            directory = clients.enter_context(tempfile.TemporaryDirectory())
            async with (
                backend(names(b"second"), f"{directory}/s"),
                tcp(a_route(hung.getsockname()[1], f"unix:{directory}/s", timeouts=timeouts)) as (stream, at),
            ):
                assert await answer(at) == b"second"
                assert stream.snapshot()["failed"] == 1

    run(main())


def test_connection_is_reset_at_once_when_no_backend_is_left(run: Run) -> None:
    async def main() -> None:
        with closed_port() as one, closed_port() as other:
            breaker = BreakerRule(failures=1)
            async with tcp(a_route(one, other, breaker=breaker)) as (stream, at):
                for _ in range(2):
                    with pytest.raises(ConnectionError):
                        await answer(at)
                numbers = stream.snapshot()
                # The second connection tried neither: their breakers are open.
                assert (numbers["refused"], numbers["failed"], numbers["open"]) == (2, 2, 0)

    run(main())


def test_connection_that_lasts_closes_a_breaker_at_its_start(run: Run) -> None:
    async def main() -> None:
        edge = StreamEdge()
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        route = a_route(sock.getsockname()[1], breaker=BreakerRule(failures=1, open_seconds=10.0))
        async with tcp(route, edge) as (stream, at):
            with pytest.raises(ConnectionError):
                await answer(at)
            assert edge.backends.snapshot()[0]["breaker"] == BreakerState.OPEN
            server = await asyncio.start_server(echo, sock=sock)
            edge.moved_seconds += 11.0
            async with client(at):
                await until(lambda: edge.backends.snapshot()[0]["breaker"] == BreakerState.CLOSED)
                assert stream.open
            server.close()

    run(main())


def test_idle_connections_end_by_the_clock_and_active_ones_stay(run: Run) -> None:
    async def main() -> None:
        edge = StreamEdge()
        async with (
            backend() as port,
            tcp(a_route(port, idle_seconds=600.0), edge) as (stream, at),
            client(at) as (idle, sender),
            client(at) as (reader, writer),
        ):
            sender.write(b"x")
            await idle.readexactly(1)
            edge.moved_seconds += 500
            writer.write(b"x")
            await reader.readexactly(1)
            edge.moved_seconds += 200
            stream.apply(replace(stream.route, idle_seconds=599.0))  # looks at once
            assert await idle.read() == b""
            writer.write(b"y")
            assert await reader.readexactly(1) == b"y"
            edge.moved_seconds += 600
            stream.apply(replace(stream.route, idle_seconds=600.0))
            assert await reader.read() == b""

    run(main())


def test_idle_connection_ends_when_its_time_is_over(run: Run) -> None:
    async def main() -> None:
        async with backend() as port, tcp(a_route(port, idle_seconds=0.05)) as (stream, at):
            for _ in range(2):
                assert await answer(at) == b""
            assert stream.snapshot()["open"] == 0

    run(main())


def test_connection_ends_when_its_time_in_all_is_over_although_it_is_active(run: Run) -> None:
    async def main() -> None:
        async with (
            backend() as port,
            tcp(a_route(port, timeouts=Timeouts(total=0.1))) as (_, at),
            client(at) as (reader, writer),
        ):
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"x")
                    await reader.readexactly(1)

    run(main())


def test_drain_waits_for_open_connections_and_accepts_no_others(run: Run) -> None:
    async def main() -> None:
        async with backend() as port, tcp(a_route(port)) as (stream, at), client(at) as (reader, writer):
            await until(lambda: stream.open)
            draining = asyncio.create_task(stream.drain(SECONDS_TO_DRAIN))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(answer(at))
            writer.write(b"still served")
            assert await reader.readexactly(12) == b"still served"
            assert not draining.done()
            assert stream.snapshot()["accepted"] == 1
            writer.close()
            await draining
            waiting.cancel()

    run(main())


def test_drain_resets_what_does_not_end_in_time(run: Run) -> None:
    async def main() -> None:
        async with backend() as port, tcp(a_route(port)) as (stream, at), client(at) as (reader, _):
            await until(lambda: stream.open)
            await stream.drain(0.05)
            assert len(stream.open) == 0
            with pytest.raises(ConnectionResetError):
                await reader.read()

    run(main())


def test_connection_over_the_limit_waits_until_another_has_ended(run: Run) -> None:
    async def main() -> None:
        async with (
            backend() as port,
            tcp(a_route(port, max_connections=1)) as (stream, at),
            client(at) as (_, first),
        ):
            await until(lambda: stream.open)
            async with client(at) as (reader, second):
                second.write(b"x")
                first.write_eof()
                assert await reader.readexactly(1) == b"x"
                assert stream.snapshot()["accepted"] == 2
                assert stream.snapshot()["refused"] == 0

    run(main())


def test_new_connections_use_changed_targets_and_open_ones_stay(run: Run) -> None:
    async def main() -> None:
        async with (
            backend() as old,
            backend(names(b"new")) as new,
            tcp(a_route(old)) as (stream, at),
            client(at) as (reader, writer),
        ):
            await until(lambda: stream.open)
            stream.apply(a_route(new))
            assert await answer(at) == b"new"
            writer.write(b"old")
            assert await reader.readexactly(3) == b"old"

    run(main())


def test_name_of_a_backend_is_resolved_and_an_unknown_one_skipped(run: Run) -> None:
    async def main() -> None:
        async with (
            backend(names(b"found")) as port,
            tcp(a_route("nonexistent.invalid:1", f"localhost:{port}")) as (stream, at),
        ):
            assert await answer(at) == b"found"
            assert await answer(at) == b"found"
            assert stream.snapshot()["failed"] == 2

    run(main())


def test_backend_on_a_unix_socket_is_used(run: Run) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "s")
            server = await asyncio.start_unix_server(echo, path)
            async with tcp(a_route(f"unix:{path}")) as (_, at), client(at) as (reader, writer):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            server.close()

    run(main())


def test_connection_for_a_server_with_tls_is_passed_on_unread(run: Run) -> None:
    async def main() -> None:
        edge = StreamEdge({"api": ServerFacts(name="api", bind="127.0.0.1:1", tls=True, state="sleeping")})
        give, taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        edge.passing.set_pair("api", give, tls=True)
        route = StreamRoute(alias="db", bind="", to=(Target(server="api"),))
        with taking:
            async with tcp(route, edge) as (stream, at), client(at) as (_, writer):
                writer.write(b"client hello")
                await until(lambda: stream.passed)
                taken = connection_handover.receive_connection(taking)
                assert taken is not None
                with taken:
                    taken.setblocking(False)
                    assert taken.getpeername() == writer.get_extra_info("sockname")
                    # On the loop, which may have to send it first.
                    assert await asyncio.get_running_loop().sock_recv(taken, 100) == b"client hello"
                assert (stream.snapshot()["accepted"], len(stream.open)) == (1, 0)
        edge.passing.close()

    run(main())


def test_connections_wait_while_there_are_no_descriptors(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tcp_module, "_ACCEPT_AGAIN_SECONDS", 0.05)

    async def main() -> None:
        async with backend(names(b"served")) as port, tcp(a_route(port)) as (stream, at):
            with socket.socket() as client:
                client.setblocking(False)
                limits = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, limits[1]))
                try:
                    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", at))
                    await until(lambda: stream._held_off)
                    assert stream.snapshot()["accepted"] == 0
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                assert await asyncio.get_running_loop().sock_recv(client, 100) == b"served"

    run(main())
    assert "stream db cannot open a connection: [Errno 24] Too many open files" in caplog.messages


@pytest.mark.parametrize("evicts", [True, False])
def test_connection_that_would_use_up_the_reserve_waits_and_may_evict_another(
    run: Run, monkeypatch: pytest.MonkeyPatch, evicts: bool
) -> None:
    monkeypatch.setattr(tcp_module, "_ACCEPT_AGAIN_SECONDS", 0.01)

    async def main() -> None:
        edge = StreamEdge()
        evicted: list[int] = []

        def evict() -> bool:
            evicted.append(stream.accepted)
            if len(evicted) == 3:
                edge.descriptors.mark = usual
            return evicts

        edge.evict = evict  # type: ignore[method-assign]
        async with backend(names(b"served")) as port, tcp(a_route(port), edge) as (stream, at):
            usual, edge.descriptors.mark = edge.descriptors.mark, 0
            assert await answer(at) == b"served"
            assert evicted == [0, 0, 0]

    run(main())


def test_connections_reach_the_canary_of_a_server_in_its_share_and_the_server_if_it_refuses_them(
    run: Run,
) -> None:
    def facts(port: int, canary_port: int) -> dict[str, ServerFacts]:
        found = ServerFacts(
            name="db", bind=f"127.0.0.1:{port}", state="running", ready=True, canary="db (canary)",
            canary_bind=f"127.0.0.1:{canary_port}", canary_share=0.25,
        )  # fmt: skip
        return {"db": found}

    async def main() -> None:
        route = replace(a_route(), to=(Target(server="db"),))
        async with backend(names(b"server")) as port, backend(names(b"canary")) as canary_port:
            edge = StreamEdge(facts(port, canary_port))
            async with tcp(route, edge) as (_, at):
                assert [await answer(at) for _ in range(40)].count(b"canary") in (9, 10)
            with closed_port() as dead:
                edge = StreamEdge(facts(port, dead))
                async with tcp(route, edge) as (stream, at):
                    assert {await answer(at) for _ in range(8)} == {b"server"}
                    await until(lambda: not stream.open)
                    assert stream.failed

    run(main())


REPORT = b"PROXY TCP4 192.0.2.1 10.0.0.2 5000 80\r\n"


def trusting(*networks: str, head_seconds: float = 60.0) -> StreamEdge:
    """An edge that believes these proxies."""
    edge = StreamEdge()
    edge.settings = replace(edge.settings, trusted_proxies=networks, head_seconds=head_seconds)
    return edge


@pytest.mark.parametrize(
    ("pieces", "arrives"),
    [
        ((REPORT + b"data",), b"data"),
        ((REPORT, b"data"), b"data"),
        ((REPORT[:1], REPORT[1:9], REPORT[9:] + b"da", b"ta"), b"data"),
        ((b"PROXY UNKNOWN\r\ndata",), b"data"),
        ((REPORT + REPORT,), REPORT),
    ],
)
def test_header_of_a_trusted_proxy_is_not_for_the_backend(
    run: Run, pieces: tuple[bytes, ...], arrives: bytes
) -> None:
    async def scene() -> None:
        async with (
            backend() as port,
            tcp(a_route(port, accept_proxy=True), trusting("127.0.0.1")) as (stream, at),
            client(at) as (reader, writer),
        ):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)  # each in a packet of its own
            assert await reader.readexactly(len(arrives)) == arrives
            assert [each._host for each in stream.open] != ["127.0.0.1"] or b"UNKNOWN" in pieces[0]

    run(scene())


def test_client_that_is_not_trusted_sends_no_header(run: Run) -> None:
    async def scene() -> None:
        async with (
            backend() as port,
            tcp(a_route(port, accept_proxy=True), trusting("192.0.2.0/24")) as (_, at),
            client(at) as (reader, writer),
        ):
            writer.write(REPORT)
            assert await reader.readexactly(len(REPORT)) == REPORT

    run(scene())


@pytest.mark.parametrize(
    "sent", [b"data", b"PROXY TCP4 x\r\n", b"\r\n\r\n\x00\r\nQUIT\n\x11", b"PROXY ", b""]
)
def test_connection_of_a_trusted_proxy_ends_without_a_header(run: Run, sent: bytes) -> None:
    async def scene() -> None:
        asked = 0

        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1

        async with (
            backend(count) as port,
            tcp(a_route(port, accept_proxy=True), trusting("127.0.0.1", head_seconds=0.3)) as (stream, at),
            client(at) as (reader, writer),
        ):
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            await until(lambda: not stream.open)
        assert asked == 0

    run(scene())


def ends(stream: TcpStream, target: int = 0) -> dict[str, int]:
    """The number of connections to one backend of a stream by outcome, without zeros."""
    counts = stream.edge.backends.of(stream.route).members[target].backend.counts
    found = {
        "began": counts.slots[tally.STARTED],
        "left": counts.slots[tally.DISCONNECTED],
        "answered": sum(counts.slots[tally.BUCKETS : tally.BUCKETS + len(tally.BOUNDS_NS) + 1]),
        "in": counts.bytes_in,
        "out": counts.bytes_out,
        **counts.errors,
    }
    return {name: count for name, count in found.items() if count}


def test_connection_is_counted_for_its_stream_and_backend_with_its_duration(run: Run) -> None:
    async def main() -> None:
        async with backend() as port, tcp(a_route(port)) as (stream, at), client(at) as (reader, writer):
            writer.write(b"four")
            assert await reader.readexactly(4) == b"four"
            assert ends(stream) == {"began": 1}
            stream.edge.moved_seconds += 5.0  # type: ignore[attr-defined]
            expected = {
                "open": 1, "accepted": 1, "passed": 0, "refused": 0, "failed": 0, "bytes_in": 4, "bytes_out": 4,
            }  # fmt: skip
            assert stream.snapshot() == expected
            writer.write_eof()
            assert await reader.read() == b""
            await until(lambda: not stream.open)
            assert stream.snapshot() == {**expected, "open": 0}
            assert ends(stream) == {"began": 1, "answered": 1, "in": 4, "out": 4}
            latency = stream.edge.backends.of(stream.route).members[0].backend.counts.slots[tally.LATENCY_NS]
            assert 5e9 <= latency < 5e9 + 60e9

    run(main())


def test_backends_that_refuse_are_counted_once_for_each_connection(run: Run) -> None:
    async def main() -> None:
        with closed_port() as dead:
            async with backend(names(b"second")) as port, tcp(a_route(dead, port)) as (stream, at):
                for number in (1, 2):
                    assert await answer(at) == b"second"
                    await until(lambda: not stream.open)
                    assert ends(stream) == {"began": number, "connect": number}
                    assert ends(stream, 1) == {"began": number, "answered": number, "out": 6 * number}
                    assert (stream.failed, stream.refused) == (number, 0)

    run(main())


@pytest.mark.parametrize("answered", [False, True])
def test_backend_that_resets_a_connection_has_failed_unless_it_has_answered(run: Run, answered: bool) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answered:
            writer.write(b"1")
        await reader.readexactly(1)
        reset(writer)

    async def main() -> None:
        async with (
            backend(handler) as port,
            tcp(a_route(port)) as (stream, at),
            client(at) as (reader, writer),
        ):
            if answered:
                await reader.readexactly(1)
            writer.write(b"2")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            await until(lambda: not stream.open)
            assert stream.failed == (not answered)
            assert ends(stream) == {
                "began": 1, "in": 1, **({"answered": 1, "out": 1} if answered else {"reset": 1}),
            }  # fmt: skip

    run(main())


def test_client_that_resets_its_connection_is_no_failure_of_the_backend(run: Run) -> None:
    async def main() -> None:
        async with backend() as port, tcp(a_route(port)) as (stream, at), client(at) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
            reset(writer)
            await until(lambda: not stream.open)
            assert (stream.failed, ends(stream)) == (0, {"began": 1, "answered": 1, "in": 1, "out": 1})

    run(main())


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_connection_that_ends_before_its_backend_accepts_is_counted_as_left(run: Run, seconds: float) -> None:
    async def main() -> None:
        with listening() as hung, contextlib.ExitStack() as clients:
            hung.listen(0)
            for _ in range(3):  # its queue is full: further attempts get no reply
                each = clients.enter_context(socket.socket())
                each.setblocking(False)
                each.connect_ex(hung.getsockname())
            route = a_route(hung.getsockname()[1], timeouts=Timeouts(connect=seconds))
            async with tcp(route) as (stream, at), client(at) as (reader, _):
                await until(lambda: stream.open)
                await stream.drain(0)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                assert (stream.failed, stream.refused, len(stream.open)) == (0, 0, 0)
                assert ends(stream) == {"began": 1, "left": 1}

    run(main())


def test_time_in_all_ends_a_connection_with_a_reset(run: Run) -> None:
    async def main() -> None:
        async with backend() as port:
            route = a_route(port, timeouts=Timeouts(total=0.02))
            async with tcp(route) as (stream, at), client(at) as (reader, _):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                await until(lambda: not stream.open)
                assert ends(stream) == {"began": 1, "answered": 1}

    run(main())
