"""Hands accepted connections to another process through a socket pair, one per message; clients do not notice.

Unread bytes stay in the socket. Bytes that a process has already read are sent with it in the message. An application
that holds an end of the pair can send anything: every received descriptor is checked, and closed if it is not a
connection.
"""

from __future__ import annotations

import math
import os
import socket
from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING

from ..platform import close_promptly, readable_bytes
from . import wire

if TYPE_CHECKING:
    import asyncio

_CONNECTION = {"t": "conn"}
_FAMILIES = tuple(map(int, (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)))
_STREAM = int(socket.SOCK_STREAM)
_PROTOCOLS = (0, int(socket.IPPROTO_TCP))

MAX_BYTES = 46 * 1024  # base64 adds a third to this, and a message has at most 64 KiB


class NoRoom(Exception):
    """This process has reached its limit of descriptors: a connection received now would be lost."""


class Connection(socket.socket):
    """A client connection, with a deadline if a process has set one, and with the bytes that were read already.

    `until` is the deadline, a monotonic time or None. On an `idle` connection, no byte has arrived since the last
    response: the next request must begin by the deadline, if there is one. On any other connection, the head of a
    request must be complete by the deadline; without one, the receiver sets its usual timeout.
    """

    # Plain numbers, because converting them to enumeration members takes a tenth of a handover's time.
    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]

    until: float | None = None
    idle = False
    received = b""  # what a process has already read, which precedes the bytes in the socket

    @property
    def is_stream(self) -> bool:
        """Whether the descriptor is a stream connection, which workers can serve."""
        return self.family in _FAMILIES and self.type == _STREAM and self.proto in _PROTOCOLS

    def limits(self) -> wire.Message:
        """Return `until` and `idle` as fields of a message; {} for the receiver's usual timeout."""
        if self.until is not None:
            return {"until": self.until, "asked": self.idle}
        return {"asked": True} if self.idle else {}

    def to_message(self) -> wire.Message:
        """The fields of a message from which `from_message` restores this connection, with its descriptor."""
        return _message(self.limits(), self.received)

    def hand_over(self, end: socket.socket) -> bool:
        """Send a duplicate through the socket `end` to another process; returns whether it was sent. Does not wait."""
        try:
            send_connection(end, self.fileno(), self.limits(), self.received)
        except (OSError, wire.WireError):
            return False
        return True


def from_message(message: wire.Message, fds: list[int]) -> Connection:
    """The connection that the message describes; it owns the descriptor.

    Raises WireError if it is not a connection, and closes the descriptors.
    """
    try:
        if len(fds) != 1:
            raise wire.WireError("a connection has one descriptor")
        received = _decode_received(message)
        sock = _connected_stream(fds[0])
    except wire.WireError:
        for fd in fds:
            close_promptly(fd)
        raise
    sock.received = received
    until = message.get("until")
    sock.until = until if isinstance(until, float) and math.isfinite(until) else None
    sock.idle = bool(message.get("asked"))
    return sock


def send_connection(
    end: socket.socket, fd: int, limits: wire.Message | None = None, received: bytes = b""
) -> None:
    """Send the connection `fd` through the socket `end`, without waiting. The caller still owns `fd`, and closes it.

    `limits` are the fields returned by Connection.limits. Raises BlockingIOError when the socket's queue is full,
    OSError when the message cannot be sent, and WireError when `received` is longer than MAX_BYTES.
    """
    wire.send(end, {**_CONNECTION, **_message(limits or {}, received)}, [fd])


def unread_bytes(transport: asyncio.Transport) -> int:
    """The number of bytes in the receive buffer of the transport's connection; 0 if its socket is closed."""
    sock = transport.get_extra_info("socket")
    try:
        return 0 if sock is None else readable_bytes(sock.fileno())
    except OSError:
        return 0


def receive_connection(end: socket.socket) -> Connection | None:
    """Return the next connection from the socket `end`; None when the other end is closed.

    Raises BlockingIOError when no message is queued, NoRoom when no descriptor is free, and OSError if reading fails.
    If a message is not a connection, closes the descriptors in the message and raises WireError.
    """
    try:
        # The kernel drops a descriptor that arrives when the process has reached its limit.
        os.close(os.dup(end.fileno()))
    except OSError as error:
        raise NoRoom from error
    received = wire.receive(end, max_bytes=wire.MAX_PACKET_BYTES)
    if received is None:
        return None
    message, fds = received
    if message.get("t") != _CONNECTION["t"]:
        for fd in fds:
            close_promptly(fd)
        raise wire.WireError("not a connection")
    return from_message(message, fds)


def _message(limits: wire.Message, received: bytes) -> wire.Message:
    if not received:
        return limits
    if len(received) > MAX_BYTES:
        raise wire.WireError(f"{len(received)} bytes are too many to hand over")
    return {**limits, "received": b2a_base64(received, newline=False).decode()}


def _decode_received(message: wire.Message) -> bytes:
    try:
        return a2b_base64(message.get("received") or "", strict_mode=True)
    except (TypeError, ValueError) as error:
        raise wire.WireError("a connection with invalid bytes") from error


def _connected_stream(fd: int) -> Connection:
    """The stream socket with this descriptor. Raises WireError if it is not a connected stream, and leaves it open."""
    try:
        sock = Connection(fileno=fd)
    except OSError as error:
        raise wire.WireError("not a socket") from error
    try:
        if sock.is_stream:
            sock.getpeername()
            return sock
    except OSError:
        pass
    sock.detach()
    raise wire.WireError("not a connection")
