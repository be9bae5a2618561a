"""Heads of responses, however their bytes arrive, and what of them is passed on."""

from __future__ import annotations

import re

import pytest

from poolctl.features.gateway.process.proxy.request_head import response_fields
from poolctl.features.gateway.process.proxy.response_head import read_response, whole_response
from poolctl.http.messages import MOST_FIELDS, MOST_OPTIONS, UNTIL_CLOSE, BadMessage, phrase_of
from poolctl.routing.route import Header
from tests.features.gateway.test_request_head import options
from tests.http_corpus import RESPONSES, ResponseCase


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.name)
def test_heads_of_responses_are_read_as_the_corpus_says_or_refused(case: ResponseCase) -> None:
    data = case.data
    try:
        response = read_response(data, 0, head_only=case.head_only)
        while response is not None and response.status < 200 and response.status != 101:
            data = data[response.end :]
            response = read_response(data, 0, head_only=case.head_only)
    except BadMessage:
        assert not case.status
        return
    if response is None:  # nothing but interim responses, or half a head
        assert not case.status or not case.whole
        return
    if not case.status:  # refused only by its body, or because it was not asked for
        assert response.body < 0 or response.status == 101
        return
    assert response.status == case.status
    assert b"\r\n\r\n" not in response.end_to_end_lines
    assert not re.search(
        rb"\r\n(?i:connection|transfer-encoding|content-length|keep-alive):", response.end_to_end_lines
    )
    if case.whole and response.body >= 0:
        assert response.body == len(case.body)
    if case.reusable:
        assert response.keep_alive
        assert response.body != UNTIL_CLOSE


@pytest.mark.parametrize(
    "lines",
    [
        (b"Server: nginx", b"Content-Length: 2", b"Connection: keep-alive"),
        (b"connection: Keep-Alive", b"Keep-Alive: timeout=5, max=100", b"content-length:2", b"Date: x"),
        (
            b"Keep-Alive: timeout=5",
            b"Transfer-Encoding: chunked",
            b"Connection: keep-alive",
            b"ConnectionX: y",
        ),
    ],
)
def test_lines_that_keep_the_connection_alive_are_left_out(
    lines: tuple[bytes, ...],
) -> None:
    body = b"ok and \r\nConnection: keep-alive\r\n\r\n"
    response = read_response(
        b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (b"\r\n".join(lines), body), 0, head_only=False
    )
    assert response is not None
    left_out = (b"connection:", b"keep-alive:", b"content-length:", b"transfer-encoding:")
    kept = [line for line in lines if not line.lower().startswith(left_out)]
    assert response.keep_alive
    assert response.end_to_end_lines == b"".join(b"%b\r\n" % line for line in (b"HTTP/1.1 200 OK", *kept))
    assert response.first == body


@pytest.mark.parametrize(
    "line", [b"Connection: close", b"Connection: keep-alive, x", b"X: a\r\n Connection: keep-alive"]
)
def test_connection_is_kept_unless_a_line_closes_it(line: bytes) -> None:
    response = read_response(b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: 0\r\n\r\n" % line, 0, head_only=False)
    assert response is not None
    assert response.keep_alive == (b"close" not in line)


def test_fields_named_by_connection_are_not_passed_on() -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nConnection: x-hop, close\r\nX-Hop: 1\r\nX-Hope: 2\r\nContent-Length: 0\r\n\r\n"
    )
    response = read_response(head, 0, head_only=False)
    assert response is not None
    assert response.end_to_end_lines == b"HTTP/1.1 200 OK\r\nX-Hope: 2\r\n"
    assert not response.keep_alive


@pytest.mark.parametrize(
    ("field", "http_1_1", "keep", "framing", "stays", "wraps"),
    [
        (b"Content-Length: 2", True, True, b"Content-Length: 2\r\n", True, False),
        (b"Content-Length: 0", True, True, b"Content-Length: 0\r\n", True, False),
        (b"Content-Length: 2", True, False, b"Content-Length: 2\r\nConnection: close\r\n", False, False),
        (b"Content-Length: 2", False, True, b"Content-Length: 2\r\nConnection: keep-alive\r\n", True, False),
        (b"Transfer-Encoding: chunked", True, True, b"Transfer-Encoding: chunked\r\n", True, False),
        (b"Transfer-Encoding: chunked", False, True, b"Connection: close\r\n", False, False),
        (b"X: y", True, True, b"X: y\r\nTransfer-Encoding: chunked\r\n", True, True),
        (b"X: y", False, True, b"X: y\r\nConnection: close\r\n", False, False),
    ],
)
def test_head_says_how_the_body_ends_for_the_version_of_the_client(
    field: bytes, http_1_1: bool, keep: bool, framing: bytes, stays: bool, wraps: bool
) -> None:
    response = read_response(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % field, 0, head_only=False)
    assert response is not None
    head = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n"
    assert response.head_keep_alive_and_chunked(http_1_1=http_1_1, keep=keep) == (head, stays, wraps)


def test_fields_of_the_route_replace_those_of_the_response_and_others_are_added() -> None:
    head = b"HTTP/1.1 200 OK\r\nx-a: 1\r\nX-A-B: 2\r\nX_A: 3\r\nContent-Length: 0\r\n\r\n"
    response = read_response(head, 0, head_only=False)
    assert response is not None
    lines, replaced = response_fields((Header(name="X-A", value="4"),))
    response.replace(replaced, lines)
    response.add(b"X-A: 5\r\n")
    assert response.end_to_end_lines == b"HTTP/1.1 200 OK\r\nX-A-B: 2\r\nX-A: 4\r\nX-A: 5\r\n"


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"


def test_response_with_too_many_options_is_refused() -> None:
    assert read_response(OK + options(MOST_OPTIONS) + b"\r\n", 0, head_only=False)
    with pytest.raises(BadMessage):
        read_response(OK + options(MOST_OPTIONS + 1) + b"\r\n", 0, head_only=False)


@pytest.mark.parametrize("field", [b"X: y\r\n", b"Connection: keep-alive\r\n"])
def test_response_with_too_many_fields_is_refused(field: bytes) -> None:
    fields = b"X: y\r\n" * (MOST_FIELDS - 2)
    assert read_response(OK + field + fields + b"\r\n", 0, head_only=False)
    with pytest.raises(BadMessage):
        read_response(OK + field * 2 + fields + b"\r\n", 0, head_only=False)


@pytest.mark.parametrize(
    ("seconds", "line"), [(0.0, b""), (0.2, b"Retry-After: 1\r\n"), (2.5, b"Retry-After: 3\r\n")]
)
def test_response_of_the_gateway_is_its_status_and_when_to_come_back(seconds: float, line: bytes) -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 24\r\n"
    body = b"503 Service Unavailable\n"
    found = whole_response(503, retry_after_seconds=seconds, fields=b"X: y\r\n")
    assert found == head + line + b"Connection: close\r\nX: y\r\n\r\n" + body
    kept = whole_response(503, retry_after_seconds=seconds, head_only=True, keep_alive=True)
    assert kept == head + line + b"\r\n"
    assert whole_response(503) == head + b"Connection: close\r\n\r\n" + body


def test_phrases_are_those_of_rfc_9110_and_an_unknown_status_has_none() -> None:
    assert [phrase_of(status) for status in (200, 413, 799)] == ["OK", "Content Too Large", ""]
