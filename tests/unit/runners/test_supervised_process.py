"""A process of the pool answers its supervisor, ends with it, or continues until another supervisor adopts it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from poolctl import __version__
from poolctl.keeper import pool_files, rendezvous, wire
from poolctl.runners import supervised_process
from poolctl.runners.process_link import PING, Link
from poolctl.runners.supervised_process import AdoptionMessages, SupervisedProcess
from tests.descriptors import no_descriptor_left


class Supervised(SupervisedProcess):
    """Records its orders; with a `directory` it outlives its supervisor there."""

    def __init__(self, fd: int, directory: Path | None = None) -> None:
        super().__init__(fd)
        self.directory = directory
        self.orders: list[wire.Message] = []
        self.events: list[str] = []
        self.held, self._kept = socket.socketpair()

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        self.orders.append(message)
        for fd in fds:
            os.close(fd)

    def on_link_lost(self) -> None:
        self.events.append("lost")
        if self.directory is None:
            super().on_link_lost()
        else:
            self.listen_for_adoption(str(self.directory), pool_files.GATEWAY)

    def messages_for_adopter(self) -> AdoptionMessages:
        return [*super().messages_for_adopter(), ({"t": "held", "number": 1}, [self.held])]

    def adopted(self, link: Link) -> None:
        self.events.append("adopted")
        super().adopted(link)

    async def end_service(self) -> None:
        await super().end_service()
        self.events.append("finished")

    def close(self) -> None:
        self.held.close()
        self._kept.close()


class Stage:
    """A process that runs in this loop, and the supervisor's end of its link."""

    def __init__(self, directory: Path | None = None) -> None:
        self.supervisor, theirs = wire.pair()
        self.process = Supervised(theirs.detach(), directory)
        self.running = asyncio.ensure_future(self.process.serve_supervisor())

    async def close(self) -> None:
        self.process.over.set()
        await self.running
        self.process.close()
        self.supervisor.close()


async def message(sock: socket.socket) -> tuple[wire.Message, list[int]] | None:
    """The next message on this socket; None at its end."""
    async with asyncio.timeout(30):
        while True:
            try:
                return wire.receive(sock)
            except BlockingIOError:
                await asyncio.sleep(0)
            except ConnectionError:
                return None


async def connected(directory: Path) -> socket.socket:
    """A connection to the process that listens in the directory."""
    async with asyncio.timeout(30):
        while not (paths := pool_files.find_listeners(str(directory), pool_files.GATEWAY)):
            await asyncio.sleep(0.001)
    sock = rendezvous.connect(paths[0])
    assert sock is not None
    return sock


async def introduced(sock: socket.socket) -> None:
    """Read the process's state, which ends with its version."""
    held = await message(sock)
    assert held is not None
    (fd,) = held[1]
    assert held[0] == {"t": "held", "number": 1}
    os.close(fd)
    assert await message(sock) == ({"t": "over", "mark": __version__}, [])


def run(work: Coroutine[Any, Any, None]) -> None:
    with no_descriptor_left():
        asyncio.run(work)


def test_orders_are_performed_in_order_and_confirmed_until_the_process_is_ended() -> None:
    async def scenario() -> None:
        stage = Stage()
        wire.send(stage.supervisor, PING)
        assert await message(stage.supervisor) == ({"t": "pong"}, [])
        wire.send(stage.supervisor, {"t": "first"}, [stage.supervisor.fileno()])
        wire.send(stage.supervisor, {"t": "second"})
        wire.send(stage.supervisor, {"t": "performed", "id": 7})
        assert await message(stage.supervisor) == ({"t": "performed", "id": 7}, [])
        assert stage.process.orders == [{"t": "first"}, {"t": "second"}]
        assert not stage.running.done()
        wire.send(stage.supervisor, {"t": "end"})
        await asyncio.wait_for(stage.running, 30)
        assert stage.process.events == ["finished"]
        assert await message(stage.supervisor) is None
        await stage.close()

    run(scenario())


def test_sigterm_ends_the_process_and_sigint_does_not() -> None:
    async def scenario() -> None:
        stage = Stage()
        wire.send(stage.supervisor, PING)
        await message(stage.supervisor)
        os.kill(os.getpid(), signal.SIGINT)
        wire.send(stage.supervisor, PING)
        assert await message(stage.supervisor) is not None
        assert not stage.running.done()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stage.running, 30)
        await stage.close()

    run(scenario())


def test_process_ends_with_keeper_and_supervisor() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.supervisor.close()
        await asyncio.wait_for(stage.running, 30)
        assert stage.process.events == ["lost", "finished"]
        await stage.close()

    run(scenario())


def test_orphan_belongs_to_the_first_connection_that_sends_an_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        stage.supervisor.close()
        reader = await connected(tmp_path)
        await introduced(reader)
        reader.close()
        other, successor = await connected(tmp_path), await connected(tmp_path)
        await introduced(other)
        await introduced(successor)
        assert stage.process.events == ["lost"], "a connection that only reads is not a supervisor"
        wire.send(successor, {"t": "order"})
        wire.send(successor, PING)
        assert await message(successor) == ({"t": "pong"}, [])
        assert stage.process.orders == [{"t": "order"}]
        assert stage.process.events == ["lost", "adopted"]
        assert await message(other) is None
        assert os.listdir(tmp_path) == []
        other.close()
        successor.close()
        third = await connected(tmp_path)
        await introduced(third)
        assert stage.process.events == ["lost", "adopted", "lost"]
        await stage.close()
        assert await message(third) is None
        assert os.listdir(tmp_path) == []
        third.close()

    run(scenario())


def test_orphan_that_cannot_listen_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised_process, "_BIND_AGAIN_SECONDS", 0.001)
    directory = tmp_path / "pool"
    directory.write_text("in the way")

    async def scenario() -> None:
        stage = Stage(directory)
        stage.supervisor.close()
        async with asyncio.timeout(30):
            while "lost" not in stage.process.events:
                await asyncio.sleep(0)
        directory.unlink()
        sock = await connected(directory)
        await introduced(sock)
        sock.close()
        await stage.close()

    run(scenario())


def test_orphan_whose_socket_was_removed_listens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_process, "_BIND_AGAIN_SECONDS", 0.001)
    directory = tmp_path / "root" / "pool"

    async def scenario() -> None:
        stage = Stage(directory)
        stage.supervisor.close()
        before = await connected(directory)
        shutil.rmtree(directory.parent)
        sock = await connected(directory)
        await introduced(sock)
        sock.close()
        before.close()
        await stage.close()
        assert os.listdir(directory) == []

    run(scenario())


def test_process_that_ends_does_not_try_to_listen_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_process, "_BIND_AGAIN_SECONDS", 0.01)
    directory = tmp_path / "pool"
    directory.write_text("in the way")

    async def scenario() -> None:
        stage = Stage(directory)
        stage.supervisor.close()
        async with asyncio.timeout(30):
            while "lost" not in stage.process.events:
                await asyncio.sleep(0)
        await stage.close()
        directory.unlink()
        await asyncio.sleep(0.03)
        assert not directory.exists()

    run(scenario())
