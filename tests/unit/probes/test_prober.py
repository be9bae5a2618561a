"""Probes over real sockets: answers, lateness, connections that end, and workers that read nothing."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any

import pytest

from poolctl import ServerConfig, TLSConfig
from poolctl.config import Probe
from poolctl.http.messages import MAX_CHUNKS, MAX_HEAD_BYTES
from poolctl.probes.prober import (
    MAX_BODY_BYTES,
    AcceptProber,
    EchoExchange,
    HttpProbeRequest,
    ProbeConnection,
    Prober,
    Unsent,
    make_prober,
    speaks_tls,
    statuses,
    unverified_context,
)
from poolctl.probes.worker_probes import WorkerProbe
from poolctl.selection.regular_expressions import SLOW, matching_texts, run_in_turn
from tests.asyncio_server import listening
from tests.certificates import certificate
from tests.deadline import until, wait_until
from tests.descriptors import free_descriptors
from tests.http_corpus import LAST, RESPONSES, STREAM, ResponseCase
from tests.processes import is_alive
from tests.serving import turns

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Probed:
    """The worker's side: every connection that is made to it, and a prober of the kind that is wanted."""

    def __init__(self, **probe: Any) -> None:
        keys = {"readiness": probe or {"http": "/health"}}
        self.server = ServerConfig(name="web", bind="127.0.0.1:8080", app="a:b", health=keys)
        self.ends: list[socket.socket] = []
        self.refuses = False
        self.prober = self.make(self.server)
        self.results: list[str] = []
        _probed.append(self)

    def make(self, server: ServerConfig) -> Prober:
        """The prober of the readiness of a worker of this server."""
        readiness = server.health.readiness
        assert readiness is not None
        return make_prober(readiness, server, self, None, {"WHO": "web"})  # type: ignore[arg-type]

    async def connect_for_probe(
        self, placement: Any, kind: str, plain: bool, *, exact: bool = False
    ) -> socket.socket:
        if self.refuses:
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.ends.append(theirs)
        return ours

    async def request(self) -> bytes:
        """The next probe's request, on the newest connection."""
        count = len(self.results)
        self.prober.start(self.results.append)
        while not self.ends and len(self.results) == count:
            await asyncio.sleep(0)
        return await self.heard()

    async def heard(self) -> bytes:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(BlockingIOError):
                    return self.ends[-1].recv(10_000)
                await asyncio.sleep(0)

    async def verdict(self) -> str:
        await until(lambda: self.results)
        return self.results.pop()

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # refused already
            await asyncio.get_running_loop().sock_sendall(self.ends[-1], data)
        for _ in range(2):  # the prober reads it
            await asyncio.sleep(0)

    async def answer(self, data: bytes) -> str:
        self.ends[-1].send(data)
        return await self.verdict()


_probed: list[Probed] = []


def run(work: Coroutine[Any, Any, None]) -> None:
    async def watched() -> None:
        try:
            await asyncio.wait_for(work, 60)
        finally:
            for probed in _probed:
                probed.prober.close()
                for sock in probed.ends:
                    sock.close()
            _probed.clear()

    asyncio.run(watched())


pytestmark = pytest.mark.loop(run=run)


async def test_request_is_the_one_that_a_client_would_make() -> None:
    probed = Probed(http="/a b?x=1".replace(" ", "%20"), headers={"host": "example.org", "X-Probe": "1"})
    lines = (await probed.request()).decode().split("\r\n")
    assert lines[0] == "GET /a%20b?x=1 HTTP/1.1"
    assert {"Host: example.org", "X-Probe: 1", "User-Agent: poolctl"} <= set(lines)
    assert await probed.answer(OK) == ""
    plain = Probed()
    assert b"\r\nHost: 127.0.0.1:8080\r\n" in await plain.request()
    refused = await plain.answer(b"HTTP/1.1 400 \r\ncontent-length: 0\r\n\r\n")
    assert refused == "GET /health: status 400 to the host 127.0.0.1:8080"


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"command": ("run",)}, False),
        ({"command": ("run",), "expose": "http://a.example"}, False),
        ({"command": ("run",), "expose": "https://a.example"}, True),
        ({"app": "a:b", "expose": "https://a.example"}, False),
        ({"app": "a:b", "tls": TLSConfig(cert="c.pem", key="k.pem")}, True),
    ],
)
def test_server_speaks_tls_if_it_terminates_it_and_a_program_if_its_url_says_so(
    keys: dict[str, Any], found: bool
) -> None:
    assert speaks_tls(ServerConfig(name="web", bind="127.0.0.1:8080", **keys)) is found


