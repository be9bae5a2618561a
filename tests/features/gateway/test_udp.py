"""UDP streams: sessions of clients, their backends, and their ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from poolctl.features.gateway.process.streams import udp as udp_module
from poolctl.features.gateway.process.streams.udp import UdpStream
from poolctl.routing.route import BreakerRule, Timeouts
from poolctl.worker import tally

from .stream_stage import Run, StreamEdge, a_route, closed_port, listening, run, udp, until

__all__ = ["run"]


class Backend:
    """Sends each datagram back with its name before it, and notes where it came from."""

    def __init__(self, name: bytes = b"") -> None:
        self.sock = listening(kind=socket.SOCK_DGRAM)
        self.port = self.sock.getsockname()[1]
        self.clients: list[int] = []
        self._name = name
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data, client = self.sock.recvfrom(65536)
            self.clients.append(client[1])
            self.sock.sendto(self._name + data, client)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self.sock.close()


@contextlib.contextmanager
def backend(name: bytes = b"") -> Iterator[Backend]:
    served = Backend(name)
    try:
        yield served
    finally:
        served.close()


@contextlib.contextmanager
def client(port: int, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A socket that takes datagrams from this address only."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((host, port))
        yield sock


async def ask(sock: socket.socket, data: bytes) -> bytes:
    """The answer to a datagram."""
    sock.send(data)
    return await asyncio.get_running_loop().sock_recv(sock, 65536)


def test_each_client_has_a_session_of_its_own_and_gets_its_own_answers(run: Run) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp")) as (stream, at):
                with client(at) as one, client(at) as other:
                    one.send(b"1")
                    other.send(b"2")
                    assert await ask(one, b"3") == b"1"
                    assert await ask(other, b"4") == b"2"
                    assert len(set(served.clients)) == 2
                    numbers = stream.snapshot()
                    assert (numbers["open"], numbers["opened"]) == (2, 2)

    run(main())


def test_bytes_of_datagrams_are_counted(run: Run) -> None:
    async def main() -> None:
        with backend(b"re: ") as served:
            async with udp(a_route(served.port, protocol="udp")) as (stream, at):
                with client(at) as sock:
                    assert await ask(sock, b"hello") == b"re: hello"
                    numbers = stream.snapshot()
                    assert (numbers["bytes_in"], numbers["bytes_out"]) == (5, 9)

    run(main())


def test_client_that_comes_from_another_port_gets_a_new_session(run: Run) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp")) as (stream, at):
                for _ in range(2):
                    with client(at) as sock:
                        assert await ask(sock, b"x") == b"x"
                assert len(set(served.clients)) == 2
                assert stream.snapshot()["opened"] == 2

    run(main())


@pytest.mark.parametrize("size", [0, 1, 1472, 65507])
def test_datagram_of_any_size_arrives_whole(run: Run, size: int) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp")) as (_, at):
                with client(at) as sock:
                    assert await ask(sock, bytes(size)) == bytes(size)

    run(main())


def test_many_datagrams_at_once_all_get_an_answer(run: Run) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp")) as (_, at):
                with client(at) as sock:
                    for number in range(100):
                        sock.send(b"%d" % number)
                    loop = asyncio.get_running_loop()
                    answers = [await loop.sock_recv(sock, 100) for _ in range(100)]
                    assert answers == [b"%d" % number for number in range(100)]

    run(main())


def test_new_session_replaces_the_one_that_is_idle_longest(run: Run) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp", max_connections=2)) as (stream, at):
                with client(at) as one, client(at) as two, client(at) as three:
                    for sock in (one, two, one, three):  # two is idle longest
                        assert await ask(sock, b"x") == b"x"
                    numbers = stream.snapshot()
                    assert (numbers["open"], numbers["opened"], numbers["evicted"]) == (2, 3, 1)
                    assert await ask(one, b"x") == b"x"
                    assert stream.snapshot()["opened"] == 3  # and one has kept its own
                    assert await ask(two, b"x") == b"x"
                    assert stream.snapshot()["opened"] == 4

    run(main())


def test_idle_session_ends_by_the_clock(run: Run) -> None:
    async def main() -> None:
        edge = StreamEdge()
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp", idle_seconds=60.0), edge) as (stream, at):
                with client(at) as idle, client(at) as active:
                    assert await ask(idle, b"x") == b"x"
                    edge.moved_seconds += 40
                    assert await ask(active, b"x") == b"x"
                    edge.moved_seconds += 40
                    stream.apply(replace(stream.route, idle_seconds=59.0))  # looks at once
                    await until(lambda: len(stream.sessions) == 1)
                    assert edge.backends.snapshot()[0]["in_flight"] == 1
                    assert await ask(idle, b"x") == b"x"  # with a new one

    run(main())


def test_session_that_gets_many_answers_is_served_until_it_ends(run: Run) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp")) as (stream, at):
                with client(at) as often, client(at) as seldom:
                    for number in range(20):
                        assert await ask(often, b"%d" % number) == b"%d" % number
                    assert await ask(seldom, b"once") == b"once"
                    assert await ask(often, b"more") == b"more"
                for session in stream.sessions:
                    session.close()
                # The descriptors of those are used again.
                for _ in range(2):
                    with client(at) as new:
                        for number in range(10):
                            assert await ask(new, b"%d" % number) == b"%d" % number
                assert (stream.opened, stream.failed) == (4, 0)

    run(main())


def test_session_ends_when_its_time_in_all_is_over_although_it_is_active(run: Run) -> None:
    async def main() -> None:
        edge = StreamEdge()
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp", timeouts=Timeouts(total=60.0)), edge) as (
                stream,
                at,
            ):
                with client(at) as sock:
                    for opened in (1, 1, 2):
                        assert await ask(sock, b"x") == b"x"
                        assert stream.snapshot()["opened"] == opened
                        edge.moved_seconds += 40

    run(main())


def test_backend_that_is_unreachable_counts_as_failed_and_another_one_is_used(run: Run) -> None:
    async def main() -> None:
        with closed_port(socket.SOCK_DGRAM) as dead, backend(b"second: ") as served:
            rule = BreakerRule(failures=1)
            async with udp(a_route(dead, served.port, protocol="udp", breaker=rule)) as (stream, at):
                with client(at) as sock:
                    sock.send(b"lost")
                    await until(lambda: stream.snapshot()["failed"])
                    assert await ask(sock, b"x") == b"second: x"
                    rows = {row["host"]: row for row in stream.edge.backends.snapshot()}
                    assert rows[f"127.0.0.1:{dead}"]["errors"] == 1

    run(main())


def test_datagram_that_meets_an_unreachable_port_goes_to_the_next_backend(run: Run) -> None:
    async def main() -> None:
        with closed_port(socket.SOCK_DGRAM) as dead, backend(b"second: ") as served:
            async with udp(a_route(dead, served.port, protocol="udp")) as (stream, at):
                with client(at) as sock:
                    # Read in one go: the refusal of the first one is met by sending the second.
                    sock.send(b"1")
                    sock.send(b"2")
                    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"second: 2"
                    assert stream.snapshot()["failed"] == 1

    run(main())


def test_datagram_without_an_available_backend_is_dropped(run: Run) -> None:
    async def main() -> None:
        with closed_port(socket.SOCK_DGRAM) as dead:
            rule = BreakerRule(failures=1)
            async with udp(a_route(dead, protocol="udp", breaker=rule)) as (stream, at):
                with client(at) as sock:
                    sock.send(b"x")
                    await until(lambda: stream.snapshot()["failed"])
                    sock.send(b"x")
                    await until(lambda: stream.snapshot()["dropped"])
                    assert stream.snapshot()["open"] == 0

    run(main())


def test_sessions_are_spread_over_the_backends(run: Run) -> None:
    async def main() -> None:
        with backend(b"a") as one, backend(b"b") as other:
            route = a_route(one.port, other.port, protocol="udp", policy="round-robin")
            async with udp(route) as (_, at):
                found = []
                for _ in range(4):
                    with client(at) as sock:
                        found += [await ask(sock, b""), await ask(sock, b"")]
                assert sorted(found) == [b"a"] * 4 + [b"b"] * 4
                assert found[::2] == found[1::2]  # each session stays with its backend

    run(main())


@pytest.mark.parametrize(
    ("bound", "asked"),
    [("0.0.0.0", "127.0.0.2"), ("::", "::1"), ("::", "127.0.0.3"), ("127.0.0.4", "127.0.0.4")],
)
def test_answer_comes_from_the_address_that_was_asked(run: Run, bound: str, asked: str) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp"), host=bound) as (_, at):
                with client(at, asked) as sock:  # connected: it takes an answer of no other address
                    assert await ask(sock, b"x") == b"x"
                with client(at, "127.0.0.5" if bound == "0.0.0.0" else asked) as sock:
                    assert await ask(sock, b"y") == b"y"

    run(main())


def test_drain_forwards_late_answers_and_leaves_new_datagrams_to_a_successor(run: Run) -> None:
    async def main() -> None:
        with listening(kind=socket.SOCK_DGRAM) as slow:
            edge = StreamEdge()
            route = a_route(slow.getsockname()[1], protocol="udp", idle_seconds=60.0)
            async with udp(route, edge) as (stream, at):
                with client(at) as sock:
                    sock.send(b"question")
                    await until(lambda: stream.snapshot()["bytes_in"])
                    data, session = slow.recvfrom(100)
                    draining = asyncio.create_task(stream.drain(15))
                    await asyncio.sleep(0)
                    sock.send(b"for the successor")
                    slow.sendto(b"answer", session)
                    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"answer"
                    assert not draining.done()
                    edge.moved_seconds += 60
                    stream.apply(replace(route, idle_seconds=59.0))  # looks at once
                    await draining
                    assert data == b"question"
                    assert stream.snapshot()["bytes_in"] == len(b"question")

    run(main())


def test_name_of_a_backend_is_resolved(run: Run) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(f"localhost:{served.port}", protocol="udp")) as (stream, at):
                with client(at) as sock:
                    sock.send(b"dropped while the name is being resolved")
                    await until(lambda: stream.snapshot()["dropped"])
                    answers = asyncio.create_task(ask(sock, b"x"))
                    while not answers.done():
                        await asyncio.sleep(0.005)
                        sock.send(b"x")
                    assert await answers == b"x"

    run(main())


def test_session_without_a_descriptor_replaces_another(run: Run) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp")) as (stream, at):
                with client(at) as one, client(at) as other:
                    assert await ask(one, b"x") == b"x"
                    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
                    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
                    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))
                    try:
                        fillers = []
                        with contextlib.suppress(OSError):
                            while True:
                                fillers.append(socket.socket())
                        assert await ask(other, b"y") == b"y"
                    finally:
                        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                        for each in fillers:
                            each.close()
                    assert stream.snapshot()["evicted"] == 1

    run(main())


def test_idle_session_costs_less_than_two_kilobytes(run: Run) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp")) as (_, at):
                with contextlib.ExitStack() as clients:
                    socks = [clients.enter_context(client(at)) for _ in range(100)]
                    assert await ask(socks[0], b"x") == b"x"
                    tracemalloc.start()
                    for sock in socks[1:]:
                        assert await ask(sock, b"x") == b"x"
                    traces = tracemalloc.take_snapshot().filter_traces(
                        [
                            tracemalloc.Filter(
                                True, f"{Path(udp_module.__file__).parent.parent}/*", all_frames=True
                            )
                        ]
                    )
                    tracemalloc.stop()
                    assert sum(each.size for each in traces.statistics("filename")) / 99 < 2000

    run(main())


def test_end_of_a_session_is_counted_for_its_backend(run: Run) -> None:
    async def main() -> None:
        edge = StreamEdge()
        with backend() as served, closed_port(socket.SOCK_DGRAM) as closed:
            async with udp(a_route(served.port, protocol="udp"), edge) as (stream, at):
                with client(at) as sock:
                    for data in (b"x", b"y"):
                        assert await ask(sock, data) == data
                row = edge.backends.snapshot()[0]
                assert (row["in_flight"], row["requests"], row["errors"]) == (1, 1, 0)
                next(iter(stream.sessions)).close()
                row = edge.backends.snapshot()[0]
                assert (row["in_flight"], row["requests"], row["errors"]) == (0, 1, 0)
            async with udp(a_route(closed, protocol="udp"), edge) as (stream, at):
                with client(at) as sock:
                    sock.send(b"x")
                    await until(lambda: stream.snapshot()["failed"])
                row = edge.backends.snapshot()[0]
                assert (row["in_flight"], row["requests"], row["errors"]) == (0, 1, 1)

    run(main())


def ends(stream: UdpStream, target: int = 0) -> dict[str, int]:
    """The number of sessions with one backend of a stream by outcome, without zeros."""
    counts = stream.edge.backends.of(stream.route).members[target].backend.counts
    found = {
        "began": counts.slots[tally.STARTED],
        "left": counts.slots[tally.DISCONNECTED],
        "answered": sum(counts.slots[tally.BUCKETS : tally.BUCKETS + len(tally.BOUNDS_NS) + 1]),
        **counts.errors,
    }
    return {name: count for name, count in found.items() if count}


def test_session_is_counted_for_its_stream_and_backend_with_its_duration(run: Run) -> None:
    async def main() -> None:
        edge = StreamEdge()
        with backend(b"re: ") as served:
            async with udp(a_route(served.port, protocol="udp"), edge) as (stream, at):
                with client(at) as sock:
                    assert await ask(sock, b"hello") == b"re: hello"
                    assert await ask(sock, b"you") == b"re: you"
                    expected = {
                        "open": 1, "opened": 1, "evicted": 0, "failed": 0, "dropped": 0, "bytes_in": 8,
                        "bytes_out": 16,
                    }  # fmt: skip
                    assert (stream.snapshot(), len(stream)) == (expected, 1)
                    assert (ends(stream), edge.stream_share.used) == ({"began": 1}, 1)
                    edge.moved_seconds += 5.0
                    stream.evict()
                    assert (stream.snapshot(), len(stream)) == ({**expected, "open": 0, "evicted": 1}, 0)
                    assert (ends(stream), edge.stream_share.used) == ({"began": 1, "answered": 1}, 0)
                    (member,) = edge.backends.of(stream.route).members
                    assert 5e9 <= member.backend.counts.slots[tally.LATENCY_NS] < 5e9 + 60e9

    run(main())


def test_session_without_an_answer_says_nothing_about_its_backend(run: Run) -> None:
    async def main() -> None:
        with listening(kind=socket.SOCK_DGRAM) as silent:
            async with udp(a_route(silent.getsockname()[1], protocol="udp")) as (stream, at):
                with client(at) as sock:
                    sock.send(b"x")
                    await until(lambda: stream.bytes_in)
                    await stream.drain(0)
                    assert ends(stream) == {"began": 1, "left": 1}
                    assert (stream.failed, stream.dropped, len(stream)) == (0, 0, 0)

    run(main())


def test_unreachable_backend_is_counted_once_for_its_session(run: Run) -> None:
    async def main() -> None:
        with closed_port(socket.SOCK_DGRAM) as dead:
            async with udp(a_route(dead, protocol="udp")) as (stream, at):
                with client(at) as sock:
                    sock.send(b"x")
                    await until(lambda: stream.failed)
                    assert ends(stream) == {"began": 1, "connect": 1}
                    assert (stream.failed, stream.dropped, len(stream)) == (1, 0, 0)

    run(main())


def test_backend_without_a_route_to_it_is_skipped_for_the_same_datagram(run: Run) -> None:
    async def main() -> None:
        with backend(b"second: ") as served:
            # Connecting to the address for broadcasts is not permitted.
            async with udp(a_route("255.255.255.255:9", served.port, protocol="udp")) as (stream, at):
                with client(at) as sock:
                    assert await ask(sock, b"x") == b"second: x"
                    assert (stream.failed, stream.opened, stream.dropped) == (1, 1, 0)
                    assert (ends(stream), ends(stream, 1)) == ({"began": 1, "connect": 1}, {"began": 1})

    run(main())


def test_lower_limit_ends_the_sessions_that_are_idle_longest(run: Run) -> None:
    async def main() -> None:
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp", max_connections=4)) as (stream, at):
                with client(at) as one, client(at) as two, client(at) as three:
                    for sock in (one, two, three, one):
                        assert await ask(sock, b"x") == b"x"
                    stream.apply(replace(stream.route, max_connections=3))
                    assert (len(stream), stream.evicted) == (3, 0)
                    stream.apply(replace(stream.route, max_connections=1))
                    assert (len(stream), stream.evicted, stream.opened) == (1, 2, 3)
                    assert await ask(one, b"x") == b"x"
                    assert stream.opened == 3
                    assert await ask(three, b"x") == b"x"
                    assert (len(stream), stream.opened) == (1, 4)

    run(main())


def test_dropped_datagrams_of_unavailable_backends_are_counted(run: Run) -> None:
    async def main() -> None:
        edge = StreamEdge()
        with backend() as served:
            async with udp(a_route(served.port, protocol="udp"), edge) as (stream, at):
                edge.hosts.disable(f"127.0.0.1:{served.port}", 0)
                with client(at) as sock:
                    for count in (1, 2):
                        sock.send(b"four")
                        await until(lambda expected=count: stream.dropped == expected)
                        assert stream.bytes_in == 4 * count
                    assert (stream.opened, stream.failed, served.clients, ends(stream)) == (0, 0, [], {})

    run(main())
