"""Connections passed on by the gateway, on which a later request may be for another server.

Before the parser sees a request, its head is examined and routed with the gateway's own route table. If the request is
for another server, the connection goes back to the gateway, with all bytes from that request on. So the parser gets one
message at a time, and later bytes wait until the response before them is complete.

Connections that do not come from the gateway use a class without this check.

If a worker leaves and no other worker of the server can take over a connection, the connection also goes back to the
gateway once it is idle, because its next request may be for another server.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

import uvicorn

from poolctl.http.messages import BadMessage, RequestHead, canonical_head
from poolctl.keeper.connection_handover import MOST_HOPS, Routed, send_connection
from poolctl.keeper.wire import WireError
from poolctl.routing.decision import can_pass_peer_to_worker, passable_match

from .connection_state import PoolServerState
from .http1_connection import (
    FIRST,
    QUIET_SECONDS,
    H11Connection,
    Http1Connection,
    HttptoolsConnection,
    ZttpConnection,
)
from .http2_connection import Http1Or2
from .uvicorn_parts import State
from .worker_routes import ConnectionRoutingState, GatewayRoutes, add_route_to_scopes

_END = b"\r\n\r\n"
_FIRST_PAUSE_SECONDS = 0.003
_LAST_PAUSE_SECONDS = 0.05
_BAD_REQUEST = "Invalid HTTP request received."


class RoutedConnection(Http1Connection):
    """Mixin for a connection from the gateway; it checks that each request is for this server.

    For each parser, a class combines this mixin with the parser's class for other connections, such as ZttpConnection.
    """

    __slots__ = ()

    routing: ConnectionRoutingState

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Only once reading has started, because neither loop can pause it here. Later bytes are appended.
        if self.routing.pending:
            self.loop.call_soon(self.process_held)
        elif self.server_state.draining:
            self.loop.call_soon(self._try_return_now_or_later)

    def connection_lost(self, exc: Exception | None) -> None:
        routing = self.routing
        if routing.pending or routing.timer is not None:
            routing.pending = b""
            routing.routes.waiting.discard(self)
            self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass the requests for this server to the parser one at a time, each after the previous response."""
        routing = self.routing
        if routing.pending:
            arrived, data, before = data, routing.pending + data, len(routing.pending)
            if routing.partial and data.find(_END, max(0, before - len(_END))) < 0:
                self._await_rest(data, arrived)
                return
            routing.pending = b""
        while data:
            end = 0
            begins = not routing.body
            if begins:
                if not self.idle:
                    self._hold(data)
                    return
                end = self._route_head_or_defer(data)
                if not end:
                    return
            try:
                end = routing.consume_body(data, end) if routing.body else end
            except BadMessage:
                self._refuse_body(request_begun=not begins)
                return
            message, data = data[:end], data[end:]
            super().data_received(message)
            protocol: Any = self.transport.get_protocol()
            if protocol is not self and data:
                protocol.data_received(data)  # the connection is a WebSocket now, or was refused
            if protocol is not self or self.transport.is_closing():
                return
        if self.server_state.draining:
            self._try_return_now_or_later()  # a body may end after its response

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if (self.server_state.draining or not self.routing.routes.keeps) and self._try_return_now_or_later():
            return
        if self.routing.pending:
            self.process_held()

    def give_back(self) -> None:
        """Return the connection to the gateway before its next request, if that is possible."""
        self._try_return_now_or_later()

    def move_or_close_when_idle(self) -> None:
        """Begin to move the connection to another worker.

        If connections return to the gateway between requests, it returns there instead (see `close_when_idle`).
        """
        if self.routing.routes.keeps:
            super().move_or_close_when_idle()
        else:
            self.close_when_idle()

    def _move_or_retry(self) -> None:
        if self.routing.routes.keeps:
            super()._move_or_retry()

    def hand_over(self, end: socket.socket) -> bool:
        """Move the connection to another worker through the socket `end`; return whether it moved.

        It does not move if connections return to the gateway between requests.
        """
        return self.routing.routes.keeps and super().hand_over(end)

    def close_when_idle(self) -> None:
        """Return the connection to the gateway once it is idle; if that is impossible, close it once it is quiet."""
        if not self._try_return_now_or_later():
            super().close_when_idle()

    def shutdown(self) -> None:
        """Return the connection to the gateway once it is idle; if that is impossible, close it."""
        if not self._try_return_now_or_later():
            super().shutdown()

    def _mark_last_response(self) -> None:
        if not self._must_return:
            super()._mark_last_response()

    @property
    def between_requests(self) -> bool:
        return super().between_requests and not self.routing.body

    @property
    def routed_state(self) -> Routed:
        return self.routing.for_worker()

    def process_held(self) -> None:
        """Process the bytes that were held back, for example until a response was complete or a route table arrived."""
        routing = self.routing
        if routing.pending and not self.transport.is_closing():
            self._stop_timer()
            self.flow.resume_reading()
            data, routing.pending = routing.pending, b""
            self.data_received(data)

    def _route_head_or_defer(self, data: bytes) -> int:
        """Return the length of the request head at the start of `data` if the parser may get the head now; otherwise 0.

        0 means: the head is incomplete, this server does not serve the request, or the worker has no route table yet.
        """
        head = canonical_head(data)
        if head is None and RequestHead.is_incomplete_but_valid(data):
            self._await_rest(data, data)
            return 0
        if head is None or not self._try_assign_route(head):
            self._await_routes_or_send_back(data)
            return 0
        self.routing.begin_body(head.body)
        if self.head is not None:
            self.head = FIRST  # the whole head counts, not what arrives from now on
        return head.end

    def _try_assign_route(self, head: RequestHead) -> bool:
        """Whether this server serves the request; if so, the connection gets the route and context of the request."""
        routing, routes = self.routing, self.routing.routes
        peer = self.client[0] if self.client else ""
        match = None if routes.table is None else passable_match(head, routes.table)
        if match is not None and (
            routes.server not in match.servers
            or not can_pass_peer_to_worker(match.route, peer, trusted=routing.trusted)
        ):
            match = None
        if match is not None:
            routing.route = match.route.alias
            routing.context = routes.scope_context(match.route)
        elif routing.decided or routes.ended:  # a decided request was matched with another table
            routing.context = routes.context_by_alias(routing.route)
        else:
            return False
        routing.hops, routing.decided = 0, False
        return True

    def _await_routes_or_send_back(self, data: bytes) -> None:
        routing, routes = self.routing, self.routing.routes
        self._hold(data)
        self.cancel_close_when_quiet()
        self.cancel_head_timeout()
        routing.until = monotonic() + self.server_state.head_timeouts.seconds
        routing.pause = 0.0
        if routes.table is None and not routes.ended:
            routes.waiting.add(self)
            routing.timer = self.loop.call_at(
                self.loop.time() + self.server_state.head_timeouts.seconds, self._refuse, 421
            )
        else:
            self._send_back()

    def _hold(self, data: bytes) -> None:
        self.routing.pending, self.routing.partial = data, False
        self.flow.pause_reading()

    def _await_rest(self, data: bytes, arrived: bytes) -> None:
        routing = self.routing
        self.cancel_close_when_quiet()
        size = self._measure_or_refuse(arrived)
        routing.pending, routing.partial = (data, True) if size else (b"", False)
        if size:
            self.track_partial_head(arrived, size)

    def _send_back(self) -> None:
        """Return the connection to the gateway, because its next request is for another server.

        Retries while this is not possible yet, and answers 503 after the time limit; answers 421 after other failures.
        """
        routing, transport = self.routing, self.transport
        if not routing.pending or transport.is_closing() or transport.get_protocol() is not self:
            return
        table = routing.routes.table
        if table is None or routing.hops >= MOST_HOPS:
            self._refuse(421)
            return
        try:
            self._give_back(routing.for_gateway(table.generation))
        except BlockingIOError:
            if monotonic() > routing.until:
                self._refuse(503)
            else:
                self._retry_later_with_backoff(self._send_back)
        except (OSError, WireError):
            self._refuse(421)

    @property
    def _must_return(self) -> bool:
        """Whether the connection can return to the gateway, and has to, because it cannot move to another worker."""
        transport, routes = self.transport, self.routing.routes
        moves = routes.keeps and self.server_state.moves_to is not None
        if moves or routes.gateway is None or routes.table is None:
            return False
        return transport is not None and not transport.is_closing() and transport.get_protocol() is self

    def _try_return_now_or_later(self) -> bool:
        """Return the connection to the gateway at once if it is idle, otherwise after its response.

        The result is False if the connection cannot go back to the gateway.
        """
        routing = self.routing
        if not self._must_return:
            return False
        if routing.timer is None and self._is_idle:
            routing.until = monotonic() + QUIET_SECONDS
            routing.pause = 0.0
            return self._return_or_retry_later()
        return True

    @property
    def _is_idle(self) -> bool:
        # The request for which the gateway has decided may not have been read yet.
        return self.idle and not self.routing.body and not self.routing.decided

    def _return_or_retry_later(self) -> bool:
        """Send the idle connection to the gateway, or retry later; False if the gateway cannot get it."""
        routing = self.routing
        # Lingering has shortened the time limit, which no longer applies.
        asked = {"until": monotonic() + self.timeout_keep_alive, "asked": True}
        try:
            limits = asked if self.head is None else self.deadline_arguments()
            self._give_back(routing.for_worker()._replace(decided=False), limits)
            return True
        except BlockingIOError:
            if monotonic() <= routing.until:
                self._retry_later_with_backoff(self._retry_return_or_serve)
                return True
        except (OSError, WireError):
            pass
        self.transport.resume_reading()
        return False

    def _retry_return_or_serve(self) -> None:
        routing = self.routing
        routing.timer = None
        if not self._is_idle or (self._must_return and self._return_or_retry_later()):
            return
        if routing.pending and not routing.partial:
            self.process_held()
        elif self.server_state.draining:
            super().close_when_idle()

    def _give_back(self, routed: Routed, limits: dict[str, float | bool] | None = None) -> None:
        """Send the connection to the gateway, with its routing data `routed` and its deadline `limits`.

        Raises BlockingIOError if the gateway's socket is full or a response has not been written yet; OSError or
        WireError if the connection cannot be sent.
        """
        transport, gateway = self.transport, self.routing.routes.gateway
        if gateway is None:
            raise BrokenPipeError
        transport.pause_reading()
        if transport.get_write_buffer_size():
            raise BlockingIOError
        send_connection(gateway, transport.get_extra_info("socket").fileno(), limits, routed)
        transport.abort()  # not noticed by the client, because the gateway has the connection

    def _retry_later_with_backoff(self, work: Callable[[], None]) -> None:
        routing = self.routing
        # The first time at the end of this iteration: uvloop writes then.
        routing.timer = self.loop.call_later(routing.pause, work)
        routing.pause = min(max(2 * routing.pause, _FIRST_PAUSE_SECONDS), _LAST_PAUSE_SECONDS)

    def _stop_timer(self) -> None:
        if self.routing.timer is not None:
            self.routing.timer.cancel()
            self.routing.timer = None

    def _refuse(self, status: int) -> None:
        self.routing.pending = b""
        self.routing.routes.waiting.discard(self)
        if not self.transport.is_closing():
            self.refuse(status)

    def _refuse_body(self, *, request_begun: bool) -> None:
        if request_begun and self.cycle.response_started:
            self.transport.close()
        else:
            self.send_400_response(_BAD_REQUEST)


