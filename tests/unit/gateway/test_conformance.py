"""Requests that servers read differently, and what reaches a backend of them: nothing, or what all parsers read alike.

The cases are those of this repository's tables, and of public collections where checkouts of them are at hand (see
tests/conformance_collections.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import NamedTuple

import h11
import httptools
import pytest

from poolctl.http.canonical_head import parse
from poolctl.http.message_head import BadMessage
from poolctl.http.message_reader import RequestReader
from tests.conformance_collections import CollectedCase, collected
from tests.http_corpus import REQUESTS, RequestCase
from tests.unit.http.test_canonical_head import assert_read_alike, read_by_h11, read_by_httptools

from .proxy_stage import DEADLINE, Backend, Stage, Wire, play

COLLECTED = collected()
needs_collections = pytest.mark.skipif(not COLLECTED, reason="POOLCTL_CONFORMANCE names no checkouts")
# When no more answers are expected, and where it is not known how many there are. Too short a time hides a smuggled
# request, and makes no test fail.
QUIET_SECONDS = 0.1
UNKNOWN_QUIET_SECONDS = 1.0
AT_ONCE = 100
# What the proxy passes on in order, where the table, made for a server, has a refusal.
PUT_IN_ORDER = {
    "extension that is too long": "extensions are not passed on",
    "trailers without an end": "a limit of the table's server",
    "body that is too large": "a limit of the table's server",
    "chunks that are too large": "a limit of the table's server",
    "chunks that are too many": "a limit of the table's server",
}
# Verdicts of the collections that are stricter than RFC 9110 and 9112, or about a server.
LENIENT = {
    r"[Uu]nderscore|Transfer-Encoding with multiple (hyphens|delimiters)": "ordinary names to all parsers",
    r"HOST-EMPTY": "valid: RFC 9112 §3.2",
    r"explicit `close`|No restart when keep-alive is off": "only the first request is read",
    r"CHUNK|[Cc]hunk|extension": "the proxy writes the framing itself, without extensions",
}
_status = re.compile(rb"HTTP/1\.1 (\d\d\d) ")

Message = tuple[bytes, ...]


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
    counted = Counted()
    with contextlib.suppress(httptools.HttpParserUpgrade):
        httptools.HttpRequestParser(counted).feed_data(data)
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

    play("uvloop", scene)
    return found


def read(reader: str, data: bytes) -> list[Message]:
    """The requests in it: method, target, path, host and body. Raises what the parser raises."""
    return (read_by_h11 if reader == "h11" else read_by_httptools)(data)


def assert_all_read_alike(name: str, forwarded: list[bytes]) -> int:
    """How many requests reached the backend. h11, httptools and the strict reader agree about each of them."""
    count = 0
    for data in forwarded:
        try:
            one, other = read("h11", data), read("httptools", data)
        except (h11.ProtocolError, httptools.HttpParserError) as error:
            raise AssertionError(f"{name}: the backend was sent {data[:1000]!r}") from error
        complete = completed(data)
        assert one[:complete] == other[:complete], (name, data[:1000])
        assert strictly_read(data, name) == complete, (name, data[:1000])
        count += complete
    return count


def strictly_read(data: bytes, name: str) -> int:
    """How many requests the strict reader finds, up to one that is too large for it."""
    count = 0
    while data:
        reader = RequestReader(max_body_bytes=1 << 62)
        try:
            if not reader.feed(data):
                break
        except BadMessage as error:
            if error.status == 413:
                break
            raise AssertionError(f"{name}: {error}: the backend was sent {data[:1000]!r}") from error
        data = reader.rest
        count += 1
    return count


def is_lenient(case: CollectedCase) -> bool:
    return any(re.search(pattern, case.name) for pattern in LENIENT)


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


@needs_collections
@pytest.mark.parametrize("case", COLLECTED, ids=lambda case: case.name)
def test_hostile_head_of_a_collection_is_not_canonical_and_others_are_read_alike(case: CollectedCase) -> None:
    found = parse(case.data)
    if found is not None:
        assert not case.hostile or found.body or is_lenient(case)  # what follows the head may be malformed
        assert_read_alike(case.data[: found.end], found)


@needs_collections
def test_backend_is_sent_nothing_hostile_of_the_collections() -> None:
    wrong = []
    for case, found in zip(
        COLLECTED, through_proxies([(case.data, None) for case in COLLECTED]), strict=True
    ):
        try:
            reached = assert_all_read_alike(case.name, found.forwarded)
        except AssertionError as error:
            wrong.append(str(error))
            continue
        if case.hostile and reached > is_lenient(case):
            wrong.append(f"{case.name}: {case.data!r}: the backend was sent {found.forwarded!r}")
    assert not wrong, "\n".join(wrong)
