"""Streams together: none takes the descriptors of the others, and all of them leave some to routes."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys

import pytest

from poolctl.features.gateway.process import descriptor_limit
from poolctl.features.gateway.process.descriptor_limit import (
    DescriptorLimits,
    StreamDescriptorLimit,
    is_exhausted,
    lowest_free,
)

from .stream_stage import Run, StreamEdge, a_route, run, tcp, udp, until
from .test_tcp import backend as tcp_backend
from .test_tcp import client as tcp_client
from .test_udp import ask
from .test_udp import backend as udp_backend
from .test_udp import client as udp_client

__all__ = ["run"]


def an_edge(limit: int) -> StreamEdge:
    """One whose streams have the parts of this limit."""
    edge = StreamEdge()
    of_it = DescriptorLimits(limit)
    for name in ("of_streams", "of_sessions", "least_sessions"):
        setattr(edge.descriptors, name, getattr(of_it, name))
    return edge


def test_flood_on_one_udp_stream_leaves_the_others_their_sessions(run: Run) -> None:
    async def main() -> None:
        edge = an_edge(64)  # 16 sessions
        with udp_backend() as served:
            one, two = (a_route(served.port, protocol="udp", alias=alias) for alias in ("one", "two"))
            async with udp(one, edge) as (first, at_one), udp(two, edge) as (second, at_two):
                edge.use(one, two)
                with contextlib.ExitStack() as clients:
                    quiet = [clients.enter_context(udp_client(at_two)) for _ in range(4)]
                    for sock in quiet:
                        assert await ask(sock, b"x") == b"x"
                    for _ in range(40):
                        assert await ask(clients.enter_context(udp_client(at_one)), b"y") == b"y"
                    assert (len(first), len(second)) == (12, 4)
                    assert edge.stream_share.used == 16
        assert edge.stream_share.used == 0

    run(main())


def test_connections_of_all_tcp_streams_wait_for_room(run: Run) -> None:
    async def main() -> None:
        edge = an_edge(8)  # two connections
        async with tcp_backend() as port:
            one, two = (a_route(port, alias=alias) for alias in ("one", "two"))
            async with tcp(one, edge) as (first, at_one), tcp(two, edge) as (second, at_two):
                edge.use(one, two)
                async with tcp_client(at_one) as (_, a), tcp_client(at_one):
                    await until(lambda: len(first.open) == 2)
                    async with tcp_client(at_two) as (reader, waiting):
                        waiting.write(b"x")
                        await until(lambda: not second._accepting)
                        assert not second.open
                        a.write_eof()
                        assert await reader.readexactly(1) == b"x"
                        assert second.snapshot()["accepted"] == 1
        assert edge.stream_share.used == 0

    run(main())


def test_udp_keeps_some_sessions_when_tcp_has_all_that_is_for_streams(run: Run) -> None:
    async def main() -> None:
        edge = an_edge(32)  # 16 for streams, and 2 for UDP whatever TCP has
        async with tcp_backend() as port, contextlib.AsyncExitStack() as stack:
            with udp_backend() as served:
                data = a_route(port)
                names = a_route(served.port, protocol="udp", alias="names")
                stream, at = await stack.enter_async_context(tcp(data, edge))
                sessions, at_names = await stack.enter_async_context(udp(names, edge))
                edge.use(data, names)
                for _ in range(8):
                    await stack.enter_async_context(tcp_client(at))
                await until(lambda: len(stream.open) == 8)
                for _ in range(3):
                    assert await ask(stack.enter_context(udp_client(at_names)), b"x") == b"x"
                assert (len(sessions), sessions.snapshot()["evicted"]) == (2, 1)

    run(main())


@pytest.mark.parametrize(
    ("limit", "mark", "of_streams", "of_sessions", "least_sessions", "of_handshakes"),
    [
        (100_000, 98_976, 50_000, 25_000, 6_250, 1024),
        (4096, 3072, 2048, 1024, 256, 1024),
        (256, 192, 128, 64, 16, 64),
        (8, 6, 4, 2, 1, 16),
        (3, 3, 1, 1, 1, 16),
    ],
)
def test_parts_follow_from_the_limit(
    limit: int, mark: int, of_streams: int, of_sessions: int, least_sessions: int, of_handshakes: int
) -> None:
    found = DescriptorLimits(limit)
    assert (found.limit, found.mark, found.of_streams) == (limit, mark, of_streams)
    assert (found.of_sessions, found.least_sessions) == (of_sessions, least_sessions)
    assert found.of_handshakes == of_handshakes


def test_limit_is_that_of_the_process_and_none_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert DescriptorLimits().limit == soft
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: unlimited)
    assert DescriptorLimits().limit == sys.maxsize


@pytest.mark.parametrize(
    ("lowest", "few", "exhausted"),
    [
        (191, False, False),
        (192, True, False),
        (239, True, False),
        (240, True, True),
        (sys.maxsize, True, True),
    ],
)
def test_lowest_free_number_says_what_is_left(
    monkeypatch: pytest.MonkeyPatch, lowest: int, few: bool, exhausted: bool
) -> None:
    monkeypatch.setattr(descriptor_limit, "lowest_free", lambda: lowest)
    found = DescriptorLimits(256)
    assert (found.is_low(), found.exhausted()) == (few, exhausted)


def test_lowest_free_number_is_the_next_descriptors() -> None:
    lowest = lowest_free()
    fd = os.dup(0)
    os.close(fd)
    assert fd == lowest
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        assert lowest_free() == sys.maxsize
        assert is_exhausted(OSError("several addresses failed"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not is_exhausted(OSError("several addresses failed"))


@pytest.mark.parametrize(
    ("number", "exhausted"),
    [(errno.EMFILE, True), (errno.ENFILE, True), (errno.ENOMEM, True), (errno.ECONNREFUSED, False)],
)
def test_error_says_whether_the_process_is_short_of_something(number: int, exhausted: bool) -> None:
    assert is_exhausted(OSError(number, "it failed")) is exhausted


class Datagrams:
    """A stream of UDP with this number of sessions."""

    def __init__(self, share: StreamDescriptorLimit, count: int) -> None:
        self.share = share
        self.count = count
        share.add_stream(self)
        for _ in range(count):
            share.add_session()

    def __len__(self) -> int:
        return self.count

    def evict(self) -> None:
        self.count -= 1
        self.share.remove_session()


def test_connections_take_two_descriptors_and_wait_when_there_is_room_for_none() -> None:
    share, called = StreamDescriptorLimit(DescriptorLimits(16)), []  # 8 for streams, 4 for sessions
    for _ in range(3):
        assert share.has_room_or_notify(lambda: None)
        share.add_connection()
    share.add_session()
    assert share.used == 7
    assert not share.has_room_or_notify(lambda: called.append("one"))
    share.remove_session()
    assert called == ["one"], "there is room for one now"
    share.add_connection()
    assert not share.has_room_or_notify(lambda: called.append("two"))
    share.remove_connection()
    assert (called, share.used) == (["one", "two"], 6)


def test_stream_with_the_most_sessions_makes_room() -> None:
    share = StreamDescriptorLimit(DescriptorLimits(16))
    small, large = Datagrams(share, 1), Datagrams(share, 2)
    share.make_room()
    assert (small.count, large.count) == (1, 2), "a fourth has room"
    share.add_session()
    share.make_room()
    assert (small.count, large.count) == (1, 1)
    share.remove_stream(large)
    share.add_session()
    share.make_room()
    assert (small.count, large.count) == (0, 1), "a removed stream is not asked"


def test_sessions_have_some_descriptors_whatever_the_connections_take() -> None:
    share = StreamDescriptorLimit(DescriptorLimits(32))  # 16 for streams, 8 for sessions, 2 at least
    for _ in range(8):
        share.add_connection()
    sessions = Datagrams(share, 1)
    share.make_room()
    assert sessions.count == 1
    share.add_session()
    sessions.count = 2
    share.make_room()
    assert sessions.count == 1
