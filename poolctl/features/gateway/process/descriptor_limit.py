"""Divides the gateway's limit of open files between clients, backends, streams and handshakes."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable
from typing import Protocol

# This process, or the machine, is short of a resource: no backend and no client is at fault.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Maximum number of descriptors that clients leave free (a quarter of a low limit) for connections to backends and for
# the supervisor's messages.
_MOST_RESERVED = 1024
_RESERVED_PART = 4
# Connections to backends leave these free: an order brings descriptors of a route table, listeners or a pair.
_OF_ORDERS = 16
_STREAMS_PART = 2
_OF_STREAM = 2  # the client's and the backend's
_SESSIONS_PART, _LEAST_SESSIONS_PART = 4, 16
_HANDSHAKES_PART = 4
# A handshake takes 54 KB (measured with 3,000), and the CPU is busy with far fewer.
_LEAST_HANDSHAKES, _MOST_HANDSHAKES = 16, 1024


class DescriptorLimits:
    """The limit on this process's open files (`limit`), and how many of them each use may take.

    Descriptor numbers from `mark` on are reserved for backends and the supervisor. All streams together use at
    most `of_streams` descriptors, and UDP sessions at most `of_sessions`. `least_sessions` UDP sessions are possible
    even if all streams use `of_streams`. `of_handshakes` is the maximum number of TLS handshakes in progress.
    """

    def __init__(self, limit: int = 0) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = limit or (sys.maxsize if soft == resource.RLIM_INFINITY else soft)
        self.mark = self.limit - min(_MOST_RESERVED, self.limit // _RESERVED_PART)
        self.of_streams = self.limit // _STREAMS_PART
        self.of_sessions = max(1, self.limit // _SESSIONS_PART)
        self.least_sessions = max(1, self.limit // _LEAST_SESSIONS_PART)
        self.of_handshakes = max(_LEAST_HANDSHAKES, min(_MOST_HANDSHAKES, self.limit // _HANDSHAKES_PART))

    def is_low(self) -> bool:
        """Whether only the descriptors reserved for backends and for the supervisor's orders are left."""
        return lowest_free() >= self.mark

    def exhausted(self) -> bool:
        """Whether only the descriptors reserved for the supervisor's orders are left."""
        return lowest_free() >= self.limit - _OF_ORDERS


class UdpSessions(Protocol):
    """The sessions of a UDP stream."""

    def __len__(self) -> int:
        """The number of sessions of the stream."""

    def evict(self) -> None:
        """End the session that has been idle longest."""


class StreamDescriptorLimit:
    """Counts and limits the descriptors of all streams together, so that some always remain for HTTP routes.

    UDP streams end their longest-idle sessions to make room for new ones; TCP streams wait for room.
    """

    def __init__(self, descriptors: DescriptorLimits) -> None:
        self._descriptors = descriptors
        self._connections = self._sessions = 0
        self._udp: set[UdpSessions] = set()
        self._waiting: set[Callable[[], None]] = set()

    @property
    def used(self) -> int:
        """The number of descriptors that all streams use."""
        return self._connections * _OF_STREAM + self._sessions

    # TCP.

    def has_room_or_notify(self, resume: Callable[[], None]) -> bool:
        """Whether there is room for a connection. If not, `resume` is called when there is."""
        if self.used + _OF_STREAM <= self._descriptors.of_streams:
            return True
        self._waiting.add(resume)
        return False

    def add_connection(self) -> None:
        """Count a connection that was accepted."""
        self._connections += 1

    def remove_connection(self) -> None:
        """Count a closed connection."""
        self._connections -= 1
        self._resume_waiting()

    # UDP.

    def add_stream(self, stream: UdpSessions) -> None:
        """Register a UDP stream: `make_room` may end its sessions."""
        self._udp.add(stream)

    def remove_stream(self, stream: UdpSessions) -> None:
        """Remove the stream, which has no descriptors left."""
        self._udp.discard(stream)

    def make_room(self) -> None:
        """Make room for a session: at the maximum, the stream with the most sessions ends its longest-idle one."""
        descriptors = self._descriptors
        while self._sessions >= descriptors.of_sessions or (
            self.used >= descriptors.of_streams and self._sessions >= descriptors.least_sessions
        ):
            max(self._udp, key=len).evict()

    def add_session(self) -> None:
        """Count a session that has begun."""
        self._sessions += 1

    def remove_session(self) -> None:
        """Subtract a session that has ended; TCP streams that wait for room may accept again."""
        self._sessions -= 1
        self._resume_waiting()

    def _resume_waiting(self) -> None:
        while self._waiting and self.used + _OF_STREAM <= self._descriptors.of_streams:
            self._waiting.pop()()


def is_exhausted(error: OSError) -> bool:
    """Whether the error says that this process is short of descriptors, or of memory."""
    # Event loops report the errors of several addresses as one without a number.
    return error.errno in _EXHAUSTED or (error.errno is None and lowest_free() == sys.maxsize)


def lowest_free() -> int:
    """The number that the next descriptor gets; sys.maxsize if no descriptor is left."""
    try:
        fd = os.dup(0)
    except OSError:
        return sys.maxsize
    os.close(fd)
    return fd
