"""Chunked bodies, however their bytes arrive: their grammar, and the work that a sender can cause."""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poolctl.http.chunked_body import MOST_CHUNKS_A_SECOND, MOST_CHUNKS_AT_ONCE, ChunkedBody
from poolctl.http.message_head import MOST_FIELDS, BadMessage
from tests.http_corpus import CHUNKED, REQUESTS
from tests.steps import steps_of

TINY = b"1\r\na\r\n"
SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"000%x"])
EXTENSIONS = st.sampled_from([b"", b"", b"", b";a=b", b' ;a="b c"', b";"])
CHUNK = st.tuples(st.binary(min_size=1, max_size=40), SIZES, EXTENSIONS)
TRAILERS = st.sampled_from([b"", b"A: b\r\n", b"Content-Length: 5\r\nX-Sum: 1\r\n"])


def fed(body: ChunkedBody, data: bytes, cuts: list[int], most: int = 0) -> bytes:
    """What the body passes on of the data, which arrives in pieces; it reads so many chunks at once."""
    passed, begin = b"", 0
    for end in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        piece = data[begin:end]
        if body.done:
            body.rest += piece
            piece = b""
        while piece:
            given_out = bytes(body.feed(piece, most=most))
            assert not body.unchanged or given_out == piece
            passed += given_out
            piece = b"" if body.done else body.rest
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
    body, decoded, in_turns = ChunkedBody(), ChunkedBody(decode=True), ChunkedBody()
    passed = fed(body, sent, cuts)
    assert by_h11(passed) == (data, b"")
    assert re.fullmatch(rb"(?:[1-9a-fA-F][0-9a-fA-F]*\r\n(?s:.*)\r\n)?0\r\n(?:[AX].*\r\n)?\r\n", passed)
    assert fed(decoded, sent, cuts) == data
    assert fed(in_turns, sent, cuts, most=1) == passed
    for each in (body, decoded, in_turns):
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
    body = ChunkedBody()
    body.feed(b"0\r\n" + b"a: b\r\n" * MOST_FIELDS + b"\r\n")
    assert body.done
    with pytest.raises(BadMessage):
        ChunkedBody().feed(b"0\r\n" + b"a: b\r\n" * (MOST_FIELDS + 1) + b"\r\n")
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


def test_chunks_above_the_rate_of_a_second_are_refused_whatever_their_size() -> None:
    now = 100.0
    body = ChunkedBody(clock=lambda: now)
    for _ in range(2):
        body.feed(TINY * (MOST_CHUNKS_A_SECOND - 1))
        body.feed(TINY)
        now += 1.0
    body.feed(TINY * MOST_CHUNKS_A_SECOND)
    now += 0.9
    with pytest.raises(BadMessage, match="20000 chunks a second") as refused:
        body.feed(TINY)
    assert refused.value.status == 400
    last = ChunkedBody(clock=lambda: now)
    last.feed(TINY * MOST_CHUNKS_A_SECOND)
    with pytest.raises(BadMessage):
        last.feed(b"0\r\n\r\n")
    unlimited = ChunkedBody(most_a_second=0, clock=lambda: now)
    unlimited.feed(TINY * (2 * MOST_CHUNKS_A_SECOND))
    assert unlimited.size == 2 * MOST_CHUNKS_A_SECOND


@pytest.mark.parametrize("chunk", [TINY, b"1;a=b\r\na\r\n", b"01\r\na\r\n"])
def test_steps_of_a_turn_do_not_grow_with_what_was_read(chunk: bytes) -> None:
    def turn(count: int) -> int:
        return steps_of(lambda: ChunkedBody().feed(chunk * count, most=MOST_CHUNKS_AT_ONCE))

    turn(1)  # compiles the expressions
    assert turn(40_000) <= turn(MOST_CHUNKS_AT_ONCE) + 20 < 60 * MOST_CHUNKS_AT_ONCE


def test_steps_of_a_refused_burst_are_those_of_a_second() -> None:
    def burst() -> None:
        with pytest.raises(BadMessage):
            ChunkedBody(clock=lambda: 0.0).feed(TINY * 200_000)

    assert steps_of(burst) < 40 * MOST_CHUNKS_A_SECOND
