"""What connections share is computed when it is asked for, and says when it runs out."""

from __future__ import annotations

import asyncio
import socket
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poolctl.worker.serving.connection_state import HeadTimeouts, PoolServerState
from tests.virtual_loop import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


class Kept:
    """A connection of HTTP/1.1, or with `idle` False one with a request in progress."""

    def __init__(self, *, idle: bool = True) -> None:
        self.idle = idle
        self.transport: Any = self
        self.sock: socket.socket | None = None
        self.late = 0
        self.on_late: Callable[[], None] = lambda: None

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self.sock

    def on_head_timeout(self) -> None:
        self.late += 1
        self.on_late()


@pytest.fixture
def counted() -> PoolServerState:
    """A state whose connections are counted on a page."""
    server_state = PoolServerState()
    server_state.tally = memoryview(array("Q", bytes(512)))
    server_state.connections.http = Kept
    return server_state


def test_full_worker_is_reported_with_the_connection_that_takes_the_last_place() -> None:
    server_state = PoolServerState()
    seen: list[int] = []
    server_state.most_connections = 3
    server_state.on_full = lambda: seen.append(len(server_state.connections))
    assert server_state.room() == 3
    server_state.connections.add("a")
    server_state.record_handshake_start("b", 1.0)
    assert (seen, server_state.room(), server_state.open_connections) == ([], 1, 2)
    server_state.connections.add("c")
    assert (seen, server_state.room()) == ([1], 0)
    server_state.connections.discard("c")
    server_state.record_handshake_start("d", 1.0)
    assert seen == [1, 1]


def test_each_end_is_reported_to_what_waits_for_room() -> None:
    server_state = PoolServerState()
    ends: list[int] = []
    server_state.connections.on_leave = lambda: ends.append(len(server_state.connections))
    for name in ("a", "b"):
        server_state.connections.add(name)
    server_state.connections.discard("a")
    server_state.connections.discard("a")
    assert ends == [1]
    server_state.connections.on_leave = None
    server_state.connections.discard("b")
    assert ends == [1]


def test_handshake_passes_its_time_limit_on_once() -> None:
    server_state = PoolServerState()
    assert not server_state.expected
    assert server_state.record_handshake_end("a") is None
    assert not server_state.changed.is_set()
    server_state.record_handshake_start("a", 7.5)
    assert server_state.expected
    assert server_state.record_handshake_end("a") == 7.5
    assert server_state.changed.is_set()
    assert server_state.record_handshake_end("a") is None
    assert not server_state.expected


def test_failed_handshake_is_an_end_and_a_complete_one_is_none() -> None:
    server_state = PoolServerState()
    ends: list[str] = []
    server_state.connections.on_leave = lambda: ends.append("end")
    server_state.record_handshake_start("a", 1.0)
    server_state.forget_unfinished_handshake("a")
    assert ends == ["end"]
    server_state.forget_unfinished_handshake("a")
    assert ends == ["end"]


@pytest.fixture
def timeouts(loop: VirtualLoop) -> HeadTimeouts:
    """Time limits of 10 seconds on a clock that moves with the loop."""
    return HeadTimeouts(10.0, clock=loop.time)


def after(loop: VirtualLoop, seconds: float, act: Callable[[], None] = lambda: None) -> None:
    """Let that time pass, and then act on the loop."""

    async def wait() -> None:
        await asyncio.sleep(seconds)
        act()

    loop.run_until_complete(wait())


def test_late_head_is_ended_after_its_time(loop: VirtualLoop, timeouts: HeadTimeouts) -> None:
    late, early = Kept(), Kept()
    for each in (late, early):
        each.on_late = lambda each=each: timeouts.cancel(each)  # type: ignore[misc]
    after(loop, 0, lambda: timeouts.start(late))
    after(loop, 4, lambda: timeouts.start(early, loop.time() + 1))
    assert len(timeouts.due) == 2
    after(loop, 1.6)
    assert (early.late, late.late) == (1, 0)
    after(loop, 4)
    assert late.late == 0
    after(loop, 1)
    assert (early.late, late.late, len(timeouts.due)) == (1, 1, 0)


def test_heads_are_checked_once_in_a_twentieth_of_their_time(
    loop: VirtualLoop, timeouts: HeadTimeouts
) -> None:
    ended: list[float] = []

    def wait_for(seconds: float) -> None:
        connection = Kept()
        connection.on_late = lambda: (timeouts.cancel(connection), ended.append(loop.time() - begun))  # type: ignore[func-returns-value]
        timeouts.start(connection, begun + seconds)

    begun = loop.time()
    after(loop, 0, lambda: [wait_for(seconds) for seconds in (1, 1.125, 1.375, 2.75)])  # type: ignore[func-returns-value]
    after(loop, 5)
    assert ended == [1, 1.5, 1.5, 2.75]


def test_head_delayed_by_a_slow_loop_gets_one_second_once(loop: VirtualLoop, timeouts: HeadTimeouts) -> None:
    connection = Kept()
    connection.on_late = lambda: timeouts.cancel(connection)
    connection.sock, client = socket.socketpair()
    with connection.sock, client:
        client.send(b"GET / HTTP/1.1\r\n")
        after(loop, 0, lambda: timeouts.start(connection))
        after(loop, 10.9)
        assert connection.late == 0
        after(loop, 0.7)
        assert connection.late == 1
