"""One client, or one backend, that sends tiny messages without end: the others get their turns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from poolctl.features.gateway.process.proxy import backend_connection, client_connection
from poolctl.features.gateway.process.proxy.client_connection import MOST_REQUESTS_AT_ONCE
from poolctl.http.messages import MOST_CHUNKS_A_SECOND, MOST_CHUNKS_AT_ONCE, ChunkedBody
from tests.features.gateway.proxy_stage import Backend, Stage, Wire, ok, play

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
TINY, LAST = b"1\r\na\r\n", b"0\r\n\r\n"
CHUNKS = 5_000
BODY = TINY * CHUNKS + LAST


@pytest.fixture
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """All chunks come within one second."""
    for module in (client_connection, backend_connection):
        monkeypatch.setattr(module, "ChunkedBody", partial(ChunkedBody, clock=lambda: 0.0))


class Turns:
    """Counts the turns of the loop while it is entered."""

    def __init__(self) -> None:
        self.count = 0
        self._over = False

    def __enter__(self) -> Turns:
        asyncio.get_running_loop().call_soon(self._turn)
        return self

    def __exit__(self, *exception: object) -> None:
        self._over = True

    def _turn(self) -> None:
        self.count += 1
        if not self._over:
            asyncio.get_running_loop().call_soon(self._turn)


async def whole_body(backend: Backend, wire: Wire) -> None:
    """Answer when the whole body has come."""
    await backend.request(wire)
    assert await wire.exactly(len(BODY)) == BODY
    await wire.send(OK + b"Content-Length: 5\r\n\r\nwhole")
    await ok(backend, wire)


@pytest.mark.usefixtures("frozen_clock")
def test_tiny_chunks_of_a_request_are_passed_on_in_many_turns() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(whole_body)
        client = await stage.client()
        with Turns() as turns:
            await client.send(POST + BODY + GET)
            assert (await client.response())[1] == b"whole"
        assert turns.count > CHUNKS / MOST_CHUNKS_AT_ONCE
        await client.head()  # that of the next request, which came behind the chunks

    play(scene)


@pytest.mark.usefixtures("frozen_clock")
def test_request_with_too_many_chunks_a_second_gets_400_and_its_connection_ends() -> None:
    async def scene(stage: Stage) -> None:
        ended = asyncio.Event()

        async def drop(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await wire.rest()
            ended.set()

        await stage.route(drop)
        client = await stage.client()
        await client.send(POST + TINY * (MOST_CHUNKS_A_SECOND + 1))
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"\r\nConnection: close\r\n" in head
        await client.rest()
        await asyncio.wait_for(ended.wait(), 20)  # for the backend, too

    play(scene)


@pytest.mark.usefixtures("frozen_clock")
@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_tiny_chunks_of_a_response_are_passed_on_in_many_turns(closes: bool, version: bytes) -> None:
    async def chunks(backend: Backend, wire: Wire) -> None:
        while True:
            await backend.request(wire)
            await wire.send(CHUNKED + BODY)
            if closes:
                return

    async def scene(stage: Stage) -> None:
        backend = await stage.route(chunks)
        client = await stage.client()
        with Turns() as turns:
            for count in (1, 2):
                await client.send(GET.replace(b"1.1", version))
                await client.head()
                body = BODY if version == b"1.1" else b"a" * CHUNKS
                assert await client.exactly(len(body)) == body
                assert turns.count > count * CHUNKS / MOST_CHUNKS_AT_ONCE
                if version == b"1.0":
                    client = await stage.client()
        assert backend.connections == 1 + closes

    play(scene)


@pytest.mark.usefixtures("frozen_clock")
def test_slow_client_of_small_chunks_gets_all_of_them() -> None:
    body = (b"400\r\n" + bytes(1024) + b"\r\n") * (4 * CHUNKS - 1) + LAST

    async def chunks(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(CHUNKED + body)

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
        await wire.send(CHUNKED + TINY * (MOST_CHUNKS_A_SECOND + 1))
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


@pytest.mark.parametrize(
    "head", [GET, GET[:-2] + b"X: " + b"y" * 20_000 + b"\r\n\r\n"], ids=["small", "large"]
)
def test_requests_without_a_backend_that_come_at_once_are_answered_in_many_turns(head: bytes) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok, path="/there")
        client = await stage.client()
        at_once = MOST_REQUESTS_AT_ONCE if head == GET else 1
        count = 20 * at_once
        with Turns() as turns:
            sending = asyncio.ensure_future(client.send(head * count + GET.replace(b"/", b"/there", 1)))
            for _ in range(count):
                assert (await client.response())[0].startswith(b"HTTP/1.1 404 ")
            assert (await client.response())[0].startswith(b"HTTP/1.1 200 ")
            await sending
        assert turns.count > count / at_once

    play(scene)
