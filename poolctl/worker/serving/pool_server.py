"""A uvicorn server on given listeners; it can be drained and taken out of rotation without losing requests."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

import uvicorn

from poolctl.routing.networks import UNIX

from ..process_setup import print_message
from . import uvicorn_parts
from .accepting import AdoptionPair, ConnectionAcceptor, ConnectionsAwaitingProtocol, protocol_factory
from .connection_balancer import ConnectionBalancer, PeerCounts
from .connection_state import HEAD_BYTES, HEAD_SECONDS, HeadTimeouts, PoolServerState
from .http1_connection import H11Connection, Http1Connection, HttptoolsConnection
from .request_records import CUT, FailedRequestLog, RequestCounts, add_access_log, inner_app
from .route_context import ANYWHERE, RouteContexts
from .uvicorn_parts import Message, RequiredProtocolMembers, Settings, State, Tls, ssl_context

logger = logging.getLogger("uvicorn.error")

_NOT_STARTED = "the application did not start"
STARTUP_FAILURE = 3  # uvicorn's exit status for an application that does not start
_CANCELLATION_SECONDS = 0.1
_CANCELLED_TASKS_SECONDS = 0.4
_HANDSHAKE_SECONDS = 2.0
_H11_MARGIN = 4096
_SEND_SECONDS = 0.1
_PROBE_KEPT_SECONDS = 86400.0  # probe connections are closed by the prober, not by a timeout
# RFC 9110 §15.6.4
_CUT_STATUS, _CUT_BODY = 503, b"Service Unavailable"
_CUT_HEADERS = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"content-length", b"%d" % len(_CUT_BODY)),
]

# The protocol classes, each with the parts that it uses of uvicorn's class for its parser.
_CLASSES: list[tuple[type[asyncio.Protocol], RequiredProtocolMembers]] = [
    (H11Connection, uvicorn_parts.H11),
    (HttptoolsConnection, uvicorn_parts.HTTPTOOLS),
]


def connection_class(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """poolctl's subclass of uvicorn's class `protocol`; if there is none, logs a warning and returns `protocol`.

    Without a subclass (an unknown class, or one that lacks a member that poolctl uses), requests are not counted, and a
    drain closes connections, so that requests in flight may be lost.
    """
    if issubclass(protocol, Http1Connection):
        return protocol
    for ours, parts in _CLASSES:
        if issubclass(ours, protocol) and not (
            uvicorn_parts.HTTP1.missing(protocol) or parts.missing(protocol)
        ):
            return ours
    logger.warning(
        "uvicorn's %s is not known to this version of poolctl: a restart closes its connections, and may lose requests "
        'that are on their way, and none is counted; set http.implementation to "h11" or "httptools"',
        protocol.__name__,
    )
    return protocol


class StartupFailed(Exception):
    """The application did not start; the reason has been logged. `status` is the exit status for the process."""

    def __init__(self, message: str, status: int = STARTUP_FAILURE) -> None:
        super().__init__(message)
        self.status = status


def load_config(
    config: uvicorn.Config, requests: Settings | None, tls: Tls | None, tls_fds: list[int]
) -> uvicorn.Config:
    """Load and return the configuration, with access log and TLS as specified; closes the descriptors `tls_fds`.

    `requests`: arguments of AccessLogMiddleware, or None; `tls`: None for no TLS. Raises StartupFailed if the
    certificate is unusable.
    """
    config.load()
    add_access_log(config, requests)
    if tls is not None:
        try:
            config.ssl = ssl_context(tls, tls_fds)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            message = f"its certificate cannot be used: {error}"
            print_message(message)
            raise StartupFailed(message) from error
        # The application and its children must not be able to read them.
        for fd in tls_fds:
            os.close(fd)
    return config


class Phase(enum.Enum):
    """How far a server has come. While it drains, connections are kept until they are quiet."""

    SERVING = enum.auto()
    DRAINING = enum.auto()
    STOPPING = enum.auto()


class PoolServer(uvicorn.Server):
    """A uvicorn server that can drain, without uvicorn's periodic timer and signal handlers.

    The server runs in the caller's event loop, so that one process can run several. It serves on duplicates of its
    listeners; their owner closes the listeners. `state` is what the application finds in `scope["state"]`.

    A drain takes at most `drain_seconds`. Requests still in progress get `stop_seconds` more, and are then cancelled.

    `adoption` is the socket pair through which the server's workers hand over connections; without it none are handed
    over. If `resting` is true, nothing is accepted before `set_accepting` is called. If `woken` is true, connections
    have waited for this worker to start, and a waiting connection is closed unserved if its client has disconnected.
    `routes` shows the application the routes of requests that a gateway forwards.

    `tally` is the page of memory on which requests are counted; None: they are not counted. `failed` is the form of log
    lines about failed requests (see FailedRequestLog); None: none are written.

    A request's head may take `head_seconds` and be at most `head_bytes` long. At `max_connections` the server stops
    accepting until there is room again; None stands for the number of free descriptors.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        state: State | None = None,
        drain_seconds: float,
        stop_seconds: float,
        adoption: AdoptionPair | None = None,
        resting: bool = False,
        tally: memoryview | None = None,
        head_seconds: float = HEAD_SECONDS,
        head_bytes: int = HEAD_BYTES,
        max_connections: int | None = None,
        routes: RouteContexts | None = None,
        woken: bool = False,
        failed: str | None = None,
    ) -> None:
        # Workers of one server that get the same number of requests are not replaced at the same time.
        config.limit_max_requests_jitter = (config.limit_max_requests or 0) // 10
        super().__init__(config)
        self.resting = resting
        self._in_rotation = True
        self._probes: ProbeConnections | None = None
        self._page: int | None = None  # the page of open connections, joined once started
        self._drain_seconds = drain_seconds
        self._stop_seconds = stop_seconds
        self._adoption = adoption
        self._routes = routes
        self._extra_state = state or {}
        self.server_state: PoolServerState = PoolServerState(self.limit_max_requests)
        self.server_state.most_requests = config.limit_concurrency
        self.server_state.tally = tally
        self.server_state.counts = None if tally is None else RequestCounts(tally)
        self.server_state.failed = None if failed is None else FailedRequestLog(failed)
        self.server_state.head_timeouts = HeadTimeouts(head_seconds, head_bytes)
        self._changed = self.server_state.changed
        # Separate from `changed`, which is set whenever the last request in progress ends.
        self._leaving = asyncio.Event()
        self.acceptor = ConnectionAcceptor(
            config, self.server_state, adoption=adoption, most=max_connections, woken=woken
        )
        self._phase = Phase.SERVING
        self._moves_to: socket.socket | None = (
            None  # where its connections go when it leaves; None: they are closed
        )
        self.on_left: Callable[[], None] = lambda: None  # called when it has stopped accepting

    async def run(self, listeners: Sequence[socket.socket], on_ready: Callable[[], None]) -> None:  # type: ignore[override]
        """Serve until `stop` or `drain` is called and every request is complete.

        `on_ready` is called after the lifespan startup. By then connections are accepted, unless the attribute
        `resting` is true. When this returns, no connection is open. Raises StartupFailed when the application cannot be
        loaded or its startup fails.
        """
        self._listeners = listeners
        await self._start_application()
        self._start_balancer()
        await self.acceptor.begin(listeners, self.lifespan.state, accepting=not self.resting)
        on_ready()
        uvicorn_timer = None
        if not issubclass(self.config.http_protocol_class, Http1Connection):
            uvicorn_timer = asyncio.create_task(self._run_uvicorns_timer())
        try:
            await self._leaving.wait()
        finally:
            if uvicorn_timer is not None:
                uvicorn_timer.cancel()
            try:
                await self.shutdown()
            finally:
                self._abort_what_is_left()

    def _abort_what_is_left(self) -> None:
        """Close what the shutdown has left, such as the connection of a client that reads nothing; cancel requests."""
        for listening in self.acceptor.servers:  # a cancelled shutdown may not have closed them
            listening.close()
        self.acceptor.accepted.cancel()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()

    async def _run_uvicorns_timer(self) -> None:
        """Renew the date of responses ten times a second, and drain after `limit_max_requests`, as uvicorn does.

        For a protocol class that poolctl does not know.
        """
        await self.main_loop()
        self.drain()

    def stop(self, *, migrate: bool = False) -> None:
        """Let `run` stop accepting, finish current requests, close idle connections, and return. May be repeated.

        With `migrate`, idle connections are not closed. They are sent through the socket pair between the server's
        workers, where they wait for a later worker.
        """
        is_first = self._phase is Phase.SERVING
        self._leave(Phase.STOPPING, migrate=migrate and (is_first or self._moves_to is not None))

    def drain(self, *, migrate: bool = False) -> None:
        """Like `stop`, but no request is lost: connections are kept until they are quiet.

        With `migrate`, each connection moves to another worker, through the socket pair between the server's workers,
        once it has no request in progress. Has no effect after `stop`.
        """
        if self._phase is Phase.SERVING:
            self._leave(Phase.DRAINING, migrate=migrate)

    def _leave(self, phase: Phase, *, migrate: bool) -> None:
        self._phase, self.should_exit = phase, True
        self._moves_to = self._adoption.give if migrate and self._adoption and self._can_migrate else None
        self._leaving.set()
        self._changed.set()

    @property
    def _can_migrate(self) -> bool:
        # A TLS connection cannot be handed over, because its TLS state is in this process.
        kind: Any = self.config.http_protocol_class
        return issubclass(kind, Http1Connection) and self.config.ssl is None

    def balance_by_counts_page(self, page: int) -> None:
        """Balance connections with other workers by the counts in the memory file `page`. Takes over `page`."""
        self._stop_balancer()
        self._page = page
        if self.started:
            self._start_balancer()

    def _start_balancer(self) -> None:
        page, self._page = self._page, None
        if page is None:
            return
        if self._adoption is None or self.should_exit:
            os.close(page)
            return
        try:
            counts = PeerCounts(page)
        except (OSError, ValueError):
            os.close(page)
            return
        state = self.server_state
        state.balancer = ConnectionBalancer(state, self._adoption.give, counts, kept=self._can_migrate)
        self.acceptor.publish_taking_handovers()

    def _stop_balancer(self) -> None:
        state = self.server_state
        if state.balancer is not None:
            state.balancer.close()
            state.balancer = None
        if self._page is not None:
            os.close(self._page)
            self._page = None

    def answer_probe(self, question: Message, sock: socket.socket) -> None:
        """Answer the probe `question` on `sock` (see ProbeConnections); if this server is stopping, close `sock`."""
        if self.should_exit:
            sock.close()
            return
        if self._probes is None:  # most workers are never probed
            self._probes = ProbeConnections(self.config, self.lifespan.state, self._listeners)
        self._probes.serve_connection(question, sock)

    def set_in_rotation_or_drain(self, in_rotation: bool) -> None:
        """Put the worker into rotation (True), or take it out: then each connection closes after its response."""
        self._in_rotation = in_rotation
        self._keep_or_drain_connections()

    def accept_or_drain(self, accepting: bool) -> None:
        """Accept connections, or leave them to other workers and drain the existing ones."""
        self.resting = not accepting
        self._keep_or_drain_connections()
        self.acceptor.set_accepting(accepting)

    def _keep_or_drain_connections(self) -> None:
        keep = self._in_rotation and not self.resting
        if self.should_exit or keep is not self.server_state.draining:
            return
        self.server_state.draining = not keep
        self.acceptor.publish_taking_handovers()
        for connection in self._http_connections():
            connection.cancel_close_when_idle() if keep else connection.close_when_idle()
        if not keep:
            self._close_non_drainable_connections()

    async def _start_application(self) -> None:
        config = self.config
        try:
            if not config.loaded:
                config.load()
            # h11's own limit is above the worker's, which sends the right response.
            config.h11_max_incomplete_event_size = self.server_state.head_timeouts.most_bytes + _H11_MARGIN
            self._trust_unix_peers()
            kind = connection_class(config.http_protocol_class)
            self.server_state.connections.http = config.http_protocol_class = kind
            if self._routes is not None:
                self._routes.show_to_app(config)
            self.lifespan = config.lifespan_class(config)
            self.lifespan.state.update(self._extra_state)
            self.server_state.fixed_headers = config.encoded_headers
            self.server_state.date_header = config.date_header
            self.server_state.on_limit = self._limit_reached
            await self.startup(sockets=[])
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
            raise StartupFailed(_NOT_STARTED, status) from exit_
        if self.lifespan.should_exit:  # older versions of uvicorn only set this flag
            raise StartupFailed(_NOT_STARTED)

    def _trust_unix_peers(self) -> None:
        config = self.config
        # On other listeners, a client without an address has left before its connection was accepted.
        is_unix = all(listener.family == socket.AF_UNIX for listener in self._listeners)
        if config.proxy_headers and UNIX in config.forwarded_allow_ips and is_unix:
            app: Any = inner_app(config.loaded_app)
            app.trusted_hosts = uvicorn_parts.UnixPeers(app.trusted_hosts)

    def _limit_reached(self) -> None:
        logger.info(
            "Maximum request limit of %d exceeded. Terminating process.", self.config.limit_max_requests
        )
        self.drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, drain or close every connection, then run the application's own shutdown."""
        await self.acceptor.end()
        self._stop_balancer()
        if self._probes is not None:
            self._probes.close()
        self.on_left()
        self.server_state.leave(self._moves_to)
        for connection in self._http_connections():
            connection.move_or_close_when_idle()
        self._close_non_drainable_connections()
        if self._phase is Phase.DRAINING:
            await self._wait_for_drain()
        elif self._moves_to is not None:
            # The replacement waits for the end of this server, and new clients wait for the replacement.
            self._end_events()
        for connection in list(self.server_state.connections):
            close_websocket_for_restart(connection)
        await self._wait_until_empty(self._stop_seconds)
        self._end_events()
        cancel_requests(self.server_state.tasks, self.server_state.connections)
        await self._wait_until_empty(_CANCELLATION_SECONDS)
        await answer_unfinished(self.server_state.connections)
        await self._wait_until_empty(_CANCELLED_TASKS_SECONDS)
        await self.lifespan.shutdown()

    async def _wait_for_drain(self) -> None:
        await self._wait(lambda: bool(self.server_state.expected), _HANDSHAKE_SECONDS)
        await self._wait_until_empty(self._drain_seconds, or_stopped=True)
        # The supervisor orders the stop at the end of the drain; the order may arrive before or after this line.
        self._end_events()
        self.server_state.leave(self._moves_to)  # `stop` may have changed it

    def _end_events(self) -> None:
        for connection in self._http_connections():
            connection.end_event_streams()

    def _http_connections(self) -> list[Http1Connection]:
        return [
            connection
            for connection in self.server_state.connections
            if isinstance(connection, Http1Connection)
        ]

    def _close_non_drainable_connections(self) -> None:
        """Close HTTP connections of a class that poolctl does not know, each after its response in progress."""
        kind: Any = self.config.http_protocol_class
        if not issubclass(kind, Http1Connection):
            for connection in list(self.server_state.connections):
                if type(connection) is kind:
                    connection.shutdown()

    async def _wait_until_empty(self, timeout_seconds: float, *, or_stopped: bool = False) -> None:
        """Wait until no connection and no request is left, the time is over or, with `or_stopped`, `stop` is called."""
        server_state = self.server_state

        def something_left() -> bool:
            left = bool(self.acceptor.accepted or server_state.connections or server_state.tasks)
            return left and not (or_stopped and self._phase is Phase.STOPPING)

        await self._wait(something_left, timeout_seconds)

    async def _wait(self, condition: Callable[[], bool], timeout_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while condition():
                    self._changed.clear()
                    await self._changed.wait()


def cancel_requests(tasks: Iterable[asyncio.Task[None]], connections: Iterable[object]) -> None:
    """Cancel the tasks of requests. A request that then gets no response from the application gets a 503.

    uvicorn would respond with 500, as if the application had failed.
    """
    for cycle in _unanswered(connections):
        cycle.send_500_response = functools.partial(_answer_503, cycle)
    for task in list(tasks):
        task.cancel(msg=CUT)


async def answer_unfinished(connections: Iterable[object]) -> None:
    """Answer 503 to each request that still runs after its cancellation, for example because it uses a thread."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SEND_SECONDS):
            for cycle in list(_unanswered(connections)):
                await _answer_503(cycle)
                cycle.disconnected = True  # the application's further output is ignored


def _unanswered(connections: Iterable[object]) -> Iterable[Any]:
    """Yield uvicorn's cycle object of each HTTP request without a begun response."""
    for connection in connections:
        cycle = getattr(connection, "cycle", None)
        if cycle is not None and not cycle.response_started and not cycle.disconnected:
            yield cycle


async def _answer_503(cycle: Any) -> None:
    headers = list(_CUT_HEADERS)
    if uvicorn_parts.CLOSE_HEADER not in cycle.default_headers:
        headers.append(uvicorn_parts.CLOSE_HEADER)
    await cycle.send({"type": "http.response.start", "status": _CUT_STATUS, "headers": headers})
    await cycle.send({"type": "http.response.body", "body": _CUT_BODY, "more_body": False})


class ProbeConnections:
    """The connections for health probes of one server, served like other connections.

    A probe does not keep a worker from being idle, uses up no `max_requests`, and leaves no line in an access log. A
    drain does not wait for probes. To the application, probes seem to arrive at the first TCP address of `listeners`.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app_state: State,
        listeners: Sequence[socket.socket],
    ) -> None:
        self._config = config
        self._app_state = app_state
        self._address = _address(listeners)
        self.server_state = PoolServerState()
        self.server_state.fixed_headers = config.encoded_headers
        self.server_state.head_timeouts = HeadTimeouts(_PROBE_KEPT_SECONDS)
        self._accepted = ConnectionsAwaitingProtocol(self.server_state)

    def serve_connection(self, question: Message, sock: socket.socket) -> None:
        """Serve the probe's connection: as an echo if the `kind` of the question is "echo", else by HTTP.

        An echo shows that the event loop runs. If the question has `plain`, HTTP is served without TLS in any case.
        """
        if question.get("kind") == "echo":
            self._accepted.attach(EchoProtocol, sock)
            return
        if self._config.ssl is None or question.get("plain"):
            self._accepted.attach(self._make_protocol, sock)
        else:
            due = monotonic() + self.server_state.head_timeouts.seconds
            self._accepted.shake_hands(self._make_protocol(), sock, self._config.ssl, due)

    def close(self) -> None:
        self._accepted.cancel()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _make_protocol(self) -> asyncio.Protocol:
        protocol = protocol_factory(self._config, self.server_state, self._app_state)()
        protocol.access_log = False
        protocol.app = inner_app(protocol.app)
        protocol.timeout_keep_alive = _PROBE_KEPT_SECONDS
        protocol.connection_made = functools.partial(self._on_probe_connected, protocol)
        return protocol  # type: ignore[no-any-return]

    def _on_probe_connected(self, protocol: Any, transport: asyncio.Transport) -> None:
        type(protocol).connection_made(protocol, transport)
        # The application sees an address as in a client's request, not a socket pair.
        if self._address is not None:
            protocol.server, protocol.client = self._address, (self._address[0], 0)
        protocol.scheme = "http" if self._config.ssl is None else "https"


class EchoProtocol(asyncio.Protocol):
    """Echoes the received data."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


def _address(listeners: Sequence[socket.socket]) -> tuple[str, int] | None:
    for listener in listeners:
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            host, port = listener.getsockname()[:2]
            return ANYWHERE.get(host, host), port
    return None


REPLY_SECONDS = 2.0
SERVICE_RESTART = 1012  # from IANA's registry of close codes (RFC 6455 §11.7)

WebSocket = Any  # a connection of a class of uvicorn_parts.WEBSOCKETS


def close_websocket_for_restart(websocket: WebSocket) -> None:
    """Close one of uvicorn's WebSockets with code 1012; shut down any other connection as uvicorn does.

    uvicorn would close a WebSocket's socket right after the close frame: if the receive buffer has unread data, this
    resets the connection, and the client never gets the frame.
    """
    kind: Any = type(websocket)
    close = _closing_function(kind)
    try:
        if close is None or websocket.transport.is_closing() or not close(websocket):
            if close is not None:
                websocket.send_500_response = functools.partial(_write_handshake_refusal, websocket)
            websocket.shutdown()
    except Exception:
        # An error of one connection must prevent neither the closing of others nor the application's shutdown.
        logger.warning("aborting a connection of class %s", type(websocket).__name__, exc_info=True)
        websocket.transport.abort()


@functools.cache
def _closing_function(protocol: Any) -> Callable[[WebSocket], bool] | None:
    """The function that closes WebSockets of class `protocol`; None if the class is unknown or lacks needed members."""
    parts = uvicorn_parts.WEBSOCKETS.get(protocol.__name__)
    return None if parts is None or parts.missing(protocol) else _CLOSING_FUNCTIONS[protocol.__name__]


def _write_handshake_refusal(websocket: WebSocket) -> None:
    if getattr(websocket, "initial_response", None) or getattr(websocket, "response_started", False):
        return
    websocket.transport.write(
        b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )
    if isinstance(started := getattr(websocket, "handshake_started_event", None), asyncio.Event):
        started.set()  # for uvicorn's handler, which waits for it


def _close_sansio(websocket: WebSocket) -> bool:
    if not websocket.handshake_complete or websocket.close_sent:
        return False
    # Discard data that the client sends before its close frame.
    websocket.send_receive_event_to_app = websocket.frames.clear
    websocket.conn.send_close(SERVICE_RESTART)
    _begin_close_handshake(websocket, b"".join(websocket.conn.data_to_send()))
    return True


def _close_wsproto(websocket: WebSocket) -> bool:
    from wsproto.events import CloseConnection

    if not websocket.handshake_complete or websocket.close_sent or websocket.response_started:
        return False
    # Discard data, and also pings and pongs, which cannot be answered after the close frame.
    websocket.handle_message = websocket.handle_ping = websocket.handle_pong = lambda event: None
    _begin_close_handshake(websocket, websocket.conn.send(CloseConnection(code=SERVICE_RESTART)))
    return True


def _begin_close_handshake(websocket: WebSocket, close_frame: bytes) -> None:
    websocket.stop_keepalive()
    websocket.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART})
    websocket.transport.write(close_frame)
    websocket.transport.resume_reading()
    # While a timer is set, the connection stays open after the end of the application's task; uvicorn clears it.
    websocket.close_timer = websocket.loop.call_later(REPLY_SECONDS, websocket.transport.close)


def _close_legacy_if_open(websocket: WebSocket) -> bool:
    if not websocket.handshake_completed_event.is_set() or not websocket.open:
        return False
    websocket.ws_server.closing = True  # so the application gets this code, too
    websocket.close_timeout = REPLY_SECONDS
    task = websocket.loop.create_task(websocket.close(SERVICE_RESTART))
    websocket.tasks.add(task)
    task.add_done_callback(websocket.tasks.discard)
    return True


# Indexed by the names of uvicorn_parts.WEBSOCKETS.
_CLOSING_FUNCTIONS: dict[str, Callable[[WebSocket], bool]] = {
    "WebSocketsSansIOProtocol": _close_sansio,
    "WSProtocol": _close_wsproto,
    "WebSocketProtocol": _close_legacy_if_open,
}