@pytest.mark.parametrize(
    ("probe", "answer", "problem"),
    [
        ({"status": "404,500-599"}, b"HTTP/1.1 404 \r\ncontent-length: 0\r\n\r\n", ""),
        ({"status": "404"}, OK, "GET /health: status 200"),
        ({"body": "^h.l+o$"}, OK, ""),
        ({"body": "bye"}, OK, "GET /health: status 200, and a body without 'bye'"),
        ({"body": "ell"}, OK, ""),
        ({"body": "^bye"}, OK, "GET /health: status 200, and a body without '^bye'"),
        ({"method": "HEAD"}, b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n", ""),
        (
            {"headers": {"Connection": "upgrade", "Upgrade": "websocket"}},
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
            "the response is not valid HTTP: it switches protocols",
        ),
        ({}, b"nonsense\r\n\r\n", "the response is not valid HTTP: no HTTP/1.1 status line"),
        ({}, b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", ""),
    ],
)
async def test_response_is_judged_by_status_and_body(
    probe: dict[str, Any], answer: bytes, problem: str
) -> None:
    probed = Probed(http="/health", **probe)
    await probed.request()
    assert await probed.answer(answer) == problem


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in pieces"])
@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.name)
async def test_each_response_of_the_table_is_understood_or_refused(
    case: ResponseCase, *, whole: bool
) -> None:
    size = len(case.data) if whole else 1 if len(case.data) < 2000 else 97

    probed = Probed(http="/", status="404", method="HEAD" if case.head_only else "GET")
    await probed.request()
    for at in range(0, len(case.data), size):
        await probed.send(case.data[at : at + size])
    if not case.reusable:
        with contextlib.suppress(OSError):  # refused already
            probed.ends[-1].shutdown(socket.SHUT_WR)
    verdict = await probed.verdict()
    if not case.whole:
        assert verdict == "it closed the connection"
    elif case.status:
        assert verdict.endswith(f": status {case.status}")
    else:
        assert verdict.startswith("the response is not valid HTTP: ")
        assert "bytearray" not in verdict, "without what was received"
    connections = 1 if case.reusable else 2
    probed.prober.start(probed.results.append)
    while len(probed.ends) < connections:
        await asyncio.sleep(0)
    assert b" / HTTP/1.1" in await probed.heard()
    assert len(probed.ends) == connections


INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"
CHUNK = b"1\r\na\r\n"
LONG_HEAD = b"HTTP/1.1 204 No Content\r\nX: %b\r\n\r\n"
BLANKS = b" " * 60_000


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (LONG_HEAD % (b"x" * (MAX_HEAD_BYTES - len(LONG_HEAD) + 2)), ""),
        (LONG_HEAD % (b"x" * (MAX_HEAD_BYTES - len(LONG_HEAD) + 3)), "the head is too large"),
        (b"HTTP/1.1 204 No Content\r\n" + b"X: y\r\n" * 100 + b"\r\n", ""),
        (b"HTTP/1.1 204 No Content\r\n" + b"X: y\r\n" * 101 + b"\r\n", "more than 100 fields"),
        (INTERIM * 20 + OK, ""),
        (INTERIM * 21 + OK, "more than 20 interim responses"),
        (STREAM + CHUNK * MAX_CHUNKS + LAST, ""),
        (STREAM + CHUNK * (MAX_CHUNKS + 1) + LAST, f"more than {MAX_CHUNKS} chunks"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % 10**9 + b"x" * (MAX_BODY_BYTES + 1), ""),
        # In quadratic time each would take half a minute.
        (b"HTTP/1.1 204 No Content\r\nX:" + BLANKS + b"\0\r\n\r\n", "a control character, or a line"),
        (b"HTTP/1.1 204 No Content\r\nX:" + BLANKS + b"\r|y\r\n\r\n", "a control character, or a line"),
        (STREAM + b"0\r\nX:" + BLANKS + b"\0\r\n\r\n", "Receive buffer too long"),
        (STREAM + b"1;" + BLANKS + b"\0\r\na\r\n", "Receive buffer too long"),
    ],
    ids=range(13),
)
async def test_response_may_be_as_large_as_its_limits(answer: bytes, problem: str) -> None:
    probed = Probed()
    await probed.request()
    began = thread_time()
    for piece in answer.split(b"|"):
        await probed.send(piece)
    verdict = await probed.verdict()
    assert verdict.startswith(f"the response is not valid HTTP: {problem}" if problem else "")
    assert bool(verdict) is bool(problem)
    assert thread_time() - began < 5


