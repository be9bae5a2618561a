"""The route of a request in its ASGI scope.

An application behind the gateway learns here which route its request matched, and which backend serves it. In the scope
this is a server extension (`scope["extensions"]["poolctl.route"]`), the place that the ASGI specification reserves for
extensions: middleware and mounted applications pass it on, and no client can set it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from hmac import compare_digest
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..json_form import from_json
from .registry import TableRegistry
from .route import Route, Target
from .route_table import RouteTable

EXTENSION = "poolctl.route"
KEY_CHARACTERS = 32  # of the secret in a `context_value`
# The gateway sends a server's workers its name in this header, as a `context_value`.
CONTEXT_FIELD = "x-poolctl-context"

# In a `context_value`, after the name.
_KEY_AND_ALIAS = re.compile(f":[0-9a-f]{{{KEY_CHARACTERS}}}:(?:[0-9a-f]{{2}})*")
_DEFAULT_PORTS = {"http": 80, "https": 443, "h2c": 80, "https+h2": 443}

Scope = Mapping[str, Any]


class RouteContext(NamedTuple):
    """A route, and its backend's name and URL (http://HOST:PORT, https://HOST:PORT or unix:/PATH)."""

    route: Route
    name: str = ""
    url: str = ""


def with_route(scope: Scope, route: Route, *, name: str = "", url: str = "") -> dict[str, Any]:
    """A copy of the scope that carries the route and its selected backend.

    Without name and URL the backend is the route's target, if it has exactly one.
    """
    extensions = scope.get("extensions") or {}
    return {**scope, "extensions": {**extensions, EXTENSION: extension(route, name=name, url=url)}}


def extension(
    route: Route, *, name: str = "", url: str = "", table: Callable[[], RouteTable | None] | None = None
) -> dict[str, Any]:
    """Return the ASGI extension that `with_route` puts into the scope of a request of this route.

    A server may use the returned dict for all requests of the route. `table` is a function that returns the current
    route table. `try_get_table` calls this function when an application needs the table.
    """
    target = route.to[0] if len(route.to) == 1 else Target()
    name = name or target.server or (route.alias if target.url else "")
    context = RouteContext(route, name, url or target.url)._asdict()
    return context if table is None else {**context, "table": table}


def try_get_route(scope: Scope) -> Route | None:
    """The route that the request matched, or None."""
    context = _context_or_empty(scope)
    return None if context is _NO_CONTEXT else context.route


def try_get_table(scope: Scope) -> RouteTable | None:
    """The route table that the gateway currently uses, or None if the request bypassed the gateway.

    Call it again for each use. Any thread may read the table, and it need not be closed.
    """
    table = ((scope.get("extensions") or {}).get(EXTENSION) or {}).get("table")
    return table() if table else None


def registry_of(scope: Scope) -> TableRegistry:
    """The gateway's current routes, read-only; empty if the request bypassed the gateway.

    Contains only what this worker needs to match requests: no streams, no headers to add, and no routes to servers
    that run as another user.
    """
    return TableRegistry(lambda: try_get_table(scope))


def upstream_name(scope: Scope) -> str:
    """The name of the server that serves the request, or the alias of a route to a URL; "" without a route."""
    return _context_or_empty(scope).name


def upstream_scheme(scope: Scope) -> str:
    """The scheme of the backend: "http" or "https"; "" without a route."""
    return _upstream_parts(scope)[0]


def upstream_host(scope: Scope) -> str:
    """The host of the backend: a name or an address, without brackets; "" for a Unix socket or without a route."""
    return _upstream_parts(scope)[1]


def upstream_port(scope: Scope) -> int | None:
    """The port of the backend; None for a Unix socket or without a route."""
    return _upstream_parts(scope)[2]


def upstream_host_port(scope: Scope) -> str:
    """Host and port of the backend ("127.0.0.1:8081", "[::1]:8081"); "" for a Unix socket or without a route."""
    _, host, port = _upstream_parts(scope)
    return "" if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def upstream_addr(scope: Scope) -> str:
    """The address of the backend: host and port, or "unix:/PATH"; "" without a route."""
    url = upstream_url(scope)
    return url if url.startswith("unix:") else upstream_host_port(scope)


def upstream_url(scope: Scope) -> str:
    """The URL of the backend; "" without a route."""
    return _context_or_empty(scope).url


def context_value(name: str, key: str, alias: str) -> str:
    """A server's name with a secret and the route's alias: proves to its workers that the gateway sent the request.

    `key` is a secret that only the gateway and the server's workers know. HAProxy accepts the result as a name.
    """
    return f"{name}:{key}:{alias.encode().hex()}"


def without_keys(text: str) -> str:
    """The text, such as a message from HAProxy, with each `context_value` reduced to the server's name."""
    return _KEY_AND_ALIAS.sub("", text)


def authenticated_alias(value: bytes, key: str) -> str | None:
    """The route's alias from a header value; None unless the value is a `context_value` with the secret `key`."""
    named, _, alias = value.rpartition(b":")
    if not key or not compare_digest(named.rpartition(b":")[2], key.encode()):
        return None
    return bytes.fromhex(alias.decode()).decode()


_NO_CONTEXT = RouteContext(Route(alias=""))


def _context_or_empty(scope: Scope) -> RouteContext:
    fields = (scope.get("extensions") or {}).get(EXTENSION)
    if not fields:
        return _NO_CONTEXT
    route = fields["route"]
    if not isinstance(route, Route):
        # An instance from the worker's poolctl, while the application imported another version.
        route = from_json(Route, route.to_json())
    return RouteContext(route, fields["name"], fields["url"])


def _upstream_parts(scope: Scope) -> tuple[str, str, int | None]:
    url = upstream_url(scope)
    if url.startswith("unix:"):
        return "http", "", None
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return "", "", None
