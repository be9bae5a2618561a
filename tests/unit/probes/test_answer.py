"""Responses read as they come, however they are cut into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.probes import answer
from poolctl.probes.answer import Answer, BadAnswer

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
DIGITS = b"0123456789"

COMPLETE = [
    (OK + b"content-length: 5\r\n\r\nhello", 200, b"hello", True),
    (OK + b"Content-Length: 0\r\n\r\n", 200, b"", True),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    (b"HTTP/1.1 503 \r\nconnection: Close\r\ncontent-length: 2\r\n\r\nno", 503, b"no", False),
    (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", False),
    (OK + CHUNKED + b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", 200, b"abc" + DIGITS, True),
    (OK + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\ntrailer: 1\r\n\r\n", 200, b"a", True),
    (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok", 200, b"ok", True),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status", "body", "kept"), COMPLETE)
def test_a_response_is_complete_with_its_last_byte_and_not_before(
    data: bytes, status: int, body: bytes, kept: bool
) -> None:
    read = Answer()
    for place in range(len(data) - 1):
        assert not read.feed(data[place : place + 1])
    assert read.feed(data[-1:])
    assert (read.status, read.body, read.kept) == (status, body, kept)


@given(st.sampled_from(COMPLETE), st.lists(st.integers(0, 200), max_size=6))
def test_it_does_not_matter_where_it_is_cut(
    response: tuple[bytes, int, bytes, bool], cuts: list[int]
) -> None:
    data, status, body, kept = response
    read = Answer()
    places = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
    done = [read.feed(data[start:end]) for start, end in itertools.pairwise(places)]
    assert done[-1]
    assert (read.status, read.body, read.kept) == (status, body, kept)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    read = Answer()
    assert not read.feed(OK + b"\r\nhel")
    assert not read.feed(b"lo")
    assert read.end()
    assert (read.body, read.kept) == (b"hello", False)


def test_an_answer_to_head_has_no_body_whatever_it_says() -> None:
    read = Answer(head_only=True)
    assert read.feed(OK + b"content-length: 500\r\n\r\n")


def test_half_an_answer_is_none() -> None:
    read = Answer()
    read.feed(OK + b"content-length: 5\r\n\r\nhe")
    assert not read.end()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"content-length: many\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000,
    ],
)
def test_what_is_no_response_is_told_at_once(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        Answer().feed(data)


def test_of_a_long_body_only_the_beginning_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "LONGEST_BODY_BYTES", 10)
    for head in (b"content-length: 100\r\n\r\n", b"\r\n"):
        read = Answer()
        assert read.feed(OK + head + b"x" * 50)
        assert (len(read.body), read.kept) == (10, False)
    read = Answer()
    assert read.feed(OK + b"transfer-encoding: chunked\r\n\r\n64\r\n" + b"x" * 50)
    assert not read.kept


@pytest.mark.parametrize(
    "data",
    [
        OK + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
        OK + b"content-length: " + b"9" * 30 + b"\r\n\r\n",
        OK + CHUNKED + b"-2\r\nabcdef\r\n",
        OK + CHUNKED + b"+2\r\nab\r\n",
        OK + CHUNKED + b"0x2\r\nab\r\n",
        OK + CHUNKED + b"1_0\r\n0123456789abcdef\r\n",
        OK + CHUNKED + b"f" * 5000 + b"\r\n",
    ],
)
def test_length_that_http_does_not_have_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        Answer().feed(data)


def test_answer_in_endless_small_pieces_is_given_up_early() -> None:
    with pytest.raises(BadAnswer, match="interim"):
        Answer().feed(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000)
    found = Answer()
    assert found.feed(OK + CHUNKED + b"1\r\na\r\n" * 10_000)
    assert (found.kept, len(found.body)) == (False, answer.MOST_CHUNKS)
