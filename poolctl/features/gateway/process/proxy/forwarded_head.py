"""Heads of requests for backends: without the fields of the client connection, with fields about the client."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from poolctl.http.client_report import CLIENT_FIELD, ClientReport
from poolctl.http.message_head import CHUNKED, HOP_BY_HOP, TOKEN, BadMessage, RequestHead, without_fields
from poolctl.routing.context import RouteContext, context_headers
from poolctl.routing.networks import is_within
from poolctl.routing.route import Header, Route

from ..backends import Backend
from ..endpoint import Endpoint

# Fields about one connection (RFC 9110 §7.6.1), and those about the client.
_REMOVED = re.compile(
    rb"\r\n(?=[CFHKPTUXcfhkptux])(?:(?i:http2-settings|"
    + HOP_BY_HOP
    + rb")|"
    + CLIENT_FIELD
    + rb"):[^\r\n]*+"
)
_HOST_LINE = re.compile(rb"\r\n(?i:host):[^\r\n]*+")
_EXPECT_LINE = re.compile(rb"\r\n(?i:expect):[^\r\n]*+")
_MOST_HOPS = 64  # of X-Forwarded-For that are looked at
_token = re.compile(TOKEN).fullmatch
_PLAIN_OPTIONS = frozenset((b"", b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings"))
# Fields on which the next recipient's reading depends: a client cannot have them removed.
_NO_OPTIONS = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))


class Forwarding:
    """The common properties of the requests of one client connection: the client, and the transport.

    `peer` is its address, "" for a Unix socket. A `trusted` peer is a proxy whose own report of the client is kept and
    extended; the report of any other peer is replaced.
    """

    __slots__ = ("_networks", "_port", "_report", "peer", "scheme", "trusted")

    def __init__(self, peer: str, scheme: str, trusted_networks: tuple[str, ...], port: int = 0) -> None:
        self.peer = peer
        self._port = port
        self.scheme = scheme
        self._networks = trusted_networks
        self.trusted = is_within(peer, trusted_networks)
        self._report = ClientReport(peer, scheme, trusted=self.trusted)

    def client(self, request: RequestHead) -> str:
        """The client's address: the last address on the way here that is not a trusted proxy's.

        Behind more proxies than are examined it is the peer's address, because no other address can be trusted.
        """
        if not self.trusted:
            return self.peer
        hops = request.get(b"x-forwarded-for").decode("latin-1").rsplit(",", _MOST_HOPS)
        for hop in reversed(hops[-_MOST_HOPS:]):
            address = hop.strip()
            if address and not is_within(address, self._networks):
                return address
        return self.peer

    def is_secure(self, request: RequestHead) -> bool:
        """Whether the client has sent the request by TLS, to this process or to a trusted proxy."""
        said = request.get(b"x-forwarded-proto") if self.trusted else b""
        return (said.partition(b",")[0].strip().lower() or self.scheme.encode()) == b"https"

    def sender_of(self, request: RequestHead) -> str:
        """The client as a log names it: with its port, unless only a proxy knows that."""
        client = self.client(request)
        return f"{client}:{self._port}" if client == self.peer and self._port else client

    def head(self, request: RequestHead, route: Route, target: bytes) -> bytes:
        """The head of the request for a backend, which is asked for this target. Raises BadMessage."""
        kept, host = _without_hop_by_hop(request), request.host
        if route.host_header or not host:
            kept = _HOST_LINE.sub(b"", kept)
            kept = b"\r\nHost: " + route.host_header.encode() + kept
        if not request.http_1_1:
            kept = _EXPECT_LINE.sub(b"", kept)
        report = self._report.fields(host, request.values)
        lines = b"".join([b"%b: %b\r\n" % (name.title(), value) for name, value in report])
        if route.set_headers or route.remove_headers:
            kept = _replaced(route).sub(b"", b"%b\r\n%b" % (kept, lines[:-2]))
            lines = b""
        framing = b"Transfer-Encoding: chunked\r\n" if request.body == CHUNKED else b""
        if request.upgrade:
            framing += b"Connection: Upgrade\r\nUpgrade: " + request.upgrade + b"\r\n"
        if route.changes_headers:
            framing += _added(route)
        return b"%b %b HTTP/1.1%b\r\n%b%b\r\n" % (request.method, target, kept, lines, framing)


def _without_hop_by_hop(request: RequestHead) -> bytes:
    kept = _REMOVED.sub(b"", request.fields)
    named = request.options - _PLAIN_OPTIONS
    if not named:
        return kept
    if not _NO_OPTIONS.isdisjoint(named) or not all(map(_token, named)):
        raise BadMessage("an option of Connection that cannot be one")
    return without_fields(kept, named)


@lru_cache(maxsize=1024)
def _added(route: Route) -> bytes:
    """The lines of the fields that the route adds to requests."""
    return _lines_of((*route.set_headers, *route.add_headers))


@lru_cache(maxsize=1024)
def _replaced(route: Route) -> re.Pattern[bytes]:
    """Recognises the lines of the fields that a client cannot send to the route, by all names that CGI reads alike."""
    return _lines_named([*(header.name for header in route.set_headers), *route.remove_headers])


class ResponseFields(NamedTuple):
    """The fields that a route sets in responses: their `lines`, and an expression for the replaced fields."""

    lines: bytes
    replaced: re.Pattern[bytes]


@lru_cache(maxsize=1024)
def response_fields(headers: tuple[Header, ...]) -> ResponseFields:
    """The given fields as lines."""
    return ResponseFields(_lines_of(headers), _lines_named([header.name for header in headers]))


def _lines_of(headers: Iterable[Header]) -> bytes:
    return b"".join(f"{header.name}: {header.value}\r\n".encode() for header in headers)


def _lines_named(names: Iterable[str]) -> re.Pattern[bytes]:
    """The lines of fields with one of these names, in which - and _ are the same, each after its line break."""
    alike = (re.sub(r"[-_]", "[-_]", re.escape(name).replace(r"\-", "-")) for name in names)
    return re.compile(rb"\r\n(?i:" + "|".join(alike).encode() + rb"):[^\r\n]*+")


def reported(route: Route, backend: Backend) -> bytes:
    """The lines that name the request's route to the backend, for a route with that option."""
    name = backend.name if backend.is_server else route.alias
    context = RouteContext(route, name, url_of(backend.endpoint))
    return b"".join(f"{name}: {value}\r\n".encode() for name, value in context_headers(context))


def url_of(endpoint: Endpoint) -> str:
    """The URL of an endpoint, always with its port."""
    if endpoint.kind == "unix":
        return f"unix:{endpoint.path}"
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{'https' if endpoint.tls else 'http'}://{host}:{endpoint.port}"
