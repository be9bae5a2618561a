"""Chunked bodies, frames of WebSockets and heads of responses, however their bytes arrive."""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poolctl.gateway.proxy.chunked_body import ChunkedBody
from poolctl.gateway.proxy.response_head import UNTIL_CLOSE, read_response
from poolctl.gateway.proxy.websocket_frames import FrameBoundary
from poolctl.http.message_head import BadMessage
from tests.http_corpus import CHUNKED, REQUESTS, RESPONSES, ResponseCase

SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"000%x"])
EXTENSIONS = st.sampled_from([b"", b"", b"", b";a=b", b' ;a="b c"', b";"])
CHUNK = st.tuples(st.binary(min_size=1, max_size=40), SIZES, EXTENSIONS)
TRAILERS = st.sampled_from([b"", b"A: b\r\n", b"Content-Length: 5\r\nX-Sum: 1\r\n"])


def fed(body: ChunkedBody, data: bytes, cuts: list[int]) -> bytes:
    """What the body passes on of the data, which arrives in pieces."""
    passed, begin = b"", 0
    for end in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        piece = data[begin:end]
        if not body.done:
            given_out = bytes(body.feed(piece))
            assert not body.unchanged or given_out == piece
            passed += given_out
        else:
            body.rest += piece
        begin = end
    return passed


def by_h11(chunks: bytes) -> tuple[bytes, bytes]:
    """The data and the bytes behind it, as h11 reads a body in chunks."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    data = b""
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        data += bytes(event.data) if isinstance(event, h11.Data) else b""
    return data, parser.trailing_data[0]


@given(
    st.lists(CHUNK, max_size=8), TRAILERS, st.lists(st.integers(0, 400), max_size=6), st.binary(max_size=9)
)
@example([(b"a", b"%x", b"")], b"", [], b"")
@example([(b"a", b"%x", b"")], b"", [4, 5, 6, 7, 8, 9, 10], b"GET")
def test_chunks_pass_on_canonically_however_they_are_split(
    chunks: list[tuple[bytes, bytes, bytes]], trailers: bytes, cuts: list[int], rest: bytes
) -> None:
    sent = b"".join(size % len(data) + more + b"\r\n" + data + b"\r\n" for data, size, more in chunks)
    sent += b"0\r\n" + trailers + b"\r\n" + rest
    data = b"".join(each[0] for each in chunks)
    body, decoded = ChunkedBody(), ChunkedBody(decode=True)
    passed = fed(body, sent, cuts)
    assert by_h11(passed) == (data, b"")
    assert re.fullmatch(rb"(?:[1-9a-fA-F][0-9a-fA-F]*\r\n(?s:.*)\r\n)?0\r\n(?:[AX].*\r\n)?\r\n", passed)
    assert fed(decoded, sent, cuts) == data
    for each in (body, decoded):
        assert each.done
        assert (each.rest, each.size) == (rest, len(data))
        assert b"content-length" not in each.trailers.lower()
        assert (b"X-Sum: 1\r\n" in each.trailers) == (b"X-Sum" in trailers)


BAD_CHUNKS = [case for case in REQUESTS if case.status == 400 and case.data.startswith(CHUNKED)]


@pytest.mark.parametrize("case", BAD_CHUNKS, ids=lambda case: case.name)
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_malformed_chunks_are_refused_before_they_are_passed_on(case: object, step: int) -> None:
    data = case.data[len(CHUNKED) :]  # type: ignore[attr-defined]
    body = ChunkedBody()
    with pytest.raises(BadMessage):
        fed(body, data, list(range(0, len(data), step)))


def test_extensions_and_trailers_are_bounded() -> None:
    with pytest.raises(BadMessage):
        ChunkedBody().feed((b"1;" + b"x" * 4000 + b"\r\na\r\n") * 20)
    with pytest.raises(BadMessage):
        ChunkedBody().feed(b"0\r\n" + b"a: b\r\n" * 4000)
    with pytest.raises(BadMessage):
        ChunkedBody().feed(b"1;" + b"x" * 5000)


@pytest.mark.parametrize("line", [b"a", b"a:", b"a :b", b" a: b", b": b", b"a: \x00"])
def test_trailers_are_whole_lines(line: bytes) -> None:
    body = ChunkedBody()
    sent = b"0\r\nX: y\r\n" + line + b"\r\n\r\n"
    if line == b"a:":
        assert body.feed(sent) == sent
    else:
        with pytest.raises(BadMessage):
            body.feed(sent)


def payload(size: int, masked: bool) -> bytes:
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    if masked:
        return b"\x82" + bytes([length[0] | 0x80]) + length[1:] + b"mask" + b"p" * size
    return b"\x82" + length + b"p" * size


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 5, 125, 126, 300]), st.booleans())),
    st.lists(st.integers(0, 900)),
)
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
def test_lines_that_keep_the_connection_alive_are_left_out_and_the_rest_goes_on_as_it_is(
    lines: tuple[bytes, ...],
) -> None:
    body = b"ok and \r\nConnection: keep-alive\r\n\r\n"
    response = read_response(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (b"\r\n".join(lines), body))
    assert response is not None
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"keep-alive:"))]
    assert response.plain
    assert response.keep_alive
    assert response.received == b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (b"\r\n".join(kept), body)
    assert response.first == body


@pytest.mark.parametrize(
    "line", [b"Connection: close", b"Connection: keep-alive, x", b"X: a\r\n Connection: keep-alive"]
)
def test_other_lines_about_the_connection_are_read_by_the_strict_parser(line: bytes) -> None:
    response = read_response(b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: 0\r\n\r\n" % line)
    assert response is not None
    assert not response.plain
    assert response.keep_alive == (b"close" not in line)


def test_fields_named_by_connection_are_not_passed_on() -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nConnection: x-hop, close\r\nX-Hop: 1\r\nX-Hope: 2\r\nContent-Length: 0\r\n\r\n"
    )
    response = read_response(head)
    assert response is not None
    assert response.lines == b"HTTP/1.1 200 OK\r\nX-Hope: 2\r\n"
    assert not response.keep_alive