async def test_connection_is_kept_and_opened_again_after_it_has_ended() -> None:
    probed = Probed()
    for _ in range(3):
        await probed.request()
        assert await probed.answer(OK) == ""
    assert len(probed.ends) == 1
    probed.ends[-1].close()
    await asyncio.sleep(0.01)
    probed.prober.start(probed.results.append)
    await until(lambda: len(probed.ends) == 2)
    await probed.heard()
    assert await probed.answer(OK) == ""


async def test_probe_that_meets_the_end_of_a_kept_connection_is_sent_again() -> None:
    probed = Probed()
    await probed.request()
    await probed.answer(OK)
    probed.prober.start(probed.results.append)
    probed.ends[-1].close()  # with the question on its way
    await until(lambda: len(probed.ends) == 2)
    await probed.heard()
    assert await probed.answer(OK) == ""


async def test_a_new_connection_that_ends_without_an_answer_is_a_failure() -> None:
    probed = Probed()
    await probed.request()
    probed.ends[-1].close()
    assert await probed.verdict() == "it closed the connection"
    probed.refuses = True
    probed.prober.start(probed.results.append)
    assert await probed.verdict() == "no connection: Connection refused"


async def test_worker_that_reads_nothing_gets_few_connections_and_may_answer_late() -> None:
    probed = Probed()
    for _ in range(6):
        probed.prober.start(probed.results.append)
        await asyncio.sleep(0.01)
        probed.prober.cancel()
    assert len(probed.ends) == 3
    assert probed.results == []
    probed.prober.start(probed.results.append)
    probed.ends[-1].send(OK)  # to the question of a while ago
    assert await probed.verdict() == ""
    assert probed.ends[-1].recv(10_000).count(b"GET") == 1
    await probed.request()
    assert await probed.answer(OK) == ""
    assert len(probed.ends) == 3


async def test_response_after_a_cancelled_probe_is_not_reported() -> None:
    probed = Probed()
    await probed.request()
    probed.prober.cancel()
    with contextlib.suppress(OSError):
        probed.ends[-1].send(OK)
    await asyncio.sleep(0.01)
    assert probed.results == []
    probed.prober.close()
    await asyncio.sleep(0.01)
    with contextlib.suppress(ConnectionResetError):  # it had not read the response
        assert probed.ends[-1].recv(10) == b""


async def test_data_without_a_request_ends_the_connection() -> None:
    early = Probed()
    await early.request()
    assert await early.answer(OK + b"more") == ""
    assert await early.heard() == b""
    probed = Probed()
    await probed.request()
    assert await probed.answer(OK) == ""
    probed.ends[-1].send(b"more")
    assert await probed.heard() == b""
    assert probed.results == []
    probed.prober.start(probed.results.append)
    await until(lambda: len(probed.ends) == 2)
    await probed.heard()
    assert await probed.answer(OK) == ""