# Filled before the first fork.
_ROUTED: dict[type, Any] = {}
for _kind in (H11Connection, HttptoolsConnection, ZttpConnection):
    _ROUTED[_kind] = type(f"Routed{_kind.__name__}", (RoutedConnection, _kind), {"__slots__": ("routing",)})


def make_routed_connection(
    config: uvicorn.Config,
    server_state: PoolServerState,
    app_state: State,
    routes: GatewayRoutes,
    routed: Routed,
) -> Any:
    """Create the protocol object for a connection that the gateway has passed on.

    Without TLS it checks whether each request is for this server, and returns the connection to the gateway if not. A
    TLS connection belongs to one server as a whole, so its requests are not checked. Requests are not checked either if
    poolctl does not know uvicorn's protocol class.
    """
    kind: Any = config.http_protocol_class
    if config.ssl is None and issubclass(kind, Http1Connection):
        kind = _ROUTED[kind]
    elif server_state.http2 is not None:
        kind = Http1Or2
    routing = ConnectionRoutingState(routes, routed)
    made = kind(config=config, server_state=server_state, app_state=app_state)
    if isinstance(made, RoutedConnection):
        made.routing = routing
    else:
        routing.context = routes.context_by_alias(routing.route)
    if isinstance(made, Http1Or2):
        made.routing = routing
    elif hasattr(made, "app"):
        add_route_to_scopes(made, routing)
    return made
