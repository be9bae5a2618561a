"""Clients and backends that do all at the wrong time: nothing is left over, and each request is counted once."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest

from poolctl.features.gateway.process.proxy.backend_connection import Timer
from poolctl.routing.route import BreakerRule, Limit
from poolctl.worker import tally
from tests.features.gateway.proxy_stage import Backend, Script, Stage, Wire, play, route

OK = b"HTTP/1.1 200 OK\r\n"
RESPONSES = [
    OK + b"Content-Length: 5\r\n\r\nhello",
    OK + b"Content-Length: 300000\r\n\r\n" + b"y" * 300_000,
    OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 20 + b"0\r\n\r\n",
    b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
]
LAST_RESPONSES = [
    b"",
    OK[:7],
    OK + b"Content-Length: 10\r\n\r\nabc",
    OK + b"\r\n" + b"x" * 70_000,
    OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    b"no response\r\n\r\n",
]
REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 9,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"z" * 100_000,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nzzz",
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"5;x\r\nhello\r\n" * 100
    + b"0\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nabc",
    b"no request\r\n\r\n",
]
SWITCHING = b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"


def disorderly_backend(random: Random) -> Script:
    async def script(backend: Backend, wire: Wire) -> None:
        while True:
            head = await wire.head()
            if b"chunked" in head:
                await wire.chunks()
            elif b"Content-Length: 100000" in head:
                if random.random() < 0.2:  # a response to a request that is not read
                    await wire.send(RESPONSES[0])
                    return
                await wire.exactly(100_000)
            what = random.random()
            if b"Upgrade" in head and what < 0.7:
                await wire.send(SWITCHING)
                while data := await wire.some():
                    await wire.send(data)
                    if random.random() < 0.2:
                        return
                return
            if what < 0.2:
                await wire.send(random.choice(LAST_RESPONSES))
                if what < 0.1:
                    wire.reset()
                return
            await wire.send(random.choice(RESPONSES))

    return script


async def disorderly_client(stage: Stage, random: Random) -> None:
    client = await stage.client()
    with suppress(OSError, RuntimeError):  # uvloop's, for a closed connection
        for _ in range(random.randrange(1, 6)):
            await client.send(random.choice(REQUESTS))
            if random.random() < 0.7:
                with suppress(TimeoutError):
                    await asyncio.wait_for(client.reader.read(100_000), 0.05)
        if random.random() < 0.5:
            client.reset()
    client.close()


def test_nothing_is_left_of_disorderly_clients_and_backends() -> None:
    random = Random(1)

    async def scene(stage: Stage) -> None:
        backends = [await stage.backend(disorderly_backend(random)) for _ in range(2)]
        limit = Limit(concurrency=10, queue=5, queue_seconds=0.2)
        timeouts = {"idle": 0.3, "head": 0.3}
        rule = BreakerRule(failures=0, rate=0.0)
        stage.routes(route(*backends, retries=1, breaker=rule, limit=limit, timeouts=timeouts))
        await asyncio.gather(*(disorderly_client(stage, random) for _ in range(100)))
        pool, of_route = stage.edge.pool, stage.edge.backends.of(next(iter(stage.edge.table)))
        while pool.clients or pool._tasks:
            await asyncio.sleep(0.01)
        assert (of_route.in_flight, of_route.waiting) == (0, 0)
        pool.close_idle()
        while any(row["connections"] for row in stage.edge.backends.snapshot()):
            await asyncio.sleep(0)
        traffic = stage.edge.counts.route("app")
        slots = traffic.slots
        ended = sum(slots[tally.STATUS : tally.STATUS + 6]) + slots[tally.BROKEN] + slots[tally.DISCONNECTED]
        assert traffic.requests == ended > 50

    play(scene, head_seconds=0.5, keep_alive_seconds=0.5)


def test_client_that_leaves_in_the_same_turn_as_its_response_arrives_is_disconnected() -> None:
    asked: asyncio.Queue[Wire] = asyncio.Queue()

    async def script(backend: Backend, wire: Wire) -> None:
        await wire.head()
        asked.put_nowait(wire)
        await wire.rest()

    async def scene(stage: Stage) -> None:
        await stage.route(script)
        client = await stage.client()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wire = await asyncio.wait_for(asked.get(), 60)
        # Both before the loop looks again.
        with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_WR)
        response = OK + b"Connection: close\r\nContent-Length: 20000\r\n\r\n" + b"y" * 20_000
        os.write(wire.writer.get_extra_info("socket").fileno(), response)
        await client.rest()
        while stage.edge.pool.clients:
            await asyncio.sleep(0)
        assert stage.edge.counts.route("app").requests == 1

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
