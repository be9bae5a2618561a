"""Connections that go from one process to another: none is lost, and nothing else is taken for one."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from poolctl.keeper import handover, wire

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    before = set(os.listdir("/proc/self/fd"))
    ends = wire.pair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_is_given_is_taken_with_its_unread_bytes(pair: Pair) -> None:
    client, accepted = socket.socketpair()
    with client, accepted:
        client.sendall(b"GET /")
        handover.give(pair[0], accepted.fileno())
        taken = handover.take(pair[1])
        assert taken is not None
        with taken:
            assert taken.recv(100) == b"GET /"
    with pytest.raises(BlockingIOError):
        handover.take(pair[1])
    pair[0].close()
    assert handover.take(pair[1]) is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_is_no_connection_is_an_error_and_leaves_nothing_open(pair: Pair, count: int) -> None:
    message = {"t": "conn"} if count != 1 else {"t": "something"}
    wire.send(pair[0], message, [pair[0].fileno()] * count)
    with pytest.raises(wire.WireError):
        handover.take(pair[1])


def test_without_room_for_it_a_connection_waits(pair: Pair) -> None:
    handover.give(pair[0], pair[0].fileno())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(handover.NoRoom):
            handover.take(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    taken = handover.take(pair[1])
    assert taken is not None
    taken.close()
