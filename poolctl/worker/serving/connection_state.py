"""State shared by the connections of one worker, without uvicorn's periodic timer.

uvicorn wakes every worker ten times a second to refresh its date header and to check counters, which costs 6 % of a
core for 100 idle workers. Here the date is renewed by the first request of a second, and a limit is checked by the
response that reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Hashable
from email.utils import formatdate
from time import monotonic, monotonic_ns, time
from typing import Any

from ...keeper.connection_handover import send_connection, unread_bytes
from ...keeper.wire import WireError
from ..tally import CONNECTIONS, OPEN_CONNECTIONS, OPEN_WEBSOCKETS, WEBSOCKETS
from .connection_balancer import ConnectionBalancer
from .request_records import FailedRequestLog, RequestCounts
from .uvicorn_parts import ServerState

Header = tuple[bytes, bytes]

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024
_MAX_CHECKS = 20  # maximum timer checks within the time limit of a head
_GRACE_SECONDS = 1.0
_SECOND_NS = 1_000_000_000


class Tasks(set[asyncio.Task[None]]):
    """The requests in progress of a worker; notifies its PoolServerState after the last."""

    __slots__ = ("_state",)

    def __init__(self, state: PoolServerState) -> None:
        super().__init__()
        self._state = state

    def discard(self, task: object) -> None:
        set.discard(self, task)
        if not self:
            if self._state.on_activity is not None:
                self._state.on_activity()
            self._state.changed.set()


class TrackedConnections(set[Any]):
    """The connections of a worker; notifies its PoolServerState after each new connection and after each end.

    Also counts the connections on the worker's tally page. `http` is the class of HTTP connections; a connection of any
    other class counts as a WebSocket.
    """

    def __init__(self, state: PoolServerState) -> None:
        super().__init__()
        self._state = state
        self.http: type | None = None
        self.on_leave: Callable[[], None] | None = None  # called after each connection's end

    def add(self, connection: Hashable) -> None:
        state = self._state
        if len(self) + len(state.expected) + 1 >= state.most_connections:
            state.on_full()  # before the connection is added
        set.add(self, connection)
        if state.on_activity is not None:
            state.on_activity()
        tally = state.tally
        if tally is not None and self.http is not None:
            if isinstance(connection, self.http):
                tally[CONNECTIONS] += 1
            else:
                tally[WEBSOCKETS] += 1
                tally[OPEN_WEBSOCKETS] += 1
            tally[OPEN_CONNECTIONS] = len(self)
        if state.balancer is not None:
            state.balancer.publish()

    def discard(self, connection: Hashable) -> None:
        if connection not in self:
            return
        set.discard(self, connection)
        state = self._state
        tally = state.tally
        if tally is not None and self.http is not None:
            if not isinstance(connection, self.http):
                tally[OPEN_WEBSOCKETS] -= 1
            tally[OPEN_CONNECTIONS] = len(self)
        self.handle_connection_end()

    def handle_connection_end(self) -> None:
        """Handle the end of a connection: publish the new count, call `on_leave`; set `changed` if none is left."""
        if self._state.balancer is not None:
            self._state.balancer.publish()
        if self.on_leave is not None:
            self.on_leave()
        if not self:
            self._state.changed.set()

    def remove(self, connection: Hashable) -> None:
        self.discard(connection)


def send_away(
    transport: Any, end: socket.socket, limits: dict[str, float | bool] | None, received: bytes = b""
) -> bool:
    """Send a connection to another worker through the socket `end`, and drop it here; its client does not notice.

    Returns False and resumes reading if the socket is full or unwritten data is left.
    """
    transport.pause_reading()
    if not transport.get_write_buffer_size():
        with contextlib.suppress(OSError, WireError):
            send_connection(end, transport.get_extra_info("socket").fileno(), limits, received)
            transport.abort()
            return True
    transport.resume_reading()
    return False


class HeadTimeouts:
    """Limits the time for request heads (request line and headers) on all connections of a worker, with one timer.

    A connection has the attributes `transport` (None while it is not connected) and `idle` (no request is in progress),
    and a method `on_head_timeout`, which closes it or refuses the request. All times are on `clock`.
    """

    def __init__(
        self,
        seconds: float = HEAD_SECONDS,
        most_bytes: int = HEAD_BYTES,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.seconds = seconds
        self.most_bytes = most_bytes
        self._clock = clock
        self.due: dict[Any, float] = {}  # by connection: when its head must be complete
        self._extended: set[float] = set()  # the times in `due` that are already later than the limit
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0

    def start(self, connection: Any, due: float | None = None) -> None:
        """Schedule the connection's `on_head_timeout` for `due`; None means in `self.seconds`. `cancel` undoes it."""
        now = self._clock()
        self.due[connection] = due = now + self.seconds if due is None else due
        if self._timer is None or due < self._fires_at:
            self._set_timer(due - now)

    def cancel(self, connection: Any) -> None:
        """Cancel the time limit that `start` has set for the connection's request head."""
        self.due.pop(connection, None)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = max(0.0, seconds)
        self._fires_at = self._clock() + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._fire_due_timeouts)

    def _fire_due_timeouts(self) -> None:
        self._timer = None
        now = self._clock()
        for connection, due in list(self.due.items()):
            if due > now:
                continue
            if connection.transport is None:
                self.cancel(connection)  # the connection was lost during a handover
            elif not connection.idle:
                # A pipelined request: its time begins when the response before it is complete.
                self.due[connection] = now + self.seconds
            elif due not in self._extended and unread_bytes(connection.transport):
                # The event loop was slow, not the client.
                self.due[connection] = extended = now + _GRACE_SECONDS
                self._extended.add(extended)
            else:
                connection.on_head_timeout()
        self._extended.intersection_update(self.due.values())
        if self.due:
            self._set_timer(max(min(self.due.values()) - now, self.seconds / _MAX_CHECKS))


