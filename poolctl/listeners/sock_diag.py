"""Queries the kernel about sockets of all processes (sock_diag(7)): which use a port, which were accepted.

`wait_until_accepted` waits until a program accepts a connection, even where the kernel does not answer.

A netlink socket is opened for each query, so that threads and forked children share nothing. The kernel does not answer
on other systems, without `inet_diag`, behind some seccomp filters, and in user-space kernels such as gVisor.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTEN = 1 << 10
CONNECTED = 1 << 1 | 1 << 8  # ESTABLISHED and CLOSE_WAIT (the client has shut down its side)
ANY_STATE = 0xFFFFFFFF

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 1  # NLM_F_REQUEST
_REQUEST_ALL = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR = 2  # NLMSG_ERROR
_DONE = 3  # NLMSG_DONE
_LISTEN_STATE = 10  # TCP_LISTEN
_ANY_COOKIE = (0xFFFFFFFF, 0xFFFFFFFF)  # INET_DIAG_NOCOOKIE
# UDIAG_SHOW_*: what a query about Unix sockets asks for.
_SHOW_NAME = 1
_SHOW_FILE = 2
_SHOW_PEER = 4
_SHOW_QUEUE = 16
# UNIX_DIAG_*: the attributes of the answer.
_NAME = 0
_FILE = 1
_PEER = 2
_QUEUE = 4
_MAX_ANSWER_BYTES = 65536

# nlmsghdr: length, type, flags, sequence, port
_HEADER = struct.Struct("=IHHII")
# inet_diag_req_v2: family, protocol, extensions, states; followed by an identity (ports, addresses, interface, cookie)
_INET_REQUEST = struct.Struct("=BBBxI")
_IDENTITY_BYTES = 48
# inet_diag_msg: family, state, timer, retransmits, the identity; expires, rqueue, wqueue, uid, inode
_INET_ANSWER = struct.Struct("=BBBB48xIIIII")
_COOKIE_AT = 44
# unix_diag_req: family, protocol, pad, states, inode, show, cookie
_UNIX_REQUEST = struct.Struct("=BBHIIIII")
# unix_diag_msg: family, type, state, pad, inode, cookie; attributes follow
_UNIX_ANSWER_BYTES = 16
_ATTRIBUTE = struct.Struct("=HH")

# The kernel sends no notification when another program calls accept(): it has to be polled.
_MIN_POLL_SECONDS = 0.01
_MAX_POLL_SECONDS = 0.2
# In the tcp_info of a listener, tcpi_unacked is the length of its accept queue (tcp(7)).
_TCP_INFO_BYTES = 32
_UNACKED_AT = 24


async def wait_until_accepted(probe: socket.socket) -> None:
    """Wait until the program at the other end has accepted the new connection `probe`. Raises OSError.

    First shuts `probe` down for writing: a program that serves one client at a time then finishes with it at once.
    `probe` counts as accepted when the program closes it or sends data, or when the kernel reports that a process has
    the other end.
    """
    import asyncio  # imported late: a command that asks who holds a port runs no event loop

    with contextlib.suppress(OSError):
        probe.shutdown(socket.SHUT_WR)
    loop = asyncio.get_running_loop()
    pause = _MIN_POLL_SECONDS
    while not is_accepted(probe):
        try:
            async with asyncio.timeout(pause):
                await loop.sock_recv(probe, 1)
            return
        except ConnectionResetError:
            return  # the program has reset the connection, so it had accepted it
        except TimeoutError:
            pause = min(pause * 1.5, _MAX_POLL_SECONDS)


def has_others_waiting(listener: socket.socket) -> bool:
    """Whether the accept queue holds more than one connection; always True for a Unix socket."""
    return listener.family == socket.AF_UNIX or accept_queue(listener) > 1


def accept_queue(listener: socket.socket) -> int:
    """The length of the listener's accept queue; 0 if the kernel does not answer. Does not block."""
    try:
        if listener.family == socket.AF_UNIX:
            return _unix_attribute(listener, _SHOW_QUEUE, _QUEUE) or 0
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(struct.unpack_from("I", info, _UNACKED_AT)[0])
    except (OSError, struct.error):
        return 0


def is_accepted(sock: socket.socket) -> bool | None:
    """Whether a process on this machine has accepted the other end of this connection.

    None if the kernel does not answer, or if the other end is closed.
    """
    inode = peer_inode(sock)
    return None if inode is None else inode != 0


def peer_inode(sock: socket.socket) -> int | None:
    """The inode of the socket at the other end of this connection, on this machine. Does not block.

    0 if the socket belongs to no process: it is still in the accept queue, or is being closed. None if the kernel does
    not answer, or if the other end is closed.
    """
    try:
        if sock.family == socket.AF_UNIX:
            return _unix_attribute(sock, _SHOW_PEER, _PEER)
        # From the point of view of the other end: its local address is our remote address.
        return _tcp_inode(sock.family, sock.getpeername(), sock.getsockname())
    except (OSError, struct.error):
        return None


def is_listed(sock: socket.socket) -> bool:
    """Whether the kernel answers queries: it lists this existing connection. Does not block."""
    try:
        if sock.family == socket.AF_UNIX:
            return _query_unix(sock, 0) is not None
        return _tcp_inode(sock.family, sock.getsockname(), sock.getpeername()) is not None
    except (OSError, struct.error):
        return False


def _tcp_inode(family: int, local: Any, remote: Any) -> int | None:
    """The inode of the socket with this family, local and remote address; None if there is none."""
    scope = local[3] if len(local) > 3 else 0
    identity = struct.pack("!HH", local[1], remote[1]) + _packed(family, local) + _packed(family, remote)
    identity += struct.pack("=III", scope, *_ANY_COOKIE)
    answer = query_socket(_INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, ANY_STATE) + identity)
    if answer is None:
        return None
    _, state, _, _, _, _, _, _, inode = _INET_ANSWER.unpack_from(answer)
    # For a connection that no longer exists, the kernel returns the listener.
    return None if state == _LISTEN_STATE else int(inode)


