"""Requests as backends read them: the same as clients meant, whatever a client sends and however it arrives."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from typing import Any

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.features.gateway.process.backends.route_backends import Backend
from poolctl.features.gateway.process.counts import Traffic
from poolctl.features.gateway.process.proxy.request_head import (
    ForwardingContext,
    RoutedRequest,
    context_lines,
    read_request,
    response_fields,
    route_or_refuse_request,
)
from poolctl.features.gateway.process.proxy.response_head import read_response
from poolctl.features.gateway.process.settings import Endpoint
from poolctl.features.gateway.process.tls import CertificateContext
from poolctl.http.messages import MOST_FIELDS, MOST_OPTIONS, BadMessage, RequestHead, canonical_head
from poolctl.routing.decision import passable_match
from poolctl.routing.normal_path import normalize_path
from poolctl.routing.route import Header, Route, Target
from poolctl.routing.route_table import RouteTable, write_table
from tests.examples import examples
from tests.features.gateway.proxy_stage import Stage, play
from tests.http_corpus import REQUESTS, RequestCase
from tests.steps import steps_of

ROUTE = Route(alias="a")
MOST = 65536
PEER = "198.51.100.7"


def read(data: bytes) -> RequestHead:
    request = read_request(data, MOST, 0)
    assert request is not None
    return request


def forwarded(data: bytes, peer: str = PEER, trusted: tuple[str, ...] = ()) -> bytes:
    request = read(data)
    return ForwardingContext(peer, "http", trusted, 0).head(request, ROUTE, request.target)


def fields(head: bytes) -> list[tuple[bytes, bytes]]:
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]
    return [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]


def by_h11(head: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(head)
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    assert parser.trailing_data == (b"", False)
    return request.method, request.target, sorted(request.headers)


class _Llhttp:
    def __init__(self, head: bytes) -> None:
        self.target, self.fields, self.complete = b"", [], False
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        self.method = parser.get_method()
        assert self.complete

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


def assert_read_alike(head: bytes, request: RequestHead) -> None:
    """Both parsers see in the head that a backend gets what the proxy has seen."""
    method, target, given_fields = by_h11(head)
    llhttp = _Llhttp(head)
    assert (method, target) == (request.method, request.target) == (llhttp.method, llhttp.target)
    assert given_fields == sorted(llhttp.fields) == sorted(fields(head))
    lengths = [value for name, value in given_fields if name == b"content-length"]
    codings = [value for name, value in given_fields if name == b"transfer-encoding"]
    assert codings == ([b"chunked"] if request.body < 0 else [])
    assert [*map(int, lengths)] == ([request.body] if request.body > 0 else lengths and [0])
    assert [value for name, value in given_fields if name == b"host"] == [request.host]


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_requests_of_the_corpus_are_refused_or_read_alike_by_all(case: RequestCase, step: int) -> None:
    request, size = None, len(case.data)
    ends = (
        range(step, size, step) if size < 2000 else ()
    )  # a client's connection looks at large ones less often
    try:
        for end in [*ends, size]:
            request = read_request(case.data[:end], MOST, 0)
            if request is not None:
                break
        if request is None:
            assert case.status in (0, 400)
            return
        head = ForwardingContext(PEER, "http", (), 0).head(request, ROUTE, request.target)
    except BadMessage as error:
        refused_with = error.status
        assert case.status not in (200, 0)
        assert refused_with in (case.status, 400)
        return
    if case.status not in (200, 0):  # refused by its body only
        assert request.body != 0
    assert_read_alike(head, request)


NAMES = st.sampled_from(
    [b"Host", b"host", b"X", b"Connection", b"Content-Length", b"Transfer-Encoding", b"Upgrade", b"Expect", b"TE",
     b"Keep-Alive", b"X-Forwarded-For", b"Forwarded", b"X_Forwarded_For", b"Cookie", b"Proxy", b"A b", b"X\t", b""]
)  # fmt: skip
VALUES = st.sampled_from(
    [b"a", b"a:80", b"close", b"keep-alive, x", b"upgrade", b"Upgrade, Host", b"5", b"0", b"chunked", b"gzip, chunked",
     b"websocket", b"100-continue", b"x\r\n y", b"a\rb", b"a\nb: c", b"a\x00", b"\xff", b"", b" a ", b"1, 1"]
)  # fmt: skip
LINES = st.tuples(NAMES, st.sampled_from([b": ", b":", b" : ", b":\t"]), VALUES).map(b"".join)
TARGETS = st.sampled_from(
    [b"/", b"/a?b", b"*", b"http://b/c", b"http://b", b"a:80", b"/\xff", b"/ b", b"//x", b"h://y/"]
)
METHODS = st.sampled_from([b"GET", b"POST", b"OPTIONS", b"BREW", b"get", b"CONNECT", b"PRI"])
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"])


@given(METHODS, TARGETS, VERSIONS, st.lists(LINES, max_size=5), st.booleans())
@examples(100)
def test_head_that_reaches_a_backend_is_the_one_that_the_proxy_has_read(
    method: bytes, target: bytes, version: bytes, lines: list[bytes], host: bool
) -> None:
    head = b"\r\n".join(
        [b" ".join((method, target, version)), *([b"Host: h"] if host else []), *lines, b"", b""]
    )
    try:
        request = read_request(head, MOST, 0)
        if request is None or request.method == b"CONNECT":
            return
        passed_on = ForwardingContext(PEER, "http", (), 0).head(request, ROUTE, request.target)
    except BadMessage:
        return
    assert_read_alike(passed_on, request)
    names = [name.replace(b"_", b"-") for name, _ in fields(passed_on)]
    assert names.count(b"x-forwarded-for") == 1
    assert not {b"keep-alive", b"te", b"proxy"} & {*names}
    assert (b"connection" in names) == bool(request.upgrade)


def test_head_within_the_limit_is_read_and_a_larger_one_refused() -> None:
    fields = b" HTTP/1.1\r\nHost: a\r\n\r\n"
    assert read_request(b"GET /" + b"a" * 100 + fields, 200, 0)
    with pytest.raises(BadMessage) as refused:
        read_request(b"GET /" + b"a" * 200 + fields, 200, 0)
    assert refused.value.status == 431


def test_hop_by_hop_fields_and_those_named_by_connection_are_removed() -> None:
    head = forwarded(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nx-hop: 2\r\nX-Hope: 3\r\n"
        b"Keep-Alive: 5\r\nTE: trailers\r\nProxy: x\r\nProxy-Connection: y\r\nUpgrade: z\r\nAccept: */*\r\n\r\n"
    )
    names = [name for name, _ in fields(head)]
    assert [name for name in names if not name.startswith((b"x-f", b"forw"))] == [
        b"host",
        b"x-hope",
        b"accept",
    ]


CLAIMS = (
    b"X-Forwarded-For: 203.0.113.1, 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: www\r\n"
    b'X_Forwarded_For: 1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\nForwarded: for=203.0.113.1;proto=https, for="10.0.0.1"\r\n'
)
CLAIMING = b"GET / HTTP/1.1\r\nHost: a\r\n" + CLAIMS + b"\r\n"


def test_claims_of_a_client_about_itself_are_replaced() -> None:
    assert fields(forwarded(CLAIMING)) == [
        (b"host", b"a"),
        (b"x-forwarded-for", PEER.encode()),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"a"),
        (b"forwarded", b'for=198.51.100.7;proto=http;host="a"'),
    ]


def test_reports_of_a_trusted_proxy_are_extended() -> None:
    assert fields(forwarded(CLAIMING, "10.0.0.2", ("10.0.0.0/8", "::1/128"))) == [
        (b"host", b"a"),
        (b"x-forwarded-for", b"203.0.113.1, 10.0.0.1, 10.0.0.2"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"www"),
        (b"forwarded", b'for=203.0.113.1;proto=https, for="10.0.0.1", for=10.0.0.2;proto=http;host="a"'),
    ]


@pytest.mark.parametrize(
    ("peer", "trusted", "client"),
    [
        (PEER, (), PEER),
        (PEER, ("10.0.0.0/8",), PEER),
        ("10.0.0.2", ("10.0.0.0/8",), "203.0.113.1"),
        ("10.0.0.2", ("10.0.0.2",), "10.0.0.1"),
        ("10.0.0.2", ("0.0.0.0/0",), "10.0.0.2"),
        ("10.0.0.2", ("*",), "10.0.0.2"),
    ],
)
def test_client_is_the_last_one_that_is_not_trusted(peer: str, trusted: tuple[str, ...], client: str) -> None:
    assert ForwardingContext(peer, "http", trusted, 0).client(read(CLAIMING)) == client


def claiming(hops: list[str]) -> RequestHead:
    return read(f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {','.join(hops)}\r\n\r\n".encode())


@pytest.mark.parametrize(
    ("proxies", "client"), [(0, "203.0.113.1"), (63, "203.0.113.1"), (64, "10.0.0.2"), (2000, "10.0.0.2")]
)
def test_client_is_looked_for_behind_so_many_proxies(proxies: int, client: str) -> None:
    request = claiming(["203.0.113.1", *["10.0.0.1"] * proxies])
    assert ForwardingContext("10.0.0.2", "http", ("10.0.0.0/8",), 0).client(request) == client


@pytest.mark.parametrize("hop", ["", "{}"])
def test_hops_of_a_trusted_proxy_are_looked_at_in_few_steps(hop: str) -> None:
    def found(number: int) -> int:
        request = claiming([hop.format(f"10.1.{each >> 8}.{each & 255}") for each in range(number)])
        forwarding = ForwardingContext("10.0.0.2", "http", ("10.0.0.0/8",), 0)
        return steps_of(lambda: forwarding.client(request))

    assert found(5000) <= found(64) + 20


def test_addresses_of_ipv6_are_quoted_in_forwarded() -> None:
    head = forwarded(b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "2001:db8::1")
    assert b'\r\nForwarded: for="[2001:db8::1]";proto=http;host="[::1]:80"\r\n' in head
    assert b"\r\nX-Forwarded-For: 2001:db8::1\r\n" in head


def test_absolute_target_replaces_the_host() -> None:
    request = read(b"GET http://b:80?x HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (request.host, request.target, request.path) == (b"b:80", b"/?x", b"/")
    assert (
        re.findall(rb"(?i)\r\nhost:.*", request.fields) == [b"\r\nHost: b:80\r"] or b"a" not in request.fields
    )


@pytest.mark.parametrize(
    ("version", "protocol", "upgrade"),
    [
        (b"1.1", b"websocket", b"websocket"),
        (b"1.1", b"h2c", b""),
        (b"1.1", b"h2c, websocket", b""),  # a backend might choose the first
        (b"1.0", b"websocket", b""),  # RFC 9110 §7.8
    ],
)
def test_upgrade_to_one_visible_protocol_is_passed_on(
    version: bytes, protocol: bytes, upgrade: bytes
) -> None:
    data = b"GET / HTTP/%b\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\n" % (version, protocol)
    assert read(data).upgrade == upgrade
    assert (b"\r\nUpgrade: " in forwarded(data)) == bool(upgrade)


MOST_BYTES = 64 * 1024


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"


LONG = b"X: " + b"y" * 600 + b"\r\n"


def options(count: int) -> bytes:
    return b"Connection: " + b", ".join(b"h%d" % number for number in range(count)) + b"\r\n"


def asked_for(path: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path


@pytest.fixture(scope="module")
def table() -> Iterator[RouteTable]:
    routes = [
        Route(alias="all", to=(Target(server="one"),)),
        Route(alias="deep", path="/a/b/c", to=(Target(server="two"),)),
    ]
    fd = write_table(routes, 1)
    table = RouteTable(fd)
    os.close(fd)
    yield table
    table.close()


HOSTILE = {
    "options": GET + options(8_500) + b"\r\n",
    "empty options": GET + b"Connection: " + b"," * 60_000 + b"\r\n\r\n",
    "lines of options": GET + b"Connection: a, b\r\n" * 3_000 + b"\r\n",
    "as many options as may be": GET + options(MOST_OPTIONS) + LONG * 95 + b"\r\n",
    "fields": GET + b"X:y\r\n" * 12_000 + b"\r\n",
    "odd fields": GET + b"X:y \t\r\n" * 9_000 + b"\r\n",
    "as many fields as may be": GET + LONG * 99 + b"\r\n",
    "cookies": GET + b"Cookie: " + b"a;" * 30_000 + b"\r\n\r\n",
    "parameters": asked_for(b"/;" * 30_000),
    "slashes": asked_for(b"/" * 60_000),
    "escaped slashes": asked_for(b"/" + b"%2F" * 20_000),
    "parameters that may be": asked_for(b"/;" * 120 + b"a" * 60_000),
    "segments": asked_for(b"/a" * 30_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_steps_of_a_head_do_not_follow_its_size(table: RouteTable, name: str) -> None:
    forwarding, route = ForwardingContext("198.51.100.7", "http", (), 0), Route(alias="a", sticky_cookie="b")

    def serve(data: bytes) -> None:
        head = canonical_head(data)
        if head is not None:
            passable_match(head, table)
        try:
            request = read_request(data, MOST_BYTES, 0)
        except BadMessage:
            return
        assert request is not None
        read = normalize_path(request.path.decode())
        if read is not None:
            table.find("a", read.normal)
            forwarding.head(request, route, request.target)
            request.cookie(route.sticky_cookie)

    serve(GET + b"\r\n")  # compiles the expressions
    # An escape is decoded in a step of its own, before they are counted.
    assert steps_of(lambda: serve(HOSTILE[name])) < (50_000 if b"%" in HOSTILE[name] else 3_000)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (options(MOST_OPTIONS), 200),
        (options(MOST_OPTIONS + 1), 431),
        (b"Connection: a\r\n" * (MOST_OPTIONS + 1), 431),
        (b"X: y\r\n" * (MOST_FIELDS - 1), 200),  # and Host
        (b"X: y\r\n" * MOST_FIELDS, 431),
        (b"X: y \r\n" * MOST_FIELDS, 431),
    ],
)
def test_request_with_too_many_fields_or_options_gets_431(fields: bytes, status: int) -> None:
    data = GET + fields + b"\r\n"
    assert (canonical_head(data) is None) == (status != 200)
    if status == 200:
        assert read_request(data, MOST_BYTES, 0)
    else:
        with pytest.raises(BadMessage) as refused:
            read_request(data, MOST_BYTES, 0)
        assert refused.value.status == status


def test_fields_that_are_named_by_connection_are_removed_whatever_their_case() -> None:
    request = read_request(
        GET + b"Connection: x-One, X-two\r\nX-ONE: 1\r\nx-Two: 2\r\nX-Three: 3\r\n\r\n", MOST_BYTES, 0
    )
    assert request is not None
    head = ForwardingContext("198.51.100.7", "http", (), 0).head(request, Route(alias="a"), b"/")
    assert b"X-Three: 3" in head
    assert b"one" not in head.lower()
    assert b"two" not in head.lower()
    response = read_response(
        OK + b"Connection: x-One, X-two\r\nX-ONE: 1\r\nx-Two: 2\r\nX-Three: 3\r\n\r\n", 0, head_only=False
    )
    assert response is not None
    assert response.end_to_end_lines == b"HTTP/1.1 200 OK\r\nX-Three: 3\r\n"


@pytest.mark.parametrize(
    ("cookies", "value"),
    [
        (b"Cookie: a=1; b=2\r\n", "2"), (b'Cookie: b="2"\r\n', "2"), (b"Cookie: b=\r\n", ""), (b"Cookie: ab=1\r\n", ""),
        (b"Cookie: a=1\r\nCookie: b=2\r\n", "2"), (b"Cookie: B=1;b=2 ;b=3\r\n", "2"), (b"", ""),
    ],
)  # fmt: skip
def test_cookie_of_a_name_is_found(cookies: bytes, value: str) -> None:
    request = read_request(GET + cookies + b"\r\n", MOST_BYTES, 0)
    assert request is not None
    assert request.cookie("b") == value


ROUTES = (
    Route(alias="app", host="a", path="/app", to=(Target(server="one"),), strip_path=True),
    Route(alias="static", host="a", path="/static/", to=(Target(server="one"),), strip_path=True),
    Route(alias="rest", host="a", to=(Target(server="one"), Target(server="two"))),
    Route(
        alias="fields", host="b", headers=(Header(name="x-kind", value="1, 2"),), to=(Target(server="two"),)
    ),
    Route(alias="posts", host="b", methods=("POST",), to=(Target(server="two"),)),
    Route(alias="office", host="c", allow=("10.0.0.0/8",), to=(Target(server="one"),)),
)


def routed(
    data: bytes,
    forwarding: ForwardingContext | None = None,
    certificate: CertificateContext | None = None,
    **settings: Any,
) -> RoutedRequest:
    found = []

    async def scene(stage: Stage) -> None:
        stage.routes(*ROUTES)
        found.append(
            route_or_refuse_request(
                stage.edge, read(data), forwarding or ForwardingContext(PEER, "http", (), 0), certificate
            )
        )

    play(scene, **settings)
    return found[0]


def request_of(target: str, *lines: str, method: str = "GET", host: str = "a") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("target", "alias", "sent"),
    [
        ("/", "rest", b"/"),
        ("/other?a=/app", "rest", b"/other?a=/app"),
        ("/a/../b%2e", "rest", b"/b."),
        ("/a/../b?c=/../d", "rest", b"/b?c=/../d"),
        ("/app", "app", b"/"),
        ("/app?x", "app", b"/?x"),
        ("/app/deep/er?x=1", "app", b"/deep/er?x=1"),
        ("/static/a.css", "static", b"/a.css"),
        ("/static/", "static", b"/"),
    ],
)
def test_target_is_sent_in_normal_form_and_without_the_prefix_of_its_route(
    target: str, alias: str, sent: bytes
) -> None:
    found = routed(request_of(target))
    assert found.route.alias == alias
    assert found.head.startswith(b"GET %b HTTP/1.1\r\nHost: a\r\n" % sent)


def test_options_for_the_whole_server_go_to_the_route_of_its_root() -> None:
    found = routed(request_of("*", method="OPTIONS"))
    assert (found.route.alias, found.head.split(b"\r\n")[0]) == ("rest", b"OPTIONS * HTTP/1.1")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request_of("/", host="nowhere"), 404),
        (request_of("/", host="b"), 404),
        (request_of("/", method="TRACE"), 405),
        (request_of("a:80", method="CONNECT"), 405),
        (request_of("/%00"), 400),
    ],
)
def test_request_without_a_route_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(BadMessage) as refused:
        routed(data)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("lines", "method", "alias"),
[(["X-Kind: 1", "x-kind: 2"], "GET", "fields"), ([], "POST", "posts")],
)  # fmt: skip
def test_route_is_chosen_by_fields_and_method(lines: list[str], method: str, alias: str) -> None:
    assert routed(request_of("/", *lines, method=method, host="b")).route.alias == alias


@pytest.mark.parametrize(
    ("lines", "alias"), [([], "rest"), (["X-Host: b:80"], "posts"), (["X-Host: C"], "office")]
)
def test_host_can_be_taken_from_another_field(lines: list[str], alias: str) -> None:
    found = routed(request_of("/", *lines, method="POST"), header_for_host="X-Host")
    assert found.route.alias == alias
    assert not found.servers, "a worker would look at Host"


@pytest.mark.parametrize(
    ("data", "forwarding", "servers"),
    [
        (request_of("/"), ForwardingContext(PEER, "http", (), 0), {"one", "two"}),
        (request_of("/a/../b"), ForwardingContext(PEER, "http", (), 0), set()),
        (request_of("http://a/"), ForwardingContext(PEER, "http", (), 0), set()),
        (request_of("/"), ForwardingContext(PEER, "https", (), 0), set()),
        (request_of("/", "X-Forwarded-Proto: https"), ForwardingContext(PEER, "http", (PEER,), 0), set()),
        (request_of("/app"), ForwardingContext(PEER, "http", (), 0), set()),
        (request_of("/", host="c"), ForwardingContext("10.0.0.1", "http", (), 0), {"one"}),
        (request_of("/", host="c"), ForwardingContext("10.0.0.1", "http", ("10.0.0.1",), 0), set()),
        (request_of("/", host="c"), ForwardingContext(PEER, "http", (), 0), set()),
    ],
)
def test_connection_can_be_passed_if_the_worker_reads_the_request_as_it_was_sent(
    data: bytes, forwarding: ForwardingContext, servers: set[str]
) -> None:
    assert routed(data, forwarding).servers == servers


def test_host_of_another_client_certificate_is_refused() -> None:
    class Certificate(CertificateContext):
        def allows_requests_for_host(self, host: bytes) -> bool:
            return host == b"a"

    certificate = Certificate(ssl.PROTOCOL_TLS_SERVER)
    forwarding = ForwardingContext(PEER, "https", (), 0)
    assert routed(request_of("/"), forwarding, certificate).route.alias == "rest"
    with pytest.raises(BadMessage) as refused:
        routed(request_of("/", host="c"), forwarding, certificate)
    assert refused.value.status == 421


@pytest.mark.parametrize(
    ("proto", "scheme", "trusted", "secure"),
    [
        ("", "http", (), False),
        ("", "https", (), True),
        ("https", "http", (), False),
        ("HTTPS , http", "http", (PEER,), True),
        ("http, https", "https", (PEER,), False),
        ("", "https", (PEER,), True),
    ],
)
def test_request_is_secure_if_its_client_used_tls(
    proto: str, scheme: str, trusted: tuple[str, ...], secure: bool
) -> None:
    request = read(request_of("/", f"X-Forwarded-Proto: {proto}"))
    assert ForwardingContext(PEER, scheme, trusted, 0).is_secure(request) is secure


@pytest.mark.parametrize(
    ("peer", "trusted", "port", "sender"),
    [
        (PEER, (), 4711, f"{PEER}:4711"),
        (PEER, (), 0, PEER),
        ("10.0.0.2", ("10.0.0.0/8",), 4711, "203.0.113.1"),
    ],
)
def test_log_names_the_port_of_a_client_without_a_proxy(
    peer: str, trusted: tuple[str, ...], port: int, sender: str
) -> None:
    assert ForwardingContext(peer, "http", trusted, port).client_for_log(read(CLAIMING)) == sender


@pytest.mark.parametrize(
    ("data", "route", "host"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Route(alias="r", host_header="b:80"), b"b:80"),
        (b"GET / HTTP/1.0\r\n\r\n", Route(alias="r", host_header="b:80"), b"b:80"),
        (b"GET / HTTP/1.0\r\n\r\n", ROUTE, b""),
    ],
)
def test_backend_gets_exactly_one_host(data: bytes, route: Route, host: bytes) -> None:
    head = ForwardingContext(PEER, "http", (), 0).head(read(data), route, b"/")
    assert [value for name, value in fields(head) if name == b"host"] == [host]


@pytest.mark.parametrize(("version", "expects"), [("1.1", True), ("1.0", False)])
def test_expectation_of_an_old_client_is_not_passed_on(version: str, expects: bool) -> None:
    data = f"POST / HTTP/{version}\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n".encode()
    assert ((b"expect", b"100-continue") in fields(forwarded(data))) is expects


@pytest.mark.parametrize("option", ["host", "content-length", "transfer-encoding", "expect", "a b"])
def test_client_cannot_have_a_field_removed_that_decides_how_the_request_is_read(option: str) -> None:
    with pytest.raises(BadMessage):
        forwarded(request_of("/", f"Connection: {option}"))


def test_fields_of_the_route_replace_those_of_the_client() -> None:
    route = Route(
        alias="r",
        set_headers=(Header(name="x-a", value="1"),),
        add_headers=(Header(name="x-b", value="2"),),
        remove_headers=("x-forwarded-host", "x-c"),
    )
    request = read(request_of("/", "X_A: mine", "X-B: mine", "x_c: mine", "X-Ca: mine"))
    sent = fields(ForwardingContext(PEER, "http", (), 0).head(request, route, b"/"))
    assert [each for each in sent if each[0].startswith(b"x")] == [
        (b"x-b", b"mine"),
        (b"x-ca", b"mine"),
        (b"x-forwarded-for", PEER.encode()),
        (b"x-forwarded-proto", b"http"),
        (b"x-a", b"1"),
        (b"x-b", b"2"),
    ]


def test_fields_of_a_response_have_lines_and_an_expression_for_what_they_replace() -> None:
    lines, replaced = response_fields((Header(name="x-a", value="1"), Header(name="b", value="2")))
    assert lines == b"x-a: 1\r\nb: 2\r\n"
    assert replaced.sub(b"", b"HTTP/1.1 200 OK\r\nX_a: 0\r\nX-ab: 0\r\nB:0") == (
        b"HTTP/1.1 200 OK\r\nX-ab: 0"
    )


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://h.test:81", "http://h.test:81"),
        ("https://h.test", "https://h.test:443"),
        ("http://[::1]", "http://[::1]:80"),
        ("unix:/run/a", "unix:/run/a"),
    ],
)
def test_backend_is_informed_of_the_route_and_its_own_url(url: str, whole: str) -> None:
    route = Route(alias="r", host="h", path="/p", provider="file", to=(Target(url=url),))
    assert context_lines(route, Backend(url, Traffic(), is_server=False)) == (
        b"x-poolctl-route: r\r\nx-poolctl-route-host: h\r\nx-poolctl-route-path: /p\r\n"
        b"x-poolctl-route-provider: file\r\nx-poolctl-upstream: r\r\nx-poolctl-upstream-url: "
        + whole.encode()
        + b"\r\n"
    )


def test_server_is_informed_of_its_own_name() -> None:
    backend = Backend("web", Traffic(), is_server=True)
    backend.endpoint = Endpoint.of_url("unix:/run/web")
    assert b"x-poolctl-upstream: web\r\n" in context_lines(Route(alias="r"), backend)
