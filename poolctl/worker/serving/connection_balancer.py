"""Moves connections between the workers of one server, so that all workers have about the same number.

The kernel gives a new connection to the first worker that asks, which is often the same worker. So a worker may get
more long-lived connections than its share: the number of all connections divided by the number of workers. Such a
worker sends connections to a socket pair, the adoption pair, from which other workers take them. A connection can move:

- When it is new: before its first byte is read, and with TLS before the handshake. TLS connections cannot move later.
  A worker hands over no new connections while most connections close within MOMENT_SECONDS, because a
  handover costs as much as serving a short connection.
- When its request opens a WebSocket, if the worker has more WebSockets than its share of them. An open WebSocket cannot
  move. With TLS, the request is read too late for a handover. Instead, a worker with clearly more WebSockets than
  another worker hands over new TLS connections, because a TLS handshake costs more than a handover. WebSockets are
  balanced even while most connections are short.
- Between two requests, with HTTP/1.1 and without TLS, if another worker has at least two connections fewer. So a worker
  that was just added gets connections. A worker looks for such connections only after a connection or a request has
  arrived.

A worker that does not have the fewest connections pauses before it takes a connection from the adoption pair, so that a
worker with fewer connections can take the connection first.

A shared page of memory has a slot for each worker of the server, in which the worker publishes how many connections it
has open. Each worker holds a lock on its slot (fcntl(2), F_SETLK), which the kernel releases even if the worker is
killed. Slots without a lock do not count. Standard library only.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import mmap
import os
import socket
import struct
from time import monotonic_ns
from typing import Any, Protocol

MOMENT_SECONDS = 0.1
_STEP_SECONDS = 0.005
_TAKEN_SECONDS = 0.02  # by then the new worker counts a connection that was handed over
_COOLDOWN_SECONDS = 1.0
_MIN_DIFFERENCE = 2
_WEBSOCKETS_DIVISOR = 4
# A worker with one connection more than another pauses once, with two or more it makes several long pauses.
_PAUSE_SECONDS = 0.001
_LONG_PAUSE_SECONDS = 0.005
_MAX_PAUSES = 10
# The first word names the layout of the others.
_LAYOUT = int.from_bytes(b"peers\x02", "big")
_USED = 1  # the number of slots that have been in use
_ANNOUNCED_UNTIL_NS = 2  # a time on the system's monotonic clock
# A slot is 0 for a worker that does not accept. Otherwise its low bits hold the number of open connections plus one,
# its high bits the number of WebSockets among them.
_FIRST_SLOT = 8
_BITS = 32
_MASK = 2**_BITS - 1
_END_SLOT = mmap.PAGESIZE // 8
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ANNOUNCEMENT_NS = 50_000_000
_FLOCK = struct.Struct("hhqqi4x")


def create_peer_counts_page() -> int:
    """Create the memory file in which a server's workers publish their connection counts; return its descriptor."""
    fd = os.memfd_create("poolctl-peers", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, _LAYOUT.to_bytes(8, "little"), 0)
    os.ftruncate(fd, mmap.PAGESIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


class PeerCounts:
    """Publishes a worker's connection counts on a shared page, and reads the other workers' counts. Owns `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._page = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")
        self._slot = self._lock_free_slot()
        self.publish(None, 0)

    @property
    def alone(self) -> bool:
        """Whether no other worker has ever used the shared page of connection counts."""
        return self._page[_USED] == 1

    def publish(self, connections: int | None, websockets: int) -> None:
        """Publish the number of open connections, and how many are WebSockets. None: the worker does not accept."""
        used = self._slot - _FIRST_SLOT + 1
        # Initially, and again if a worker that joined at the same moment has overwritten it.
        if self._page[_USED] < used:
            self._page[_USED] = used
        self._page[self._slot] = 0 if connections is None else websockets << _BITS | connections + 1

    def others(self) -> list[int]:
        """The number of open connections of each other worker that accepts connections."""
        return [(other & _MASK) - 1 for other in self._others()]

    def others_websockets(self) -> list[int]:
        """The number of open WebSockets of each other worker that accepts connections."""
        return [other >> _BITS for other in self._others()]

    def _others(self) -> list[int]:
        end = min(_FIRST_SLOT + self._page[_USED], _END_SLOT)
        return [
            self._page[slot]
            for slot in range(_FIRST_SLOT, end)
            if self._page[slot] and slot != self._slot and self._is_alive(slot)
        ]

    def announce_handover(self) -> None:
        """Announce that this worker is about to hand over connections, because it has too many."""
        self._page[_ANNOUNCED_UNTIL_NS] = monotonic_ns() + _ANNOUNCEMENT_NS

    @property
    def handover_announced(self) -> bool:
        now_ns = monotonic_ns()
        # No worker announces a later time: such a value is invalid.
        return now_ns < self._page[_ANNOUNCED_UNTIL_NS] <= now_ns + _ANNOUNCEMENT_NS

    def close(self) -> None:
        """Withdraw this worker's published counts, and close the descriptor of the page that the workers share."""
        self._page[self._slot] = 0
        os.close(self._fd)

    def _lock_free_slot(self) -> int:
        for slot in range(_FIRST_SLOT, _END_SLOT):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            except BlockingIOError:
                continue
            return slot
        raise BlockingIOError("no slot is free")

    def _is_alive(self, slot: int) -> bool:
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, request))
        return bool(kind != fcntl.F_UNLCK)


