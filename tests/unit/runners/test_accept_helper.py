"""The accept helper as its supervisor sees it: a real process, started here as the keeper does."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

from poolctl.keeper.connection_handover import Connection
from poolctl.keeper.spawn import spawn
from poolctl.runners.local.activation import accept_helper as module
from poolctl.runners.local.activation.accept_helper import ACCEPT, AcceptHelper, Fetched
from poolctl.runners.process_link import HasDescriptor, Link


class Keeper:
    """Starts and signals as the keeper would; it keeps nothing."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    async def call(self, message: Any, fds: Sequence[HasDescriptor]) -> tuple[Any, list[int]]:
        output = message["output"]
        numbers = [fd.fileno() for fd in fds]
        self.pids.append(spawn(message["argv"], None, numbers, output, session=message["session"]))
        return {"pid": self.pids[-1]}, []

    def send(self, message: Any, fds: Sequence[HasDescriptor] = ()) -> None:
        if message["op"] == "signal":
            os.kill(message["pid"], message["signal"])


class Request:
    """A request for connections, and what came of it."""

    kind, key = ACCEPT, "key"

    def __init__(self, got: list[socket.socket], done: asyncio.Future[Fetched]) -> None:
        self._got = got
        self._done = done

    def arrived(self, sock: Connection) -> None:
        self._got.append(sock)

    def ended(self, found: Fetched) -> None:
        self._done.set_result(found)


class Stage:
    """A helper, a listener that its application has made blocking, and what came of it."""

    def __init__(self, directory: Path) -> None:
        self.keeper = Keeper()
        self.acceptor = AcceptHelper(cast(Link, self.keeper), str(directory), lambda key, connection: None)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.got: list[socket.socket] = []

    async def fetch(self, count: int = 1) -> Fetched:
        clients = [socket.create_connection(self.listener.getsockname()) for _ in range(count)]
        done: asyncio.Future[Fetched] = asyncio.get_running_loop().create_future()
        self.acceptor.fetch(Request(self.got, done), self.listener, 8)
        found = await done
        for client in clients:
            client.close()
        return found

    async def close(self) -> None:
        self.acceptor.close()
        self.listener.close()
        for sock in self.got:
            sock.close()
        for pid in self.keeper.pids:
            await asyncio.to_thread(os.waitpid, pid, 0)


def run(directory: Path, work: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def watched() -> None:
        stage = Stage(directory)
        async with asyncio.timeout(60):
            await work(stage)
            await stage.close()

    asyncio.run(watched())


def test_connections_of_a_blocking_listener_are_handed_over_as_many_as_are_asked_for(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        assert await stage.fetch(3) == Fetched(empty=True)
        assert len(stage.got) == 3
        assert await stage.fetch(10) == Fetched()
        assert len(stage.got) == 11
        assert len(stage.keeper.pids) == 1

    run(tmp_path, scenario)


def test_helper_that_does_not_answer_is_killed_and_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.fetch()
        monkeypatch.setattr(module, "_SILENT_SECONDS", 0.1)
        os.kill(stage.keeper.pids[0], signal.SIGSTOP)
        assert await stage.fetch() == Fetched(failed=True)
        assert (await stage.fetch()).empty
        assert len(stage.keeper.pids) == 2

    run(tmp_path, scenario)


def test_helper_that_ends_at_a_request_says_that_a_call_has_blocked(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.fetch()
        os.kill(stage.keeper.pids[0], signal.SIGSTOP)
        asyncio.get_running_loop().call_soon(os.kill, stage.keeper.pids[0], signal.SIGALRM)
        asyncio.get_running_loop().call_soon(os.kill, stage.keeper.pids[0], signal.SIGCONT)
        assert await stage.fetch() == Fetched(failed=True, blocked=True)
        assert (await stage.fetch()).empty

    run(tmp_path, scenario)
