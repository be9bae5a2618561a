"""Limits the heads of requests: the time in which each must arrive, and its size.

The time runs from the accept, including a TLS handshake, to the end of the first head, and later from a head's first
byte to its end; between two requests the keep-alive timeout applies. A request whose head arrives in one piece costs a
comparison: one timer serves all connections of a worker, and runs only while a head is incomplete.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import re
import termios
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..tally import MALFORMED, STATUS
from .uvicorn_parts import CLOSE_HEADER

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024
# A read of at most this size cannot exceed the limit: `http.max_head_size` is not smaller.
SMALL_BYTES = 4096
_COARSE = 20  # the timer fires at most this often within the time limit of a head
_GRACE_SECONDS = 1.0
_READ_ON_SECONDS = 2.0
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_END_BYTES = 4
_REFUSALS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class Head:
    """An incomplete head, of which about `size` bytes have arrived."""

    __slots__ = ("last", "size")

    def __init__(self) -> None:
        self.size = 0
        self.last = b""  # the last bytes: the end of a head may arrive in two pieces


FIRST = Head()  # a first head of which nothing has arrived yet


class Heads:
    """All connections of a worker that wait for a head, with one timer. Times are those of the monotonic clock."""

    def __init__(self, seconds: float = HEAD_SECONDS, most_bytes: int = HEAD_BYTES) -> None:
        self.seconds = seconds
        self.most_bytes = most_bytes
        self.due: dict[LimitedHead, float] = {}  # when the head of each must be complete
        self._spared: set[LimitedHead] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._fires = 0.0

    def __len__(self) -> int:
        return len(self.due)

    def wait(self, connection: LimitedHead, due: float | None = None) -> None:
        """Close the connection, or respond with 408, unless its head is complete when it is due."""
        now = monotonic()
        self.due[connection] = due = now + self.seconds if due is None else due
        if self._timer is None or due < self._fires:
            self._set_timer(due - now)

    def end(self, connection: LimitedHead) -> None:
        """Its head is complete, or is not expected any more."""
        self.due.pop(connection, None)
        if self._spared:
            self._spared.discard(connection)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = max(0.0, seconds)
        self._fires = monotonic() + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        self._timer = None
        now = monotonic()
        for connection, due in list(self.due.items()):
            if due > now:
                continue
            if connection.transport is None:
                self.end(connection)  # it was lost during a handover
            elif not connection.idle:
                # Pipelined: its time begins when the response before it is complete.
                self.due[connection] = now + self.seconds
            elif connection not in self._spared and unread_bytes(connection.transport):
                # The event loop was slow, not the client.
                self._spared.add(connection)
                self.due[connection] = now + _GRACE_SECONDS
            else:
                connection.head_is_late()
        if self.due:
            self._set_timer(max(min(self.due.values()) - now, self.seconds / _COARSE))


class LimitedHead:
    """Mixed in before one of uvicorn's protocol classes for HTTP/1.1."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any
    connections: Any
    scope: Any
    server_state: Any
    count: Any
    timeout_keep_alive: float
    timeout_keep_alive_task: asyncio.TimerHandle | None
    feed: Callable[[bytes], None]  # data_received() of that class

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head: Head | None = None if self.server_state.heads is None else FIRST

    @property
    def idle(self) -> bool:
        """No request is in progress."""
        return self.cycle is None or bool(self.cycle.response_complete)

    @property
    def body_follows(self) -> bool:
        """The body of a request that has its response has not been read to its end."""
        return self.cycle is not None and bool(self.cycle.more_body)

    def data_received(self, data: bytes) -> None:
        if self.head is None and len(data) <= SMALL_BYTES:
            self.feed(data)
            cycle = self.cycle
            # The usual case, and the cheapest: a request in one piece, after others.
            if cycle is not None and not cycle.response_complete and "method" in self.scope:
                return
            self.wait_for_head(data, 1)  # a part of it may be the end of a body
            return
        size = len(data) if self.head is FIRST and len(data) <= SMALL_BYTES else self._measured(data)
        if size:
            self.feed(data)
            cycle = self.cycle
            if cycle is None or cycle.response_complete or "method" not in self.scope:
                self.wait_for_head(data, size)
            elif self.head is not None:
                self.head_is_over()

    def await_first_head(self, due: float | None = None) -> None:
        """The connection is made; its first head must be complete when it is due, by default after the usual time."""
        if self.head is FIRST and self not in self.server_state.heads.due:
            self.server_state.heads.wait(self, due)

    def take_over(self, until: float | None, *, asked: bool) -> None:
        """Continue, before the connection is made, with the time that its client has left in another process.

        `until` and `asked` are as in `poolctl.keeper.handover.Connection`.
        """
        if until is not None and not asked:
            if self.head is FIRST:
                heads = self.server_state.heads
                heads.wait(self, min(until, monotonic() + heads.seconds))
            return
        self.head = None
        left = self.timeout_keep_alive
        self.close_when_quiet(left if until is None else min(max(0.0, until - monotonic()), left))

    def time_left(self) -> dict[str, Any]:
        """The arguments for `take_over` in another process, for a connection that is between two requests."""
        timer = self.timeout_keep_alive_task
        if self.head is not None:
            due = self.server_state.heads.due.get(self)
            return {} if due is None else {"until": due, "asked": False}
        if timer is None:
            return {}
        return {"until": monotonic() + timer.when() - self.loop.time(), "asked": True}

    def head_is_over(self) -> None:
        """No head is expected any more."""
        if self.head is not None:
            self.head = None
            self.server_state.heads.end(self)

    def head_is_late(self) -> None:
        """The time is over: close a connection without data; respond to an incomplete head with 408."""
        head = self.head
        if head is not None and head.size and not self.transport.is_closing():
            self.refuse(431 if head.size > self.server_state.heads.most_bytes else 408)
        else:
            self.head_is_over()
            self.transport.close()

    def wait_for_head(self, data: bytes, size: int) -> None:
        """The data did not complete a request: `size` bytes of it are a head, unless it is the end of a body."""
        heads = self.server_state.heads
        if heads is None or self.transport.is_closing() or self not in self.connections:
            self.head_is_over()  # a WebSocket is not a connection of this protocol any more
            return
        if self.idle and self.timeout_keep_alive_task is not None:
            self.head_is_over()  # it was a whole request, which has its response already
            return
        if self.idle and self.body_follows:
            self.close_when_quiet(self.timeout_keep_alive)
            return
        head = self.head
        if head is None:
            heads.wait(self)
        if head is None or head is FIRST:
            head = self.head = Head()
        head.size += size
        head.last = (head.last + data[-_END_BYTES:])[-_END_BYTES:]

    def _measured(self, data: bytes) -> int:
        """The number of bytes that belong to a head; 0 when the head is too large, and has been refused."""
        heads, head = self.server_state.heads, self.head
        if heads is None or (head is None and (not self.idle or self.body_follows)):
            return 1  # a body, or data that follows one
        size = len(data)
        so_far, last = (0, b"") if head is None else (head.size, head.last)
        if so_far + size <= heads.most_bytes:
            return size
        text = last + data
        begins = 0 if so_far else len(text) - len(text.lstrip(b"\r\n"))
        end = _END_OF_HEAD.search(text, begins)
        if end is not None and so_far - len(last) + end.end() - begins <= heads.most_bytes:
            return size
        if self.idle:
            self.refuse(431)
        elif head is not None and head is not FIRST:
            head.size += size  # refused as soon as the response before it is complete
        return 0

    def refuse(self, status: int) -> None:
        """Respond to an incomplete request, and close once the client has had time to read the response."""
        transport, phrase = self.transport, _REFUSALS[status]
        lines = [b"HTTP/1.1 %d %b" % (status, phrase)]
        length = (b"content-length", b"%d" % len(phrase))
        for name, value in (*self.server_state.default_headers, length, CLOSE_HEADER):
            lines.append(name + b": " + value)
        transport.write(b"\r\n".join([*lines, b"", phrase]))
        self.head_is_over()
        self._unset_keepalive_if_required()  # type: ignore[attr-defined]
        if self.count is not None:
            self.count.batch.tally[MALFORMED] += 1
            self.count.batch.tally[STATUS + status // 100] += 1
        # Closed with unread data, the connection would be reset, and the response lost.
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()
        transport.set_protocol(RefusedConnection(self))
        self.loop.call_later(_READ_ON_SECONDS, transport.close)

    def close_when_quiet(self, seconds: float) -> None:
        """Close the connection after this time without a byte."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, but never one with a request in its receive buffer, or a part of one."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.head is not None and self.head.size:
            return
        if unread_bytes(self.transport):
            self.close_when_quiet(self.timeout_keep_alive)
        else:
            super().timeout_keep_alive_handler()  # type: ignore[misc]


class RefusedConnection(asyncio.Protocol):
    """A connection whose last response has been written: further data from its client is read and discarded."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)


def unread_bytes(transport: asyncio.Transport) -> int:
    """The number of bytes in the connection's receive buffer."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return 0
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]
