"""Frames of WebSockets and heads of responses, however their bytes arrive."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.features.gateway.process.proxy.client_connection import MOST_FRAMES_AT_ONCE, FrameBoundary
from poolctl.features.gateway.process.proxy.response_head import read_response
from poolctl.http.messages import UNTIL_CLOSE, BadMessage
from tests.examples import examples
from tests.http_corpus import RESPONSES, ResponseCase


def payload(size: int, masked: bool) -> bytes:
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    if masked:
        return b"\x82" + bytes([length[0] | 0x80]) + length[1:] + b"mask" + b"p" * size
    return b"\x82" + length + b"p" * size


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 5, 125, 126, 300]), st.booleans())),
    st.lists(st.integers(0, 900)),
)
@examples(100)
def test_the_ends_of_frames_are_known_however_they_are_split(
    frames: list[tuple[int, bool]], cuts: list[int]
) -> None:
    sent, ends = b"", {0}
    for size, masked in frames:
        sent += payload(size, masked)
        ends.add(len(sent))
    boundary, begin = FrameBoundary(), 0
    for end in sorted({min(cut, len(sent)) for cut in cuts} | {len(sent)}):
        assert boundary.feed(sent[begin:end]) == end - begin
        assert boundary.at_boundary == (end in ends)
        begin = end
    first = FrameBoundary()
    if len(sent) > 1:
        first.feed(sent[:1])
        assert 1 + first.feed(sent[1:], only_first=True) == min(ends - {0})


def test_a_long_frame_is_followed() -> None:
    boundary = FrameBoundary()
    boundary.feed(b"\x82\x7f" + (70_000).to_bytes(8, "big"))
    boundary.feed(b"p" * 69_999)
    assert not boundary.at_boundary
    boundary.feed(b"p")
    assert boundary.at_boundary


def test_tiny_frames_are_followed_up_to_a_number_a_read_and_then_copied_only() -> None:
    boundary = FrameBoundary()
    followed = b"\x81\x00" * MOST_FRAMES_AT_ONCE
    assert boundary.passed_on(followed) == followed
    assert boundary.at_boundary
    assert boundary.passed_on(followed + b"\x81\x00") == followed + b"\x81\x00"
    assert not boundary.at_boundary
    assert boundary.passed_on(followed) == followed
    assert boundary.end() == b""  # it would stand within a frame, perhaps
    assert boundary.passed_on(followed) == followed


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.name)
def test_heads_of_responses_are_read_as_the_corpus_says_or_refused(case: ResponseCase) -> None:
    data = case.data
    try:
        response = read_response(data, head_only=case.head_only)
        while response is not None and response.status < 200 and response.status != 101:
            data = data[response.end :]
            response = read_response(data, head_only=case.head_only)
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
    assert b"\r\n\r\n" not in response.lines
    assert not re.search(rb"\r\n(?i:connection|transfer-encoding|content-length|keep-alive):", response.lines)
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
    response = read_response(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (b"\r\n".join(lines), body))
    assert response is not None
    left_out = (b"connection:", b"keep-alive:", b"content-length:", b"transfer-encoding:")
    kept = [line for line in lines if not line.lower().startswith(left_out)]
    assert response.keep_alive
    assert response.lines == b"".join(b"%b\r\n" % line for line in (b"HTTP/1.1 200 OK", *kept))
    assert response.first == body


@pytest.mark.parametrize(
    "line", [b"Connection: close", b"Connection: keep-alive, x", b"X: a\r\n Connection: keep-alive"]
)
def test_connection_is_kept_unless_a_line_closes_it(line: bytes) -> None:
    response = read_response(b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: 0\r\n\r\n" % line)
    assert response is not None
    assert response.keep_alive == (b"close" not in line)


def test_fields_named_by_connection_are_not_passed_on() -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nConnection: x-hop, close\r\nX-Hop: 1\r\nX-Hope: 2\r\nContent-Length: 0\r\n\r\n"
    )
    response = read_response(head)
    assert response is not None
    assert response.lines == b"HTTP/1.1 200 OK\r\nX-Hope: 2\r\n"
    assert not response.keep_alive
