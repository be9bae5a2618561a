"""Request heads: parsed into a form that all parsers read alike, routed, and rewritten for the backend."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import httptools

from poolctl.http.client_report import CLIENT_FIELD, ForwardedHeaders
from poolctl.http.messages import CHUNKED, HOP_BY_HOP, TOKEN, BadMessage, RequestHead, without_fields
from poolctl.routing.context import RouteContext, context_headers
from poolctl.routing.decision import can_pass_peer_to_worker, is_within
from poolctl.routing.match import normal_host
from poolctl.routing.normal_path import NormalizedPath, normalize_path
from poolctl.routing.route import Header, Route

from ..backends.route_backends import Backend
from ..edge import GatewayState
from ..settings import Endpoint
from ..tls import CertificateContext

_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@]+)((?:[/?].*+)?)", re.DOTALL)
_HOST_LINE = re.compile(rb"\r\n(?i:host):[^\r\n]*+")
# Fields about one connection (RFC 9110 §7.6.1), and those about the client.
_REMOVED = re.compile(
    rb"\r\n(?=[CFHKPTUXcfhkptux])(?:(?i:http2-settings|"
    + HOP_BY_HOP
    + rb")|"
    + CLIENT_FIELD
    + rb"):[^\r\n]*+"
)
_EXPECT_LINE = re.compile(rb"\r\n(?i:expect):[^\r\n]*+")
_MOST_HOPS = 64  # maximum number of addresses in X-Forwarded-For that are examined
_token = re.compile(TOKEN).fullmatch
_PLAIN_OPTIONS = frozenset((b"", b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings"))
# Fields that decide how the next recipient reads the request: a client cannot have them removed.
_NO_OPTIONS = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))
# CONNECT asks for a tunnel to anywhere. TRACE would return the fields that the gateway adds to the request.
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE"))
_NONE: frozenset[str] = frozenset()
_USUAL_HOST_HEADER = "Host"


def read_request(data: bytes, max_head_bytes: int, scanned: int) -> RequestHead | None:
    """The request whose head is at the start of these bytes; None if it is incomplete. Raises BadMessage.

    Earlier calls have searched the first `scanned` bytes for the end of the head.
    """
    request = RequestHead.read(data, scanned, max_head_bytes)
    if request is None:
        return None
    if not request.canonical:
        request = _canonical_request(request, data[: request.end])
    if request.upgrade.lower() == b"h2c":  # later requests would be hidden (RFC 9113 §3.1)
        request.upgrade = b""
    return request


def _canonical_request(head: RequestHead, raw: bytes) -> RequestHead:
    """The request, rewritten so that all parsers read it alike. Raises BadMessage if that is not possible."""
    _check_with_llhttp(head, raw)
    target, host, fields = head.target, head.host, head.fields
    if head.get(b"expect").lower() not in (b"", b"100-continue"):
        raise BadMessage("an unknown expectation", 417)
    if not target.startswith(b"/") and head.method != b"CONNECT" and target != b"*":
        # RFC 9112 §3.2.2: the authority of the target replaces Host.
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise BadMessage("the target is neither a path nor a URL")
        host, rest = absolute.groups()
        target = rest if rest.startswith(b"/") else b"/" + rest
        fields = b"\r\nHost: " + host + _HOST_LINE.sub(b"", fields)
    elif target == b"*" and head.method != b"OPTIONS":
        raise BadMessage("the target * is for OPTIONS only")
    # llhttp keeps a tab behind a value, h11 does not: a Host would name two hosts.
    fields = b"\r\n".join([line.rstrip(b"\t ") for line in fields.split(b"\r\n")])
    version = b"1.1" if head.http_1_1 else b"1.0"
    request = RequestHead(b"%b %b HTTP/%b%b\r\n\r\n" % (head.method, target, version, fields))
    request.end, request.canonical = head.end, False
    return request


def _check_with_llhttp(head: RequestHead, raw: bytes) -> None:
    """Raise BadMessage if llhttp, which many servers use, refuses the request or reads it differently."""
    reading = _ParserCallbacks()
    parser = httptools.HttpRequestParser(reading)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadMessage("not read alike by all parsers") from error
    if parser.get_method() != head.method or reading.target != head.target or not reading.complete:
        raise BadMessage("not read alike by all parsers")


class _ParserCallbacks:
    """Receives the callbacks of an llhttp parser: the request target, and the end of the head."""

    target = b""
    complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_headers_complete(self) -> None:
        self.complete = True


class ForwardingContext:
    """The common properties of the requests of one client connection: the client, and the transport.

    `peer` is the address of the connection's other end, "" for a Unix socket. A `trusted` peer is a proxy whose own
    report of the client is kept and extended; the report of any other peer is replaced.
    """

    def __init__(self, peer: str, scheme: str, trusted_networks: tuple[str, ...], port: int) -> None:
        self.peer = peer
        self._port = port
        self.scheme = scheme
        self._networks = trusted_networks
        self.trusted = is_within(peer, trusted_networks)
        self._report = ForwardedHeaders(peer, scheme, trusted=self.trusted)

    def client(self, request: RequestHead) -> str:
        """The client's address: the peer or, if it is trusted, the last address in X-Forwarded-For that is not trusted.

        It is the peer's address if all examined addresses are trusted proxies.
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
        """Whether the client used TLS, to this process or to a trusted proxy."""
        said = request.get(b"x-forwarded-proto") if self.trusted else b""
        return (said.partition(b",")[0].strip().lower() or self.scheme.encode()) == b"https"

    def client_for_log(self, request: RequestHead) -> str:
        """The client's address for logs; with its port if the client is connected directly."""
        client = self.client(request)
        return f"{client}:{self._port}" if client == self.peer and self._port else client

    def head(self, request: RequestHead, route: Route, target: bytes) -> bytes:
        """The head of the request for a backend, with this request target. Raises BadMessage."""
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
            framing += _lines_of((*route.set_headers, *route.add_headers))
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
def _replaced(route: Route) -> re.Pattern[bytes]:
    """A regular expression for the header lines that the route sets or removes; - and _ in names are alike."""
    return _header_lines_pattern([*(header.name for header in route.set_headers), *route.remove_headers])


