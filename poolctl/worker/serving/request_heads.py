"""Limits the heads of requests: the time in which each must arrive, and its size.

The time runs from the accept, including a TLS handshake, to the end of the first head, and later from a head's first
byte to its end; between two requests the keep-alive timeout applies. A request whose head arrives in one piece costs a
comparison: one timer serves all connections of a worker, and runs only while a head is incomplete.
"""

from __future__ import annotations

import asyncio
import re
from time import monotonic
from typing import Any

from ..tally import MALFORMED, STATUS
from .counting import Count
from .server_state import PoolServerState, unread_bytes
from .uvicorn_parts import CLOSE_HEADER, Http1Protocol

# A read of at most this size cannot exceed the limit: `http.max_head_size` is not smaller.
SMALL_BYTES = 4096
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


class LimitedHead(Http1Protocol):
    """Mixed in before one of uvicorn's protocol classes for HTTP/1.1."""

    server_state: PoolServerState
    count: Count | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head: Head | None = FIRST

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
        if self.transport.is_closing() or self not in self.connections:
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
        if head is None and (not self.idle or self.body_follows):
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
        self._unset_keepalive_if_required()
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
            super().timeout_keep_alive_handler()


class RefusedConnection(asyncio.Protocol):
    """A connection whose last response has been written: further data from its client is read and discarded."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)