def _packed(family: int, name: tuple[str, int]) -> bytes:
    return socket.inet_pton(family, name[0].partition("%")[0]).ljust(16, b"\0")


def bound_inode(sock: socket.socket) -> int | None:
    """The last 32 bits of the inode of the file to which a Unix socket is bound. Does not block.

    None if the kernel does not answer, or if the socket is bound to no file.
    """
    try:
        return _unix_attribute(sock, _SHOW_FILE, _FILE)
    except (OSError, struct.error):
        return None


def _unix_attribute(sock: socket.socket, show: int, attribute: int) -> int | None:
    """Ask the kernel, with flag `show`, for `attribute` of a Unix socket. Return its first number; None if missing."""
    answer = _query_unix(sock, show)
    value = None if answer is None else attributes_of(answer[_UNIX_ANSWER_BYTES:]).get(attribute)
    return None if value is None else int(struct.unpack_from("=I", value)[0])


def _query_unix(sock: socket.socket, show: int) -> bytes | None:
    inode = os.fstat(sock.fileno()).st_ino
    return query_socket(_UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, ANY_STATE, inode, show, *_ANY_COOKIE))


class TcpSocket(NamedTuple):
    """A TCP socket as listed by the kernel. An IPv4-mapped address is stored in four bytes."""

    address: bytes
    port: int
    inode: int  # 0 if no process has the socket
    uid: int
    cookie: int  # unique until the next boot of the machine


def tcp_sockets(states: int, until: float, *, port: int = 0) -> Iterator[TcpSocket]:
    """Yield the TCP sockets in these states, on all ports or only on `port`. Blocks.

    Ends early at `until`, a time on the monotonic clock, or if the kernel does not answer.
    """
    identity = struct.pack("!H", port).ljust(_IDENTITY_BYTES, b"\0")
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + identity
        with contextlib.suppress(OSError):
            for answer in ask_for_all(request, until):
                answer_family, _, _, _, _, _, _, uid, inode = _INET_ANSWER.unpack_from(answer)
                address = answer[8:12] if answer_family == socket.AF_INET else answer[8:24]
                if len(address) == 16 and address.startswith(bytes(10) + b"\xff\xff"):
                    address = address[12:]
                (number,) = struct.unpack_from("!H", answer, 4)
                if port and number != port:
                    continue  # the kernel has filtered by port, but not the sockets that are only bound (Linux 6.8)
                (cookie,) = struct.unpack_from("=Q", answer, _COOKIE_AT)
                yield TcpSocket(address, number, inode, uid, cookie)


def accepted_inodes(listener: socket.socket, until: float) -> Iterator[int]:
    """Yield the inodes of connections accepted from `listener`. Blocks until `until` (monotonic) at most."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        # The kernel does not list connections in the accept queue.
        for path, inode, _ in unix_sockets(CONNECTED, until):
            if path == name:
                yield inode
    else:
        address = socket.inet_pton(listener.family, name[0].partition("%")[0])
        for sock in tcp_sockets(CONNECTED, until, port=name[1]):
            if sock.inode and (sock.address == address or not any(address)):
                yield sock.inode


def unix_sockets(states: int, until: float) -> Iterator[tuple[str, int, int]]:
    """Yield path, inode and cookie of each Unix socket in these states. Blocks until `until` (monotonic) at most."""
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, states, 0, _SHOW_NAME, *_ANY_COOKIE)
    with contextlib.suppress(OSError):
        for answer in ask_for_all(request, until):
            name = attributes_of(answer[_UNIX_ANSWER_BYTES:]).get(_NAME, b"")
            inode, cookie = struct.unpack_from("=IQ", answer, 4)
            yield os.fsdecode(name.rstrip(b"\0")), inode, cookie


def attributes_of(data: bytes) -> dict[int, bytes]:
    """The attributes of an answer, by kind (netlink(7))."""
    attributes = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        attributes[kind] = data[_ATTRIBUTE.size : length]
        data = data[max((length + 3) & ~3, _ATTRIBUTE.size) :]
    return attributes


def query_socket(question: bytes) -> bytes | None:
    """The answer to a query about one socket, or None if there is no such socket. Does not block; raises OSError."""
    with _netlink() as netlink:
        netlink.setblocking(False)
        netlink.send(_message(question, _REQUEST))
        answer = netlink.recv(_MAX_ANSWER_BYTES)  # the kernel has answered during send()
    length, kind, _, _, _ = _HEADER.unpack_from(answer)
    return None if kind == _ERROR else answer[_HEADER.size : length]


def ask_for_all(question: bytes, until: float) -> Iterator[bytes]:
    """Yield the answers to a query about many sockets, up to the last one or until the monotonic time `until`.

    Raises TimeoutError if `until` passes during a wait for the kernel, and OSError if the kernel refuses the query.
    """
    with _netlink() as netlink:
        netlink.send(_message(question, _REQUEST_ALL))
        while (left := until - time.monotonic()) > 0:
            netlink.settimeout(left)
            data = netlink.recv(_MAX_ANSWER_BYTES)
            while data:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                if kind == _ERROR:
                    raise OSError(-struct.unpack_from("=i", data, _HEADER.size)[0], "sock_diag")
                if kind == _DONE or length < _HEADER.size:
                    return
                yield data[_HEADER.size : length]
                data = data[(length + 3) & ~3 :]


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)


def _message(question: bytes, flags: int) -> bytes:
    return _HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + question
