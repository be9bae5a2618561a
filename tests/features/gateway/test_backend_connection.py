"""A backend's connection: how its response is read, whatever it sends and whenever it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from poolctl.features.gateway.process.proxy import backend_connection, client_connection
from poolctl.features.gateway.process.proxy.backend_connection import Timer
from poolctl.http.messages import MOST_CHUNKS_A_SECOND, MOST_CHUNKS_AT_ONCE, ChunkedBody
from tests.features.gateway.proxy_stage import Backend, Stage, Wire, play
from tests.features.gateway.test_client_connection import Turns, failing, status_of
from tests.http_corpus import RESPONSES, ResponseCase

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_backend_that_ends_before_its_response_is_a_bad_gateway(sent: bytes, reset: bool) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(failing(sent, reset=reset))
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 502
        assert len(backend.heads) == 1

    play(scene)


REFUSED = [
    case
    for case in RESPONSES
    if not case.status and case.whole and case.name != "other protocol, not asked for"
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_malformed_response_is_a_bad_gateway_or_cut_off(case: ResponseCase) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(failing(case.data))
        client = await stage.client()
        await client.send(GET[:-2] + b"Connection: close\r\n\r\n")
        try:
            received = await client.rest()
        except ConnectionError:
            return
        received = received.rpartition(b"HTTP/1.1 100 Continue\r\n\r\n")[2]
        if received.startswith(OK):  # only its body is malformed
            assert not received.endswith(b"0\r\n\r\n")
        else:
            assert received == b"" or received.startswith(b"HTTP/1.1 502 ")

    play(scene)


CUT = {
    "length": OK + b"Content-Length: 10\r\n\r\nhel",
    "chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    "no last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
    "broken chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\nxyz\r\n",
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_response_that_is_cut_off_is_not_taken_for_whole(name: str, version: bytes) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(failing(CUT[name]))
        client = await stage.client()
        await client.send(b"GET / HTTP/%b\r\nHost: a\r\nConnection: close\r\n\r\n" % version)
        try:
            received = await client.rest()
        except ConnectionResetError:
            return
        if received.startswith(b"HTTP/1.1 502 "):
            assert name == "broken chunk"  # nothing had been passed on yet
            return
        assert version == b"1.1" or name == "length"
        assert not received.endswith(b"0\r\n\r\n")

    play(scene)


class _Loop:
    """A clock, and the one call that timers have with it."""

    def __init__(self) -> None:
        self.now, self.calls, self.handles = 100.0, 0, list[_Handle]()

    def time(self) -> float:
        return self.now

    def call_at(self, due: float, callback: Callable[[], None]) -> _Handle:
        self.calls += 1
        self.handles.append(_Handle(self, due, callback))
        return self.handles[-1]

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [each for each in self.handles if each.due <= until]:
            first = min(due, key=lambda each: each.due)
            self.now = max(self.now, first.due)
            first.cancel()
            first.callback()
        self.now = until


class _Handle:
    def __init__(self, loop: _Loop, due: float, callback: Callable[[], None]) -> None:
        self.loop, self.due, self.callback = loop, due, callback

    def cancel(self) -> None:
        self.loop.handles.remove(self)


def test_timers_expire_at_their_deadline_and_not_before() -> None:
    loop, expired = _Loop(), []
    timers = [Timer(loop) for _ in range(5)]  # type: ignore[arg-type]
    for number, seconds in enumerate((1.0, 2.0, 3.0, 4.0, 0.0)):
        timers[number].start(seconds, lambda number=number: expired.append((number, loop.now)))
    timers[1].start(10.0, lambda: expired.append((1, loop.now)))
    timers[2].start(0.5, lambda: expired.append(("earlier", loop.now)))
    timers[3].stop()
    loop.advance(1.3)
    assert expired == [("earlier", 100.5), (0, 101.0)]
    loop.advance(8.5)
    assert len(expired) == 2
    loop.advance(1.0)
    assert expired[2:] == [(1, 110.0)]
    assert not loop.handles  # nothing to wake for


def test_deadline_that_is_moved_often_costs_the_loop_nothing() -> None:
    loop = _Loop()
    timer = Timer(loop)  # type: ignore[arg-type]
    for number in range(1000):
        timer.start(5.0 if number % 2 else 60.0, lambda: pytest.fail("it was moved"))
        loop.advance(0.005)
    assert loop.calls <= 4


def test_closed_timer_is_forgotten() -> None:
    loop = _Loop()
    timer = Timer(loop)  # type: ignore[arg-type]
    timer.start(1.0, lambda: pytest.fail("it was closed"))
    timer.close()
    assert not loop.handles
    loop.advance(5.0)


OK_CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


TINY, LAST = b"1\r\na\r\n", b"0\r\n\r\n"


TINY_CHUNKS = 5_000


TINY_BODY = TINY * TINY_CHUNKS + LAST


@pytest.fixture
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """All chunks come within one second."""
    monkeypatch.setattr(backend_connection, "ChunkedBody", partial(ChunkedBody, clock=lambda: 0.0))


@pytest.mark.usefixtures("frozen_clock")
@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_tiny_chunks_of_a_response_are_passed_on_in_many_turns(closes: bool, version: bytes) -> None:
    async def chunks(backend: Backend, wire: Wire) -> None:
        while True:
            await backend.request(wire)
            await wire.send(OK_CHUNKED + TINY_BODY)
            if closes:
                return

    async def scene(stage: Stage) -> None:
        backend = await stage.route(chunks)
        client = await stage.client()
        with Turns() as turns:
            for count in (1, 2):
                await client.send(GET.replace(b"1.1", version))
                await client.head()
                body = TINY_BODY if version == b"1.1" else b"a" * TINY_CHUNKS
                assert await client.exactly(len(body)) == body
                assert turns.count > count * TINY_CHUNKS / MOST_CHUNKS_AT_ONCE
                if version == b"1.0":
                    client = await stage.client()
        assert backend.connections == 1 + closes

    play(scene)


@pytest.mark.usefixtures("frozen_clock")
def test_slow_client_of_small_chunks_gets_all_of_them() -> None:
    body = (b"400\r\n" + bytes(1024) + b"\r\n") * (4 * TINY_CHUNKS - 1) + LAST

    async def chunks(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(OK_CHUNKED + body)

    async def scene(stage: Stage) -> None:
        await stage.route(chunks)
        client = await stage.client()
        await client.send(GET)
        await client.head()
        while not any(each._paused for each in connections(stage)):
            await asyncio.sleep(0)
        assert await client.exactly(len(body)) == body

    def connections(stage: Stage) -> Iterator[backend_connection.BackendConnection]:
        for each in stage.edge.pool.clients:
            assert isinstance(each, client_connection.ClientConnection)
            connection = None if each._exchange is None else each._exchange._connection
            if connection is not None:
                yield connection

    play(scene)


@pytest.mark.usefixtures("frozen_clock")
def test_response_with_too_many_chunks_a_second_is_cut_off() -> None:
    async def chunks(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(OK_CHUNKED + TINY * (MOST_CHUNKS_A_SECOND + 1))
        await wire.rest()

    async def scene(stage: Stage) -> None:
        await stage.route(chunks)
        client = await stage.client()
        await client.send(GET)
        try:
            assert LAST not in await client.rest()
        except ConnectionError:
            pass
        assert stage.edge.counts.route("app").failures == 1

    play(scene)
