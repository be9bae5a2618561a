"""How connections leave a worker that drains: they move to another worker, linger, or are closed.

A connection of HTTP/1.1 can move while it is between two requests. It is sent through the adoption pair with its unread
bytes; the copy here is then dropped silently, since the connection itself lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import socket
import sys
from typing import Any

import h11
import uvicorn

from poolctl.keeper import connection_handover
from poolctl.keeper.wire import WireError

from .connection_state import Drainable, PoolServerState
from .http1_connection import FIRST, Lingering
from .http2 import Http1Or2, LingeringHttp2
from .uvicorn_parts import (
    DIRECT,
    H11,
    HTTP1,
    HTTP2,
    HTTPTOOLS,
    ZTTP,
    H11Protocol,
    State,
    http2_protocol,
    use_what_is_known,
)

logger = logging.getLogger("uvicorn.error")

_FIRST_PAUSE_SECONDS = 0.003
_LAST_PAUSE_SECONDS = 0.05


class Closing(Drainable):
    """Mixed in before an unknown protocol class, of which only uvicorn's common interface is used."""

    transport: asyncio.Transport
    head = None

    def __init__(
        self, config: uvicorn.Config, server_state: PoolServerState, app_state: State, **others: Any
    ) -> None:
        super().__init__(config, server_state, app_state, **others)  # type: ignore[call-arg]
        self.server_state = server_state

    def linger(self) -> None:
        """Finish the response in progress, and close."""
        self.shutdown()  # type: ignore[attr-defined]

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.server_state.handshake_is_over(self)
        super().connection_made(transport)  # type: ignore[misc]
        if self.server_state.draining:
            self.linger()


class Movable(Lingering):
    """Mixed in before a protocol class of uvicorn's whose connections can move to another worker at some moments."""

    @property
    def between_requests(self) -> bool:
        """Whether every byte that was read belongs to a request that has its complete response."""
        raise NotImplementedError

    def hand_over(self, end: socket.socket) -> bool:
        """See Drainable."""
        transport = self.transport
        if transport is None or transport.is_closing() or self not in self.connections:
            return False
        if transport.get_protocol() is not self or not self.between_requests:
            return False
        transport.pause_reading()
        if transport.get_write_buffer_size() or not self._give(end):
            transport.resume_reading()
            return False
        transport.abort()
        self.connections.discard(self)  # it counts no more, even before the loop has noticed
        return True

    def handle_websocket_upgrade(self, *event: Any) -> None:
        """Become a WebSocket, here or in another worker."""
        if not self._upgrades_elsewhere(event):
            super().handle_websocket_upgrade(*event)

    def _upgrades_elsewhere(self, event: tuple[Any, ...]) -> bool:
        state = self.server_state
        if state.evenness is None or state.stays or self.scheme != "http" or self.carried is not None:
            return False
        return state.evenness.passes_on_websocket(Upgrade(self, *event))

    def _give(self, end: socket.socket) -> bool:
        # A lingering connection has a shorter limit, which does not apply any more.
        limits = {} if self.lingering else self.time_left()
        try:
            fd = self.transport.get_extra_info("socket").fileno()
            connection_handover.give(end, fd, limits, self.carried)
        except (OSError, WireError):
            return False
        return True


class Upgrade:
    """A connection whose last request asks for a WebSocket; `event` is what its parser has made of the head, if any."""

    def __init__(self, connection: Any, event: Any = None) -> None:
        self._connection = connection
        self._event = event

    def hand_over(self, end: socket.socket) -> bool:
        """See HasHandOver. The head goes with the connection."""
        connection = self._connection
        transport = connection.transport
        if not connection.idle or transport.is_closing():
            return False
        transport.pause_reading()
        if not transport.get_write_buffer_size():
            fd = transport.get_extra_info("socket").fileno()
            with contextlib.suppress(OSError, WireError):
                connection_handover.give(end, fd, None, connection_handover.Routed("", received=self._head()))
                transport.abort()
                connection.connections.discard(connection)
                return True
        transport.resume_reading()
        return False

    def _head(self) -> bytes:
        connection, event = self._connection, self._event
        if event is None:  # httptools
            first = connection.scope["method"].encode(), connection.url
            headers = connection.scope["headers"]
        else:
            first, headers = (event.method, event.target), connection.headers
        lines = [b"%b %b HTTP/1.1\r\n" % first, *(b"%b: %b\r\n" % each for each in headers), b"\r\n"]
        return b"".join(lines)


