"""Keeps the gateway's route table and socket in a worker, and adds the route of each request to its ASGI scope."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import uvicorn

from poolctl.http.client_report import ForwardedHeaders
from poolctl.http.messages import CHUNKED, ChunkedBodyReader
from poolctl.keeper.connection_handover import Routed
from poolctl.routing.context import CONTEXT_FIELD, EXTENSION, authenticated_alias, extension
from poolctl.routing.route import Route
from poolctl.routing.route_table import RouteTable

from .request_records import AccessLogMiddleware, RequestCounts
from .uvicorn_parts import App, Message, Receive, Scope, Send

_CONTEXT = CONTEXT_FIELD.encode()
_SECURE = ("https", "wss")
ANYWHERE: dict[str, str] = {"0.0.0.0": "127.0.0.1", "::": "::1"}

Context = dict[str, Any]


class GatewayRoutes:
    """The gateway's route table in a worker, and the socket through which connections return to the gateway.

    `server` is the name of the worker's server in route tables. Applications get the server's URL, which is made from
    the first of `listeners`, with https if `secure` is true.
    """

    def __init__(self, server: str, listeners: Sequence[socket.socket] = (), *, secure: bool = False) -> None:
        self.server = server
        self._listeners = listeners
        self._secure = secure
        self.table: RouteTable | None = None
        self._shown: RouteTable | None = None  # the table for applications, whose threads may outlast it
        self.gateway: socket.socket | None = None
        self.ended = False  # whether the gateway has ended
        self.context_key = ""  # authenticates the gateway's statements about the routes of proxied requests
        self.keeps = True  # connections stay here between requests instead of returning to the gateway
        self.waiting: set[Any] = set()  # connections that wait for a new table
        self.counts: RequestCounts | None = None  # counts requests by route alias
        self._contexts: dict[str, Context] = {}

    def replace_route_table(self, fds: list[int], *, keeps: bool = True, context_key: str = "") -> None:
        """Use the route table in `fds[0]` and, if given, the gateway's socket in `fds[1]`. The caller closes `fds`.

        Empty `fds`: the gateway has ended. With `keeps` false, connections go back to the gateway between requests.
        `context_key` authenticates routes in proxied requests. Raises OSError; ValueError if `fds[0]` is no table.
        """
        table, shown = (RouteTable(fds[0]), RouteTable(fds[0])) if fds else (None, None)
        if self.table is not None:
            self.table.close()
        self.table, self._shown, self.ended, self.keeps = table, shown, table is None, keeps
        self.context_key = context_key
        if len(fds) > 1 or table is None:
            self.close_gateway_socket()
        if len(fds) > 1:
            self.gateway = socket.socket(fileno=fcntl.fcntl(fds[1], fcntl.F_DUPFD_CLOEXEC, 0))
        self._contexts.clear()
        waiting, self.waiting = self.waiting, set()
        for connection in waiting:
            connection.process_held()

    def close_gateway_socket(self) -> None:
        """Close the socket through which this worker returns connections to the gateway, if it is open."""
        if self.gateway is not None:
            with suppress(OSError):
                os.close(self.gateway.detach())
            self.gateway = None

    def context_by_alias(self, alias: str) -> Context | None:
        """Return the data about the route `alias` that applications see; None if the gateway's route table lacks it."""
        match = None if self.table is None else self.table.by_alias(alias)
        return None if match is None else self.scope_context(match.route)

    def scope_context(self, route: Route) -> Context:
        """The context that the application finds in the scope of a request on this route."""
        found = self._contexts.get(route.alias)
        if found is None:
            url = _url(self._listeners[0], secure=self._secure) if self._listeners else ""
            found = self._contexts[route.alias] = extension(
                route, name=self.server, url=url, table=lambda: self._shown
            )
        return found


class ConnectionRoutingState:
    """The routing state of a connection from the gateway.

    `pending` holds the received bytes that the parser has not seen yet. If `partial` is true, they are an incomplete
    head. Otherwise they wait for a response, for a route table, or for space in the socket to the gateway. `body` is
    the number of bytes missing from the current message's body, or CHUNKED.
    """

    # Not in the protocol object, to which further attributes would add much memory (see Http1Connection).
    __slots__ = (
        "body", "chunks", "context", "decided", "generation", "hops", "partial", "pause", "pending", "route", "routes",
        "timer", "trusted", "until",
    )  # fmt: skip

    def __init__(self, routes: GatewayRoutes, routed: Routed) -> None:
        self.routes = routes
        self.route, self.generation, self.hops, self.pending, self.decided, self.trusted = routed
        self.partial = False
        self.body = 0
        self.chunks: ChunkedBodyReader | None = None
        self.context: Context | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.pause = 0.0
        self.until = 0.0

    def for_worker(self) -> Routed:
        """Return the connection's routing state for another worker of this server."""
        return Routed(self.route, self.generation, self.hops, self.pending, self.decided, self.trusted)

    def for_gateway(self, generation: int) -> Routed:
        """Return the routing state to send to the gateway with a connection whose next request is for another server.

        `generation` is the generation number of the route table in which this worker has looked up the request.
        """
        return Routed(self.route, generation, self.hops + 1, self.pending, decided=False)

    def begin_body(self, length: int) -> None:
        self.body = length
        self.chunks = ChunkedBodyReader() if length == CHUNKED else None

    def consume_body(self, data: bytes, at: int) -> int:
        """Consume the bytes in `data[at:]` that belong to the current message's body; return the index after them.

        If that is the end of `data`, the body may continue. Raises BadMessage.
        """
        if self.chunks is None:
            step = min(self.body, len(data) - at)
            self.body -= step
            return at + step
        self.chunks.feed(data, at)
        end = len(data) - len(self.chunks.rest)
        if self.chunks.done:
            self.begin_body(0)
        return end


