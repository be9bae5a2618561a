"""Messages with descriptors over a SOCK_SEQPACKET socket: JSON, one message per packet.

Message boundaries survive the death of either end. A message carries at most 253 descriptors (SCM_MAX_FD, unix(7)). A
message that is too long for a packet is in a sealed file in memory; the packet then carries this file's descriptor
before the others. No call here blocks unless `wait` is set: O_NONBLOCK belongs to the open file description, and any
process that shares the socket can clear it, so every message carries MSG_DONTWAIT.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import socket
from json import JSONDecoder, JSONEncoder

from ..platform import close_promptly, memory_file, read_sealed_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Made before any application is imported: it may replace json.dumps, as shims for faster encoders do.
_encode, _decode_text = JSONEncoder(separators=(",", ":")).encode, JSONDecoder().decode

MAX_PACKET_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_DESCRIPTORS = 253
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
# The content of a packet whose message is in a file; not JSON.
_IN_FILE = b"file"
# Plain integers: operations on enum members take longer than the system call.
_DONTWAIT, _CLOEXEC = int(socket.MSG_DONTWAIT), int(socket.MSG_CMSG_CLOEXEC)
_TRUNC, _CTRUNC = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)
_SOL_SOCKET, _RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)
_CREDENTIALS_BYTES = 12
_DESCRIPTOR_BYTES = array.array("i").itemsize
_MAX_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4) + socket.CMSG_SPACE(_CREDENTIALS_BYTES)

Message = dict[str, "Any"]


class WireError(Exception):
    """The message cannot be sent, or the received data is not a valid message.

    `number` is the `id` of a received message whose descriptors were lost, if it has one.
    """

    def __init__(self, text: str, number: object = None) -> None:
        super().__init__(text)
        self.number = number


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that carry messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def encode(message: Message) -> bytes:
    """The message as JSON, as `send` takes it. Raises WireError when it is too large."""
    payload = _encode(message).encode()
    if len(payload) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(payload)} bytes is too large")
    return payload


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
    set). Too many descriptors in flight count as a full socket (ETOOMANYREFS, unix(7)), and so does a lack of
    descriptors or memory for the file of a long message.
    """
    payload = message if isinstance(message, bytes) else encode(message)
    if len(payload) <= MAX_PACKET_BYTES:
        _send_packet(sock, payload, fds, wait=wait)
        return
    try:
        file = memory_file("poolctl-message", payload, SEALS)
    except OSError as error:
        raise BlockingIOError(errno.EAGAIN, error.strerror) from error
    try:
        _send_packet(sock, _IN_FILE, [file, *fds], wait=wait)
    finally:
        os.close(file)


def _send_packet(
    sock: socket.socket, payload: bytes, fds: list[int] | tuple[int, ...], *, wait: bool
) -> None:
    if len(fds) > MAX_DESCRIPTORS:
        raise WireError(f"a message with {len(fds)} descriptors is too large")
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
    max_bytes: int = MAX_MESSAGE_BYTES,
    max_descriptors: int = MAX_DESCRIPTORS,
) -> tuple[Message, list[int]] | None:
    """Return the next message and its descriptors (close-on-exec, owned by the caller), or None at end of file.

    Waits for a message if `wait` is set or the socket has a timeout; otherwise raises BlockingIOError when no message
    is queued. If the data is invalid or too large, closes the descriptors that came with the data, without blocking,
    and raises WireError. For a sender that is not trusted, `max_bytes` is at most MAX_PACKET_BYTES: then a message in
    a file is invalid.
    """
    # Not socket.recv_fds(), which ignores its flags (Python 3.11 to 3.13): every program started later would
    # inherit the received descriptors.
    receive_flags = _CLOEXEC if wait else _CLOEXEC | _DONTWAIT
    packet_bytes = min(max_bytes, MAX_PACKET_BYTES)
    payload, ancillary, flags, _ = sock.recvmsg(packet_bytes, _MAX_ANCILLARY_BYTES, receive_flags)
    fds = [fd for data in ancillary for fd in _descriptors(*data)]
    try:
        if flags & _CTRUNC or len(fds) > max_descriptors:
            number = _decode(payload).get("id")
            raise WireError("a message with more descriptors than are expected", number)
        if flags & _TRUNC:
            raise WireError(f"a message of more than {packet_bytes} bytes")
        if payload == _IN_FILE and fds and max_bytes > MAX_PACKET_BYTES:
            payload = _take_from_file(fds, max_bytes)
        return (_decode(payload), fds) if payload or fds else None
    except WireError:
        for fd in fds:
            close_promptly(fd)
        raise


def _take_from_file(fds: list[int], max_bytes: int) -> bytes:
    """Remove the first of the descriptors, a sealed file, and return its content. Raises WireError."""
    file = fds.pop(0)
    try:
        return read_sealed_file(file, SEALS, max_bytes)
    except ValueError as error:
        raise WireError(f"a message in a file: {error}") from error
    finally:
        close_promptly(file)


def _decode(payload: bytes) -> Message:
    try:
        message = _decode_text(payload.decode())
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
    while ancillary := sock.recvmsg(1, _MAX_ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)[
        1
    ]:
        for data in ancillary:
            for fd in _descriptors(*data):
                close_promptly(fd)


def _descriptors(level: int, kind: int, data: bytes) -> list[int]:
    if level != _SOL_SOCKET or kind != _RIGHTS:
        return []
    return array.array("i", data[: len(data) - len(data) % _DESCRIPTOR_BYTES]).tolist()
