"""Connections that one worker gives and another takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from poolctl.keeper import connection_handover, wire
from poolctl.worker.serving.accepting import AcceptedConnections
from poolctl.worker.serving.connection_state import PoolServerState
from tests.serving import ENGINES, Client, Engine, Pair, accepted, served, turns, until


@pytest.fixture(params=ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


def test_adopted_connection_is_served_like_an_accepted_one(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker()) as (server, app, _port, _running):
            client, sock = await accepted()
            pair.hand_over(sock)
            assert (await client.get())[0] == 200
            assert (await client.get())[0] == 200
            assert len(server.server_state.connections) == 1
            assert app.scopes[0]["client"] == client.writer.get_extra_info("sockname")
            assert app.scopes[0]["server"] == client.writer.get_extra_info("peername")

    engine.run(scenario())


def test_adopted_connection_of_a_unix_socket_is_served(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker()):
            ours, theirs = socket.socketpair()
            pair.hand_over(theirs)
            client = Client(*await asyncio.open_connection(sock=ours))
            assert (await client.get())[0] == 200

    engine.run(scenario())


def test_adopted_connection_is_closed_when_it_stays_silent(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker(), config={"timeout_keep_alive": 0.1}):
            client, sock = await accepted()
            pair.hand_over(sock)
            assert await client.at_end()

    engine.run(scenario())


def test_descriptor_that_is_no_connection_is_closed_and_ignored(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker()):
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

    engine.run(scenario())


def test_connection_whose_protocol_cannot_be_made_is_closed_and_no_other_one(engine: Engine) -> None:
    def fail() -> asyncio.Protocol:
        raise OSError("as if there were no memory")

    async def scenario() -> None:
        connections = AcceptedConnections(PoolServerState())
        (failed, first), (client, second) = await accepted(), await accepted()
        connections.attach(fail, first)
        connections.attach(asyncio.Protocol, second)
        assert len(connections) == 1
        assert await failed.at_end()
        await until(lambda: not connections)
        client.writer.write(b"read")
        assert await client.stays_open(0.01)

    engine.run(scenario())


def test_connection_that_is_cancelled_before_it_has_its_protocol_is_closed(engine: Engine) -> None:
    async def scenario() -> None:
        connections = AcceptedConnections(PoolServerState())
        client, sock = await accepted()
        connections.attach(asyncio.Protocol, sock)
        connections.cancel()
        await until(lambda: not connections)
        assert await client.at_end()

    engine.run(scenario())


def test_each_connection_is_taken_by_one_of_several_workers(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with (
            served(engine, adoption=pair.worker()) as one,
            served(engine, adoption=pair.worker()) as other,
        ):
            clients = []
            for _ in range(20):
                client, sock = await accepted()
                pair.hand_over(sock)
                clients.append(client)
            for client in clients:
                assert (await client.get())[0] == 200
            assert len(one.app.scopes) + len(other.app.scopes) == 20

    engine.run(scenario())


def test_stopping_worker_takes_no_more_connections(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker()) as (server, _, _port, running):
            server.stop()
            await running
            client, sock = await accepted()
            pair.hand_over(sock)
            async with served(engine, adoption=pair.worker()):
                assert (await client.get())[0] == 200

    engine.run(scenario())


def test_full_adoption_pair_refuses_more_and_loses_nothing(pair: Pair) -> None:
    with socket.socket() as sock:
        given = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                connection_handover.give(pair.give, sock.fileno())
                given += 1
        assert given > 50
        taken = 0
        while taken < given:
            received = wire.receive(pair.take)
            assert received is not None
            os.close(received[1][0])
            taken += 1
        connection_handover.give(pair.give, sock.fileno())


def test_worker_without_a_free_descriptor_takes_nothing_until_there_is_one(
    engine: Engine, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> int:
        raise OSError(24, "Too many open files")

    async def scenario() -> None:
        async with served(engine, adoption=pair.worker()) as (server, _app, _port, _running):
            client, sock = await accepted()
            with monkeypatch.context() as patched:
                patched.setattr(os, "dup", full)
                pair.hand_over(sock)
                await turns()
                assert not server.server_state.connections
            assert (await client.get())[0] == 200

    engine.run(scenario())


def hand_over_burst(pair: Pair, count: int) -> list[socket.socket]:
    """So many connections wait in the pair; their clients' ends."""
    clients = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        pair.hand_over(theirs)
        clients.append(ours)
    return clients


def test_burst_is_shared_by_workers_that_wait(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            workers = [
                (await stack.enter_async_context(served(engine, adoption=pair.worker()))).server
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

    engine.run(scenario())


def test_worker_takes_no_more_of_a_burst_than_it_has_room_for(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker(), max_connections=20) as full:
            clients = hand_over_burst(pair, 60)
            await until(lambda: len(full.server.server_state.connections) == 20)
            await turns()
            assert len(full.server.server_state.connections) == 20
            async with served(engine, adoption=pair.worker()) as other:
                await until(lambda: len(other.server.server_state.connections) == 40)
            for client in clients:
                client.close()

    engine.run(scenario())