class PoolServerState(ServerState):
    """uvicorn's shared state: connections, tasks, request count and default headers.

    `changed` is set when the last connection, the last task or a TLS handshake has ended. `on_activity` is called when
    a connection or a request begins, and when the last request has ended; `on_limit` when the number of responses
    reaches `max_requests`.
    """

    def __init__(self, max_requests: int | None = None) -> None:
        self.max_requests = max_requests
        self.changed = asyncio.Event()
        self.fixed_headers: list[Header] = []  # the headers of every response, besides the date
        self.date_header = True
        self.date_ends_ns = 0  # the monotonic time from which the date in `default_headers` is wrong
        self.tally: memoryview | None = None  # the page of counts
        self.counts: RequestCounts | None = None  # counts requests on `tally`
        self.failed: FailedRequestLog | None = None  # logs requests that failed
        self.head_timeouts = HeadTimeouts()
        self.held_heads: list[Any] = []  # the connections that hold back the head of a response, or did so
        self.on_limit: Callable[[], None] = lambda: None
        self.draining = False  # each response is now the last of its connection
        self.moves_to: socket.socket | None = None  # the socket through which connections are handed over
        self.balancer: ConnectionBalancer | None = None  # None if the server has one worker
        self.stays = False  # the request being read came from another worker, and is not handed over again
        super().__init__()
        self.on_activity: Callable[[], None] | None = None
        self.expected: dict[object, float] = {}  # by handshake: when the first head is due
        self.most_connections = sys.maxsize
        self.most_requests: int | None = None  # further ones are answered with 503
        self.on_full: Callable[[], None] = lambda: None  # called when the maximum of connections is reached
        self.connections: TrackedConnections = TrackedConnections(self)
        self.tasks: Tasks = Tasks(self)

    @property
    def open_websockets(self) -> int:
        """The number of open WebSockets; 0 if they are not counted."""
        return 0 if self.tally is None else self.tally[OPEN_WEBSOCKETS]

    @property
    def open_connections(self) -> int:
        """The number of connections, including connections in their handshake."""
        return len(self.connections) + len(self.expected)

    def leave(self, moves_to: socket.socket | None) -> None:
        """Let each idle connection move to another worker through the socket `moves_to`; close it if that is None."""
        self.moves_to, self.draining = moves_to, moves_to is None

    def room(self) -> int:
        """The number of further connections that the limit allows."""
        return self.most_connections - self.open_connections

    def record_handshake_start(self, connection: object, due: float) -> None:
        """Record that a connection's TLS handshake begins, and the time at which its first head is due."""
        self.expected[connection] = due
        if self.open_connections >= self.most_connections:
            self.on_full()
        if self.balancer is not None:
            self.balancer.publish()

    def record_handshake_end(self, connection: object) -> float | None:
        """Note the end of a TLS handshake. Returns the time at which the first head is due.

        None if the connection was not in a handshake.
        """
        due = self.expected.pop(connection, None) if self.expected else None
        if due is not None:
            self.changed.set()
        return due

    def forget_unfinished_handshake(self, connection: object) -> None:
        """Forget a connection after a failed TLS handshake; do nothing if the handshake was completed."""
        if self.record_handshake_end(connection) is not None:
            self.connections.handle_connection_end()

    def renew_default_headers(self) -> None:
        """Renew the headers of every response, which have the date (RFC 9110 §6.6.1)."""
        now = time()
        self.date_ends_ns = monotonic_ns() + int((1 - now % 1) * _SECOND_NS)
        date = [(b"date", formatdate(int(now), usegmt=True).encode())] if self.date_header else []
        self.default_headers = date + self.fixed_headers

    def send_held_heads(self) -> None:
        """Send the heads of responses that are still held back."""
        connections, self.held_heads = self.held_heads, []
        for connection in connections:
            if connection.held:
                connection.send_head()
