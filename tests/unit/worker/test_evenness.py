"""Workers that share an adoption pair even out their connections. Here they are servers on one loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest

from poolctl.worker.serving.evenness import MOMENT_SECONDS, Evenness
from poolctl.worker.serving.pool_server import PoolServer
from tests.load.frames import new_key
from tests.serving import ENGINES, Client, Engine, Pair, Served, served, until

UPGRADE = (
    "upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13", f"sec-websocket-key: {new_key().decode()}"
)  # fmt: skip


class Seat:
    """One worker's view of a page that all hold in this process; like PeerCounts, whose locks belong to a process."""

    announced_until = 0.0

    def __init__(self, page: dict[Seat, int | None]) -> None:
        self.page = page
        page[self] = None
        self.alone = False

    def publish(self, connections: int | None) -> None:
        self.page[self] = connections

    def others(self) -> list[int]:
        return [count for seat, count in self.page.items() if seat is not self and count is not None]

    def announce_handover(self) -> None:
        Seat.announced_until = monotonic() + 0.05

    @property
    def handover_announced(self) -> bool:
        return monotonic() < Seat.announced_until

    def close(self) -> None:
        self.page.pop(self, None)


@pytest.fixture(params=ENGINES[::3], ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


def join(server: PoolServer, pair: Pair, page: dict[Seat, int | None]) -> None:
    state: Any = server.server_state
    state.evenness = Evenness(state, pair.give, Seat(page))  # type: ignore[arg-type]
    server.acceptor.show_taking()


@contextlib.asynccontextmanager
async def workers(engine: Engine, pair: Pair, count: int) -> AsyncIterator[list[Served]]:
    page: dict[Seat, int | None] = {}
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(await stack.enter_async_context(served(engine, adoption=pair.worker())))
            join(made[-1].server, pair, page)
        yield made


def counts(made: list[Served]) -> list[int]:
    return sorted(len(each.server.server_state.connections) for each in made)


def test_new_connections_to_one_worker_are_shared_by_all(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with workers(engine, pair, 4) as made:
            clients = [await Client.connect(made[0].port) for _ in range(16)]
            await until(lambda: sum(counts(made)) == 16)
            await until(lambda: counts(made)[0] > 0 and counts(made)[-1] <= 6)
            for each in clients:
                assert (await each.get())[0] == 200

    engine.run(scenario())


def test_websockets_are_shared_before_their_handshake(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with workers(engine, pair, 4) as made:
            clients = [await Client.connect(made[0].port) for _ in range(16)]
            for each in clients:
                await each.send("/", *UPGRADE)
                assert (await each.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert sum(counts(made)) == 16
            assert counts(made)[0] > 0
            assert counts(made)[-1] <= 8
            for each in clients:
                each.close()
            await until(lambda: not any(counts(made)))

    engine.run(scenario())


def test_kept_connections_move_to_a_worker_that_came_later(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        page: dict[Seat, int | None] = {}
        async with served(engine, adoption=pair.worker()) as first:
            clients = [await Client.connect(first.port) for _ in range(6)]
            for each in clients:
                assert (await each.get())[0] == 200
            join(first.server, pair, page)
            async with served(engine, adoption=pair.worker()) as second:
                join(second.server, pair, page)
                first.server.server_state.evenness.active()  # type: ignore[union-attr]
                await until(lambda: counts([first, second]) == [3, 3])
                for each in clients:
                    assert (await each.get())[0] == 200

    engine.run(scenario())


def test_connection_in_the_middle_of_a_request_does_not_move(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        page: dict[Seat, int | None] = {}
        async with served(engine, adoption=pair.worker()) as first:
            clients = [await Client.connect(first.port) for _ in range(3)]
            for each in clients:
                await each.send("/slow")
            await until(lambda: len(first.app.scopes) == 3)
            join(first.server, pair, page)
            page[Seat(page)] = 0
            evenness: Any = first.server.server_state.evenness
            evenness.active()
            await until(lambda: evenness._timer is None)
            assert len(first.server.server_state.connections) == 3
            first.app.release.set()
            for each in clients:
                assert (await each.answer())[0] == 200

    engine.run(scenario())


def test_short_connections_are_not_handed_over(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker()) as (server, app, port, _running):
            page: dict[Seat, int | None] = {}
            join(server, pair, page)
            client = await Client.connect(port)
            assert (await client.get())[0] == 200
            client.close()
            evenness: Any = server.server_state.evenness
            await asyncio.wait_for(until(lambda: evenness._timer is None), 100 * MOMENT_SECONDS)
            page[Seat(page)] = 0  # a worker that takes nothing
            clients = [await Client.connect(port) for _ in range(4)]
            await until(lambda: len(server.server_state.connections) == 4)
            for each in clients:
                assert (await each.get())[0] == 200
            assert len(app.scopes) == 5

    engine.run(scenario())


def test_worker_that_has_more_takes_what_no_other_one_does(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker()) as (server, _, port, _running):
            page: dict[Seat, int | None] = {}
            join(server, pair, page)
            page[Seat(page)] = 0  # its process is stopped
            clients = [await Client.connect(port) for _ in range(4)]
            for each in clients:
                assert (await each.get())[0] == 200

    engine.run(scenario())


def test_worker_out_of_rotation_is_handed_nothing(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with workers(engine, pair, 2) as (first, second):
            second.server.rotate(False)
            clients = [await Client.connect(first.port) for _ in range(4)]
            for each in clients:
                assert (await each.get())[0] == 200
            assert len(first.server.server_state.connections) == 4
            second.server.rotate(True)
            first.server.server_state.evenness.active()  # type: ignore[union-attr]
            await until(lambda: counts([first, second]) == [2, 2])

    engine.run(scenario())
