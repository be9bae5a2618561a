"""Requests that servers read differently, and what reaches a backend of them: nothing, or what all parsers read alike.

A worker that is sent the same bytes on its own port serves no other requests than the gateway lets through.

The cases are those of this repository's tables, and with `make conformance` those of public collections (see
tests/conformance_collections.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any, NamedTuple

import httptools
import pytest

from poolctl.http.messages import BadMessage, RequestReader, canonical_head
from tests.asgi_apps import lifespan
from tests.conformance_collections import COLLECTIONS, CollectedCase
from tests.http_corpus import REQUESTS, RequestCase
from tests.serving import ZTTP, Client, Engine, served
from tests.unit.http.test_messages import assert_read_alike, read_by_h11, read_by_httptools

from .proxy_stage import DEADLINE, Backend, Stage, Wire, play

# When no more answers are expected, and where it is not known how many there are. Too short a time hides a smuggled
# request, and makes no test fail.
QUIET_SECONDS = 0.1
UNKNOWN_QUIET_SECONDS = 1.0
AT_ONCE = 100
SERVED_BY = [Engine("uvloop", "h11"), Engine("uvloop", "httptools"), *ZTTP]
# What the proxy passes on in order, where the table, made for a server, has a refusal.
PUT_IN_ORDER = {
    "extension that is too long": "extensions are not passed on",
    "trailers without an end": "a limit of the table's server",
    "body that is too large": "a limit of the table's server",
    "chunks that are too large": "a limit of the table's server",
}
# Requests that a worker on its own port understands otherwise than the gateway. They are proxied, never passed, and a
# worker behind the gateway is sent a form that leaves it no choice.
OWN_READING = {
    rb"[A-Z]+ \w+://": "the gateway takes the host of the URL (RFC 9112 §3.2.2), uvicorn that of the field",
    rb"CONNECT ": "the gateway answers it itself",
    rb"(?is)(?=.*\ncontent-length:).*\nupgrade:": "to httptools the body belongs to the other protocol",
}


class ProxyCase(NamedTuple):
    """What only a proxy can do wrong. `statuses` are those of all answers, of which `reached` came from the backend."""

    name: str
    source: str
    data: bytes
    statuses: tuple[int, ...]
    reached: int


FIRST = b"GET /first HTTP/1.1\r\nHost: a\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(NEXT)
ENDS = b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
SOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 777\r\n\r\n"
)

PROXIED = [
    # Fields that Connection names are not forwarded. Without these the backend would read another request.
    ProxyCase("Connection names Host", "RFC 9110 §7.6.1", FIRST + b"Connection: host\r\n\r\n", (400,), 0),
    ProxyCase(
        "Connection names the length", "RFC 9110 §7.6.1",
        UPLOAD + b"Connection: content-length\r\n" + LENGTH + b"\r\n" + NEXT, (400,), 0,
    ),
    ProxyCase(
        "Connection names the coding", "RFC 9110 §7.6.1",
        UPLOAD + b"Connection: close, transfer-encoding\r\n" + ENDS + b"\r\n", (400,), 0,
    ),
    # Bodies where servers expect none.
    ProxyCase("GET with a body", "RFC 9110 §9.3.1", FIRST + LENGTH + b"\r\n" + NEXT + NEXT, (200, 200), 2),
    ProxyCase(
        "HEAD with a body", "RFC 9110 §9.3.2",
        FIRST.replace(b"GET", b"HEAD") + LENGTH + b"\r\n" + NEXT + NEXT, (200, 200), 2,
    ),
    ProxyCase("old version with a body", "§6.3", b"POST / HTTP/1.0\r\n" + LENGTH + b"\r\n" + NEXT, (200,), 1),
    ProxyCase("old version and a next request", "§9.3", b"GET / HTTP/1.0\r\n\r\n" + NEXT, (200,), 1),
    ProxyCase(
        "old version that is kept alive", "§9.3",
        b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n" + NEXT, (200, 200), 2,
    ),
    ProxyCase(
        "length with a tab behind", "§5",
        UPLOAD + LENGTH.replace(b"\r", b"\t\r") + b"\r\n" + NEXT + NEXT, (200, 200), 2,
    ),
    # Another protocol: what follows is a request until the server agrees.
    ProxyCase("WebSocket that the backend declines", "RFC 9110 §7.8", FIRST + SOCKET + NEXT, (200, 200), 2),
    ProxyCase(
        "HTTP/2 without TLS", "RFC 9113 §3.1",
        FIRST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n" + NEXT,
        (200, 200), 2,
    ),
    ProxyCase("upgrade with a body", "RFC 9110 §7.8", UPLOAD + LENGTH + SOCKET + NEXT + NEXT, (200, 200), 2),
    ProxyCase("HTTP/2's preface", "RFC 9113 §3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + NEXT, (505,), 0),
    # Trailers that a backend could take for fields of the head.
    ProxyCase(
        "length among the trailers", "RFC 9110 §6.5.1",
        UPLOAD + ENDS + LENGTH + b"\r\n" + NEXT, (200, 200), 2,
    ),
    ProxyCase(
        "host among the trailers", "RFC 9110 §6.5.1",
        UPLOAD + ENDS + b"Host: b\r\n\r\n" + NEXT, (200, 200), 2,
    ),
    # Targets.
    ProxyCase(
        "URL with another host", "§3.2.2",
        b"GET http://b/first HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, (200, 200), 2,
    ),
    ProxyCase(
        "URL without a path", "§3.2.2",
        b"GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, (200, 200), 2,
    ),
    ProxyCase(
        "URL with a user", "RFC 9110 §4.2.4",
        b"GET http://a@b/ HTTP/1.1\r\nHost: a\r\n\r\n", (400,), 0,
    ),
    ProxyCase("URL of another scheme", "§3.2.2", b"GET ws://a/ HTTP/1.1\r\nHost: a\r\n\r\n", (400,), 0),
    ProxyCase("host as the target", "§3.2.3", b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", (400,), 0),
    ProxyCase("CONNECT", "§3.2.3", b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n" + NEXT, (405, 200), 1),
    ProxyCase(
        "unknown expectation", "RFC 9110 §10.1.1",
        UPLOAD + b"Expect: 100-continue, x\r\n" + LENGTH + b"\r\n" + NEXT, (417,), 0,
    ),
]  # fmt: skip

_status = re.compile(rb"HTTP/1\.1 (\d\d\d) ")


class Proxied(NamedTuple):
    """What became of a client's bytes: the statuses of all answers, and each backend connection's bytes."""

    statuses: list[int]
    forwarded: list[bytes]


class Recorder:
    """A backend that keeps what it is sent, and answers each request that its parser completes."""

    def __init__(self) -> None:
        self.connections: list[bytearray] = []

    async def __call__(self, backend: Backend, wire: Wire) -> None:
        kept = bytearray()
        self.connections.append(kept)
        answered = 0
        while data := await wire.some():
            kept += data
            with contextlib.suppress(httptools.HttpParserError):
                complete = completed(bytes(kept))
                for _ in range(complete - answered):
                    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                answered = max(answered, complete)


class Counted:
    """Counts the messages that httptools completes."""

    def __init__(self) -> None:
        self.count = 0

    def on_message_complete(self) -> None:
        self.count += 1


def completed(data: bytes) -> int:
    """How many requests httptools completes, if each upgrade is declined."""
    counted = Counted()
    while data:
        try:
            httptools.HttpRequestParser(counted).feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            data = data[upgrade.args[0] :]
        else:
            break
    return counted.count


async def through_proxy(data: bytes, stage: Stage, answers: int | None) -> Proxied:
    """Send the bytes to a proxy with a backend of its own, and wait for so many answers, None for any number."""
    recorder = Recorder()
    await stage.route(recorder)
    wire = await stage.client()
    received = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        await wire.send(data)
        while True:
            if answers is None:
                waits = UNKNOWN_QUIET_SECONDS
            else:
                waits = DEADLINE if len(_status.findall(received)) < answers else QUIET_SECONDS
            async with asyncio.timeout(waits):
                piece = await wire.some()
            if not piece:
                break
            received += piece
    statuses = [int(each) for each in _status.findall(received)]
    return Proxied(statuses, [bytes(each) for each in recorder.connections])


def through_proxies(cases: list[tuple[bytes, int | None]]) -> list[Proxied]:
    """Likewise each of them, with the number of answers to wait for, some at a time."""
    found: list[Proxied] = []

    async def scene(_: Stage) -> None:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(data: bytes, answers: int | None) -> Proxied:
            async with places:
                stage = Stage()
                try:
                    return await through_proxy(data, stage, answers)
                finally:
                    stage.close()

        found.extend(await asyncio.gather(*(one(*each) for each in cases)))

    play(scene)
    return found


def assert_all_read_alike(name: str, forwarded: list[bytes]) -> int:
    """How many requests reached the backend. h11, httptools and the strict reader agree about each of them."""
    count = 0
    for data in forwarded:
        while (message := first_message(name, data)) is not None:
            data = data[len(message) :]
            assert completed(message) == 1, (name, message[:1000])
            one, other = read_by_h11(message), read_by_httptools(message)
            assert len(one) == 1, (name, message[:1000])
            assert one == other, (name, message[:1000])
            count += 1
        heads = [[each[:4] for each in read(data)] for read in (read_by_h11, read_by_httptools)]
        assert heads[0] == heads[1], (name, data[:1000])  # of one that is not complete
        assert len(heads[0]) < 2, (name, data[:1000])
    return count


def first_message(name: str, data: bytes) -> bytes | None:
    """The first request that the strict reader finds; None when it is not complete, or too large for that reader."""
    reader = RequestReader(max_body_bytes=1 << 62)
    try:
        complete = reader.feed(data)
    except BadMessage as error:
        if error.status == 413:
            return None
        raise AssertionError(f"{name}: {error}: the backend was sent {data[:1000]!r}") from error
    return data[: len(data) - len(reader.rest)] if complete else None


def expected(case: RequestCase) -> int:
    """How many of its requests reach a backend."""
    return 1 + case.rest.startswith(b"GET /") if case.status == 200 else 0


@pytest.fixture(scope="module")
def proxied() -> dict[str, Proxied]:
    """The cases of this repository, through the proxy."""
    answers = [
        0 if case.status == 0 or case.name in PUT_IN_ORDER else max(1, expected(case)) for case in REQUESTS
    ]
    found = through_proxies([(case.data, count) for case, count in zip(REQUESTS, answers, strict=True)])
    return {case.name: each for case, each in zip(REQUESTS, found, strict=True)}


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name)
def test_backend_is_sent_only_what_all_parsers_read_alike(
    case: RequestCase, proxied: dict[str, Proxied]
) -> None:
    found = proxied[case.name]
    reached = assert_all_read_alike(case.name, found.forwarded)
    if case.name in PUT_IN_ORDER:
        assert reached <= 1
    else:
        assert reached == expected(case)
        assert found.statuses[:reached] == [200] * reached
        assert 200 not in found.statuses[reached:]


@pytest.fixture(scope="module")
def forwarded() -> dict[str, Proxied]:
    """Likewise those that only concern a proxy."""
    found = through_proxies([(case.data, len(case.statuses)) for case in PROXIED])
    return {case.name: each for case, each in zip(PROXIED, found, strict=True)}


@pytest.mark.parametrize("case", PROXIED, ids=lambda case: case.name)
def test_proxy_and_backend_understand_the_same_requests(
    case: ProxyCase, forwarded: dict[str, Proxied]
) -> None:
    found = forwarded[case.name]
    assert (tuple(found.statuses), assert_all_read_alike(case.name, found.forwarded)) == (
        case.statuses,
        case.reached,
    )
    bodies = [read_by_h11(data)[0][4] for data in found.forwarded]
    assert all(body in (b"", NEXT) for body in bodies)


class Understood(NamedTuple):
    """One request, as an application or a parser sees it."""

    method: bytes
    target: bytes
    host: bytes
    body: bytes


class Worker:
    """An application that answers every request, and keeps what it was shown, by the client's port."""

    def __init__(self) -> None:
        self.requests: dict[int, list[Understood]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        body, more = b"", scope["type"] == "http"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        host = b", ".join(value.strip() for name, value in scope["headers"] if name == b"host")
        target = b"?".join(filter(None, (scope["raw_path"], scope["query_string"])))
        method = scope.get("method", "GET").encode()
        self.requests.setdefault(scope["client"][1], []).append(Understood(method, target, host, body))
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await receive()
        else:
            length = (b"content-length", b"0")
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await send({"type": "http.response.body", "body": b""})


async def on_own_port(engine: Engine, cases: list[tuple[bytes, int]]) -> list[list[Understood]]:
    """The requests that a worker serves of each case's bytes, waiting for so many answers."""
    app, places = Worker(), asyncio.Semaphore(AT_ONCE)

    async def one(port: int, data: bytes, answers: int) -> list[Understood]:
        async with places:
            client = await Client.connect(port)
            own_port = client.writer.get_extra_info("sockname")[1]
            received = b""
            with contextlib.suppress(ConnectionError, TimeoutError):
                client.writer.write(data)
                while True:
                    missing = len(_status.findall(received)) < answers
                    async with asyncio.timeout(DEADLINE if missing else QUIET_SECONDS):
                        piece = await client.reader.read(65536)
                    if not piece:
                        break
                    received += piece
            client.close()
            return app.requests.get(own_port, [])

    async with served(engine, app, config={"log_level": "critical"}) as worker:
        return await asyncio.gather(*(one(worker.port, *each) for each in cases))


def understood(name: str, forwarded: list[bytes]) -> list[Understood]:
    """The complete requests among those that a backend was sent."""
    found = []
    for data in forwarded:
        while (message := first_message(name, data)) is not None:
            data = data[len(message) :]
            found += [Understood(each[0], each[1], *each[3:]) for each in read_by_h11(message)]
    return found


def reads_otherwise(data: bytes) -> bool:
    return any(re.match(pattern, data) for pattern in OWN_READING)


def differences(name: str, data: bytes, forwarded: list[bytes], own: list[Understood]) -> list[str]:
    """The pairs of requests, in their order, that gateway and worker understand differently."""
    head = canonical_head(data)
    if reads_otherwise(data):
        return [] if head is None else [f"{name}: {data!r} may be passed"]
    if head is not None and own and (head.method, head.target, head.host) != own[0][:3]:
        return [f"{name}: the gateway passes {head}, the worker serves {own[0]}"]
    pairs = zip(understood(name, forwarded), own, strict=False)
    return [
        f"{name}: the gateway sends {one}, the worker serves {other}" for one, other in pairs if one != other
    ]


@pytest.mark.parametrize("engine", SERVED_BY, ids="-".join)
def test_worker_on_its_own_port_serves_no_other_request_than_the_gateway_forwards(
    engine: Engine, proxied: dict[str, Proxied], forwarded: dict[str, Proxied]
) -> None:
    sent = [(each.data, expected(each)) for each in REQUESTS]
    sent += [(each.data, 0 if reads_otherwise(each.data) else min(1, each.reached)) for each in PROXIED]
    found = engine.run(on_own_port(engine, sent))
    wrong = []
    for case, own in zip([*REQUESTS, *PROXIED], found, strict=True):
        through = {**proxied, **forwarded}[case.name].forwarded
        wrong += differences(case.name, case.data, through, own)
    assert not wrong, "\n".join(wrong)
    # Only where an answer was waited for; the others may have had too little time.
    awaited = [own for (_, answers), own in zip(sent, found, strict=True) if answers]
    assert sum(map(bool, awaited)) >= 25


@pytest.fixture(scope="module", params=COLLECTIONS)
def collected(request: pytest.FixtureRequest) -> list[CollectedCase]:
    """The cases of each collection."""
    cases: list[CollectedCase] = request.param.cases()
    return cases


@pytest.fixture(scope="module")
def through(collected: list[CollectedCase]) -> list[Proxied]:
    """Likewise, through the proxy."""
    return through_proxies([(case.data, None) for case in collected])


def test_hostile_head_of_a_collection_is_not_canonical_and_others_are_read_alike(
    collected: list[CollectedCase],
) -> None:
    for case in collected:
        found = canonical_head(case.data)
        if found is not None:
            # What follows the head may be malformed.
            assert not case.hostile or found.body or case.lenient, case.name
            assert_read_alike(case.data[: found.end], found)


@pytest.mark.slow
def test_backend_is_sent_nothing_hostile_of_a_collection(
    collected: list[CollectedCase], through: list[Proxied]
) -> None:
    wrong = []
    for case, found in zip(collected, through, strict=True):
        try:
            reached = assert_all_read_alike(case.name, found.forwarded)
        except AssertionError as error:
            wrong.append(str(error))
            continue
        if case.hostile and reached > case.lenient:
            wrong.append(f"{case.name}: {case.data!r}: the backend was sent {found.forwarded!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("engine", SERVED_BY, ids="-".join)
def test_worker_serves_no_other_request_of_a_collection_than_the_gateway_forwards(
    engine: Engine, collected: list[CollectedCase], through: list[Proxied]
) -> None:
    own = engine.run(on_own_port(engine, [(case.data, 0) for case in collected]))
    wrong = []
    for case, found, requests in zip(collected, through, own, strict=True):
        wrong += differences(case.name, case.data, found.forwarded, requests)
    assert not wrong, "\n".join(wrong)
