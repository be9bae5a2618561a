"""Connections for which the gateway waits: they cost little, and end in time."""

from __future__ import annotations

import asyncio
import resource
import select
import socket
import struct
import tracemalloc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from poolctl.features.gateway.process import waiting_connections
from poolctl.features.gateway.process.waiting_connections import ConnectionAwaitingInput, WaitingConnections
from tests.features.gateway.passing_stage import DEADLINE, HEAD, Stage, play, until
from tests.features.gateway.proxy_stage import _pair


class Counted(WaitingConnections):
    """Counts how often the loop has found something for them to do."""

    events = 0

    def _on_events(self) -> None:
        self.events += 1
        super()._on_events()


def test_waiting_connections_take_less_than_a_kilobyte_each_and_no_time() -> None:
    async def scene(stage: Stage) -> None:
        waiting = stage.edge.passing.waiting = Counted()
        stage.route_to("users", host="elsewhere")
        await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting == 1)
        tracemalloc.start()
        for number in range(200):
            await stage.connect(HEAD[:20] if number % 2 else b"")
        await until(lambda: stage.waiting == 201 and len(waiting._silent) == 100)
        size_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The clients' ends are in this process too.
        assert size_bytes < 200 * (1024 + 512), size_bytes / 200
        events = waiting.events
        assert events
        for _ in range(50):
            await asyncio.sleep(0)
        assert waiting.events <= events + 1  # one that was under way
        waiting.close()

    play(scene)


def test_oldest_silent_connection_is_closed_when_too_many_wait() -> None:
    async def scene(stage: Stage) -> None:
        stage.edge.passing.waiting = WaitingConnections(most=3)
        pair = stage.server("users")
        stage.route_to("users")
        begun = await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting == 1)
        silent = []
        for count in (2, 3, 3):
            silent.append(await stage.connect())
            await until(lambda count=count: stage.waiting == count)
        assert await stage.read(silent[0]) == b""
        await stage.edge.loop.sock_sendall(begun, HEAD[20:])
        (await pair.take()).close()
        stage.edge.passing.waiting.close()

    play(scene)


def test_drain_serves_heads_that_have_begun_and_closes_silent_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting_connections, "QUIET_SECONDS", 0.05)

    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        begun, silent = await stage.connect(HEAD[:20]), await stage.connect()
        await until(lambda: stage.waiting == 2)
        drained = asyncio.ensure_future(stage.edge.passing.waiting.drain(DEADLINE))
        assert await stage.read(silent) == b""
        assert not drained.done()
        await stage.edge.loop.sock_sendall(begun, HEAD[20:])
        (await pair.take()).close()
        await drained
        begun = await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting)
        await stage.edge.passing.waiting.drain(0.1)
        assert not stage.waiting

    play(scene)


class Waits(ConnectionAwaitingInput):
    """Waits for a line; keeps what became of it."""

    most_seconds = 20.0

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.ended: list[bool] = []
        self.served = b""

    def needs_more_after_read(self, *, ended: bool) -> bool:
        self.ended.append(ended)
        return not ended and b"\n" not in self.sock.recv(100, socket.MSG_PEEK)

    def serve_or_close(self) -> None:
        self.served = self.sock.recv(100)
        self.sock.close()


class Clients:
    """Connections that wait on a loop, by the clients' ends."""

    def __init__(self, most: int = 0) -> None:
        self.waiting = WaitingConnections(most)
        self.ends: list[socket.socket] = []

    def add(self, seconds: float = 60.0) -> tuple[socket.socket, Waits]:
        ours, theirs = _pair()
        theirs.setblocking(False)
        ours.setblocking(False)
        self.ends.append(ours)
        made = Waits(theirs)
        self.waiting.add(made, seconds)
        return ours, made

    async def refused(self, answer: bytes, sent: bytes = b"") -> socket.socket:
        ours, theirs = _pair()
        ours.sendall(sent)
        ours.setblocking(False)
        theirs.setblocking(False)
        self.ends.append(ours)
        if sent:
            await until(lambda: select.select([theirs], [], [], 0)[0])
        self.waiting.refuse(theirs, answer)
        return ours

    async def rest(self, sock: socket.socket) -> bytes:
        data = b""
        while piece := await asyncio.get_running_loop().sock_recv(sock, 4096):
            data += piece
        return data


def with_clients(scene: Callable[[Clients], Coroutine[Any, Any, None]], most: int = 0) -> None:
    async def work() -> None:
        clients = Clients(most)
        try:
            async with asyncio.timeout(DEADLINE):
                await scene(clients)
        finally:
            clients.waiting.close()
            for end in clients.ends:
                end.close()

    asyncio.run(work())


