"""Shows applications the route and the client of each request that the gateway has forwarded, in the ASGI scope.

Such a request has a header with a secret that only the gateway and the workers of this server know. Then its
`X-Forwarded-*` headers are the gateway's: scheme, client and root_path in the scope are those of the client's request.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import uvicorn

from poolctl.routing.context import CONTEXT_FIELD, EXTENSION, authenticated_alias, extension
from poolctl.routing.networks import EVERY, is_within
from poolctl.routing.route_table import RouteTable

from .request_records import AccessLogMiddleware
from .uvicorn_parts import App, Receive, Scope, Send

_CONTEXT = CONTEXT_FIELD.encode()
_FOR, _PROTO, _PREFIX = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-prefix"
_SCHEMES = {"http": ("http", "https"), "websocket": ("ws", "wss")}
_OVER_TLS = b"https", b"wss"  # traefik and others say wss for a WebSocket
ANYWHERE: dict[str, str] = {"0.0.0.0": "127.0.0.1", "::": "::1"}

Context = dict[str, Any]


class RouteContexts:
    """The gateway's routes to this worker's server, `server`, and what applications see of them.

    Applications get the server's URL, which is made from the first of `listeners`, with https if `secure` is true.
    """

    def __init__(self, server: str, listeners: Sequence[socket.socket] = (), *, secure: bool = False) -> None:
        self._server = server
        self._listeners = listeners
        self._secure = secure
        self._table: RouteTable | None = None
        self._key = ""
        self._trusted: tuple[str, ...] = ()
        # By header value; only authentic values.
        self._contexts: dict[bytes, Context | None] = {}

    def replace_routes(self, fds: list[int], key: str = "", trusted: Iterable[str] = ()) -> None:
        """Use the route table in `fds[0]`; with empty `fds` the gateway has ended.

        `key` is the secret of the gateway's requests, `trusted` has the networks of the proxies in front of it. The
        caller closes `fds`. Raises OSError; ValueError if `fds[0]` is no table.
        """
        self._table = RouteTable(fds[0]) if fds else None
        self._key, self._trusted = key, tuple(trusted)
        self._contexts.clear()

    def show_to_app(self, config: uvicorn.Config) -> None:
        """Let the loaded application see the routes and clients of its requests."""
        app: Any = config.loaded_app
        if isinstance(app, AccessLogMiddleware):  # the access log stays the outermost layer
            app.inner = self._wrap(app.inner)
        else:
            config.loaded_app = self._wrap(app)

    def _wrap(self, app: App) -> App:
        """Wrap the application: remove the header with the secret, and forged headers that clients have sent."""

        def serve(scope: Scope, receive: Receive, send: Send) -> Any:
            for name, _ in scope.get("headers", ()):
                if name == _CONTEXT:
                    self._move_context_into_scope(scope)
                    break
            return app(scope, receive, send)

        return serve

    def _move_context_into_scope(self, scope: Scope) -> None:
        headers = []
        hops = proto = prefix = b""
        value = None  # with the secret
        for field in scope["headers"]:
            name = field[0]
            if name == _CONTEXT:
                value = field[1] if self._is_authentic(field[1]) else value
                continue
            headers.append(field)
            if name == _FOR:
                hops = hops + b"," + field[1] if hops else field[1]
            elif name == _PROTO:
                proto = field[1]
            elif name == _PREFIX:
                prefix = field[1]
        scope["headers"] = headers
        if value is None:
            return
        scope["client"] = _client(hops, self._trusted)
        is_secure = proto.partition(b",")[0].strip().lower() in _OVER_TLS  # what the first proxy says
        scope["scheme"] = _SCHEMES[scope["type"]][is_secure]
        if prefix and not scope.get("root_path"):
            # As uvicorn does for a configured root_path.
            scope["root_path"] = unquote(prefix.decode("latin-1"))
            scope["path"] = scope["root_path"] + scope["path"]
            scope["raw_path"] = prefix + scope["raw_path"]
        if (context := self._contexts[value]) is not None:
            scope["extensions"] = {**(scope.get("extensions") or {}), EXTENSION: context}

    def _is_authentic(self, value: bytes) -> bool:
        """Whether this value of a field has the secret. If so, `_contexts` has the context of its route."""
        if value not in self._contexts:
            if (alias := authenticated_alias(value, self._key)) is None:
                return False
            self._contexts[value] = self._context(alias)
        return True

    def _context(self, alias: str) -> Context | None:
        route = None if self._table is None else self._table.get(alias)
        if route is None:
            return None
        url = _url(self._listeners[0], secure=self._secure) if self._listeners else ""
        return extension(route, name=self._server, url=url, table=lambda: self._table)


def is_of_gateway(scope: Scope) -> bool:
    """Whether the gateway has forwarded the request of this scope to a worker."""
    return EXTENSION in (scope.get("extensions") or ())


@lru_cache(maxsize=256)
def _client(hops: bytes, trusted: tuple[str, ...]) -> tuple[str, int] | None:
    """The last address in `X-Forwarded-For` that does not belong to a trusted proxy, with its port or 0.

    As in HAProxy, a malformed address ends the search. With "*" only the last address counts: clients can claim others.
    """
    client = None
    for hop in reversed(hops.decode("latin-1").split(",") if hops else ()):
        address = _host_and_port(hop.strip())
        if trusted and not is_within(address[0], (EVERY,)):
            break
        client = address
        if EVERY in trusted or not is_within(address[0], trusted):
            break
    return client


def _host_and_port(text: str) -> tuple[str, int]:
    """The parts of "192.0.2.1", "192.0.2.1:80", "2001:db8::1", "[2001:db8::1]" or "[2001:db8::1]:80"."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    return host, int(port) if port.isdecimal() and port.isascii() else 0


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