class LingeringZttp(Movable):
    """For the protocol on zttp: it lingers, because the parser does not report its buffered data."""

    _ahead = 0

    @property
    def between_requests(self) -> bool:
        """See Movable. It is known only before the first byte."""
        return self.head is FIRST

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        ahead = not self.idle and not cycle.more_body
        super().data_received(data)
        if ahead and cycle is self.cycle:
            # Pipelined requests wait in the parser, which has no limit for them.
            self._ahead += len(data)
            if self._ahead > self.server_state.heads.most_bytes:
                self.flow.pause_reading()

    def handle_remote_protocol_error(self) -> None:
        # zttp has its own limits: 16 KiB and a hundred headers.
        if "size limit" in str(sys.exception()) and self.idle:
            self.refuse(431)
        else:
            super().handle_remote_protocol_error()  # type: ignore[misc]

    def on_response_complete(self) -> None:
        self._ahead = 0
        super().on_response_complete()

    def last_chunk(self) -> bytes:
        """See Lingering."""
        return b"0\r\n\r\n" if self.cycle.chunked_encoding else b""


class Moving(Movable):
    """Mixed in before a protocol class of uvicorn's that knows whether it is between two requests."""

    _pause_seconds = 0.0
    _trying: asyncio.TimerHandle | None = None

    def leave(self) -> None:
        """Move to another worker as soon as possible; linger if there is none."""
        if self.server_state.moves_to is None:
            self.linger()
        else:
            self._move()

    def shutdown(self) -> None:
        """Close, unless the connection can still move."""
        if self.server_state.moves_to is None:
            super().shutdown()

    def _move(self) -> None:
        transport, state = self.transport, self.server_state
        if state.moves_to is None or transport is None or transport.is_closing():
            return
        if self not in state.connections or transport.get_protocol() is not self:
            return  # it has become a WebSocket, or was refused
        if not self.between_requests:
            return  # busy: tried again after the next response
        transport.pause_reading()
        if transport.get_write_buffer_size():
            self._try_again()
        elif self._give(state.moves_to):
            transport.abort()
        else:
            # No room: the other workers are busy. Serve until there is.
            transport.resume_reading()
            self._try_again()

    def _try_again(self) -> None:
        if self._trying is not None and not self._trying.cancelled():
            self._trying.cancel()
        # The first time at the end of this iteration: uvloop writes then.
        self._trying = self.loop.call_later(self._pause_seconds, self._move)
        self._pause_seconds = min(max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS), _LAST_PAUSE_SECONDS)


class MovingHttptools(Moving):
    """For the protocol on httptools, which parses everything that the client has sent."""

    _closes_at = _fires_at = 0.0

    @property
    def between_requests(self) -> bool:
        """See Movable. A request has a scope from its begin, and a method there once its headers are complete."""
        if not self.idle or self.pipeline or (self.scope is not None and "method" not in self.scope):
            return False
        return self.cycle is None or not self.cycle.more_body

    def on_message_complete(self) -> None:
        self.message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            # The response came before the end of the body, which uvicorn then does not record.
            self.cycle.more_body = False
            if self.server_state.moves_to is not None:
                self.loop.call_soon(self._move)

    # uvicorn sets a timer after each response, and cancels it at the next request. Here one timer runs: whether the
    # connection has been quiet since is looked at when it fires.

    def response_complete(self) -> None:
        """Read on, or begin the next request of the pipeline, as uvicorn does, without a new timer."""
        if self.pipeline:
            self.answered()
            return
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._closes_at = self.loop.time() + self.timeout_keep_alive
            if self.timeout_keep_alive_task is None:
                self._set_timer()

    def _unset_keepalive_if_required(self) -> None:
        """Let the timer run: called by uvicorn whenever data arrives."""

    @property
    def closes_at(self) -> float:
        """See Lingering."""
        return self._closes_at

    def close_when_quiet(self, seconds: float) -> None:
        """See Lingering."""
        self._closes_at = self.loop.time() + seconds
        if self.timeout_keep_alive_task is None or self._closes_at < self._fires_at:
            self.stop_timer()
            self._set_timer()

    def timeout_keep_alive_handler(self) -> None:
        """See Lingering. A request in progress sets a new timer when it is complete."""
        self.timeout_keep_alive_task = None
        if not self.idle or self not in self.connections:  # or a WebSocket
            return
        if self.loop.time() < self._closes_at:
            self._set_timer()
        else:
            super().timeout_keep_alive_handler()

    def _set_timer(self) -> None:
        self._fires_at = self._closes_at
        self.timeout_keep_alive_task = self.loop.call_at(self._closes_at, self.timeout_keep_alive_handler)

    def last_chunk(self) -> bytes:
        """See Lingering."""
        return b"0\r\n\r\n" if self.cycle.chunked_encoding else b""


