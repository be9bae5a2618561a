"""Which fields of a request are recognised as deciding the same as known ones."""

from __future__ import annotations

import random

import pytest

from poolctl.http.known_fields import KnownFields
from poolctl.http.message_head import CHUNKED, canonical_head

START = b" HTTP/1.1\r\n"
FIELDS = START + b"Host: a\r\nAccept: */*\r\nConnection: keep-alive\r\nCookie: a=b\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        FIELDS,
        FIELDS.replace(b"a=b", b"c=d"),
        FIELDS.replace(b"Cookie: a=b\r\n", b""),
        FIELDS.replace(b"Cookie", b"Hostess: c\r\nX-Host: d\r\nCookies"),
        FIELDS.replace(b"Host", b"X: y\r\nX: y\r\nHost"),
        START + b"Host: a\r\nConnection: keep-alive\r\n\r\n",
    ],
)
def test_fields_that_decide_like_known_ones_are_recognised(fields: bytes) -> None:
    known = KnownFields(FIELDS)
    assert known.body_like(fields) == 0
    assert known.body_like(FIELDS.replace(b"Accept: */*", b"X-Id: 1")) == 0
    assert known.body_like(fields) == 0


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        FIELDS[:-2],
        FIELDS + b"x",
        FIELDS + b"GET /" + FIELDS,
        FIELDS + FIELDS,
        FIELDS.replace(START, b" HTTP/1.0\r\n"),
        FIELDS.replace(b"Host: a\r\n", b""),
        FIELDS.replace(b"Host: a", b"Host: b"),
        FIELDS.replace(b"Host: a", b"Host: a\r\nhost: a"),
        FIELDS.replace(b"Host: a", b"Host: a\r\nHost: a"),
        FIELDS.replace(b"Host: a", b"Host: a\r\n b"),
        FIELDS.replace(b"keep-alive", b"close"),
        FIELDS.replace(b"Connection: keep-alive\r\n", b""),
        FIELDS.replace(b"Cookie: a=b", b"Content-Length: 0"),
        FIELDS.replace(b"Cookie: a=b", b"transfer-encoding: chunked"),
        FIELDS.replace(b"Cookie: a=b", b"UPGRADE: websocket"),
        FIELDS.replace(b"Cookie: a=b", b"Expect: 100-continue"),
        FIELDS.replace(b"Cookie: a=b", b"Proxy-Connection: close"),
        FIELDS.replace(b"Cookie", b"Host : b\r\nCookie"),
        FIELDS.replace(b"a=b", b"a\rb"),
        FIELDS.replace(b"a=b", b"a\nb: c"),
        FIELDS.replace(b"a=b", b"a\0b"),
        FIELDS.replace(b"Cookie: a=b", b"Cookie"),
        FIELDS.replace(b"Cookie: a=b", b""),
        FIELDS.replace(b"\r\nCookie", b"b\r\nCookie"),
        START + b"Connection: keep-alive\r\nHost: a\r\n\r\n",  # parsed, as it is seldom
    ],
)
def test_fields_that_may_decide_otherwise_are_not_recognised(fields: bytes) -> None:
    known = KnownFields(FIELDS)
    assert known.body_like(fields) is None
    # Nor when others have shown in which lines the client's requests differ.
    for other in (b"Cookie: c=d", b"X: y", b"X: y\r\nCookie: a=b\r\nX: z"):
        assert known.body_like(FIELDS.replace(b"Cookie: a=b", other)) == 0
    assert known.body_like(fields) is None


UPLOAD = START + b"Host: a\r\nX: y\r\nContent-Length: 5\r\nCookie: a=b\r\n\r\n"


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (UPLOAD, 5),
        (UPLOAD.replace(b"X: y", b"X: z"), 5),
        (UPLOAD.replace(b": 5", b": 0"), 0),
        (UPLOAD.replace(b": 5", b": 123456"), 123456),
        (
            UPLOAD.replace(
                b"Content-Length: 5\r\nCookie", b"Cookies: c\r\ncontent-length:7\r\nX: c\r\nCookie"
            ),
            7,
        ),
        (UPLOAD.replace(b"Content-Length: 5\r\n", b""), None),
        (UPLOAD.replace(b"Content-Length: 5", b"Content-Length: 5\r\nContent-Length: 5"), None),
        (UPLOAD.replace(b"Cookie: a=b", b"Cookie: a=b\r\nContent-Length: 5"), None),
        (UPLOAD.replace(b"X: y", b"Content-Length: 6"), None),
        (UPLOAD.replace(b": 5", b": 5 "), None),
        (UPLOAD.replace(b": 5", b": +5"), None),
        (UPLOAD.replace(b": 5", b": 5, 5"), None),
        (UPLOAD.replace(b": 5", b": 1234567890123456"), None),
        (UPLOAD.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked"), None),
        (UPLOAD.replace(b"X: y", b"Transfer-Encoding: chunked"), None),
        (UPLOAD.replace(b"X: y", b"Expect: 100-continue"), None),
    ],
)
def test_length_of_the_body_is_the_only_decisive_field_that_may_differ(
    fields: bytes, length: int | None
) -> None:
    known = KnownFields(UPLOAD, 5)
    for _ in range(2):
        assert known.body_like(fields) == length
        assert known.body_like(UPLOAD.replace(b": 5", b": 8")) == 8
    assert known.body_like(fields) == length


def test_body_in_chunks_is_recognised_as_one() -> None:
    chunked = UPLOAD.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked")
    known = KnownFields(chunked, CHUNKED)
    assert known.body_like(chunked.replace(b"X: y", b"X: z")) == CHUNKED
    assert known.body_like(UPLOAD) is None


def test_mutated_fields_that_are_recognised_are_canonical_and_decide_alike() -> None:
    chosen = random.Random(7)
    pieces = [
        *(
            b"Host: a",
            b"host: a",
            b"Host: b",
            b"Accept: */*",
            b"Connection: keep-alive",
            b"Content-Length: 0",
            b"Content-Length: 5",
            b"content-length: 17",
        ),
        *(
            b"X: y",
            b"X:",
            b" z",
            b"",
            b"\r",
            b"Cookie: c",
            b"Transfer-Encoding: chunked",
            b"Upgrade: x",
            b"\n",
        ),
    ]
    expected = {fields: canonical_head(b"GET /" + fields) for fields in (FIELDS, UPLOAD)}
    recognised = 0
    for number in range(20_000):
        if number % 5 == 0:  # the others meet what was narrowed by those before
            like = chosen.choice((FIELDS, UPLOAD))
            head = expected[like]
            assert head is not None
            known = KnownFields(like, head.body)
        lines = [line for line in like.split(b"\r\n")[1:-2] if chosen.random() < 0.9]
        for piece in chosen.choices(pieces, k=chosen.randrange(3)):
            lines.insert(chosen.randrange(len(lines) + 1), piece)
        fields = START + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
        body = known.body_like(fields)
        if body is not None:
            recognised += 1
            found = canonical_head(b"GET /" + fields)
            assert found is not None
            for name in ("method", "target", "host", "http_1_1", "options", "upgrade", "expects_continue"):
                assert getattr(found, name) == getattr(head, name)
            assert (found.end, found.body) == (len(b"GET /" + fields), body)
    assert recognised > 2000
