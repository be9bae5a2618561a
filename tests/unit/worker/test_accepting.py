"""A worker accepts while it has room, and takes connections of other workers; failed handshakes do not count."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from poolctl.keeper import connection_handover, wire
from poolctl.platform import peer_has_closed
from poolctl.worker.serving.accepting import (
    AdoptionPair,
    ConnectionAcceptor,
    ConnectionsAwaitingProtocol,
    ReplayProtocol,
    connection_limit_by_descriptors,
)
from poolctl.worker.serving.connection_balancer import ConnectionBalancer
from poolctl.worker.serving.connection_state import PoolServerState
from poolctl.worker.serving.pool_server import connection_class
from tests.asgi_apps import hello
from tests.certificates import certificate
from tests.descriptors import free_descriptors, no_descriptor_left
from tests.serving import (
    PLAIN,
    Client,
    Engine,
    Pair,
    Seat,
    accepted,
    leaving,
    listener,
    served,
    turns,
    until,
)
from tests.virtual_loop import run_in_virtual_time


async def test_full_worker_accepts_again_when_a_connection_has_ended(engine: Engine) -> None:
    async with served(engine, max_connections=2) as (server, _, port, _running):
        for _ in range(3):
            inside = [await Client.connect(port) for _ in range(2)]
            for client in inside:
                await client.get()
            await turns()
            waiting = [await Client.connect(port) for _ in range(3)]
            for client in waiting:
                await client.send()
            assert await waiting[0].stays_open(0.1)
            assert len(server.server_state.connections) == 2
            for client in inside:
                assert (await client.get())[0] == 200
                client.close()
            for client in waiting:
                assert (await client.answer())[0] == 200
                client.close()
            await until(lambda: not server.server_state.connections)


async def test_connections_that_wait_when_a_worker_begins_to_accept_do_not_exceed_its_limit(
    engine: Engine,
) -> None:
    async with served(engine, max_connections=3, resting=True) as (server, _, port, _running):
        clients = [await Client.connect(port) for _ in range(12)]
        for client in clients:
            await client.send()
        server.accept_or_drain(True)
        answers = {asyncio.ensure_future(client.answer()): client for client in clients}
        while answers:
            await until(lambda: sum(each.done() for each in answers) >= 3)
            await turns()
            assert len(server.server_state.connections) == 3
            done = [each for each in answers if each.done()]
            assert [each.result()[0] for each in done] == [200] * 3
            for each in done:
                answers.pop(each).close()


async def test_full_worker_leaves_new_connections_to_another_one(engine: Engine, pair: Pair) -> None:
    async with (
        served(engine, max_connections=1, adoption=pair.worker()) as (full, _, port, _running),
        served(engine, adoption=pair.worker()) as (other, _app, _port, _other_running),
    ):
        first = await Client.connect(port)
        await first.get()
        await turns()
        for _ in range(5):
            client, sock = await accepted()
            pair.hand_over(sock)
            assert (await client.get())[0] == 200
        assert (len(full.server_state.connections), len(other.server_state.connections)) == (1, 5)
        first.close()
        await until(lambda: full.acceptor.servers)


async def test_woken_worker_executes_no_request_of_clients_that_have_left(engine: Engine, pair: Pair) -> None:
    async def answered(client: Client, until_time: float) -> None:
        assert (await client.answer())[0] == 200
        await until(lambda: time.monotonic() > until_time)
        client.close()

    async with served(engine, adoption=pair.worker(), max_connections=2, resting=True, woken=True) as (
        server,
        app,
        port,
        _running,
    ):
        staying = []
        for _ in range(5):
            in_backlog = await Client.connect(port), await Client.connect(port)
            (leaves, first), (stays, second) = await accepted(), await accepted()
            for client in (*in_backlog, leaves, stays):
                await client.send()
            in_backlog[0].close()
            leaves.close()
            await until(lambda first=first: peer_has_closed(first))
            pair.hand_over(first)
            pair.hand_over(second)
            staying += [in_backlog[1], stays]
        server.accept_or_drain(True)
        # It is full for longer than it is woken: then some that have waited for the wake still wait.
        until_time = time.monotonic() + 1.5
        await asyncio.gather(*(answered(client, until_time) for client in staying))
        assert len(app.scopes) == len(staying)


async def test_client_that_closes_its_side_after_the_wake_is_served(engine: Engine, pair: Pair) -> None:
    async with served(engine, adoption=pair.worker(), woken=True) as (_server, app, _port, _running):
        await asyncio.sleep(1.1)
        client, sock = await accepted()
        await client.send()
        client.writer.write_eof()
        await until(lambda: peer_has_closed(sock))
        pair.hand_over(sock)
        await until(lambda: app.scopes)


async def test_full_worker_drains_rests_and_accepts_again(engine: Engine) -> None:
    async with served(engine, max_connections=1) as (server, _, port, running):
        client = await Client.connect(port)
        await client.get()
        await turns()
        server.accept_or_drain(False)
        server.accept_or_drain(True)
        await turns()
        assert not server.acceptor.servers
        client.close()
        again = await Client.connect(port)
        assert (await again.get())[0] == 200
        server.drain()
        await leaving(server)
        assert (await again.get())[1]["connection"] == "close"
        await asyncio.wait_for(running, 15)


async def test_failed_handshakes_do_not_fill_a_worker_for_long(engine: Engine, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    trusting = ssl._create_unverified_context()

    async with served(engine, max_connections=4, secure=context) as (server, _, port, _running):
        for _ in range(20):
            noise = await Client.connect(port)
            noise.writer.write(b"this is no handshake\r\n")
            await noise.reader.read()
            noise.close()
        client = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=trusting))
        assert (await client.get())[0] == 200
        assert server.server_state.open_connections <= 4


async def test_worker_without_a_free_descriptor_accepts_tls_connections_again_when_there_is_one(
    engine: Engine, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    trusting = ssl._create_unverified_context()

    async with served(engine, secure=context) as (server, _, port, _running):
        client = await Client.connect(port)
        await until(lambda: server.server_state.expected)
        with socket.socket() as second:
            with free_descriptors(0):
                second.connect(("127.0.0.1", port))
                await turns()
            await until(lambda: len(server.server_state.expected) == 2)
        await client.writer.start_tls(trusting)
        assert (await client.get())[0] == 200


def test_worker_without_a_limit_leaves_a_reserve_of_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        thousand = connection_limit_by_descriptors()
        assert 700 < thousand < 1024 - 64
        resource.setrlimit(resource.RLIMIT_NOFILE, (1025, hard))
        assert connection_limit_by_descriptors() == thousand + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, hard))
        assert connection_limit_by_descriptors() == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def acceptor(
    adoption: AdoptionPair | None = None,
    secure: ssl.SSLContext | None = None,
    most: int | None = 10,
    **options: Any,
) -> tuple[ConnectionAcceptor, PoolServerState]:
    """What accepts the connections of a worker, which has room for `most`, and its state."""
    config = uvicorn.Config(hello, http="h11", log_config=None)
    config.load()
    config.http_protocol_class = connection_class(config.http_protocol_class)  # type: ignore[arg-type]
    config.ssl = secure
    state = PoolServerState()
    return ConnectionAcceptor(config, state, adoption=adoption, most=most, **options), state


async def close_connections(shared: ConnectionAcceptor, state: PoolServerState) -> None:
    await shared.end()
    shared.accepted.cancel()
    for each in list(state.connections):
        if isinstance(each, asyncio.Protocol):
            each.transport.abort()  # type: ignore[attr-defined]
    await turns()


async def test_worker_that_ends_while_its_listener_is_opened_takes_nothing_from_the_pair(pair: Pair) -> None:
    adoption = pair.worker()
    shared, _ = acceptor(adoption, most=None)
    with listener() as sock:
        opening = asyncio.ensure_future(shared.begin([sock], {}, accepting=True))
        await asyncio.sleep(0)
        assert not opening.done()
        await shared.end()
        await opening
    assert not asyncio.get_running_loop().remove_reader(adoption.take.fileno())


async def test_pair_whose_other_end_is_closed_is_read_no_more(pair: Pair) -> None:
    adoption = pair.worker()
    shared, state = acceptor(adoption)
    with listener() as sock:
        await shared.begin([sock], {}, accepting=True)
        adoption.give.close()
        pair.give.close()
        await turns()
        assert not asyncio.get_running_loop().remove_reader(adoption.take.fileno())
        assert shared.servers
        await close_connections(shared, state)


async def test_listeners_are_left_to_others_if_one_of_them_is_no_stream() -> None:
    shared, _ = acceptor(most=None)
    with listener() as good, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        with no_descriptor_left(), pytest.raises(ValueError, match="Stream"):
            await shared.begin([good, datagrams], {}, accepting=True)
        client = await Client.connect(good.getsockname()[1])
        await turns()
        good.accept()[0].close()
        client.close()


@pytest.mark.parametrize(("more", "seconds"), [(0, 0.0), (1, 0.001), (2, 0.05), (3, 0.05)])
@pytest.mark.loop(run=run_in_virtual_time)
async def test_worker_with_more_connections_than_others_leaves_them_the_next_one_for_a_moment(
    pair: Pair, more: int, seconds: float
) -> None:
    shared, state = acceptor(pair.worker())
    page: dict[Seat, int | None] = {}
    loop = asyncio.get_running_loop()
    taken: list[float] = []

    state.balancer = ConnectionBalancer(state, pair.give, Seat(page, announced=True), kept=True)  # type: ignore[arg-type]
    Seat(page).publish(3)
    for each in range(3 + more):
        state.connections.add(each)
    state.on_activity = lambda: taken.append(loop.time())
    with listener() as sock:
        await shared.begin([sock], {}, accepting=True)
        (client,) = hand_over_burst(pair, 1)
        with client:
            await asyncio.sleep(0.06)
            assert taken == [pytest.approx(seconds)]
            await close_connections(shared, state)


@pytest.mark.loop(run=run_in_virtual_time)
async def test_worker_that_rests_while_it_leaves_a_connection_to_others_does_not_take_it(
    pair: Pair,
) -> None:
    shared, state = acceptor(pair.worker())
    page: dict[Seat, int | None] = {}
    own = Seat(page, announced=True)
    state.balancer = ConnectionBalancer(state, pair.give, own, kept=True)  # type: ignore[arg-type]
    Seat(page).publish(0)
    state.connections.add("an earlier connection")
    with listener() as sock:
        await shared.begin([sock], {}, accepting=True)
        assert page[own] == 1
        (client,) = hand_over_burst(pair, 1)
        with client:
            await asyncio.sleep(0.0005)
            shared.set_accepting(False)
            await asyncio.sleep(1)
            assert page[own] is None
            assert len(state.connections) == 1
            shared.set_accepting(True)
            await asyncio.sleep(0.01)
            assert len(state.connections) == 2
            await close_connections(shared, state)


@pytest.mark.loop(run=PLAIN.run)
async def test_worker_with_too_many_hands_over_tls_connections_before_their_handshake(
    pair: Pair, tmp_path: Path
) -> None:
    shared, state = acceptor(secure=server_context(tmp_path))
    page: dict[Seat, int | None] = {}
    state.balancer = ConnectionBalancer(state, pair.give, Seat(page, announced=True), kept=True)  # type: ignore[arg-type]
    Seat(page).publish(0)
    begun = time.monotonic()
    with listener() as sock:
        await shared.begin([sock], {}, accepting=True)
        for _ in range(2):
            await Client.connect(sock.getsockname()[1])
        await turns()
        assert len(state.expected) == 1
        with connection_handover.receive_connection(pair.take) as taken:
            assert taken.until
            assert begun + 10 <= taken.until <= time.monotonic() + 10
            assert not taken.idle
        await close_connections(shared, state)


@pytest.mark.loop(run=PLAIN.run)
async def test_woken_worker_begins_handshakes_only_with_clients_that_are_still_there(tmp_path: Path) -> None:
    shared, state = acceptor(secure=server_context(tmp_path), woken=True)
    with listener() as sock:
        stays, leaves, stays_too = [await Client.connect(sock.getsockname()[1]) for _ in range(3)]
        leaves.close()
        await turns()
        await shared.begin([sock], {}, accepting=True)
        assert len(state.expected) == 2
        assert await leaves.at_end()
        await close_connections(shared, state)
        assert await stays.at_end()
        assert await stays_too.at_end()


@pytest.mark.parametrize(
    ("left_seconds", "asked", "expected_seconds"),
    [(5.0, False, 5.0), (1000.0, False, 10.0), (5.0, True, 10.0), (None, False, 10.0)],
)
@pytest.mark.loop(run=PLAIN.run)
async def test_adopted_tls_connection_has_the_rest_of_its_time_for_the_handshake(
    pair: Pair, tmp_path: Path, left_seconds: float | None, asked: bool, expected_seconds: float
) -> None:
    shared, state = acceptor(pair.worker(), server_context(tmp_path))
    begun = time.monotonic()
    with listener() as sock:
        await shared.begin([sock], {}, accepting=True)
        _, theirs = await accepted()
        pair.hand_over(theirs, None if left_seconds is None else begun + left_seconds, asked=asked)
        await turns()
        (due,) = state.expected.values()
        assert begun + expected_seconds <= due <= time.monotonic() + expected_seconds
        await close_connections(shared, state)


@pytest.mark.loop(run=PLAIN.run)
async def test_tls_connection_of_which_another_process_has_read_is_closed(pair: Pair, tmp_path: Path) -> None:
    shared, state = acceptor(pair.worker(), server_context(tmp_path))
    with listener() as sock:
        await shared.begin([sock], {}, accepting=True)
        client, theirs = await accepted()
        with theirs:
            connection_handover.send_connection(pair.give, theirs.fileno(), received=b"x")
        assert await client.at_end()
        assert not state.expected
        await close_connections(shared, state)


@pytest.mark.parametrize(("limits", "closed"), [({}, True), ({"asked": True}, False)])
@pytest.mark.loop(run=run_in_virtual_time)
async def test_silent_connection_is_closed_unless_it_is_one_of_the_gateway(
    pair: Pair, limits: dict[str, Any], closed: bool
) -> None:
    shared, state = acceptor(pair.worker())
    ours, theirs = socket.socketpair()
    with listener() as sock, ours, theirs:
        await shared.begin([sock], {}, accepting=True)
        connection_handover.send_connection(pair.give, theirs.fileno(), limits)
        await asyncio.sleep(4.9)
        assert (len(state.connections), len(state.head_timeouts.due)) == (1, 0)
        await asyncio.sleep(0.2)
        assert len(state.connections) == (0 if closed else 1)
        await close_connections(shared, state)


def server_context(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(directory))
    return context


async def ended(client: socket.socket) -> None:
    """Return when the other end is closed."""
    client.setblocking(False)
    async with asyncio.timeout(60):
        while True:
            try:
                assert client.recv(4096) == b""
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except ConnectionResetError:
                return
            else:
                return


async def test_connection_whose_handshake_raises_at_once_is_closed_and_counted_no_more(
    tmp_path: Path,
) -> None:
    state = PoolServerState()
    # Not of a stream: asyncio raises before anything is awaited.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.setblocking(False)
        accepted = ConnectionsAwaitingProtocol(state)
        accepted.shake_hands(asyncio.Protocol(), ours, server_context(tmp_path), time.monotonic() + 60)
        assert ours.fileno() == -1
        assert not state.expected
        assert state.open_connections == 0
        await ended(theirs)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b""])
async def test_connection_whose_handshake_fails_later_is_counted_no_more(tmp_path: Path, said: bytes) -> None:
    state = PoolServerState()
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        accepted = ConnectionsAwaitingProtocol(state)
        accepted.shake_hands(asyncio.Protocol(), ours, server_context(tmp_path), time.monotonic() + 60)
        assert state.expected
        theirs.send(said)
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: not state.expected)
        assert state.open_connections == 0


async def test_resting_worker_leaves_the_connections_of_the_pair_to_others(
    engine: Engine, pair: Pair
) -> None:
    async with served(engine, adoption=pair.worker()) as (server, _, _port, _running):
        server.accept_or_drain(False)
        await until(lambda: not server.acceptor.servers)
        client, sock = await accepted()
        pair.hand_over(sock)
        await client.send()
        await asyncio.sleep(0.05)
        assert pair.take.recv(1, socket.MSG_PEEK), "it still waits in the pair"
        server.accept_or_drain(True)
        assert (await client.answer())[0] == 200


async def test_adopted_connection_is_served_like_an_accepted_one(any_engine: Engine, pair: Pair) -> None:
    async with served(any_engine, adoption=pair.worker()) as (server, app, _port, _running):
        client, sock = await accepted()
        pair.hand_over(sock)
        assert (await client.get())[0] == 200
        assert (await client.get())[0] == 200
        assert len(server.server_state.connections) == 1
        assert app.scopes[0]["client"] == client.writer.get_extra_info("sockname")
        assert app.scopes[0]["server"] == client.writer.get_extra_info("peername")


async def test_descriptor_that_is_no_connection_is_closed_and_ignored(any_engine: Engine, pair: Pair) -> None:
    async with served(any_engine, adoption=pair.worker()):
        odd, kept = socket.socketpair()
        with kept:
            with odd:
                wire.send(pair.give, {"t": "something else"}, [odd.fileno()])
            wire.send(pair.give, {"t": "conn"})
            pair.give.send(b"no message at all")
            kept.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(kept, 1) == b""
        client, sock = await accepted()
        pair.hand_over(sock)
        assert (await client.get())[0] == 200


async def test_connection_whose_protocol_cannot_be_made_is_closed_and_no_other_one(
    any_engine: Engine,
) -> None:
    def fail() -> asyncio.Protocol:
        raise OSError("as if there were no memory")

    connections = ConnectionsAwaitingProtocol(PoolServerState())
    (failed, first), (client, second) = await accepted(), await accepted()
    connections.attach(fail, first)
    connections.attach(asyncio.Protocol, second)
    assert len(connections) == 1
    assert await failed.at_end()
    await until(lambda: not connections)
    client.writer.write(b"read")
    assert await client.stays_open(0.01)


async def test_connection_that_is_cancelled_before_it_has_its_protocol_is_closed(any_engine: Engine) -> None:
    connections = ConnectionsAwaitingProtocol(PoolServerState())
    client, sock = await accepted()
    connections.attach(asyncio.Protocol, sock)
    connections.cancel()
    await until(lambda: not connections)
    assert await client.at_end()


async def test_request_that_another_worker_has_read_is_answered(any_engine: Engine, pair: Pair) -> None:
    async with served(any_engine, adoption=pair.worker()):
        client, sock = await accepted()
        with sock:
            read = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
            connection_handover.send_connection(pair.give, sock.fileno(), received=read)
        assert (await client.answer())[0] == 200
        assert (await client.get())[0] == 200


async def test_only_what_another_worker_has_read_must_stay(any_engine: Engine) -> None:
    state = PoolServerState()
    found: list[tuple[bytes, bool]] = []

    class Reading(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            found.append((b"", state.stays))

        def data_received(self, data: bytes) -> None:
            found.append((data, state.stays))

    client, sock = await accepted()
    ConnectionsAwaitingProtocol(state).attach(lambda: ReplayProtocol(Reading(), b"read", state), sock)
    client.writer.write(b"unread")
    await until(lambda: len(found) == 3)
    assert found == [(b"", False), (b"read", True), (b"unread", False)]


async def test_stopping_worker_takes_no_more_connections(any_engine: Engine, pair: Pair) -> None:
    async with served(any_engine, adoption=pair.worker()) as (server, _, _port, running):
        server.stop()
        await running
        client, sock = await accepted()
        pair.hand_over(sock)
        async with served(any_engine, adoption=pair.worker()):
            assert (await client.get())[0] == 200


async def test_worker_without_a_free_descriptor_takes_nothing_until_there_is_one(
    any_engine: Engine, pair: Pair
) -> None:
    async with served(any_engine, adoption=pair.worker()) as (server, _app, _port, _running):
        client, sock = await accepted()
        with free_descriptors(0):
            pair.hand_over(sock)
            await turns()
            assert not server.server_state.connections
        assert (await client.get())[0] == 200


def hand_over_burst(pair: Pair, count: int) -> list[socket.socket]:
    """So many connections wait in the pair; their clients' ends."""
    clients = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        pair.hand_over(theirs)
        clients.append(ours)
    return clients


async def test_burst_is_shared_by_workers_that_wait(any_engine: Engine, pair: Pair) -> None:
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            (await stack.enter_async_context(served(any_engine, adoption=pair.worker()))).server
            for _ in range(4)
        ]
        for count in (16, 16, 40):
            clients = hand_over_burst(pair, count)
            connections = [worker.server_state.connections for worker in workers]
            await until(lambda expected=count, found=connections: sum(map(len, found)) == expected)
            # A worker that the machine runs late gets less than its quarter.
            assert min(map(len, connections)) >= count // 16
            for client in clients:
                client.close()
            await until(lambda found=connections: not any(found))


async def test_worker_takes_no_more_of_a_burst_than_it_has_room_for(any_engine: Engine, pair: Pair) -> None:
    async with served(any_engine, adoption=pair.worker(), max_connections=20) as full:
        clients = hand_over_burst(pair, 60)
        await until(lambda: len(full.server.server_state.connections) == 20)
        await turns()
        assert len(full.server.server_state.connections) == 20
        async with served(any_engine, adoption=pair.worker()) as other:
            await until(lambda: len(other.server.server_state.connections) == 40)
        for client in clients:
            client.close()
