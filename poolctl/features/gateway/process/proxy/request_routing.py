"""The route of a request, and the head of the request for its backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from poolctl.http.message_head import BadMessage, RequestHead
from poolctl.routing.decision import admits
from poolctl.routing.match import normal_host
from poolctl.routing.normal_path import ReadPath, read_path
from poolctl.routing.route import Route

from ..backends import RouteBackends
from ..counts import Traffic
from ..edge import Edge
from ..tls.listener_certificates import ServerContext
from .forwarded_head import Forwarding

# CONNECT asks for a tunnel to anywhere. TRACE would return the fields that the gateway adds to the request.
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE"))
_NONE: frozenset[str] = frozenset()
_USUAL_HOST_HEADER = "Host"


class RoutedRequest(NamedTuple):
    """`client` is the address of the client, `head` the head of the request for the backend.

    `backends` and `counts` belong to the route. `servers` are the servers to which a connection with this request could
    have been passed; empty if the proxy has to serve it.
    """

    route: Route
    client: str
    head: bytes
    forwarding: Forwarding
    backends: RouteBackends
    counts: Traffic
    servers: frozenset[str]


def refused(
    edge: Edge,
    status: int,
    http_version: str,
    request: RequestHead | None,
    forwarding: Forwarding,
    routed: RoutedRequest | None,
) -> None:
    """Count a request that gets this status before it has a backend, and log it if it can be read."""
    edge.counts.refused(str(status), routed.route.alias if routed else "")
    if request is not None and edge.access_log is not None:
        edge.access_log.refused(request, forwarding.sender_of(request), http_version, status)


class _Fields(Mapping[str, str]):
    """The fields of a request by their names in lower case, found when they are asked for."""

    __slots__ = ("_request",)

    def __init__(self, request: RequestHead) -> None:
        self._request = request

    def __getitem__(self, name: str) -> str:
        values = self._request.values(name.encode())
        if not values:
            raise KeyError(name)
        return b", ".join(values).decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        lines = self._request.fields.split(b"\r\n")
        return iter({line.partition(b":")[0].decode().lower(): None for line in lines if line})

    def __len__(self) -> int:
        return len(list(iter(self)))


def route_request(
    edge: Edge, request: RequestHead, forwarding: Forwarding, certificate: ServerContext | None = None
) -> RoutedRequest:
    """The route of the request, which came over a connection with this certificate, or without TLS.

    Raises BadMessage with the status of the response if there is no route.
    """
    if request.method in _REFUSED_METHODS:
        raise BadMessage("the method is not served", 405)
    name, host = edge.settings.header_for_host, request.host
    own_header = name != _USUAL_HOST_HEADER
    if own_header:
        host = request.get(name.lower().encode()) or host
    if certificate is not None and not certificate.admits(host):
        raise BadMessage("a host that demands another client certificate", 421)
    path = request.path.decode()
    read = read_path(path) if path != "*" else ReadPath("/")
    if read is None:
        raise BadMessage("a path that is not read alike by all servers")
    normal, secure = read.normal, forwarding.is_secure(request)
    match = edge.table.find(
        normal_host(host.decode("latin-1")), normal, request.method.decode(), _Fields(request), secure=secure
    )
    if match is None:
        raise BadMessage("no route", 404)
    route = match.route
    target = request.target
    if path != "*" and (normal != path or route.strip_path):
        stripped = _without_prefix(normal, route.path) if route.strip_path else normal
        target = stripped.encode() + target[len(path) :]
    head = forwarding.head(request, route, target)
    passes = (
        match.passes
        and request.canonical
        and read.as_sent
        and not own_header
        and not secure
        and admits(route, forwarding.peer, trusted=forwarding.trusted)
    )
    return RoutedRequest(
        route,
        forwarding.client(request),
        head,
        forwarding,
        edge.backends.of(route),
        edge.counts.route(route.alias),
        match.servers if passes else _NONE,
    )


def _without_prefix(path: str, prefix: str) -> str:
    rest = path[len(prefix.rstrip("/")) :]
    return rest if rest.startswith("/") else "/" + rest