class HasHandOver(Protocol):
    """A connection that may be able to move to another worker."""

    def hand_over(self, end: socket.socket) -> bool:
        """Move this connection to another worker through the socket `end`; return False if that is impossible now."""


class ConnectionBalancer:
    """The balancer of one worker, which hands over connections to other workers if this worker has too many.

    `state` is the worker's PoolServerState. Connections are sent to other workers through the socket `give`. `counts`
    has the connection counts of all workers, and is closed by `close`. New connections are handed over; if `kept` is
    true, connections between two requests are handed over too. A connection without a method `hand_over` never moves.
    """

    def __init__(self, state: Any, give: socket.socket, counts: PeerCounts, *, kept: bool) -> None:
        self._state = state
        self._give = give
        self._counts = counts
        self._kept = kept
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._accepting = False
        self._short_lived = False  # most connections of the last interval are already closed
        self._new: list[Any] = []  # connections accepted in this interval, except those handed over
        self._handed_over_at = self._came_back_at = -math.inf
        self._in_flight = self._others_before = 0

    def publish_accepting(self, accepting: bool) -> None:
        self._accepting = accepting
        self.publish()

    def publish(self) -> None:
        """Publish this worker's counts of connections and WebSockets; withdraw both while it accepts no connections."""
        takes = self._accepting and not self._state.draining
        self._counts.publish(self._state.open_connections if takes else None, self._state.open_websockets)

    def close(self) -> None:
        """Stop balancing connections, and withdraw this worker's published connection counts."""
        if self._timer is not None:
            self._timer.cancel()
        self._counts.close()

    def balance_new_connection(self, connection: Any, *, unread: bool) -> None:
        """Handle a new connection: hand it over if this worker has too many and it is `unread` (no byte was read)."""
        if self._counts.alone:
            return
        self.schedule_check()
        if not (unread and self._hand_over_if_too_many(connection, self._state.open_connections)):
            self._new.append(connection)

    def hand_over_if_too_many(self, connection: HasHandOver) -> bool:
        """Hand over an accepted connection that is not counted yet, if the worker would have too many with it.

        Returns whether the connection was handed over.
        """
        if self._counts.alone:
            return False
        if self._may_hand_over and (others := self._counts.others_websockets()):
            mine = self._state.open_websockets
            if mine - min(others) >= max(_MIN_DIFFERENCE, mine // _WEBSOCKETS_DIVISOR):
                return self._hand_over(connection, self._counts.others())
        return self._hand_over_if_too_many(connection, self._state.open_connections + 1)

    def maybe_transfer(self, connection: HasHandOver) -> bool:
        """Hand over a connection that becomes a WebSocket, if the worker would have too many with it.

        Returns whether the connection was handed over.
        """
        others = [] if self._counts.alone or not self._may_hand_over else self._counts.others_websockets()
        mine = self._state.open_websockets + 1
        if not others or mine <= self._fair_share(mine, others):
            return False
        return self._hand_over(connection, self._counts.others())

    def note_taken(self) -> None:
        """Record that a handed-over connection has arrived, which any worker may have sent, including this worker."""
        if self._in_flight:
            self._in_flight -= 1

    def schedule_check(self) -> None:
        if self._timer is None and not self._counts.alone:
            self._timer = self._loop.call_later(MOMENT_SECONDS, self._check_balance)

    def pause_seconds(self, accepted: int, pauses: int) -> float:
        """Return for how many seconds other workers may take a handed-over connection first; 0 to take it now.

        `accepted` is the number of connections that this worker has accepted but does not count as open yet. `pauses`
        is the number of pauses that this worker has made since it last took a connection.
        """
        others = self._counts.others() if self._counts.handover_announced else []
        more = 0
        if others:
            websockets = self._state.open_websockets - min(self._counts.others_websockets(), default=0)
            more = max(self._state.open_connections + accepted - min(others), websockets)
        if more < _MIN_DIFFERENCE:
            return _PAUSE_SECONDS if more == 1 and not pauses else 0.0
        if pauses < _MAX_PAUSES:
            return _LONG_PAUSE_SECONDS
        self._came_back_at = self._loop.time()
        return 0.0

    @property
    def _may_hand_over(self) -> bool:
        """Whether this worker hands over connections now. False while this worker accepts no connections.

        Also False for a second after this worker took a handed-over connection that no other worker had taken.
        """
        return self._accepting and self._loop.time() - self._came_back_at > _COOLDOWN_SECONDS

    def _hand_over_if_too_many(self, connection: HasHandOver, mine: int) -> bool:
        others = self._counts.others() if self._may_hand_over and not self._short_lived else []
        if not others:
            return False
        share = self._fair_share(mine, others, self._handed_over_uncounted(others))
        return mine > share and self._hand_over(connection, others)

    def _fair_share(self, mine: int, others: list[int], on_their_way: int = 0) -> int:
        """The maximum number of connections for this worker: the total divided by the number of workers, rounded up.

        `mine` and `others` are current numbers; `on_their_way` are handed-over connections that no worker counts yet.
        """
        return -(-(mine + sum(others) + on_their_way) // (len(others) + 1))

    def _handed_over_uncounted(self, others: list[int]) -> int:
        """Return how many handed-over connections are not yet in the counts of the other workers, `others`."""
        if self._loop.time() - self._handed_over_at > _TAKEN_SECONDS:
            self._in_flight = 0
        return max(0, self._in_flight - max(0, sum(others) - self._others_before))

    def _hand_over(self, connection: HasHandOver, others: list[int]) -> bool:
        self._counts.announce_handover()
        if not connection.hand_over(self._give):
            return False
        if not self._in_flight:
            self._others_before = sum(others)
        self._in_flight += 1
        self._handed_over_at = self._loop.time()
        return True

    def _check_balance(self) -> None:
        if self._new:
            transports = [connection.transport for connection in self._new]
            closed = sum(transport is None or transport.is_closing() for transport in transports)
            self._short_lived = 2 * closed >= len(self._new)
            self._new.clear()
        self._rebalance()

    def _rebalance(self) -> None:
        """Hand over one connection for each worker that has at least two connections fewer than this worker.

        Repeated later while any connection can move.
        """
        self._timer = None
        others = self._counts.others() if self._accepting and self._kept else []
        mine = len(self._state.connections)
        fewer = sum(mine - other >= _MIN_DIFFERENCE for other in others)
        if not fewer:
            return
        if not self._may_hand_over:
            self._timer = self._loop.call_later(_COOLDOWN_SECONDS, self._rebalance)
            return
        waiting = self._handed_over_uncounted(others)
        remaining = planned = fewer - waiting
        for connection in list(self._state.connections):
            if remaining <= 0:
                break
            if hasattr(connection, "hand_over") and self._hand_over(connection, others):
                remaining -= 1
        if remaining < planned or waiting:
            self._timer = self._loop.call_later(_STEP_SECONDS, self._rebalance)
