"""What all streams together may take of the gateway's descriptors, so that its routes always get some."""

from __future__ import annotations

from typing import Protocol

from ..descriptor_limit import DescriptorLimit

_OF_CONNECTION = 2  # the client's and the backend's


class UdpSessions(Protocol):
    """A stream of UDP."""

    def __len__(self) -> int:
        """How many sessions it has."""

    def evict(self) -> None:
        """End the session that is idle longest."""


class TcpConnections(Protocol):
    """A stream of TCP."""

    def settle(self) -> None:
        """Accept again, if it may."""


class StreamShare:
    """The descriptors of all streams: those of UDP end their oldest sessions for new ones, those of TCP wait."""

    def __init__(self, descriptors: DescriptorLimit) -> None:
        self._descriptors = descriptors
        self._connections = self._sessions = 0
        self._udp: set[UdpSessions] = set()
        self._waiting: set[TcpConnections] = set()

    @property
    def used(self) -> int:
        """How many they have."""
        return self._connections * _OF_CONNECTION + self._sessions

    # TCP.

    def may_accept(self, stream: TcpConnections) -> bool:
        """Whether there is room for a connection; otherwise the stream is called when there is."""
        if self.used + _OF_CONNECTION <= self._descriptors.of_streams:
            return True
        self._waiting.add(stream)
        return False

    def connected(self) -> None:
        """A connection was accepted."""
        self._connections += 1

    def disconnected(self) -> None:
        """It is closed."""
        self._connections -= 1
        self._settle()

    # UDP.

    def add(self, stream: UdpSessions) -> None:
        """Count the sessions of the stream."""
        self._udp.add(stream)

    def remove(self, stream: UdpSessions) -> None:
        """It has none any more."""
        self._udp.discard(stream)

    def make_room(self) -> None:
        """There will be another session: the stream with the most gives one up if all are in use."""
        descriptors = self._descriptors
        while self._sessions >= descriptors.of_sessions or (
            self.used >= descriptors.of_streams and self._sessions >= descriptors.least_sessions
        ):
            max(self._udp, key=len).evict()

    def began(self) -> None:
        """A session has begun."""
        self._sessions += 1

    def ended(self) -> None:
        """It has ended."""
        self._sessions -= 1
        self._settle()

    def _settle(self) -> None:
        while self._waiting and self.used + _OF_CONNECTION <= self._descriptors.of_streams:
            self._waiting.pop().settle()
