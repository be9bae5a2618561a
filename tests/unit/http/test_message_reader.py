"""What a client keeps of a response that is too long, and how a connection ends."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poolctl.http import message_head
from poolctl.http.chunked_body import MOST_CHUNKS_A_SECOND
from poolctl.http.message_head import BadMessage, ResponseHead
from poolctl.http.message_reader import ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        OK + b"content-length: 100\r\n\r\n" + b"x" * 50,
        OK + b"\r\n" + b"x" * 50,
        CHUNKED + b"64\r\n" + b"x" * 50,
        CHUNKED + b"6\r\nxxxxxx\r\n" * 3,
    ],
)
def test_beginning_of_a_body_that_is_too_long_is_kept(data: bytes) -> None:
    reader = ResponseReader(max_body_bytes=10)
    assert reader.feed(data)
    assert (reader.body, reader.reusable) == (b"x" * 10, False)


def test_limit_of_chunks_a_second_is_for_bodies_with_a_limit_in_bytes() -> None:
    chunks = CHUNKED + b"1\r\na\r\n" * (MOST_CHUNKS_A_SECOND + 1)
    with pytest.raises(BadMessage, match="chunks a second"):
        ResponseReader(max_body_bytes=1_000_000).feed(chunks)
    unlimited = ResponseReader()
    assert not unlimited.feed(chunks)
    assert len(unlimited.take_body()) == MOST_CHUNKS_A_SECOND + 1


def test_body_is_taken_away_as_it_comes() -> None:
    reader = ResponseReader()
    taken = []
    for piece in (CHUNKED[:-1], CHUNKED[-1:], b"3\r\na", b"bc\r\n2", b"\r\nde\r\n0\r\n\r", b"\n"):
        assert not reader.complete
        reader.feed(piece)
        taken.append(reader.take_body())
    assert (taken, reader.complete, reader.reusable) == ([b"", b"", b"a", b"bc", b"de", b""], True, True)


def test_fields_are_found_by_name_as_they_were_sent() -> None:
    reader = ResponseReader()
    reader.feed(OK + b"X-A:  One \r\nx-b: two\r\nx-a: Three\r\ncontent-length: 0\r\n\r\n")
    assert reader.head is not None
    assert reader.head.values(b"x-a") == [b"One", b"Three"]
    assert (reader.head.get(b"x-a"), reader.head.get(b"x-b"), reader.head.get(b"x")) == (
        b"One, Three",
        b"two",
        b"",
    )


_LINES = st.lists(
    st.sampled_from(
        [b"A: b", b"content-length: 5", b"Content-Length:0", b"Content-Length: 5 ", b"Transfer-Encoding: chunked",
         b"TE: x", b"Transfer-Encoding: gzip", b"Connection: close", b"Connection: keep-alive", b"Keep-Alive: 5",
         b"Upgrade: x", b"Contents: x", b"Upgrade-Insecure: 1", b" folded", b"a b: c", b"X-Y:", b"", b"X: \0",
         b"X: \xff"]
    ),
    max_size=4,
)  # fmt: skip
_STATUS_LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 204", b"HTTP/1.1 304 ", b"HTTP/1.1 100 x", b"HTTP/1.0 200 OK", b"HTTP/1.1 099",
     b"HTTP/1.1 20", b"HTTP/2 200", b"HTTP/1.1 200OK"]
)  # fmt: skip


@example(b"HTTP/1.1 200 OK", [b"Connection: keep-alive"])
@example(b"HTTP/1.1 200 OK", [b"Keep-Alive: 5", b"A: b"])
@given(_STATUS_LINES, _LINES)
def test_usual_head_is_read_as_every_other(status_line: bytes, lines: list[bytes]) -> None:
    """Except for the lines that keep the connection alive, which mean nothing in HTTP/1.1."""
    raw = b"\r\n".join([status_line, *lines, b"", b""])

    def read() -> list[object]:
        try:
            head = ResponseHead(raw)
        except BadMessage:
            return []
        return [
            head.status,
            head.status_line,
            message_head._keep_alive.sub(b"", head.fields + b"\r\n"),
            head.body,
            head.length,
            head.options - {b"keep-alive"},
            head.reusable,
        ]

    found = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message_head, "_usual_response_head", lambda raw: None)
        assert read() == found