async def test_response_may_end_with_its_connection() -> None:
    probed = Probed(http="/health", body="hello")
    await probed.request()
    probed.ends[-1].send(b"HTTP/1.1 200 OK\r\n\r\nhello")
    probed.ends[-1].close()
    assert await probed.verdict() == ""


async def test_kept_connection_that_ends_within_a_response_is_a_failure() -> None:
    probed = Probed()
    await probed.request()
    await probed.answer(OK)
    await probed.request()
    probed.ends[-1].send(OK[:10])
    probed.ends[-1].close()
    assert await probed.verdict() == "it closed the connection"
    assert len(probed.ends) == 1


async def test_closed_prober_closes_the_connection_of_a_worker_that_reads_nothing() -> None:
    probed = Probed()
    for _ in range(3):
        probed.prober.start(probed.results.append)
        await asyncio.sleep(0.01)
        probed.prober.cancel()
    assert (await probed.heard()).count(b"GET") == 1
    probed.prober.close()
    assert await probed.heard() == b""
    assert probed.results == []


async def test_connection_that_is_being_opened_is_given_up_with_its_probe() -> None:
    given_up: list[bool] = []
    asked: list[tuple[str, bool]] = []

    class Runner:
        async def connect_for_probe(
            self, placement: Any, kind: str, plain: bool, *, exact: bool = False
        ) -> socket.socket:
            asked.append((kind, plain))
            try:
                return await asyncio.Future()
            finally:
                given_up.append(True)

    server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b")
    prober = make_prober(Probe(tcp=True), server, Runner(), None, {})  # type: ignore[arg-type]
    for count in (1, 2):
        prober.start(print)
        await asyncio.sleep(0)
        prober.cancel()
        await asyncio.sleep(0)
        assert len(given_up) == count
    assert asked == [("echo", True)] * 2, "a heartbeat needs no TLS"


async def test_connection_that_is_closed_at_once_releases_its_socket() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ProbeConnection(ours).close()
        await asyncio.sleep(0.01)
        assert ours.fileno() == -1


async def test_body_that_is_judged_late_is_not_the_result_of_the_next_probe() -> None:
    probed = Probed(http="/health", body="^h.l+o$")
    await probed.request()
    probed.ends[-1].send(OK)
    for _ in range(5):
        await asyncio.sleep(0)
    probed.prober.cancel()
    probed.prober.start(probed.results.append)
    await run_in_turn(matching_texts, ["^a+$"], ["a"])
    assert probed.results == []
    await until(lambda: len(probed.ends) == 2)
    await probed.heard()
    assert await probed.answer(b"HTTP/1.1 500 \r\ncontent-length: 0\r\n\r\n") == "GET /health: status 500"


@pytest.mark.loop(run=asyncio.run)
async def test_expression_that_takes_too_long_is_not_tried_with_the_next_response() -> None:
    probe = Probe(http="/", body="^(a|aa)+$")
    request = HttpProbeRequest(probe, exposed_url="http://127.0.0.1:1")
    reply = request.new_reply()
    assert reply.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 61\r\n\r\n" + b"a" * 60 + b"!")
    results: list[str] = []
    request.judge(reply, results.append)
    assert results == []
    await until(lambda: results)
    request.judge(reply, results.append)
    assert results == [f"GET /: status 200, body: {SLOW}"] * 2


