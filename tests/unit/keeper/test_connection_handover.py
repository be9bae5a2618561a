"""Connections that go from one process to another: none is lost, and nothing else is taken for one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from poolctl.keeper import connection_handover, wire
from poolctl.keeper.store import Store
from tests.descriptors import descriptor_limit, no_descriptor_left

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with no_descriptor_left():
        ends = wire.pair()
        for end in ends:
            end.setblocking(False)
        yield ends
        for end in ends:
            end.close()


def test_handed_over_connection_is_taken_with_its_unread_bytes(pair: Pair) -> None:
    client, accepted = socket.socketpair()
    with client, accepted:
        client.sendall(b"GET /")
        connection_handover.send_connection(pair[0], accepted.fileno())
        taken = connection_handover.receive_connection(pair[1])
        assert taken is not None
        with taken:
            assert taken.recv(100) == b"GET /"
    with pytest.raises(BlockingIOError):
        connection_handover.receive_connection(pair[1])
    pair[0].close()
    assert connection_handover.receive_connection(pair[1]) is None


@pytest.mark.parametrize(("until", "asked"), [(None, False), (12.5, False), (12.5, True), (None, True)])
def test_handed_over_connection_keeps_its_clients_remaining_time(
    pair: Pair, until: float | None, asked: bool
) -> None:
    client, accepted = socket.socketpair()
    with client, accepted:
        given = connection_handover.Connection(fileno=accepted.detach())
        given.until, given.idle = until, asked
        with given:
            connection_handover.send_connection(pair[0], given.fileno(), given.limits())
    taken = connection_handover.receive_connection(pair[1])
    assert taken is not None
    with taken:
        assert (taken.until, taken.idle) == (until, asked)


@pytest.mark.parametrize("until", ["soon", None, [], float("nan"), float("inf"), 10**400])
def test_invalid_remaining_time_is_ignored(pair: Pair, until: object) -> None:
    client, accepted = socket.socketpair()
    with client, accepted:
        wire.send(pair[0], {"t": "conn", "until": until}, [accepted.fileno()])
    taken = connection_handover.receive_connection(pair[1])
    assert taken is not None
    with taken:
        assert taken.until is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_message_that_is_no_connection_is_an_error_and_leaves_nothing_open(pair: Pair, count: int) -> None:
    message = {"t": "conn"} if count != 1 else {"t": "something"}
    wire.send(pair[0], message, [pair[0].fileno()] * count)
    with pytest.raises(wire.WireError):
        connection_handover.receive_connection(pair[1])


def _odd_ones() -> Iterator[socket.socket | int]:
    yield os.open("/dev/null", os.O_RDONLY)
    yield socket.create_server(("127.0.0.1", 0))
    yield socket.socket(type=socket.SOCK_DGRAM)
    yield socket.socket()
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.connect(("127.0.0.1", 9))
    yield datagram
    ours, theirs = wire.pair()
    theirs.close()
    yield ours


def test_descriptor_that_is_no_connected_stream_is_closed(pair: Pair) -> None:
    for odd in _odd_ones():
        fd = odd if isinstance(odd, int) else odd.detach()
        wire.send(pair[0], {"t": "conn"}, [fd])
        os.close(fd)
        with pytest.raises(wire.WireError):
            connection_handover.receive_connection(pair[1])


def test_connection_hands_itself_over_unless_the_pair_is_full(pair: Pair) -> None:
    client, accepted = socket.socketpair()
    given = connection_handover.Connection(fileno=accepted.detach())
    given.until, given.received = 12.5, b"GET /"
    with client, given:
        sent = 0
        while given.hand_over(pair[0]):
            sent += 1
        assert sent
        for _ in range(sent):
            taken = connection_handover.receive_connection(pair[1])
            assert taken is not None
            with taken:
                assert (taken.until, taken.idle, taken.received) == (12.5, False, b"GET /")
        client.send(b"hello")
        assert given.recv(5) == b"hello"


def test_connection_that_its_client_has_half_closed_is_taken(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with client, accepted:
            client.sendall(b"the end")
            client.shutdown(socket.SHUT_WR)
            connection_handover.send_connection(pair[0], accepted.fileno())
            taken = connection_handover.receive_connection(pair[1])
            assert taken is not None
            with taken:
                assert (taken.family, taken.type) == (accepted.family, accepted.type)
                assert taken.getpeername() == client.getsockname()


def test_pair_that_an_application_has_made_blocking_blocks_no_call(pair: Pair) -> None:
    for end in pair:
        os.set_blocking(end.fileno(), True)
    with pytest.raises(BlockingIOError):
        connection_handover.receive_connection(pair[1])
    client, accepted = socket.socketpair()
    with client, accepted, contextlib.suppress(BlockingIOError):
        while True:
            connection_handover.send_connection(pair[0], accepted.fileno())


def test_close_does_not_wait_for_a_connection_that_is_to_linger() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted.send(bytes(100_000))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
        store = Store()
        store.put("visitor:1", None, [accepted.detach()])
        began = time.monotonic()
        store.drop("visitor:1")
        assert time.monotonic() - began < 10


def test_connection_waits_when_there_is_no_room_for_its_descriptor(pair: Pair) -> None:
    client, accepted = socket.socketpair()
    with client, accepted:
        connection_handover.send_connection(pair[0], accepted.fileno())
        _take_without_room_then_with_it(pair)


def _take_without_room_then_with_it(pair: Pair) -> None:
    with descriptor_limit(0), pytest.raises(connection_handover.NoRoom):
        connection_handover.receive_connection(pair[1])
    taken = connection_handover.receive_connection(pair[1])
    assert taken is not None
    taken.close()


@pytest.mark.parametrize("size", [0, 1, connection_handover.MAX_BYTES])
def test_connection_arrives_with_the_bytes_that_were_read(pair: Pair, size: int) -> None:
    read = os.urandom(size)
    client, accepted = socket.socketpair()
    with client, accepted:
        connection_handover.send_connection(pair[0], accepted.fileno(), received=read)
    taken = connection_handover.receive_connection(pair[1])
    assert taken is not None
    with taken:
        assert (taken.received, taken.limits()) == (read, {})


def test_more_bytes_than_can_be_handed_over_are_an_error(pair: Pair) -> None:
    too_many = bytes(connection_handover.MAX_BYTES + 1)
    with pytest.raises(wire.WireError):
        connection_handover.send_connection(pair[0], pair[0].fileno(), received=too_many)


@pytest.mark.parametrize("received", ["no base64!", ["a"], 7, "YQ==YQ=="], ids=str)
def test_connection_with_invalid_bytes_is_closed(pair: Pair, received: object) -> None:
    client, accepted = socket.socketpair()
    with client:
        with accepted:
            wire.send(pair[0], {"t": "conn", "received": received}, [accepted.fileno()])
        with pytest.raises(wire.WireError):
            connection_handover.receive_connection(pair[1])
        assert client.recv(1) == b""


@pytest.mark.parametrize("count", [2, 3])
def test_connection_with_further_descriptors_is_closed(pair: Pair, count: int) -> None:
    client, accepted = socket.socketpair()
    with client:
        with accepted:
            wire.send(pair[0], {"t": "conn"}, [accepted.fileno()] * count)
        with pytest.raises(wire.WireError):
            connection_handover.receive_connection(pair[1])
        assert client.recv(1) == b""


def test_connection_is_restored_from_its_message_and_descriptor(pair: Pair) -> None:
    client, accepted = socket.socketpair()
    with client, connection_handover.Connection(fileno=accepted.detach()) as kept:
        kept.until, kept.idle = 12.5, True
        kept.received = b"GET / HTTP/1.1\r\n"
        with connection_handover.from_message(kept.to_message(), [os.dup(kept.fileno())]) as restored:
            assert (restored.until, restored.idle, restored.received) == (12.5, True, kept.received)
            restored.sendall(b"over")
        assert client.recv(100) == b"over"


class Transport(asyncio.Transport):
    """A transport with this socket, or without one."""

    def __init__(self, sock: socket.socket | None) -> None:
        super().__init__({"socket": sock})


def test_unread_bytes_are_those_in_the_receive_buffer_and_none_without_a_socket(pair: Pair) -> None:
    client, accepted = socket.socketpair()
    with client:
        client.sendall(bytes(300))
        assert connection_handover.unread_bytes(Transport(accepted)) == 300
        accepted.recv(100)
        assert connection_handover.unread_bytes(Transport(accepted)) == 200
        accepted.close()
    assert connection_handover.unread_bytes(Transport(None)) == 0
