"""Messages with descriptors over a SOCK_SEQPACKET socket: JSON, one message per packet.

Message boundaries survive the death of either end. A message carries at most 253 descriptors (SCM_MAX_FD, unix(7)).
No call here blocks unless `wait` is set: O_NONBLOCK belongs to the open file description, and any process that shares
the socket can clear it, so every message carries MSG_DONTWAIT.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import socket

from ..platform import close_promptly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_MESSAGE_BYTES = 64 * 1024
MAX_DESCRIPTORS = 253
# Plain integers: operations on enum members take longer than the system call.
_DONTWAIT, _CLOEXEC = int(socket.MSG_DONTWAIT), int(socket.MSG_CMSG_CLOEXEC)
_TRUNC, _CTRUNC = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)
_SOL_SOCKET, _RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)
_CREDENTIALS_BYTES = 12
_DESCRIPTOR_BYTES = array.array("i").itemsize
_LARGEST_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4) + socket.CMSG_SPACE(_CREDENTIALS_BYTES)

Message = dict[str, "Any"]


class WireError(Exception):
    """The message cannot be sent, or the received data is not a valid message."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that carry messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def encode(message: Message) -> bytes:
    """The message as JSON, to be sent as one packet."""
    return json.dumps(message, separators=(",", ":")).encode()


def socket_from_fd(fd: int) -> socket.socket:
    """A socket object that owns an inherited descriptor."""
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    return sock


def send(
    sock: socket.socket,
    message: Message | bytes,
    fds: list[int] | tuple[int, ...] = (),
    *,
    wait: bool = False,
) -> None:
    """Send one message, which may already be encoded.

    Raises WireError when the message is too large, and OSError (BlockingIOError on a full socket unless `wait` is
    set). Too many descriptors in flight count as a full socket (ETOOMANYREFS, unix(7)).
    """
    payload = message if isinstance(message, bytes) else encode(message)
    if len(payload) > MAX_MESSAGE_BYTES or len(fds) > MAX_DESCRIPTORS:
        raise WireError(f"a message of {len(payload)} bytes and {len(fds)} descriptors is too large")
    try:
        # Not socket.send_fds(), which ignores its flags (Python 3.11 to 3.13).
        rights = [(_SOL_SOCKET, _RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([payload], rights, 0 if wait else _DONTWAIT)
    except OSError as error:
        if error.errno == errno.ETOOMANYREFS:
            raise BlockingIOError(errno.EAGAIN, "too many descriptors are in flight") from error
        raise


def receive(
    sock: socket.socket,
    *,
    wait: bool = False,
    most_bytes: int = MAX_MESSAGE_BYTES,
    most_descriptors: int = MAX_DESCRIPTORS,
) -> tuple[Message, list[int]] | None:
    """Return the next message and its descriptors (close-on-exec, owned by the caller), or None at end of file.

    Waits for a message if `wait` is set or the socket has a timeout; otherwise raises BlockingIOError when no message
    is queued. If the data is invalid or too large, closes the descriptors that came with the data, without blocking,
    and raises WireError.
    """
    # Not socket.recv_fds(), which ignores its flags (Python 3.11 to 3.13): every program started later would
    # inherit the received descriptors.
    wanted = _CLOEXEC if wait else _CLOEXEC | _DONTWAIT
    payload, ancillary, flags, _ = sock.recvmsg(most_bytes, _LARGEST_ANCILLARY_BYTES, wanted)
    fds = [fd for data in ancillary for fd in _descriptors(*data)]
    try:
        if flags & _CTRUNC or len(fds) > most_descriptors:
            raise WireError("a message with more descriptors than are expected")
        if flags & _TRUNC:
            raise WireError(f"a message of more than {most_bytes} bytes")
        return (_decode(payload), fds) if payload or fds else None
    except WireError:
        for fd in fds:
            close_promptly(fd)
        raise


def _decode(payload: bytes) -> Message:
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError("a message that is not JSON") from error
    if not isinstance(message, dict):
        raise WireError("a message that is not a JSON object")
    return message


def close_with_unread_descriptors(fd: int) -> None:
    """Close a descriptor. If it is a message socket, first close the descriptors in its unread messages.

    The kernel would close them with the last duplicate of the socket, but a sender can make such a close block. Here
    each descriptor is closed without waiting (see close_promptly).
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return
    if sock.type == socket.SOCK_SEQPACKET:
        with contextlib.suppress(OSError):
            _close_unread_descriptors(sock)
    close_promptly(sock.detach())


def _close_unread_descriptors(sock: socket.socket) -> None:
    # No more messages can arrive. Credentials distinguish an empty message from end of file.
    sock.shutdown(socket.SHUT_RD)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    while ancillary := sock.recvmsg(
        1, _LARGEST_ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    )[1]:
        for data in ancillary:
            for fd in _descriptors(*data):
                close_promptly(fd)


def _descriptors(level: int, kind: int, data: bytes) -> list[int]:
    if level != _SOL_SOCKET or kind != _RIGHTS:
        return []
    return array.array("i", data[: len(data) - len(data) % _DESCRIPTOR_BYTES]).tolist()
