"""Connections that wait until their target can be reached, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from poolctl.features.gateway.forwarder.waiting import AwaitedTarget, WaitingRoom
from poolctl.json_form import to_json
from tests.asyncio_server import hang_up, start_server
from tests.deadline import until
from tests.descriptors import run

ANOTHER_USER = os.geteuid() + 1


class Stage:
    """A waiting room for a target at a port that nobody listens to yet."""

    def __init__(self, uids: frozenset[int], **keys: Any) -> None:
        self.woken: list[tuple[str, int]] = []
        self.reserved = socket.socket()
        self.reserved.bind(("127.0.0.1", 0))
        port = str(self.reserved.getsockname()[1])
        self.target = AwaitedTarget(
            **{"key": "http://vm:80", "address": ("127.0.0.1", port), "seconds": 20.0, **keys}
        )
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(b"\0poolctl-test-%d-%d" % (os.getpid(), id(self)))
        self.listener.listen(100)
        self.listener.setblocking(False)
        self.place = self.listener.getsockname()
        self.connections: set[asyncio.Task[None]] = set()
        self.room = WaitingRoom(
            self.listener, self.target, uids, lambda *wake: self.woken.append(wake), self.connections
        )
        self._server: asyncio.Server | None = None

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.place)

    async def ask(self, text: str) -> str:
        """What the target answers when everything is sent; "" if the connection is closed without an answer."""
        reader, writer = await self.connect()
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            writer.write(text.encode())
            writer.write_eof()
            return (await reader.read()).decode()
        return ""

    async def serve(self) -> None:
        """Let the target come up: it answers everything that it got with "got " before it."""

        async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"got " + await reader.read())
            writer.close()

        self._server = await start_server(serve_one, sock=self.reserved)

    async def close(self) -> None:
        self.room.stop_accepting()
        if self._server is not None:
            await hang_up(self._server)
        self.reserved.close()
        while self.connections:
            await asyncio.wait(self.connections)


@contextlib.asynccontextmanager
async def stage(uids: frozenset[int] = frozenset({os.geteuid()}), **keys: Any) -> AsyncIterator[Stage]:
    made = Stage(uids, **keys)
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.loop(run=run)
async def test_connections_wait_until_the_target_listens_and_each_is_served_once() -> None:
    async with stage() as made:
        asked = [asyncio.ensure_future(made.ask(f"{each}")) for each in range(30)]
        await until(lambda: len(made.woken) == 30)
        assert made.woken == [("http://vm:80", each + 1) for each in range(30)]
        await made.serve()
        assert await asyncio.gather(*asked) == [f"got {each}" for each in range(30)]


@pytest.mark.loop(run=run)
async def test_large_bodies_pass_whole_in_both_directions() -> None:
    async with stage() as made:
        await made.serve()
        text = "x" * 3_000_000
        assert await made.ask(text) == f"got {text}"


@pytest.mark.loop(run=run)
async def test_no_attempt_is_made_while_the_target_is_down() -> None:
    async with stage(down=True) as made:
        await made.serve()
        asked = asyncio.ensure_future(made.ask("x"))
        await until(lambda: made.woken)
        await asyncio.sleep(0.2)
        assert not asked.done()
        made.room.change(to_json(replace(made.target, down=False)))
        assert await asked == "got x"


@pytest.mark.loop(run=run)
async def test_target_that_goes_down_while_connections_wait_is_woken_again() -> None:
    async with stage() as made:
        made.room.change(to_json(replace(made.target, down=True)))
        assert not made.woken, "no connection waits"
        made.room.change(to_json(made.target))
        asked = [asyncio.ensure_future(made.ask(f"{each}")) for each in range(2)]
        await until(lambda: len(made.woken) == 2)
        for coming in (True, False):
            made.room.change(to_json(replace(made.target, down=True, coming=coming)))
        assert made.woken[2:] == [("http://vm:80", 2)]
        made.room.change(to_json(made.target))
        await made.serve()
        assert await asyncio.gather(*asked) == ["got 0", "got 1"]


@pytest.mark.loop(run=run)
async def test_connections_are_closed_when_the_target_cannot_come_up() -> None:
    async with stage(down=True) as made:
        asked = asyncio.ensure_future(made.ask("x"))
        await until(lambda: made.woken)
        made.room.change(to_json(replace(made.target, problem="no such machine")))
        assert await asked == ""
        assert await made.ask("y") == "", "and at once while that is so"


@pytest.mark.loop(run=run)
async def test_connection_is_closed_when_it_is_known_that_the_target_is_up_and_refuses() -> None:
    async with stage() as made:
        asked = asyncio.ensure_future(made.ask("x"))
        await until(lambda: made.woken)
        made.room.change(to_json(replace(made.target, coming=False)))
        await asyncio.sleep(0.2)
        assert not asked.done(), "that is known from before it has begun to wait"
        made.room.change(to_json(replace(made.target, coming=False, answered=1)))
        assert await asked == ""


@pytest.mark.loop(run=run)
async def test_connection_is_closed_when_the_target_does_not_come_up_in_time() -> None:
    async with stage(seconds=0.1) as made:
        assert await made.ask("x") == ""


@pytest.mark.loop(run=run)
async def test_client_that_leaves_is_not_waited_for() -> None:
    async with stage(down=True) as made:
        _, writer = await made.connect()
        writer.write(b"x")
        await until(lambda: made.woken)
        writer.close()
        await until(lambda: not made.connections)


@pytest.mark.loop(run=run)
async def test_processes_of_other_users_are_refused() -> None:
    async with stage(frozenset({ANOTHER_USER})) as made:
        await made.serve()
        assert await made.ask("x") == ""
        assert made.woken == []


@pytest.mark.loop(run=run)
async def test_target_that_resets_closes_the_client() -> None:
    async with stage() as made:
        made.reserved.listen()
        made.reserved.setblocking(False)
        reader, writer = await made.connect()
        with contextlib.closing(writer):
            writer.write(b"x")
            loop = asyncio.get_running_loop()
            accepted, _ = await loop.sock_accept(made.reserved)
            assert await loop.sock_recv(accepted, 1) == b"x"
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            accepted.close()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""


@pytest.mark.loop(run=run)
async def test_target_at_a_unix_socket_is_reached(tmp_path: Any) -> None:
    path = str(tmp_path / "target.sock")
    async with stage(address=(path,)) as made:
        asked = asyncio.ensure_future(made.ask("x"))
        await until(lambda: made.woken)
        made.reserved.close()
        made.reserved = socket.socket(socket.AF_UNIX)
        made.reserved.bind(path)
        await made.serve()
        assert await asked == "got x"