class MovingH11(Moving):
    """For the protocol on h11, which keeps pipelined data in its buffer."""

    conn: h11.Connection

    @property
    def between_requests(self) -> bool:
        """See Movable."""
        conn = self.conn
        waiting, _ = conn.trailing_data
        return self.idle and not waiting and conn.our_state is conn.their_state is h11.IDLE

    @property
    def body_follows(self) -> bool:
        """See LimitedHead. uvicorn does not record the end of a body that follows its response."""
        return self.conn.their_state is h11.SEND_BODY

    def handle_events(self) -> None:
        Lingering.handle_events(self)
        if self.server_state.moves_to is not None:
            self._move()

    def on_response_complete(self) -> None:
        Lingering.on_response_complete(self)
        if self.head is None and (begun := self.conn.trailing_data[0]) and self.idle:
            # A part of the next head arrived before this response was complete.
            self.stop_timer()
            self.wait_for_head(begun, len(begun))

    def send_400_response(self, msg: str) -> None:
        if len(self.conn.trailing_data[0]) > self.server_state.heads.most_bytes:
            self.refuse(431)
        else:
            super().send_400_response(msg)

    def last_chunk(self) -> bytes:
        """See Lingering."""
        try:
            return self.conn.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError:  # the response has a length
            return b""


@functools.cache
def drainable_protocol(protocol: type[asyncio.Protocol], *, http2: bool = False) -> type[asyncio.Protocol]:
    """The given HTTP protocol class with a drain: it moves if it can, lingers if it cannot, and closes otherwise.

    With `http2` a connection may turn out to be HTTP/2.
    """
    http1 = _with(Closing if HTTP1.missing(protocol) else _mixin(protocol), protocol)
    if not http2:
        return http1
    http2_class = http2_protocol()
    mixin = Closing if HTTP2.missing(http2_class) else LingeringHttp2
    classes = {"http1": http1, "http2": _with(mixin, http2_class)}
    return type("Http1Or2", (Http1Or2,), classes)


def http_classes(made: type) -> tuple[type, ...]:
    """All classes that a connection of a drainable class can have before it is a WebSocket."""
    return tuple(each for each in (made, getattr(made, "http1", None), getattr(made, "http2", None)) if each)


def _with(mixin: type, protocol: type) -> type:
    if mixin is Closing:
        logger.warning(
            "uvicorn's %s is not known to this version of poolctl: a restart closes its connections, and may lose "
            'requests that are on their way; set http.implementation to "h11" or "httptools"',
            protocol.__name__,
        )
    use_what_is_known(protocol)
    names: dict[str, object] = {
        name: getattr(protocol, method, None) for name, method in DIRECT.items() if not hasattr(mixin, name)
    }
    if issubclass(mixin, Lingering):
        # With thirty attributes, objects of a class do not share the attributes' names any more: each takes 1.3 KB
        # more, and more time for each access. uvicorn's have twenty-eight.
        names["__slots__"] = ("_closes_at", "_fires_at", "batch", "begun_ns", "head")
    return type(f"{mixin.__name__}{protocol.__name__}", (mixin, protocol), names)


def _mixin(protocol: type) -> type:
    if not HTTPTOOLS.missing(protocol):
        return MovingHttptools
    events = getattr(protocol, "handle_events", None)
    arguments = -1 if events is None else len(inspect.signature(events).parameters) - 1
    if issubclass(protocol, H11Protocol) and arguments == 0 and not H11.missing(protocol):
        return MovingH11
    if arguments == 1 and _is_zttp(protocol) and not ZTTP.missing(protocol):
        return LingeringZttp
    return Closing


def _is_zttp(protocol: type) -> bool:
    return any(each.__name__ == "ZttpProtocol" for each in protocol.__mro__)
