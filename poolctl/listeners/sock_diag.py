"""What Linux knows about sockets, whoever has them (sock_diag(7)): has a connection been accepted, who has a port.

A netlink socket is opened for each question (10 µs): nothing is kept that threads or forked children would share. The
kernel may not answer: no Linux, no `inet_diag`, a seccomp filter, a user-space kernel like gVisor.
"""

from __future__ import annotations

import os
import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 1
_ERROR = 2
_LISTEN = 10
_ALL = 0xFFFFFFFF
_SHOW_PEER = 4
_PEER = 2

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_INET_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2: family, protocol, extensions, states
_INET_ANSWER = struct.Struct(
    "=BBBB48xIIIII"
)  # inet_diag_msg: family, state, …; expires, rqueue, wqueue, uid, inode
_UNIX_REQUEST = struct.Struct(
    "=BBHIIIII"
)  # unix_diag_req: family, protocol, pad, states, inode, show, cookie
_UNIX_ANSWER_BYTES = 16  # unix_diag_msg; attributes follow
_ATTRIBUTE = struct.Struct("=HH")
_LARGEST = 65536


def is_accepted(sock: socket.socket) -> bool | None:
    """Whether a process has accepted the other end of this connection to a listener of this machine.

    A connection that waits in the accept queue belongs to no process yet: it has no inode. None when the kernel does
    not say, or when the other end is gone.
    """
    try:
        inode = _unix_peer(sock) if sock.family == socket.AF_UNIX else _tcp_peer(sock)
    except (OSError, AttributeError, struct.error):
        return None
    return None if inode is None else inode != 0


def _tcp_peer(sock: socket.socket) -> int | None:
    near, far = sock.getsockname(), sock.getpeername()
    scope = near[3] if len(near) > 3 else 0
    # As the other end sees it: what is far from here is its own address.
    identity = struct.pack("!HH", far[1], near[1]) + _packed(sock.family, far) + _packed(sock.family, near)
    identity += struct.pack("=III", scope, _ALL, _ALL)  # any cookie
    answer = _ask(_INET_REQUEST.pack(sock.family, socket.IPPROTO_TCP, 0, _ALL) + identity)
    if answer is None:
        return None
    _, state, _, _, _, _, _, _, inode = _INET_ANSWER.unpack_from(answer)
    # Of a connection that is gone the kernel gives the listener.
    return None if state == _LISTEN else int(inode)


def _packed(family: int, name: tuple[str, int]) -> bytes:
    return socket.inet_pton(family, name[0].partition("%")[0]).ljust(16, b"\0")


def _unix_peer(sock: socket.socket) -> int | None:
    inode = os.fstat(sock.fileno()).st_ino
    answer = _ask(_UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, _ALL, inode, _SHOW_PEER, _ALL, _ALL))
    at = _UNIX_ANSWER_BYTES
    while answer is not None and at < len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _PEER:
            return int(struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0])
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
    return None


def _ask(question: bytes) -> bytes | None:
    """The answer to a question about one socket, None when there is no such socket. Does not block; raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.setblocking(False)
        header = _HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0)
        netlink.send(header + question)
        answer = netlink.recv(_LARGEST)  # the kernel has answered within send()
    length, kind, _, _, _ = _HEADER.unpack_from(answer)
    return None if kind == _ERROR else answer[_HEADER.size : length]
