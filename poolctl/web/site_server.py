"""The server of a site: it closes idle connections to make room, and refuses invalid requests in the site's format."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from time import monotonic

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from poolctl.worker.serving.connection_state import Header
from poolctl.worker.serving.http1_connection import H11Connection
from poolctl.worker.serving.pool_server import PoolServer

from .bearer_tokens import peer_of
from .site import Site

# Streams never end by themselves.
STOP_SECONDS = 1.0
# Must exceed the time that a drained connection stays open after its last request.
DRAIN_SECONDS = 5.0
# After refusing a request, read on for this long, so that the client can read the reason (RFC 9112 §9.6).
_LINGER_SECONDS, _LINGER_BYTES = 1.0, 1024 * 1024
_REASONS = {
    400: "it is not valid HTTP/1.1",
    408: "the request did not arrive in time",
    413: "the body is too large",
    431: "the head is too large",
}


class SiteServer(PoolServer):
    """Serves a site until `stop` or `drain`. Above the connection limit, closes the connection that has waited longest.

    A connection waits between requests, during its TLS handshake, and while its request is incomplete.
    """

    def __init__(self, site: Site) -> None:
        limits = site.limits
        config = uvicorn.Config(
            WholeRequests(site),
            http=SiteConnection,
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,
            lifespan="off",
            date_header=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=limits.keep_alive_seconds,  # type: ignore[arg-type]
        )
        super().__init__(
            config,
            state={"site": site},
            drain_seconds=DRAIN_SECONDS,
            stop_seconds=STOP_SECONDS,
            head_seconds=limits.request_seconds,
            head_bytes=limits.head_bytes,
            max_connections=limits.connections + 1,  # the last place is for the next connection
        )
        self._pause_accepting: Callable[[], None] = lambda: None

    async def serve_site(self, listeners: Sequence[socket.socket], on_ready: Callable[[], None]) -> None:
        """Accept from these listeners until `stop` or `drain`, and call `on_ready` when connections are accepted."""

        def ready() -> None:
            state = self.server_state
            self._pause_accepting, state.on_full = state.on_full, self._make_room
            on_ready()

        await self.run(listeners, ready)

    def _make_room(self) -> None:
        """Close the connection that has waited longest. If none waits, accept no more until one closes."""
        state = self.server_state
        waiting_since = {
            handshake: due - state.head_timeouts.seconds for handshake, due in state.expected.items()
        }
        waiting = [
            connection
            for connection in state.connections
            if isinstance(connection, SiteConnection) and connection.waits
        ]
        waiting_since |= {connection: connection.since for connection in waiting}
        if not waiting_since:
            self._pause_accepting()
            return
        oldest = min(waiting_since, key=waiting_since.__getitem__)
        if oldest in state.expected:
            self.acceptor.accepted.cancel_handshake(oldest)
            state.forget_unfinished_handshake(oldest)
        else:
            state.connections.discard(oldest)
            oldest.transport.abort()  # type: ignore[attr-defined]


class SiteConnection(H11Connection):
    """A client's connection, parsed by h11, which every installation has. It has waited for a request since `since`."""

    since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.since = monotonic()
        self.app_state = {**self.app_state, "peer": peer_of(transport)}
        super().connection_made(transport)

    def on_response_complete(self) -> None:
        self.since = monotonic()
        super().on_response_complete()

    @property
    def waits(self) -> bool:
        """Whether the connection waits for a request, or for the rest of its body."""
        return self.idle or self.body_follows

    def refusal(self, status: int) -> tuple[list[Header], bytes]:
        kind, body = _invalid_request(self.app_state["site"], status)
        return [(b"content-type", kind.encode())], body

    def send_400_response(self, msg: str) -> None:
        if self.idle or not self.cycle.response_started:
            too_large = len(self.conn.trailing_data[0]) > self.server_state.head_timeouts.most_bytes
            self.refuse(431 if too_large else 400)
        else:
            self.transport.close()


class WholeRequests:
    """Buffers each request's body, then calls the site's application; refuses bodies that are too large or slow."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self._site.limits
        body, status, more = b"", 0, True
        try:
            async with asyncio.timeout(limits.request_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message["body"]
                    more = message["more_body"]
                    if len(body) > limits.body_bytes:
                        status = 413
                        break
        except TimeoutError:
            status = 408
        if status:
            await self._refuse(status, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            return messages.pop() if messages else await receive()

        await self._site.app(scope, received, send)

    async def _refuse(self, status: int, receive: Receive, send: Send) -> None:
        kind, body = _invalid_request(self._site, status)
        length = b"%d" % len(body)
        headers = [
            (b"content-type", kind.encode()), (b"content-length", length), (b"connection", b"close"),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                read = 0
                while read < _LINGER_BYTES:
                    message = await receive()
                    read += len(message.get("body", b""))
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _invalid_request(site: Site, status: int) -> tuple[str, bytes]:
    return site.error_body(f"not a request: {_REASONS[status]}")
