"""Hands accepted connections to another process through a socket pair, one per message; clients do not notice.

Unread bytes stay in the socket. Bytes that a process has already read are sent with it: in the message, or if they do
not fit, in a sealed file in memory (a second descriptor). An application that holds an end of the pair can send
anything: every received descriptor is checked, and closed if it is not a connection.
"""

from __future__ import annotations

import math
import os
import socket
from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING, Any, NamedTuple

from ..platform import close_promptly, memory_file, read_sealed_file, readable_bytes
from . import wire

if TYPE_CHECKING:
    import asyncio

_CONNECTION = {"t": "conn"}
_FAMILIES = tuple(map(int, (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)))
_STREAM = int(socket.SOCK_STREAM)
_PROTOCOLS = (0, int(socket.IPPROTO_TCP))

INLINE_BYTES = 46 * 1024  # base64 adds a third to this
MOST_BYTES = 2**20
MOST_HOPS = 3
LONGEST_ALIAS = 255  # in characters
_MOST_GENERATION = 2**63


class NoRoom(Exception):
    """This process has reached its limit of descriptors: a connection received now would be lost."""


class Routed(NamedTuple):
    """The routing data of a connection: the alias of its route, and the generation of the route table.

    `received` holds bytes of the next request that a process has already read. `route` is "" for a connection without a
    route, which can be sent only with such bytes. `hops` counts the handovers since the connection's last request. If
    `decided` is set, `route` belongs to the next request; otherwise it belongs to an earlier request, and the
    receiver finds the next one. `trusted` is set if the peer is a proxy whose forwarded client address is used.
    """

    route: str
    generation: int = 0
    hops: int = 0
    received: bytes = b""
    decided: bool = True
    trusted: bool = False


class Connection(socket.socket):
    """A client connection, with a deadline if a process has set one, and with routing data if it belongs to a route.

    `until` is the deadline, a monotonic time; if None, the receiver sets its usual limit. If `asked` is False, the
    head of a request must be complete by the deadline. If `asked` is True, a response was sent and no byte has arrived
    since: the next request must begin by the deadline.
    """

    # Plain numbers, because converting them to enumeration members takes a tenth of a handover's time.
    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]

    until: float | None = None
    asked = False
    routed: Routed | None = None

    @property
    def received(self) -> bytes:
        """The bytes that a process has already read, which precede the bytes in the socket."""
        return b"" if self.routed is None else self.routed.received

    @property
    def is_stream(self) -> bool:
        """Whether the descriptor is a stream connection, which workers can serve."""
        return self.family in _FAMILIES and self.type == _STREAM and self.proto in _PROTOCOLS

    def limits(self) -> wire.Message:
        """Return this connection's deadline (`until`, `asked`) as fields of a message; {} without a deadline."""
        return {} if self.until is None else {"until": self.until, "asked": self.asked}

    def to_message(self) -> tuple[wire.Message, list[int]]:
        """The fields of a message and the descriptors from which `from_message` restores this connection.

        The connection keeps the first descriptor; the caller closes the others.
        """
        return _message(self.fileno(), self.limits(), self.routed)

    def hand_over(self, end: socket.socket) -> bool:
        """Send a duplicate through the socket `end` to another process; returns whether it was sent. Does not wait."""
        try:
            send_connection(end, self.fileno(), self.limits(), self.routed)
        except (OSError, wire.WireError):
            return False
        return True


def from_message(message: wire.Message, fds: list[int]) -> Connection:
    """The connection that the message describes; it owns the descriptors.

    Raises WireError if they are not a connection, and closes them.
    """
    sock = None
    try:
        if len(fds) not in (1, 2):
            raise wire.WireError("a connection has one descriptor, or two")
        routed = _routed(message, fds[1:]) if "route" in message else None
        if routed is None and len(fds) > 1:
            raise wire.WireError("a descriptor that is not part of a connection")
        sock = _connected_stream(fds[0])
        sock.routed = routed
    except wire.WireError:
        for fd in fds:
            close_promptly(fd)
        raise
    for fd in fds[1:]:
        os.close(fd)
    until = message.get("until")
    sock.until = until if isinstance(until, float) and math.isfinite(until) else None
    sock.asked = bool(message.get("asked"))
    return sock


def send_connection(
    end: socket.socket, fd: int, limits: wire.Message | None = None, routed: Routed | None = None
) -> None:
    """Send the connection `fd` through the socket `end`, without waiting. The caller still owns `fd`, and closes it.

    `limits` are the fields returned by Connection.limits. Raises BlockingIOError when the socket's queue is full,
    OSError when the message cannot be sent, and WireError when `routed.received` is longer than MOST_BYTES.
    """
    message, fds = _message(fd, limits or {}, routed)
    try:
        wire.send(end, {**_CONNECTION, **message}, fds)
    finally:
        for each in fds[1:]:
            os.close(each)


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
    received = wire.receive(end, most_bytes=wire.MAX_PACKET_BYTES)
    if received is None:
        return None
    message, fds = received
    if message.get("t") != _CONNECTION["t"]:
        for fd in fds:
            close_promptly(fd)
        raise wire.WireError("not a connection")
    return from_message(message, fds)


def _message(fd: int, limits: wire.Message, routed: Routed | None) -> tuple[wire.Message, list[int]]:
    if routed is None:
        return limits, [fd]
    message = {**limits, "route": routed.route, "generation": routed.generation, "hops": routed.hops}
    if not routed.decided:
        message["decided"] = False
    if routed.trusted:
        message["trusted"] = True
    received = routed.received
    if len(received) > MOST_BYTES:
        raise wire.WireError(f"{len(received)} bytes are too many to hand over")
    if len(received) > INLINE_BYTES:
        return message, [fd, memory_file("poolctl-received", received, wire.SEALS)]
    if received:
        message["received"] = b2a_base64(received, newline=False).decode()
    return message, [fd]


def _routed(message: wire.Message, files: list[int]) -> Routed:
    route, received, decided = message["route"], message.get("received"), message.get("decided")
    trusted = message.get("trusted")
    has_bytes = bool(files or received)
    if not isinstance(route, str) or not (route or has_bytes) or len(route) > LONGEST_ALIAS:
        raise wire.WireError("a connection with an invalid route")
    if (
        (decided is not None and decided is not False)
        or (trusted is not None and trusted is not True)
        or (received is not None and (files or not isinstance(received, str)))
    ):
        raise wire.WireError("a connection with an invalid part")
    generation = _number(message, "generation", _MOST_GENERATION)
    hops = _number(message, "hops", MOST_HOPS)
    try:
        if files:
            content = read_sealed_file(files[0], wire.SEALS, MOST_BYTES)
        else:
            content = a2b_base64(received, strict_mode=True) if received else b""
    except ValueError as error:
        raise wire.WireError("a connection with invalid bytes") from error
    return Routed(route, generation, hops, content, decided is None, trusted is True)


def _number(message: wire.Message, key: str, most: int) -> int:
    value: Any = message.get(key, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise wire.WireError(f"a connection with an invalid number of {key}")
    return value


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
