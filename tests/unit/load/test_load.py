"""The load generator sees every failure that a server can think of, counts it once, and invents none."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.deadline import wait_until
from tests.load import Load, Report, apps
from tests.load.responses import Malformed, Responses
from tests.serving import Engine, served
from tests.unit.load.scripted import OK, Peer, scripted

pytestmark = [pytest.mark.unmeasured, pytest.mark.slow]  # of the tools of the tests

PLAIN = Engine("asyncio", "httptools")
MODES = ["keep_alive", "new_connection", "pipelined", "bodies", "uploads", "stream", "websocket", "sse"]


def loaded(act: Callable[[Peer], None], mode: str = "keep_alive", **options: Any) -> Report:
    """What a load came to that was stopped as soon as a few requests had ended, one way or the other."""
    settings = {"connections": 2, "echo": False, "patience": 30.0, **options}
    with scripted(act) as server:
        load = Load([server.port], mode, **settings)
        load.start()
        wait_until(lambda: (report := load.look()).complete + report.failed + report.messages > 8)
        return load.stop()


def exact(report: Report) -> bool:
    return report.sent == report.complete + report.failed and report.under_way == 0


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_a_server_in_order_is_complete(mode: str) -> None:
    async def work() -> Report:
        async with served(PLAIN, apps.app) as server:
            load = Load([server.port], mode, connections=3, chunks=4, chunk_pause=0.005)
            await asyncio.to_thread(load.start)
            while (report := load.look()).complete + report.messages < 30:
                await asyncio.sleep(0.01)
            return await asyncio.to_thread(load.stop)

    report = PLAIN.run(work())
    assert exact(report)
    assert report.failed == 0, report
    assert report.complete >= 3
    assert 0 < report.p50_seconds <= report.p99_seconds <= report.max_seconds


@pytest.mark.heavy_variants
@pytest.mark.parametrize("mode", ["keep_alive", "new_connection", "bodies", "websocket"])
def test_tls_is_no_different(mode: str, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)

    async def work() -> Report:
        async with served(
            PLAIN, apps.app, config={"ssl_certfile": str(cert), "ssl_keyfile": str(key)}
        ) as server:
            load = Load([server.port], mode, connections=2, tls=True)
            await asyncio.to_thread(load.start)
            while (report := load.look()).complete + report.messages < 10:
                await asyncio.sleep(0.01)
            return await asyncio.to_thread(load.stop)

    report = PLAIN.run(work())
    assert exact(report)
    assert report.failed == 0, report


def test_a_closed_port_refuses_and_each_refusal_is_a_request(free_port: Callable[[], int]) -> None:
    load = Load([free_port()], connections=2)
    load.start()
    wait_until(lambda: load.look().refused > 5)
    report = load.stop()
    assert exact(report)
    assert report.refused == report.sent == report.failed
    assert "refused" in repr(report)


def test_a_reset_instead_of_an_answer_is_counted() -> None:
    resets = 0

    def act(peer: Peer) -> None:
        nonlocal resets
        for _ in range(3):
            peer.request()
            peer.send(OK)
        peer.request()
        with threading.Lock():
            resets += 1
        peer.reset()

    report = loaded(act, connections=1)
    assert exact(report)
    assert report.reset == resets == report.failed
    assert report.complete >= 3


def test_a_close_after_the_request_is_counted() -> None:
    report = loaded(lambda peer: peer.request() and None)
    assert exact(report)
    assert report.dropped == report.failed > 0
    assert report.complete == 0


@pytest.mark.parametrize(
    "part",
    [
        b"HTT",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
    ],
)
def test_an_answer_that_stops_halfway_is_counted(part: bytes) -> None:
    def act(peer: Peer) -> None:
        peer.request()
        peer.send(part)

    report = loaded(act)
    assert exact(report)
    assert report.truncated == report.failed > 0
    assert report.complete == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
        b"SMTP ready\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_another_answer_is_wrong(answer: bytes) -> None:
    def act(peer: Peer) -> None:
        while peer.request():
            peer.send(answer)

    report = loaded(act, connections=1)
    assert exact(report)
    assert report.wrong > 0


def test_the_answer_to_another_request_is_wrong() -> None:
    def act(peer: Peer) -> None:
        while peer.request():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nn=000000000001")

    report = loaded(act, connections=1, echo=True)
    assert exact(report)
    assert report.complete == 1
    assert report.wrong == report.failed > 0


def test_silence_is_unanswered_once_its_time_is_over() -> None:
    forever = threading.Event()

    def act(peer: Peer) -> None:
        peer.request()
        forever.wait(60)

    report = loaded(act, patience=0.1)
    forever.set()
    assert exact(report)
    assert report.unanswered == report.failed > 0


def test_requests_under_way_at_the_stop_are_waited_for() -> None:
    asked, release = threading.Event(), threading.Event()

    def act(peer: Peer) -> None:
        while peer.request():
            asked.set()
            release.wait(60)
            peer.send(OK)

    with scripted(act) as server:
        # The pause: an answer before the stop, on a busy machine, would have a next request otherwise.
        load = Load([server.port], connections=1, echo=False, pause=60.0)
        load.start(answered=False)
        assert asked.wait(60)
        threading.Timer(0.1, release.set).start()
        report = load.stop()
    assert (report.sent, report.complete, report.failed) == (1, 1, 0)


def test_an_announced_close_and_one_between_two_requests_are_no_failures() -> None:
    def act(peer: Peer) -> None:
        peer.request()
        if peer.server.connections % 2:
            peer.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        else:
            peer.send(OK)  # and then it closes, while the client pauses

    report = loaded(act, pause=60.0)
    assert exact(report)
    assert report.failed == 0
    assert report.closed > 5


def test_requests_behind_an_announced_close_are_lost() -> None:
    def act(peer: Peer) -> None:
        peer.request()
        peer.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    report = loaded(act, "pipelined", depth=4, connections=1)
    assert exact(report)
    assert report.dropped == report.failed
    # The last ones may have been under way at the end.
    assert 3 * (report.complete - 1) <= report.failed <= 3 * report.complete


def test_an_answer_byte_by_byte_is_one_answer() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n"

    def act(peer: Peer) -> None:
        while peer.request():
            peer.in_pieces(chunked if peer.server.requests % 2 else OK)

    report = loaded(act)
    assert exact(report)
    assert report.failed == 0, report


def test_a_websocket_may_end_with_1012_and_in_no_other_way() -> None:
    def ending_with(end: bytes) -> Callable[[Peer], None]:
        def act(peer: Peer) -> None:
            from tests.load.frames import accept_of

            key = peer.request().partition(b"Sec-WebSocket-Key: ")[2].split(b"\r\n")[0]
            peer.send(b"HTTP/1.1 101 Up\r\nSec-WebSocket-Accept: " + accept_of(key) + b"\r\n\r\n" + end)

        return act

    assert loaded(ending_with(b"\x88\x02\x03\xf4"), "websocket").failed == 0
    gone = loaded(ending_with(b"\x88\x02\x03\xe9"), "websocket")
    assert gone.wrong == gone.failed > 0
    cut = loaded(ending_with(b""), "websocket")
    assert cut.failed > 0
    assert exact(cut)
    assert cut.complete == 0


def test_events_may_end_between_two_and_not_within_one() -> None:
    def ending_with(*pieces: bytes) -> Callable[[Peer], None]:
        def act(peer: Peer) -> None:
            peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in pieces:
                peer.send(b"%x\r\n%s\r\n" % (len(piece), piece))

        return act

    assert loaded(ending_with(b"data: 1\n\n"), "sse").failed == 0
    assert loaded(ending_with(b"data: 1\n\n", b""), "sse").failed == 0
    cut = loaded(ending_with(b"data: 1\n\ndata:"), "sse")
    assert cut.truncated == cut.failed > 0


def test_process_of_a_load_ends_with_its_parent() -> None:
    load = Load(["127.0.0.1:1"])
    load.start()
    process = load._process
    assert process is not None
    load._sock.shutdown(socket.SHUT_RDWR)
    assert process.wait(60) == 0
    with pytest.raises((RuntimeError, OSError)):
        load.stop()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_responses_come_out_whole_however_they_are_cut(size: int) -> None:
    data = (
        OK + b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 204 No\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n" + OK
    )
    parser = Responses()
    found = [response for at in range(0, len(data), size) for response in parser.feed(data[at : at + size])]
    assert [(response.status, response.body) for response in found] == [
        (200, b"ok"), (204, b""), (200, b"abc"), (200, b"ok"),
    ]  # fmt: skip
    assert not parser.within


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    parser = Responses()
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\nall of it") == []
    assert [response.body for response in parser.end()] == [b"all of it"]
    with pytest.raises(Malformed):
        parser.feed(b"nonsense")


def test_a_handshake_that_fails_is_a_failed_request() -> None:
    def act(peer: Peer) -> None:
        peer.sock.recv(100)

    report = loaded(act, tls=True)
    assert exact(report)
    assert report.complete == 0
    assert report.failed > 0
    assert ssl.HAS_TLSv1_3
