"""First bytes are a request, the beginning of one, or no reason to wake a server."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.runners.local.activation.held_connections import (
    LONGEST_LINE_BYTES,
    FirstBytes,
    classify_first_bytes,
)

REQUESTS = [
    b"GET / HTTP/1.1\r\n",
    b"POST /a?b=%20 HTTP/1.0\r\nHost: x\r\n",
    b"\r\n\r\nOPTIONS * HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\n",
    b"PRI * HTTP/2.0\r\n",
    b"GET http://example.org/ HTTP/1.1\r\n",
    b"M-SEARCH * HTTP/1.1\r\n",
]


@pytest.mark.parametrize("head", REQUESTS)
def test_a_complete_request_line_is_a_request_and_every_beginning_of_it_a_beginning(head: bytes) -> None:
    assert classify_first_bytes(head, tls=False) is FirstBytes.REQUEST
    line = head[: head.index(b"\n", len(head) - len(head.lstrip()))]
    assert {classify_first_bytes(line[:length], tls=False) for length in range(1, len(line) + 1)} == {
        FirstBytes.BEGINNING
    }


@pytest.mark.parametrize(
    "head", [b"\x16\x03\x01", b"\x00", b"(", b"hello\r\n", b"GET /\r\n", b"GET  / HTTP/1.1\n"]
)
def test_bytes_that_begin_no_request_are_no_request(head: bytes) -> None:
    assert classify_first_bytes(head, tls=False) is FirstBytes.NO_REQUEST


def test_a_line_without_an_end_is_left_to_the_application() -> None:
    assert classify_first_bytes(b"GET /" + b"a" * LONGEST_LINE_BYTES, tls=False) is FirstBytes.REQUEST
    assert classify_first_bytes(b"\r\n" * LONGEST_LINE_BYTES, tls=False) is FirstBytes.NO_REQUEST


def test_a_client_hello_is_the_request_of_a_server_with_tls() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="x")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    assert classify_first_bytes(hello, tls=True) is FirstBytes.REQUEST
    assert [classify_first_bytes(hello[:length], tls=True) for length in range(1, 6)] == [
        FirstBytes.BEGINNING
    ] * 5
    assert classify_first_bytes(b"GET / HTTP/1.1\r\n", tls=True) is FirstBytes.NO_REQUEST
    assert classify_first_bytes(hello, tls=False) is FirstBytes.NO_REQUEST


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=16), st.booleans())
def test_a_verdict_other_than_to_wait_is_not_changed_by_what_follows(
    head: bytes, more: bytes, tls: bool
) -> None:
    first = classify_first_bytes(head, tls=tls)
    if first is not FirstBytes.BEGINNING:
        assert classify_first_bytes(head + more, tls=tls) is first
