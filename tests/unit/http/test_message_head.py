from __future__ import annotations

import pytest

from poolctl.http.message_head import chunk, request_head, response_head
from poolctl.http.message_reader import RequestReader


def test_request_head_is_one_that_the_reader_understands() -> None:
    reader = RequestReader()
    assert reader.feed(request_head("GET", "/a?b=c", [("Host", "x"), ("X-Name", "ü\tb")]))
    assert reader.head is not None
    assert (reader.head.method, reader.head.target, reader.head.path) == (b"GET", b"/a?b=c", b"/a")
    assert (reader.head.get(b"host"), reader.head.get(b"x-name"), reader.head.get(b"y")) == (
        b"x",
        "ü\tb".encode(),
        b"",
    )


@pytest.mark.parametrize(
    ("method", "target", "fields"),
    [
        ("GET /\r\nX:", "/", []),
        ("", "/", []),
        ("GET", "/a b", []),
        ("GET", "/\r\nX: y", []),
        ("GET", "/ü", []),
        ("GET", "", []),
        ("GET", "/", [("X", "a\r\nY: b")]),
        ("GET", "/", [("X", "a\nb")]),
        ("GET", "/", [("X", "a\0b")]),
        ("GET", "/", [("X: y\r\nZ", "a")]),
        ("GET", "/", [("", "a")]),
        ("GET", "/", [("X ", "a")]),
    ],
)
def test_value_that_would_break_its_line_is_refused(
    method: str, target: str, fields: list[tuple[str, str]]
) -> None:
    with pytest.raises(ValueError, match=r"request|header"):
        request_head(method, target, fields)


def test_response_head_and_chunks() -> None:
    assert response_head(204, [("a", "b")]) == b"HTTP/1.1 204 \r\na: b\r\n\r\n"
    assert (chunk(b"x" * 17)[:4], chunk(b"")) == (b"11\r\n", b"")
