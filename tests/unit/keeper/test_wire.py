"""Messages and descriptors arrive as they were sent, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.keeper import wire
from poolctl.platform import memory_file
from tests.descriptors import descriptor_limit, no_descriptor_left, open_descriptors
from tests.examples import examples

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.dictionaries(st.text(max_size=12), VALUES, max_size=6)


@pytest.mark.slow
@given(st.lists(MESSAGES, min_size=1, max_size=5))
@examples(30)
def test_messages_arrive_whole_and_in_order(messages: list[wire.Message]) -> None:
    here, there = wire.pair()
    with here, there:
        for message in messages:
            wire.send(here, message)
        assert [wire.receive(there) for _ in messages] == [(message, []) for message in messages]


@given(st.integers(1, 40), st.booleans())
@examples(20)
def test_descriptors_arrive_in_order_and_close_on_exec(count: int, wait: bool) -> None:
    here, there = wire.pair()
    files = [os.memfd_create(str(number)) for number in range(count)]
    with here, there:
        for number, file in enumerate(files):
            os.write(file, b"x" * (number + 1))
        wire.send(here, {"t": "files"}, files)
        received = wire.receive(there, wait=wait)
    assert received is not None
    try:
        assert [os.fstat(fd).st_size for fd in received[1]] == list(range(1, count + 1))
        assert not any(os.get_inheritable(fd) for fd in received[1])
    finally:
        for fd in (*files, *received[1]):
            os.close(fd)


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_an_error_and_leaks_no_descriptor(garbage: bytes) -> None:
    here, there = wire.pair()
    with here, there:
        before = open_descriptors()
        socket.send_fds(here, [garbage], [0, 0])
        try:
            received = wire.receive(there)
        except wire.WireError:
            received = None
        else:
            assert received is not None
            assert received[0] == json.loads(garbage)
            for fd in received[1]:
                os.close(fd)
        assert open_descriptors() == before


@pytest.mark.parametrize("garbage", [b"[" * 60_000, b'{"a":' * 10_000, b"\xff\xfe", b"[1]", b"7", b"null"])
def test_hostile_packets_are_errors(garbage: bytes) -> None:
    here, there = wire.pair()
    with here, there:
        here.send(garbage)
        with pytest.raises(wire.WireError):
            wire.receive(there)
        wire.send(here, {"after": 1})
        assert wire.receive(there) == ({"after": 1}, [])


def test_a_packet_that_was_cut_short_is_an_error_and_its_descriptors_are_closed() -> None:
    here, there = wire.pair()
    with here, there:
        socket.send_fds(here, [b'{"a":"' + b"x" * (wire.MAX_PACKET_BYTES + 10) + b'"}'], [0, 1, 2])
        with no_descriptor_left(), pytest.raises(wire.WireError, match="more than 65536 bytes"):
            wire.receive(there)


@pytest.mark.parametrize(
    ("size_bytes", "in_file"),
    [(wire.MAX_PACKET_BYTES, 0), (wire.MAX_PACKET_BYTES + 1, 1), (wire.MAX_MESSAGE_BYTES, 1)],
)
def test_messages_of_any_size_pass_with_their_descriptors(size_bytes: int, in_file: int) -> None:
    here, there = wire.pair()
    with here, there, no_descriptor_left():
        message = {"a": "x" * (size_bytes - len(b'{"a":""}'))}
        most = wire.MAX_DESCRIPTORS - in_file
        wire.send(here, message, [there.fileno()] * most)
        received = wire.receive(there)
        assert received is not None
        assert received[0] == message
        assert [os.path.sameopenfile(fd, there.fileno()) for fd in received[1]] == [True] * most
        for fd in received[1]:
            os.close(fd)
        with pytest.raises(wire.WireError, match="too large"):
            wire.send(here, message, [0] * (most + 1))


def test_message_beyond_the_limit_is_refused() -> None:
    here, there = wire.pair()
    with here, there:
        with pytest.raises(wire.WireError, match="a message of 16777217 bytes is too large"):
            wire.send(here, {"a": "x" * (wire.MAX_MESSAGE_BYTES - len(b'{"a":""}') + 1)})
        with pytest.raises(BlockingIOError):
            wire.receive(there)


def test_long_message_waits_while_no_descriptor_is_free() -> None:
    here, there = wire.pair()
    with here, there, no_descriptor_left(), descriptor_limit(0), pytest.raises(BlockingIOError):
        wire.send(here, {"a": "x" * wire.MAX_PACKET_BYTES})


def test_message_in_a_file_is_accepted_from_trusted_senders_only() -> None:
    here, there = wire.pair()
    with here, there, no_descriptor_left():
        wire.send(here, {"a": "x" * wire.MAX_PACKET_BYTES})
        with pytest.raises(wire.WireError, match="not JSON"):
            wire.receive(there, max_bytes=wire.MAX_PACKET_BYTES)


def test_file_that_could_block_or_change_is_no_message() -> None:
    here, there = wire.pair()
    with here, there, no_descriptor_left():
        read, write = os.pipe()
        changing = os.memfd_create("changing")
        os.write(changing, b'{"a":1}')
        empty = memory_file("empty", b"", wire.SEALS)
        for fd in (read, changing, empty):
            socket.send_fds(here, [b"file"], [fd])
            with pytest.raises(wire.WireError, match="not a sealed file"):
                wire.receive(there)
        here.send(b"file")
        with pytest.raises(wire.WireError, match="not JSON"):
            wire.receive(there)
        for fd in (read, write, changing, empty):
            os.close(fd)


def test_end_of_file_is_none_after_every_message_sent_before_it() -> None:
    here, there = wire.pair()
    with there:
        wire.send(here, {"last": True})
        here.close()
        assert wire.receive(there) == ({"last": True}, [])
        assert wire.receive(there) is None


def test_empty_socket_raises_instead_of_waiting() -> None:
    here, there = wire.pair()
    with here, there:
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            wire.receive(there)


def test_full_socket_raises_instead_of_waiting() -> None:
    here, there = wire.pair()

    def fill() -> None:
        for _ in range(10_000):
            wire.send(here, {"filler": "x" * 1000})

    with here, there:
        here.setblocking(False)
        with pytest.raises(BlockingIOError):
            fill()


def _lingering() -> tuple[socket.socket, socket.socket]:
    """A client that reads nothing, and its connection, on which close(2) waits until all is sent."""
    client = socket.socket()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            accepted.send(bytes(100_000))
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
    return client, accepted


def test_closing_an_unexpected_connection_with_linger_does_not_block() -> None:
    here, there = wire.pair()
    client, accepted = _lingering()
    with here, there, client:
        wire.send(here, {"t": "hello"}, [accepted.fileno()])
        os.close(accepted.detach())
        began = time.monotonic()
        with pytest.raises(wire.WireError, match="more descriptors"):
            wire.receive(there, max_descriptors=0)
        assert time.monotonic() - began < 10


def test_close_does_not_wait_for_connections_in_unread_messages() -> None:
    here, there = wire.pair()
    client, accepted = _lingering()
    with here, client:
        for _ in range(3):
            here.send(b"")
        wire.send(here, {"t": "hello"}, [accepted.fileno()])
        os.close(accepted.detach())
        began = time.monotonic()
        wire.close_with_unread_descriptors(there.detach())
        assert time.monotonic() - began < 10
        with pytest.raises(BrokenPipeError):
            here.send(b"more")