def test_connection_is_served_when_its_bytes_are_there_and_is_not_watched_then() -> None:
    async def scene(clients: Clients) -> None:
        client, waits = clients.add()
        _, other = clients.add()
        assert waits.silent
        client.send(b"a")
        await until(lambda: waits.ended)
        assert (waits.silent, len(clients.waiting)) == (False, 2)
        client.send(b"b\n")
        await until(lambda: waits.served)
        assert waits.served == b"ab\n"
        assert waits.timer is not None
        assert waits.timer.cancelled()
        assert (len(clients.waiting), other.ended) == (1, [])

    with_clients(scene)


def test_bytes_that_arrived_before_are_reported_and_so_is_the_end() -> None:
    async def scene(clients: Clients) -> None:
        client, waits = clients.add()
        client.shutdown(socket.SHUT_WR)
        await until(lambda: waits.ended)
        assert waits.ended == [True]
        assert len(clients.waiting) == 0

    with_clients(scene)


def test_first_bytes_bring_the_deadline_forward_and_never_back() -> None:
    async def scene(clients: Clients) -> None:
        client, waits = clients.add(60.0)
        soon, short = clients.add(0.5)
        before, first = short.deadline, waits.timer
        assert first is not None
        now = asyncio.get_running_loop().time()
        assert 59.0 < waits.deadline - now <= 60.1
        for end in (client, soon):
            end.send(b"a")
        await until(lambda: waits.ended and short.ended)
        assert waits.deadline - now < 30.0
        assert first.cancelled()
        assert short.deadline == before
        with suppress(ConnectionResetError):  # for the byte that nobody has read
            assert await clients.rest(soon) == b"", "closed at its deadline"

    with_clients(scene)


def test_oldest_connection_makes_room_when_none_is_silent() -> None:
    async def scene(clients: Clients) -> None:
        first, one = clients.add()
        second, other = clients.add()
        for end in (first, second):
            end.send(b"a")
        await until(lambda: one.ended and other.ended)
        assert clients.waiting.is_full
        assert not clients.waiting.close_silent()
        clients.add()
        assert len(clients.waiting) == 2
        # Unread bytes: the end is a reset.
        with suppress(ConnectionResetError):
            assert await clients.rest(first) == b""
        assert other.sock.fileno() >= 0

    with_clients(scene, most=2)


def test_silent_connection_with_unread_bytes_is_not_closed_for_another() -> None:
    async def scene(clients: Clients) -> None:
        first, one = clients.add()
        second, other = clients.add()
        first.send(b"a")
        await until(lambda: select.select([one.sock], [], [], 0)[0])
        assert clients.waiting.close_silent()
        assert await clients.rest(second) == b""
        assert (one.sock.fileno() >= 0, other.sock.fileno()) == (True, -1)

    with_clients(scene)


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\n\r\n" + b"x" * 10_000])
def test_refused_client_gets_the_answer_and_the_end_although_it_has_sent_bytes(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(waiting_connections, "_LINGER_SECONDS", 2 * DEADLINE)

    async def scene(clients: Clients) -> None:
        client = await clients.refused(b"no", sent)
        assert await clients.rest(client) == b"no"
        assert len(clients.waiting) == 1
        client.send(b"more")
        client.close()
        await until(lambda: not len(clients.waiting))

    with_clients(scene)


def test_refused_client_that_sends_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_connections, "_MOST_LINGERED_BYTES", 100_000)

    async def scene(clients: Clients) -> None:
        client = await clients.refused(b"no")

        async def send_without_end() -> None:
            while True:
                await asyncio.get_running_loop().sock_sendall(client, b"x" * 65536)

        with pytest.raises(ConnectionError):
            await send_without_end()

    with_clients(scene)


def test_refused_client_that_stays_is_cut_off_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_connections, "_LINGER_SECONDS", 0.01)

    async def scene(clients: Clients) -> None:
        await clients.refused(b"no")
        await until(lambda: not len(clients.waiting))

    with_clients(scene)


def test_refused_client_that_has_left_is_forgotten() -> None:
    async def scene(clients: Clients) -> None:
        ours, theirs = _pair()
        theirs.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ours.close()
        await until(lambda: select.select([theirs], [], [], 0)[0])
        clients.waiting.refuse(theirs, b"no")
        assert (len(clients.waiting), theirs.fileno()) == (0, -1)

    with_clients(scene)


def test_drain_of_none_takes_no_time_and_of_others_ends_with_the_last() -> None:
    async def scene(clients: Clients) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await clients.waiting.drain(30.0)
        assert loop.time() - before < 30.0
        client, waits = clients.add()
        client.send(b"a")
        await until(lambda: waits.ended)
        draining = asyncio.ensure_future(clients.waiting.drain(1000.0))
        await asyncio.sleep(0)
        client.send(b"\n")
        await draining
        assert waits.served == b"a\n"

    with_clients(scene)


def test_number_of_connections_follows_the_limit_of_open_files() -> None:
    async def scene(clients: Clients) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert clients.waiting._most == max(16, min(100_000, soft // 2))
        assert not clients.waiting.is_full

    with_clients(scene)
