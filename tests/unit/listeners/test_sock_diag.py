"""Whether a connection was accepted, as the kernel and the program tell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator

import pytest

from poolctl.listeners import sock_diag
from poolctl.listeners.sock_diag import (
    ANY_STATE,
    LISTEN,
    TcpSocket,
    accept_queue,
    is_accepted,
    is_listed,
    peer_inode,
    tcp_sockets,
    wait_until_accepted,
)
from tests.sandbox import NO_NETLINK, run_without

KINDS = ["127.0.0.1", "::1", "unix"]


@pytest.fixture(params=KINDS)
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}.get(request.param, socket.AF_UNIX)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family))
        if family == socket.AF_UNIX:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pc-"))
            sock.bind(os.path.join(directory, "s"))
        else:
            try:
                sock.bind((request.param, 0))
            except OSError:
                pytest.skip("no IPv6")
        sock.listen()
        yield sock


def connection(listener: socket.socket) -> socket.socket:
    sock = socket.socket(listener.family)
    sock.connect(listener.getsockname())
    sock.setblocking(False)
    return sock


def test_connection_is_accepted_once_a_process_has_taken_it_from_the_queue(
    listener: socket.socket,
) -> None:
    with connection(listener) as first, connection(listener) as second:
        assert (is_accepted(first), is_accepted(second)) == (False, False)
        first.shutdown(socket.SHUT_WR)
        assert is_accepted(first) is False
        with listener.accept()[0] as theirs:
            assert (is_accepted(first), is_accepted(second)) == (True, False)
            assert (peer_inode(first), peer_inode(second)) == (os.fstat(theirs.fileno()).st_ino, 0)


def test_accept_queue_has_the_connections_that_no_process_has_taken(listener: socket.socket) -> None:
    assert accept_queue(listener) == 0
    with connection(listener), connection(listener), connection(listener):
        assert accept_queue(listener) == 3
        with listener.accept()[0]:
            assert accept_queue(listener) == 2


def test_kernel_without_sock_diag_gives_no_answer(listener: socket.socket) -> None:
    with connection(listener) as sock:
        assert run_without(NO_NETLINK, lambda: (is_accepted(sock), is_listed(sock))) == (None, False)
        assert is_accepted(sock) is False
        with listener.accept()[0]:
            pass
        assert not is_accepted(sock), "gone"
        assert is_listed(sock)


@pytest.mark.parametrize("asked", [True, False], ids=["sock_diag", "no sock_diag"])
@pytest.mark.parametrize("act", ["closes", "speaks", "resets"])
def test_data_or_close_from_the_program_shows_that_it_has_accepted(
    listener: socket.socket, act: str, asked: bool
) -> None:
    async def scenario() -> None:
        with connection(listener) as sock:
            waiting = asyncio.ensure_future(wait_until_accepted(sock))
            await asyncio.sleep(0.03)
            assert not waiting.done()
            with listener.accept()[0] as theirs:
                assert theirs.recv(1) == b"", "our side has ended"
                if act == "speaks":
                    theirs.send(b"220 hello")
                    await asyncio.wait_for(waiting, 60)
                elif act == "resets" and theirs.family != socket.AF_UNIX:
                    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.wait_for(waiting, 60)

    run_without({} if asked else NO_NETLINK, lambda: asyncio.run(scenario()))


async def test_program_that_accepts_and_does_nothing_has_accepted(listener: socket.socket) -> None:
    with connection(listener) as sock, listener.accept()[0]:
        await asyncio.wait_for(wait_until_accepted(sock), 60)


def test_connections_to_another_listener_say_nothing(listener: socket.socket) -> None:
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.socket(listener.family))
        if listener.family == socket.AF_UNIX:
            other.bind(listener.getsockname() + "2")
        elif listener.family == socket.AF_INET:
            other.bind(("127.0.0.2", listener.getsockname()[1]))
        else:
            other.bind(("::1", 0))
        other.listen()
        stack.enter_context(connection(other))
        stack.enter_context(connection(listener))
        stack.enter_context(other.accept()[0])
        assert not list(sock_diag.accepted_inodes(listener, soon()))
        with listener.accept()[0] as first:
            assert list(sock_diag.accepted_inodes(listener, soon())) == [os.fstat(first.fileno()).st_ino]
        assert not list(sock_diag.accepted_inodes(listener, soon()))


def cookie(sock: socket.socket) -> int:
    """The number by which the kernel lists the socket (SO_COOKIE)."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def soon() -> float:
    return time.monotonic() + 60


def test_sockets_of_a_port_are_listed_with_their_process_and_address() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        connection(listener) as client,
        socket.socket() as bound,
    ):
        bound.bind(("127.0.0.1", 0))  # Linux lists a socket that is only bound whatever port it is asked for
        port = listener.getsockname()[1]
        loopback, uid = bytes((127, 0, 0, 1)), os.geteuid()

        def listed(states: int) -> dict[int, TcpSocket]:
            return {each.cookie: each for each in tcp_sockets(states, soon(), port=port)}

        def entry(sock: socket.socket) -> TcpSocket:
            inode = os.fstat(sock.fileno()).st_ino
            return TcpSocket(loopback, port, inode, uid, cookie(sock))

        with listener.accept()[0] as theirs:
            own, connected = entry(listener), entry(theirs)
            assert listed(LISTEN) == {own.cookie: own}
            assert listed(ANY_STATE) == {own.cookie: own, connected.cookie: connected}
            assert own in tcp_sockets(LISTEN, soon())
            assert list(sock_diag.accepted_inodes(listener, soon())) == [connected.inode]
            assert list(tcp_sockets(LISTEN, time.monotonic(), port=port)) == []
            assert client.getsockname()[1] not in {each.port for each in listed(ANY_STATE).values()}


def test_address_that_maps_ipv4_is_listed_as_ipv4() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as client,
        listener.accept()[0],
    ):
        port = listener.getsockname()[1]
        found = {each.address for each in tcp_sockets(ANY_STATE, soon(), port=port)}
        assert found == {bytes((127, 0, 0, 1)), bytes(16)}
        assert is_accepted(client)


def test_listening_unix_sockets_are_listed_by_path_and_inode() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="pc-") as directory,
        socket.socket(socket.AF_UNIX) as sock,
    ):
        path = os.path.join(directory, "s")
        sock.bind(path)
        entry = path, os.fstat(sock.fileno()).st_ino
        assert entry not in [each[:2] for each in sock_diag.unix_sockets(LISTEN, soon())]
        sock.listen()
        assert entry in [each[:2] for each in sock_diag.unix_sockets(LISTEN, soon())]
        assert list(sock_diag.unix_sockets(LISTEN, time.monotonic())) == []


def test_question_that_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OSError, match="sock_diag"):
        list(sock_diag.ask_for_all(b"", soon()))
    assert sock_diag.query_socket(b"") is None


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", {}),
        (b"\x04\x00\x07\x00", {7: b""}),
        (b"\x05\x00\x01\x00a\0\0\0\x08\x00\x02\x00bcde", {1: b"a", 2: b"bcde"}),
        (b"\x00\x00\x01\x00\x04\x00\x02\x00", {1: b"", 2: b""}),
        (b"\x04\x00\x01", {}),
    ],
)
def test_attributes_of_an_answer_are_aligned_to_four_bytes(data: bytes, found: dict[int, bytes]) -> None:
    assert sock_diag.attributes_of(data) == found