class Connecting:
    """A runner that connects to a port, and records how it was asked to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[tuple[str, bool]] = []

    async def connect_for_probe(
        self, placement: Any, kind: str, plain: bool, *, exact: bool = False
    ) -> socket.socket:
        self.asked.append((kind, plain))
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setblocking(False)
        return sock


@pytest.mark.parametrize(("client_auth", "plain"), [("none", False), ("optional", False), ("required", True)])
async def test_worker_with_tls_is_probed_with_tls_unless_it_needs_a_certificate_of_the_client(
    tmp_path: Path, client_auth: str, plain: bool
) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    spoken: list[str | None] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        tls = writer.get_extra_info("ssl_object")
        spoken.append(tls and tls.selected_alpn_protocol())
        writer.write(OK)
        await reader.read()

    async with listening(respond, "127.0.0.1", 0, ssl=None if plain else context) as listener:
        runner = Connecting(listener.sockets[0].getsockname()[1])
        tls = {"cert": str(cert), "key": str(key), "client_auth": client_auth}
        tls |= {} if client_auth == "none" else {"ca": str(cert)}
        server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b", tls=tls, health="/")
        assert server.health.readiness is not None
        prober = make_prober(server.health.readiness, server, runner, None, {})  # type: ignore[arg-type]
        results: list[str] = []
        prober.start(results.append)
        await until(lambda: results)
        assert results == [""]
        assert runner.asked == [("http", plain)]
        assert spoken == [None if plain else "http/1.1"]
        prober.close()
        await turns()


@pytest.mark.parametrize(
    ("said", "problem"), [(b"plain text\r\n", "TLS: "), (b"", "it closed the connection")]
)
@pytest.mark.loop(run=asyncio.run)
async def test_handshake_that_fails_is_a_problem(said: bytes, problem: str) -> None:
    ours, theirs = socket.socketpair()
    results: list[str] = []
    connection = ProbeConnection(ours, unverified_context())
    connection.send(EchoExchange(), results.append)
    with theirs:
        theirs.send(said)
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: results)
    assert results[0].startswith(problem)
    assert connection.closed


async def test_tcp_probe_succeeds_when_its_byte_comes_back() -> None:
    probed = Probed(tcp=True)
    assert await probed.request() == b"?"
    assert await probed.answer(b"?") == ""
    await probed.request()
    probed.ends[-1].close()
    await until(lambda: len(probed.ends) == 2)
    await probed.heard()
    probed.ends[-1].close()
    assert await probed.verdict() == "it closed the connection"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(60)
        yield sock


def prober_of_command(listener: socket.socket, **readiness: Any) -> Prober:
    """A prober of a program that was given this listener."""

    class Runner:
        async def connect_for_probe(
            self, placement: Any, kind: str, plain: bool, *, exact: bool = False
        ) -> socket.socket:
            ours = socket.create_connection(listener.getsockname())
            ours.setblocking(False)
            return ours

    server = ServerConfig(
        name="web", bind="127.0.0.1:8080", command=["prog"], health={"readiness": readiness}
    )
    assert server.health.readiness is not None
    return make_prober(server.health.readiness, server, Runner(), None, {})  # type: ignore[arg-type]


async def test_program_is_probed_by_whether_it_accepts_and_gets_few_connections(
    listener: socket.socket,
) -> None:
    results: list[str] = []
    prober = prober_of_command(listener, tcp=True)
    for _ in range(3):
        prober.start(results.append)
        await asyncio.sleep(0.02)
        prober.cancel()
    assert results == []
    with listener.accept()[0] as theirs:
        assert theirs.recv(1) == b"", "ended, so that it can go on at once"
        prober.start(results.append)
        await until(lambda: results)
    assert results == [""]
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    prober.start(results.append)
    await asyncio.sleep(0.02)
    prober.close()
    await asyncio.sleep(0.02)


async def test_program_is_known_to_be_late_while_its_connection_is_queued(listener: socket.socket) -> None:
    prober = prober_of_command(listener, tcp=True)
    assert not prober.queued()
    prober.start(print)
    await asyncio.sleep(0.02)
    assert prober.queued()
    prober.cancel()
    await asyncio.sleep(0)
    prober.close()
    assert not prober.queued()
    with listener.accept()[0] as theirs:
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("readiness", [{"tcp": True}, {"http": "/"}])
async def test_program_is_known_to_be_late_while_other_workers_accept_its_connections(
    readiness: dict[str, Any],
) -> None:
    class Runner:
        async def connect_for_probe(
            self, placement: Any, kind: str, plain: bool, *, exact: bool = False
        ) -> socket.socket:
            assert exact
            await asyncio.get_running_loop().create_future()
            raise AssertionError

    server = ServerConfig(
        name="web", bind="127.0.0.1:8080", command=["prog"], health={"readiness": readiness}
    )
    probe = server.health.readiness
    assert probe is not None
    prober = make_prober(probe, server, Runner(), None, {}, lambda: True)  # type: ignore[arg-type]
    prober.start(print)
    await asyncio.sleep(0)
    assert prober.queued()
    prober.close()
    await asyncio.sleep(0)


async def test_program_that_does_not_listen_is_a_problem() -> None:
    results: list[str] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        runner = Connecting(unused.getsockname()[1])
        prober = AcceptProber(partial(runner.connect_for_probe, None, "echo", True))
        prober.start(results.append)
        await until(lambda: results)
    assert results == ["no connection: Connection refused"]


async def test_program_gets_a_new_connection_for_each_request(listener: socket.socket) -> None:
    prober = prober_of_command(listener, http="/")
    prober.start(lambda problem: None)
    with (await asyncio.to_thread(listener.accept))[0] as theirs:
        assert b"\r\nConnection: close\r\n" in await asyncio.to_thread(theirs.recv, 1000)
    prober.close()


def test_statuses_are_ranges_and_single_ones() -> None:
    assert statuses("200-202,404") == {200, 201, 202, 404}


async def test_program_knows_the_server_and_its_last_line_is_reported() -> None:
    for script, problem in (
        ('test "$WHO" = web', ""),
        ('test "{host} {port} {bind} {name}" = "127.0.0.1 8080 127.0.0.1:8080 web"', ""),
        ("echo '{{host}} {fd} {}'; exit 1", "sh: exited with status 1: {host} {fd} {}"),
        ("echo one; echo two >&2; exit 3", "sh: exited with status 3: two"),
        ("kill -9 $$", "sh: killed by SIGKILL"),
        ("yes | head -c 50000000; exit 3", "sh: exited with status 3: y"),
        ("yes | head -c 50000000", ""),
        ("printf 'whole\n  last \n\n'; exit 1", "sh: exited with status 1: last"),
        ("echo; exit 1", "sh: exited with status 1"),
    ):
        probed = Probed(exec=["sh", "-c", script])
        probed.prober.start(probed.results.append)
        assert await probed.verdict() == problem
    missing = Probed(exec=["/no/such/program"])
    missing.prober.start(missing.results.append)
    assert await missing.verdict() == "/no/such/program: No such file or directory"


async def test_program_for_which_no_descriptor_is_free_says_nothing_about_the_worker() -> None:
    probed = Probed(exec=["true"])
    with free_descriptors(0):
        probed.prober.start(probed.results.append)
    problem = await probed.verdict()
    assert (problem, type(problem)) == ("true: Too many open files", Unsent)
    probed.prober.start(probed.results.append)
    assert await probed.verdict() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
@pytest.mark.parametrize("group", ["", "nogroup"])
async def test_program_runs_with_the_servers_user_and_the_groups_of_its_user_or_the_one_that_is_named(
    group: str,
) -> None:
    uid, of_user = pwd.getpwnam("daemon")[2:4]
    gid = grp.getgrnam(group).gr_gid if group else of_user
    groups = [gid] if group else os.getgrouplist("daemon", gid)

    probed = Probed(exec=["sh", "-c", "echo $(id -u) $(id -g) $(id -G); exit 1"])
    server = probed.server.model_copy(update={"user": f"daemon:{group}" if group else "daemon"})
    probed.prober = probed.make(server)
    probed.prober.start(probed.results.append)
    _, _, found = (await probed.verdict()).rpartition(": ")
    assert [int(each) for each in found.split()] == [uid, gid, *groups]


def test_request_does_not_depend_on_the_worker() -> None:
    server = ServerConfig(
        name="web", bind="127.0.0.1:1", app="a:b", expose="https://shop.example:8443/x", health="/ü"
    )
    assert server.health.readiness is not None
    request = HttpProbeRequest(server.health.readiness, exposed_url=server.expose).new_reply().payload
    assert request.startswith(b"GET /%C3%BC HTTP/1.1\r\nHost: shop.example:8443\r\n")


@pytest.mark.parametrize(
    ("method", "has_length"), [("GET", False), ("HEAD", False), ("OPTIONS", False), ("POST", True)]
)
def test_request_that_may_have_a_body_says_that_it_has_none(method: str, *, has_length: bool) -> None:
    probe = Probe(http="/", method=method)
    payload = HttpProbeRequest(probe, exposed_url="http://127.0.0.1:1").new_reply().payload
    assert (b"\r\nContent-Length: 0\r\n" in payload) is has_length


def test_only_a_connection_that_is_not_used_again_is_closed_by_the_request() -> None:
    probe = Probe(http="/")
    once = HttpProbeRequest(probe, exposed_url="http://127.0.0.1:1", reusable=False).new_reply().payload
    assert b"\r\nConnection: close\r\n" in once
    assert b"Connection" not in HttpProbeRequest(probe, exposed_url="http://127.0.0.1:1").new_reply().payload


async def test_time_in_the_accept_queue_does_not_count_before_the_worker_is_ready(
    listener: socket.socket,
) -> None:
    probe = Probe(http="/", timeout=0.1)
    probing = WorkerProbe("readiness", probe, prober_of_command(listener, http="/"), print)
    passing = asyncio.ensure_future(probing.probe_until_ok())
    await until(lambda: probing.message)
    await asyncio.sleep(0.5)
    assert (passing.done(), probing.message) == (False, "its connection is waiting to be accepted")
    with listener.accept()[0] as theirs:
        theirs.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await asyncio.wait_for(passing, 60)
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    probing.stop()


class QueuedProber:
    """Is accepted at the very end of a pause, and gets its response at the end of the next one."""

    def __init__(self) -> None:
        self.asked = 0
        self.on_result: Callable[[str], None] = print

    def start(self, on_result: Callable[[str], None]) -> None:
        self.on_result = on_result

    def queued(self) -> bool:
        self.asked += 1
        if self.asked == 2:
            asyncio.get_running_loop().call_later(0.02, self.on_result, "")
        return self.asked < 2

    def cancel(self) -> None:
        self.on_result("cancelled")

    close = cancel


async def test_pause_in_which_the_connection_was_accepted_does_not_count() -> None:
    prober = QueuedProber()
    probe = Probe(http="/", timeout=0.1)
    probing = WorkerProbe("readiness", probe, prober, print)
    await asyncio.wait_for(probing.probe_until_ok(), 60)
    assert prober.asked == 2


async def test_worker_that_accepts_a_probe_and_does_not_respond_is_late(listener: socket.socket) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    probe = Probe(http="/", timeout=0.1)
    probing = WorkerProbe("readiness", probe, prober_of_command(listener, http="/"), print)
    async with listening(hang, sock=listener):
        passing = asyncio.ensure_future(probing.probe_until_ok())
        await until(lambda: probing.message == "no answer within 100ms")
        passing.cancel()
        probing.stop()


@pytest.mark.loop(run=asyncio.run)
async def test_processes_that_a_program_leaves_behind_are_killed_with_its_end(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    probed = Probed(exec=["sh", "-c", f"sleep 600 & echo $! >{file}"])
    probed.prober.start(probed.results.append)
    await until(lambda: probed.results)
    assert probed.results == [""]
    left_behind = int(file.read_text())
    wait_until(lambda: not is_alive(left_behind))


async def test_program_that_was_killed_is_not_started_again_before_it_has_ended() -> None:
    probed = Probed(exec=["sleep", "0.01"])
    probed.prober.start(probed.results.append)
    probed.prober.cancel()
    probed.prober.start(probed.results.append)
    assert probed.results == ["sleep: still running after SIGKILL"]
    async with asyncio.timeout(60):
        while "" not in probed.results:
            probed.prober.start(probed.results.append)
            await asyncio.sleep(0.005)
    assert not probed.prober.queued()