def _url(listener: socket.socket, *, secure: bool) -> str:
    """The URL at which clients of this machine reach the listener; "" if it is closed."""
    try:
        address: Any = listener.getsockname()
    except OSError:
        return ""
    if not isinstance(address, tuple):
        return f"unix:{os.fsdecode(address)}"
    host = str(address[0])
    host = ANYWHERE.get(host, host)
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{host}:{address[1]}"


def with_route_context(app: App, routing: ConnectionRoutingState) -> App:
    """Wrap the application for one connection: each scope gets the route, and data about the client.

    Requests, and the errors among them, are counted by route.
    """
    counts = routing.routes.counts
    report: ForwardedHeaders | None = None

    def serve(scope: Scope, receive: Receive, send: Send) -> Any:
        nonlocal report
        if report is None:
            scheme = "https" if scope["scheme"] in _SECURE else "http"
            peer = scope["client"][0] if scope["client"] else ""
            report = ForwardedHeaders(peer, scheme, trusted=routing.trusted)
        scope["headers"] = report.with_forwarded_fields(scope["headers"])
        context = routing.context
        if context is not None:
            alias = context["route"].alias
            if counts is not None:
                counts.count_routed(alias)
            # Changed in place, because this scope belongs to the server.
            others = scope.get("extensions")
            scope["extensions"] = {**others, EXTENSION: context} if others else {EXTENSION: context}
            if scope["type"] == "http" and counts is not None:
                return _run_counting_server_errors(app, scope, receive, send, alias, counts)
        return app(scope, receive, send)

    return serve


async def _run_counting_server_errors(
    app: App, scope: Scope, receive: Receive, send: Send, alias: str, counts: RequestCounts
) -> None:
    failed = False

    def count_error_once() -> None:
        nonlocal failed
        if not failed:
            counts.count_error(alias)
        failed = True

    def noted(message: Message) -> Any:
        if message["type"] == "http.response.start" and message["status"] >= 500:
            count_error_once()
        return send(message)

    try:
        await app(scope, receive, noted)
    except Exception:
        count_error_once()
        raise


def app_with_route_in_scope(app: App, routes: GatewayRoutes) -> App:
    """Wrap the application for all connections: the scope of a request proxied by the gateway gets its route.

    The header field in which the gateway names the route is removed, even if a client has sent it.
    """

    def serve(scope: Scope, receive: Receive, send: Send) -> Any:
        for name, _ in scope.get("headers", ()):
            if name == _CONTEXT:
                _extract_context_header(scope, routes)
                break
        return app(scope, receive, send)

    return serve


def show_proxied_routes_to_app(config: uvicorn.Config, routes: GatewayRoutes) -> None:
    """Let the loaded application see the routes of requests that the gateway has proxied."""
    app: Any = config.loaded_app
    if isinstance(app, AccessLogMiddleware):  # the access log stays the outermost layer
        app.inner = app_with_route_in_scope(app.inner, routes)
    else:
        config.loaded_app = app_with_route_in_scope(app, routes)


def _extract_context_header(scope: Scope, routes: GatewayRoutes) -> None:
    given = [value for name, value in scope["headers"] if name == _CONTEXT]
    scope["headers"] = [field for field in scope["headers"] if field[0] != _CONTEXT]
    for value in given:
        alias = authenticated_alias(value, routes.context_key)
        context = None if alias is None else routes.context_by_alias(alias)
        if context is not None:
            scope["extensions"] = {**(scope.get("extensions") or {}), EXTENSION: context}


def add_route_to_scopes(connection: Any, routing: ConnectionRoutingState) -> None:
    """Add the route to the scope of each request on a uvicorn connection, including WebSockets."""
    connection.app = with_route_context(connection.app, routing)
    if getattr(connection, "ws_protocol_class", None) is not None:  # absent in HTTP/2
        connection.ws_protocol_class = functools.partial(
            _routed_websocket, connection.ws_protocol_class, routing
        )


def _routed_websocket(protocol: Any, routing: ConnectionRoutingState, **arguments: Any) -> Any:
    made = protocol(**arguments)
    made.app = with_route_context(made.app, routing)
    return made
