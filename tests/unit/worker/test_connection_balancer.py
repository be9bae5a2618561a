"""Workers of one server see each other's connections, and share them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from poolctl.worker.serving.connection_balancer import (
    MOMENT_SECONDS,
    ConnectionBalancer,
    PeerCounts,
    create_peer_counts_page,
)
from poolctl.worker.serving.pool_server import PoolServer
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.descriptors import no_descriptor_left
from tests.load.frames import new_key
from tests.serving import (
    Client,
    Engine,
    Pair,
    Seat,
    Served,
    blank_page,
    served,
    until,
)

UPGRADE = (
    "upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13", f"sec-websocket-key: {new_key().decode()}"
)  # fmt: skip


@pytest.fixture
def secure(tmp_path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def trusting(*protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    return context


def join(server: PoolServer, pair: Pair, page: dict[Seat, int | None]) -> None:
    state: Any = server.server_state
    state.balancer = ConnectionBalancer(state, pair.give, Seat(page), kept=server.config.ssl is None)
    server.acceptor.publish_taking_handovers()


@contextlib.asynccontextmanager
async def workers(engine: Engine, pair: Pair, count: int, **options: Any) -> AsyncIterator[list[Served]]:
    page: dict[Seat, int | None] = {}
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(await stack.enter_async_context(served(engine, adoption=pair.worker(), **options)))
            join(made[-1].server, pair, page)
        yield made


def counts(made: list[Served]) -> list[int]:
    return sorted(each.server.server_state.open_connections for each in made)


async def test_new_connections_to_one_worker_are_shared_by_all(engine: Engine, pair: Pair) -> None:
    async with workers(engine, pair, 4) as made:
        clients = [await Client.connect(made[0].port) for _ in range(16)]
        await until(lambda: sum(counts(made)) == 16)
        await until(lambda: counts(made)[0] > 0 and counts(made)[-1] <= 6)
        for each in clients:
            assert (await each.get())[0] == 200


async def test_websockets_are_shared_before_their_handshake(engine: Engine, pair: Pair) -> None:
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


async def test_kept_connections_that_become_websockets_are_shared_with_all_that_they_have_said(
    any_engine: Engine, pair: Pair
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        page: dict[Seat, int | None] = {}
        made = []
        for _ in range(4):
            options = {"adoption": pair.worker(), "tally": blank_page()}
            made.append(await stack.enter_async_context(served(any_engine, **options)))
        clients = [await Client.connect(made[0].port) for _ in range(16)]
        for each in clients:
            assert (await each.get())[0] == 200
        for worker in made:
            join(worker.server, pair, page)
        for number, each in enumerate(clients):
            await each.send(f"/{number}?a=b", f"x-number: {number}", *UPGRADE)
            assert (await each.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        websockets = [[each for each in one.app.scopes if each["type"] == "websocket"] for one in made]
        assert sorted(map(len, websockets))[0] >= 2
        assert sorted(map(len, websockets))[-1] <= 6
        found = [
            (each["path"], each["query_string"], dict(each["headers"])[b"x-number"])
            for one in websockets
            for each in one
        ]
        assert sorted(found) == sorted((f"/{n}", b"a=b", b"%d" % n) for n in range(16))
        for each in clients:
            each.close()
        await until(lambda: not any(counts(made)))


async def test_kept_connections_move_to_a_worker_that_came_later(engine: Engine, pair: Pair) -> None:
    page: dict[Seat, int | None] = {}
    async with served(engine, adoption=pair.worker()) as first:
        clients = [await Client.connect(first.port) for _ in range(6)]
        for each in clients:
            assert (await each.get())[0] == 200
        join(first.server, pair, page)
        async with served(engine, adoption=pair.worker()) as second:
            join(second.server, pair, page)
            first.server.server_state.balancer.schedule_check()  # type: ignore[union-attr]
            await until(lambda: counts([first, second]) == [3, 3])
            for each in clients:
                assert (await each.get())[0] == 200


async def test_connection_in_the_middle_of_a_request_does_not_move(engine: Engine, pair: Pair) -> None:
    page: dict[Seat, int | None] = {}
    async with served(engine, adoption=pair.worker()) as first:
        clients = [await Client.connect(first.port) for _ in range(3)]
        for each in clients:
            await each.send("/slow")
        await until(lambda: len(first.app.scopes) == 3)
        join(first.server, pair, page)
        page[Seat(page)] = 0
        first.server.server_state.balancer.schedule_check()  # type: ignore[union-attr]
        await asyncio.sleep(2 * MOMENT_SECONDS)
        assert len(first.server.server_state.connections) == 3
        first.app.release.set()
        for each in clients:
            assert (await each.answer())[0] == 200


async def test_short_connections_are_not_handed_over(engine: Engine, pair: Pair) -> None:
    async with served(engine, adoption=pair.worker()) as (server, app, port, _running):
        page: dict[Seat, int | None] = {}
        join(server, pair, page)
        client = await Client.connect(port)
        assert (await client.get())[0] == 200
        client.close()
        await asyncio.sleep(2 * MOMENT_SECONDS)
        page[Seat(page)] = 0  # a worker that takes nothing
        clients = [await Client.connect(port) for _ in range(4)]
        await until(lambda: len(server.server_state.connections) == 4)
        for each in clients:
            assert (await each.get())[0] == 200
        assert len(app.scopes) == 5


async def test_worker_that_has_more_takes_what_no_other_one_does(engine: Engine, pair: Pair) -> None:
    async with served(engine, adoption=pair.worker()) as (server, _, port, _running):
        page: dict[Seat, int | None] = {}
        join(server, pair, page)
        page[Seat(page)] = 0  # its process is stopped
        clients = [await Client.connect(port) for _ in range(4)]
        for each in clients:
            assert (await each.get())[0] == 200


async def test_worker_out_of_rotation_is_handed_nothing(engine: Engine, pair: Pair) -> None:
    async with workers(engine, pair, 2) as (first, second):
        second.server.set_in_rotation_or_drain(False)
        clients = [await Client.connect(first.port) for _ in range(4)]
        for each in clients:
            assert (await each.get())[0] == 200
        assert len(first.server.server_state.connections) == 4
        second.server.set_in_rotation_or_drain(True)
        first.server.server_state.balancer.schedule_check()  # type: ignore[union-attr]
        await until(lambda: counts([first, second]) == [2, 2])


async def test_tls_connections_are_shared_before_their_handshake(
    engine: Engine, pair: Pair, secure: ssl.SSLContext
) -> None:
    async with workers(engine, pair, 4, secure=secure) as made:
        clients = [await Client.connect(made[0].port, trusting()) for _ in range(16)]
        for each in clients:
            assert (await each.get())[0] == 200
        shared = counts(made)
        assert sum(shared) == 16
        assert shared[0] >= 2
        assert shared[-1] <= 6
        await asyncio.sleep(2 * MOMENT_SECONDS)
        assert counts(made) == shared  # what is encrypted does not move
        for each in clients:
            assert (await each.get())[0] == 200


async def test_worker_takes_tls_connections_that_no_other_one_takes(
    engine: Engine, pair: Pair, secure: ssl.SSLContext
) -> None:
    async with served(engine, adoption=pair.worker(), secure=secure) as (server, _, port, _running):
        page: dict[Seat, int | None] = {}
        join(server, pair, page)
        page[Seat(page)] = 0  # its process is stopped, and its count out of date
        clients = [await Client.connect(port, trusting()) for _ in range(4)]
        for each in clients:
            assert (await each.get())[0] == 200
        assert counts([Served(server, None, port, _running)]) == [4]


async def test_drain_finishes_handshakes_and_leaves_what_was_given_to_others(
    engine: Engine, pair: Pair, secure: ssl.SSLContext
) -> None:
    async with workers(engine, pair, 3, secure=secure) as made:
        first, *others = made
        clients = [await Client.connect(first.port) for _ in range(6)]
        await until(lambda: sum(counts(made)) == 6)
        first.server.drain()
        await until(lambda: first.server.should_exit)
        for each in clients:
            await each.writer.start_tls(trusting(), server_hostname="localhost")
            assert (await each.get())[0] == 200
        await asyncio.wait_for(first.running, 15)
        assert counts(others)[0] > 0


class Worker:
    """A process that has joined the page with so many connections, until it is ended."""

    def __init__(self, page: int, connections: int | None, websockets: int = 0) -> None:
        joined, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                counts = PeerCounts(os.dup(page))
                counts.publish(connections, websockets)
                os.write(tell, b".")
                signal.pause()
            finally:
                os._exit(1)
        os.close(tell)
        assert os.read(joined, 1) == b"."
        os.close(joined)

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@pytest.fixture
def page() -> Iterator[int]:
    fd = create_peer_counts_page()
    yield fd
    os.close(fd)


@pytest.fixture
def counting_workers(page: int) -> Iterator[list[Worker]]:
    made = [Worker(page, connections) for connections in (3, None, 0)]
    yield made
    for each in made:
        each.kill()


def test_workers_see_how_many_connections_of_others_are_websockets(page: int) -> None:
    many = 100_000
    made = [Worker(page, *each) for each in ((many, many), (3, 2), (None, 5), (0, 0))]
    try:
        with contextlib.closing(PeerCounts(os.dup(page))) as counts:
            assert counts.others() == [many, 3, 0]
            assert counts.others_websockets() == [many, 2, 0]
            assert not counts.alone
    finally:
        for each in made:
            each.kill()


@pytest.mark.slow
def test_killed_worker_counts_no_more_and_its_slot_is_used_again(
    page: int, counting_workers: list[Worker]
) -> None:
    counting_workers[0].kill()
    with contextlib.closing(PeerCounts(os.dup(page))) as counts:
        assert counts.others() == [0]
        counts.publish(7, 0)
        counting_workers.append(Worker(page, 5))
        assert counts.others() == [0, 5]


def test_first_worker_is_alone(page: int) -> None:
    with contextlib.closing(PeerCounts(os.dup(page))) as counts:
        counts.publish(1, 0)
        assert counts.alone
        assert counts.others() == []


def test_worker_is_seen_although_one_that_joined_at_the_same_time_overwrote_it(page: int) -> None:
    first = Worker(page, 2)
    try:
        with contextlib.closing(PeerCounts(os.dup(page))) as counts:
            os.pwrite(page, (1).to_bytes(8, sys.byteorder), 8)
            assert counts.alone
            counts.publish(1, 0)
            assert counts.others() == [2]
    finally:
        first.kill()


def test_announced_handover_is_over_after_a_moment(page: int) -> None:
    with contextlib.closing(PeerCounts(os.dup(page))) as counts:
        assert not counts.handover_announced
        began = time.monotonic()
        counts.announce_handover()
        assert counts.handover_announced or time.monotonic() - began > 0.05
        wait_until(lambda: not counts.handover_announced, timeout_seconds=5)


def test_page_cannot_be_shrunk_under_its_readers(page: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(page, 0)


# What one worker decides, with numbers of the others that the test sets, in time that passes at once.


class Others:
    """The numbers of the other workers."""

    def __init__(self) -> None:
        self.alone = False
        self.connections: list[int] = []
        self.websockets: list[int] = []
        self.handover_announced = False
        self.announced = 0
        self.published: list[tuple[int | None, int]] = []
        self.closed = False

    def others(self) -> list[int]:
        return self.connections

    def others_websockets(self) -> list[int]:
        return self.websockets

    def announce_handover(self) -> None:
        self.announced += 1

    def publish(self, connections: int | None, websockets: int = 0) -> None:
        self.published.append((connections, websockets))

    def close(self) -> None:
        self.closed = True


class Movable:
    """A connection that can be moved, unless `stays` is true; its `transport` is None after closing."""

    def __init__(self, *, stays: bool = False) -> None:
        self.stays = stays
        self.transport: Any = SimpleNamespace(is_closing=lambda: False)
        self.moved = 0

    def hand_over(self, end: socket.socket) -> bool:
        self.moved += not self.stays
        return not self.stays


class One:
    """A worker that accepts connections and has as many as the test says."""

    def __init__(self, *, kept: bool = True) -> None:
        self.others = Others()
        self.state = SimpleNamespace(
            open_connections=0, open_websockets=0, draining=False, connections=dict[Movable, None]()
        )
        self.balancer = ConnectionBalancer(self.state, cast(Any, None), cast(Any, self.others), kept=kept)
        self.balancer.publish_accepting(True)

    def has(self, count: int) -> None:
        self.state.connections = dict.fromkeys(Movable() for _ in range(count))
        self.state.open_connections = count

    @property
    def moved(self) -> int:
        return sum(each.moved for each in self.state.connections)


@contextlib.asynccontextmanager
async def deciding(*, kept: bool = True) -> AsyncIterator[One]:
    one = One(kept=kept)
    try:
        yield one
    finally:
        one.balancer.close()
    assert one.others.closed
    count = len(one.others.published)
    await asyncio.sleep(10)
    assert len(one.others.published) == count


@pytest.fixture
def one(virtual_time: None) -> AbstractAsyncContextManager[One]:
    return deciding()


@pytest.mark.parametrize(
    ("mine", "others", "moves"),
    [
        (2, [2, 2], False),
        (3, [2, 2], True),
        (2, [1, 3], False),
        (0, [0], False),
        (1, [0], True),
        (5, [], False),
    ],
)
async def test_connection_beyond_the_fair_share_is_handed_over(
    one: One, mine: int, others: list[int], moves: bool
) -> None:
    one.others.connections = others
    one.state.open_connections = mine
    connection = Movable()
    assert one.balancer.hand_over_if_too_many(connection) is moves
    assert (connection.moved, one.others.announced) == (moves, moves)
    one.state.open_connections = mine + 1  # a new connection is counted when it arrives
    if not moves:
        one.balancer.balance_new_connection(connection, unread=True)
        assert connection.moved == 0
    else:
        one.balancer.balance_new_connection(connection, unread=False)
        one.balancer.publish_accepting(False)
        assert not one.balancer.hand_over_if_too_many(connection)
        assert connection.moved == 1


async def test_worker_that_has_not_begun_to_accept_hands_over_nothing(one: One) -> None:
    one.others.connections = [0]
    one.has(5)
    new = ConnectionBalancer(one.state, cast(Any, None), cast(Any, one.others), kept=True)
    connection = Movable()
    assert not new.hand_over_if_too_many(connection)
    new.balance_new_connection(connection, unread=True)
    await asyncio.sleep(1)
    assert (connection.moved, one.moved) == (0, 0)
    new.close()


@pytest.mark.slow
def test_slot_is_not_accepting_at_first_and_its_descriptor_is_closed() -> None:
    with no_descriptor_left():
        fd = create_peer_counts_page()
        content = os.pread(fd, 4096, 0)
        counts = PeerCounts(fd)
        assert os.pread(fd, 4096, 0)[64:] == content[64:]
        counts.publish(3, 2)
        assert os.pread(fd, 4096, 0)[64:] != content[64:]
        counts.close()
        del counts


async def test_worker_that_is_alone_hands_over_nothing(one: One) -> None:
    one.others.alone = True
    one.others.connections = one.others.websockets = [0]
    one.has(5)
    one.state.open_websockets = 5
    connection = Movable()
    one.balancer.balance_new_connection(connection, unread=True)
    one.balancer.schedule_check()
    assert not one.balancer.hand_over_if_too_many(connection)
    assert not one.balancer.maybe_transfer(connection)
    await asyncio.sleep(1)
    assert (connection.moved, one.moved) == (0, 0)


@pytest.mark.parametrize(
    ("mine", "others", "moves"), [(1, [1, 1], False), (2, [1, 1], True), (0, [0], False), (3, [], False)]
)
async def test_websocket_beyond_the_fair_share_is_handed_over(
    one: One, mine: int, others: list[int], moves: bool
) -> None:
    one.others.websockets, one.others.connections = others, [50] * len(others)
    one.state.open_websockets = mine
    assert one.balancer.maybe_transfer(Movable()) is moves


@pytest.mark.parametrize(
    ("mine", "least", "moves"), [(3, 2, False), (4, 2, True), (12, 10, False), (12, 9, True), (11, 9, True)]
)
async def test_worker_with_clearly_more_websockets_hands_over_any_connection(
    one: One, mine: int, least: int, moves: bool
) -> None:
    one.others.websockets, one.others.connections = [30, least], [99, 99]
    one.state.open_websockets = one.state.open_connections = mine
    assert one.balancer.hand_over_if_too_many(Movable()) is moves


@pytest.mark.parametrize(
    ("mine", "accepted", "websockets", "pauses", "seconds"),
    [
        (3, 0, 0, 0, 0.0),
        (3, 1, 0, 0, 0.001),
        (4, 0, 0, 1, 0.0),
        (5, 0, 0, 0, 0.005),
        (4, 1, 0, 9, 0.005),
        (5, 0, 0, 10, 0.0),
        (0, 0, 3, 0, 0.005),
        (0, 0, 2, 0, 0.001),
    ],
)
async def test_connections_are_left_to_workers_with_fewer_while_handovers_are_announced(
    one: One, mine: int, accepted: int, websockets: int, pauses: int, seconds: float
) -> None:
    one.others.connections, one.others.websockets = [3, 7], [1, 7]
    one.state.open_connections, one.state.open_websockets = mine, websockets
    assert one.balancer.pause_seconds(accepted, pauses) == 0.0
    one.others.handover_announced = True
    assert one.balancer.pause_seconds(accepted, pauses) == seconds
    one.others.connections = []
    assert one.balancer.pause_seconds(accepted, pauses) == 0.0


async def test_worker_whose_offers_nobody_takes_makes_none_for_a_second(one: One) -> None:
    one.others.connections, one.others.websockets, one.others.handover_announced = [0], [0], True
    one.has(5)
    one.balancer.pause_seconds(0, 10)
    one.state.open_websockets = 5
    assert not one.balancer.hand_over_if_too_many(Movable())
    assert not one.balancer.maybe_transfer(Movable())
    one.balancer.schedule_check()
    await asyncio.sleep(1.0)
    assert one.moved == 0
    await asyncio.sleep(0.11)
    assert one.moved > 0
    assert one.balancer.hand_over_if_too_many(Movable())


async def test_connections_on_their_way_are_counted_until_they_are_taken_or_too_old(one: One) -> None:
    one.others.connections = [0]
    one.state.open_connections = 1
    assert not one.balancer.hand_over_if_too_many(Movable(stays=True))
    assert one.balancer.hand_over_if_too_many(Movable())
    assert not one.balancer.hand_over_if_too_many(Movable()), "the other one is about to have as many"
    one.balancer.note_taken()  # its own
    one.balancer.note_taken()
    assert one.balancer.hand_over_if_too_many(Movable())
    await asyncio.sleep(0.02)
    assert not one.balancer.hand_over_if_too_many(Movable())
    await asyncio.sleep(0.001)
    assert one.balancer.hand_over_if_too_many(Movable())
    one.others.connections = [1]  # the other one has counted it
    one.state.open_connections = 2
    assert one.balancer.hand_over_if_too_many(Movable())


@pytest.mark.parametrize(("closed", "moves"), [(0, True), (1, True), (2, False), (3, False), (4, False)])
async def test_new_connections_stay_while_half_of_them_last_less_than_a_moment(
    one: One, closed: int, moves: bool
) -> None:
    one.others.connections = [9]
    made = [Movable() for _ in range(4)]
    for each in made:
        one.balancer.balance_new_connection(each, unread=True)
    for number, each in enumerate(made[:closed]):
        each.transport = None if number % 2 else SimpleNamespace(is_closing=lambda: True)
    await asyncio.sleep(MOMENT_SECONDS + 0.01)
    one.others.connections = [0]
    one.state.open_connections = 5
    assert one.balancer.hand_over_if_too_many(Movable()) is moves
    one.others.websockets, one.state.open_websockets = [0], 2
    assert one.balancer.hand_over_if_too_many(Movable()), "a handshake costs more than a handover"


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.usefixtures("virtual_time")
async def test_kept_connections_move_a_moment_later_one_for_each_worker_with_two_fewer(kept: bool) -> None:
    async with deciding(kept=kept) as one:
        one.others.connections = [8, 9, 10]
        one.has(10)
        staying = next(iter(one.state.connections))
        staying.stays = True
        one.balancer.schedule_check()
        await asyncio.sleep(0.09)
        assert one.moved == 0
        await asyncio.sleep(0.011)
        assert (one.moved, staying.moved) == (kept, 0)
        one.others.connections = [9, 9, 10]
        await asyncio.sleep(1)
        assert one.moved == kept


async def test_number_of_connections_is_shown_unless_the_worker_is_out_of_rotation(one: One) -> None:
    one.state.open_connections, one.state.open_websockets = 3, 2
    one.balancer.publish()
    one.state.draining = True
    one.balancer.publish()
    one.state.draining = False
    one.balancer.publish_accepting(False)
    assert one.others.published == [(0, 0), (3, 2), (None, 2), (None, 2)]