@lru_cache(maxsize=1024)
def response_fields(headers: tuple[Header, ...]) -> tuple[bytes, re.Pattern[bytes]]:
    """Return `headers` as header lines, and a regular expression that matches all header lines with their names."""
    return _lines_of(headers), _header_lines_pattern([header.name for header in headers])


def _lines_of(headers: Iterable[Header]) -> bytes:
    return b"".join(f"{header.name}: {header.value}\r\n".encode() for header in headers)


def _header_lines_pattern(names: Iterable[str]) -> re.Pattern[bytes]:
    """Return a regular expression that matches header lines with these names, each with the CRLF in front of it.

    The case of a name does not matter, and "-" and "_" are alike.
    """
    alike = (re.sub(r"[-_]", "[-_]", re.escape(name).replace(r"\-", "-")) for name in names)
    return re.compile(rb"\r\n(?i:" + "|".join(alike).encode() + rb"):[^\r\n]*+")


def context_lines(route: Route, backend: Backend) -> bytes:
    """Return the header lines that tell `backend` its route, name and URL; for routes with `context_headers`."""
    name = backend.name if backend.is_server else route.alias
    context = RouteContext(route, name, url_of(backend.endpoint))
    return b"".join(f"{name}: {value}\r\n".encode() for name, value in context_headers(context))


def url_of(endpoint: Endpoint) -> str:
    """The URL of an endpoint, always with its port."""
    if endpoint.kind == "unix":
        return f"unix:{endpoint.path}"
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{'https' if endpoint.tls else 'http'}://{host}:{endpoint.port}"


class RoutedRequest(NamedTuple):
    """A request's route, and the `head` to send to a backend.

    `servers` are the servers to which the connection could be passed with this request; empty if the proxy has to
    serve it.
    """

    route: Route
    head: bytes
    servers: frozenset[str]


class _Fields(Mapping[str, str]):
    """The fields of a request by lower-case name, parsed on demand."""

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


def route_or_refuse_request(
    edge: GatewayState,
    request: RequestHead,
    forwarding: ForwardingContext,
    certificate: CertificateContext | None = None,
) -> RoutedRequest:
    """Return the request with its route. Raises BadMessage, with the response's status, if there is no valid route.

    `certificate` is the TLS context that has the connection's server certificate; None for a connection without TLS.
    """
    if request.method in _REFUSED_METHODS:
        raise BadMessage("the method is not served", 405)
    name, host = edge.settings.header_for_host, request.host
    own_header = name != _USUAL_HOST_HEADER
    if own_header:
        host = request.get(name.lower().encode()) or host
    if certificate is not None and not certificate.allows_requests_for_host(host):
        raise BadMessage("a host that demands another client certificate", 421)
    path = request.path.decode()
    read = normalize_path(path) if path != "*" else NormalizedPath("/")
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
        and can_pass_peer_to_worker(route, forwarding.peer, trusted=forwarding.trusted)
    )
    return RoutedRequest(route, head, match.servers if passes else _NONE)


def _without_prefix(path: str, prefix: str) -> str:
    rest = path[len(prefix.rstrip("/")) :]
    return rest if rest.startswith("/") else "/" + rest
