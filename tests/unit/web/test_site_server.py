"""The server in front of a site: limits on what a client can cost, and the answers to invalid requests."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.deadline import wait_until
from tests.unit.web.greeter import Hall, any_certificate, everything, hall, tls_of

LIMIT_SECONDS = 0.3
CLOSING = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
KEPT = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def patient() -> Iterator[Hall]:
    with hall() as found:
        yield found


@pytest.fixture
def limited() -> Iterator[Hall]:
    with hall(request_seconds=LIMIT_SECONDS) as found:
        yield found


def answered(found: Hall, request: bytes) -> socket.socket | None:
    """A connection whose request came before the deadline, even on a busy machine."""
    sock = found.connect(request)
    if sock.recv(65536).startswith(b"HTTP/1.1 200"):
        return sock
    sock.close()
    return None


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def test_request_is_answered_and_its_client_is_known(patient: Hall) -> None:
    status, fields, body = parts(patient.ask(CLOSING))
    assert (status, body) == (200, b"hello 127.0.0.1 False 0")
    assert fields == {"content-type": "text/plain", "content-length": str(len(body)), "connection": "close"}
    with patient.connect(KEPT) as sock:
        assert b"connection" not in sock.recv(4096)
        sock.sendall(CLOSING)
        assert b"\r\nconnection: close\r\n" in everything(sock).lower()


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (b"GET / HTT", b"HTTP/1.1 408 "),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\n", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{", b"HTTP/1.1 408 "),
    ],
)
def test_incomplete_request_is_refused_after_the_deadline(
    limited: Hall, sent: bytes, answered: bytes
) -> None:
    answer = limited.ask(sent)
    assert answer.startswith(answered)
    assert bool(answer) == bool(answered)
    if answered:
        assert answer.endswith(b"\r\n\r\nnot a request: the request did not arrive in time\n")


def test_sending_byte_by_byte_does_not_extend_the_deadline(limited: Hall) -> None:
    begun = time.monotonic()
    with limited.connect() as sock:
        for byte in b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 2000:
            try:
                sock.sendall(bytes([byte]))
            except OSError:
                break
            if time.monotonic() - begun > 30 * LIMIT_SECONDS:
                raise AssertionError("it is still open")
            time.sleep(0.01)


def test_later_request_of_a_connection_has_the_deadline_of_a_first_one(limited: Hall) -> None:
    with wait_until(lambda: answered(limited, KEPT)) as sock:
        sock.sendall(b"GET / HTT")
        assert b"HTTP/1.1 408 " in everything(sock)


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (b"HELO\r\n\r\n", 400, b"it is not valid HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 20_000, 431, b"the head is too large"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n" + b"y" * 1001, 413, b"the body is too large"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", 400, b"it is not valid HTTP/1.1"),
    ],
)  # fmt: skip
def test_invalid_request_gets_the_reason_in_the_form_of_the_site(
    patient: Hall, request_: bytes, status: int, reason: bytes
) -> None:
    answer = parts(patient.ask(request_))
    assert (answer[0], answer[2]) == (status, b"not a request: " + reason + b"\n")
    assert answer[1]["content-type"] == "text/plain"
    assert answer[1]["connection"] == "close"


def test_client_that_sends_a_large_body_can_read_why_it_is_refused(patient: Hall) -> None:
    body = b"y" * 500_000
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert parts(patient.ask(head + body))[0] == 413


def test_body_of_the_largest_size_is_read(patient: Hall) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n"
    assert patient.ask(head + b"y" * 1000).endswith(b" 1000")


def test_error_of_the_site_is_a_500(patient: Hall) -> None:
    assert parts(patient.ask(CLOSING.replace(b" / ", b" /broken ")))[0] == 500


def test_connections_that_have_waited_longest_make_room_for_new_ones(patient: Hall) -> None:
    waiting = [patient.connect(b"GET / HTTP/1.1\r\n"), *(patient.connect() for _ in range(7))]
    assert patient.ask(CLOSING).startswith(b"HTTP/1.1 200")
    assert select.select(waiting, [], [], 60)[0] == [waiting[0]]
    assert everything(waiting[0]) == b""
    for sock in waiting:
        sock.close()


def test_stream_stays_while_others_come_and_wait(limited: Hall) -> None:
    with wait_until(lambda: answered(limited, KEPT.replace(b" / ", b" /stream "))) as stream:
        waiting = [limited.connect(b"GET") for _ in range(20)]
        everything(waiting[0])
        for sock in waiting:
            sock.close()
        assert not select.select([stream], [], [], 3 * LIMIT_SECONDS)[0] or stream.recv(4096)


def test_full_of_requests_it_accepts_again_once_one_is_over(patient: Hall) -> None:
    streams = [patient.connect(KEPT.replace(b" / ", b" /stream ")) for _ in range(8)]
    assert all(each.recv(4096).startswith(b"HTTP/1.1 200") for each in streams)
    with patient.connect(CLOSING) as one_more, patient.connect(CLOSING) as another:
        streams.pop().close()
        assert everything(one_more).startswith(b"HTTP/1.1 200")
        streams.pop().close()
        assert everything(another).startswith(b"HTTP/1.1 200")
    for each in streams:
        each.close()


def test_half_a_tls_handshake_is_given_up_after_the_deadline(tmp_path: Path) -> None:
    with hall(tls_of(*certificate(tmp_path)), request_seconds=LIMIT_SECONDS) as found:
        assert found.ask(b"\x16\x03\x01") == b""


def test_half_a_tls_handshake_makes_room_for_another_client(tmp_path: Path) -> None:
    with hall(tls_of(*certificate(tmp_path))) as found:
        waiting = [found.connect(b"\x16\x03\x01") for _ in range(8)]
        with any_certificate().wrap_socket(found.connect()) as secure:
            secure.sendall(CLOSING)
            assert everything(secure).startswith(b"HTTP/1.1 200")
        assert select.select(waiting, [], [], 60)[0] == [waiting[0]]
        for sock in waiting:
            sock.close()
