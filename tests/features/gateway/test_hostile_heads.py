"""Heads within the limit of size that would make work out of proportion: refused, or read in few steps."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from poolctl.features.gateway.process.proxy.request_head import Forwarding, read_request
from poolctl.features.gateway.process.proxy.response_head import read_response
from poolctl.http.messages import MOST_FIELDS, MOST_OPTIONS, BadMessage, canonical_head
from poolctl.routing.decision import passed_match
from poolctl.routing.normal_path import read_path
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import RouteTable, write_table
from tests.steps import steps_of

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
    forwarding, route = Forwarding("198.51.100.7", "http", ()), Route(alias="a", sticky_cookie="b")

    def serve(data: bytes) -> None:
        head = canonical_head(data)
        if head is not None:
            passed_match(head, table)
        try:
            request = read_request(data, MOST_BYTES)
        except BadMessage:
            return
        assert request is not None
        read = read_path(request.path.decode())
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
        assert read_request(data, MOST_BYTES)
    else:
        with pytest.raises(BadMessage) as refused:
            read_request(data, MOST_BYTES)
        assert refused.value.status == status


def test_response_with_too_many_options_is_refused() -> None:
    assert read_response(OK + options(MOST_OPTIONS) + b"\r\n")
    with pytest.raises(BadMessage):
        read_response(OK + options(MOST_OPTIONS + 1) + b"\r\n")


@pytest.mark.parametrize("field", [b"X: y\r\n", b"Connection: keep-alive\r\n"])
def test_response_with_too_many_fields_is_refused(field: bytes) -> None:
    fields = b"X: y\r\n" * (MOST_FIELDS - 2)
    assert read_response(OK + field + fields + b"\r\n")
    with pytest.raises(BadMessage):
        read_response(OK + field * 2 + fields + b"\r\n")


def test_fields_that_are_named_by_connection_are_removed_whatever_their_case() -> None:
    request = read_request(
        GET + b"Connection: x-One, X-two\r\nX-ONE: 1\r\nx-Two: 2\r\nX-Three: 3\r\n\r\n", MOST_BYTES
    )
    assert request is not None
    head = Forwarding("198.51.100.7", "http", ()).head(request, Route(alias="a"), b"/")
    assert b"X-Three: 3" in head
    assert b"one" not in head.lower()
    assert b"two" not in head.lower()
    response = read_response(OK + b"Connection: x-One, X-two\r\nX-ONE: 1\r\nx-Two: 2\r\nX-Three: 3\r\n\r\n")
    assert response is not None
    assert response.lines == b"HTTP/1.1 200 OK\r\nX-Three: 3\r\n"


@pytest.mark.parametrize(
    ("cookies", "value"),
    [
        (b"Cookie: a=1; b=2\r\n", "2"), (b'Cookie: b="2"\r\n', "2"), (b"Cookie: b=\r\n", ""), (b"Cookie: ab=1\r\n", ""),
        (b"Cookie: a=1\r\nCookie: b=2\r\n", "2"), (b"Cookie: B=1;b=2 ;b=3\r\n", "2"), (b"", ""),
    ],
)  # fmt: skip
def test_cookie_of_a_name_is_found(cookies: bytes, value: str) -> None:
    request = read_request(GET + cookies + b"\r\n", MOST_BYTES)
    assert request is not None
    assert request.cookie("b") == value
