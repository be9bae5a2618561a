"""Stand-ins for the keeper in tests of helpers: one whose processes are the test, and one that executes them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from poolctl.keeper import wire
from poolctl.keeper.spawn import spawn
from poolctl.runners.process_link import Refused


class HelperKeeper:
    """Keeps entries. It starts no process: the test has the helper's end of each link, in `ends`.

    `refusals` are raised by the next attempts to start a process. The pids that it gives belong to no process.
    """

    def __init__(self) -> None:
        self.orders: list[tuple[str, str]] = []  # the operation and the name
        self.entries: dict[str, tuple[Any, list[int]]] = {}
        self.spawned: list[wire.Message] = []
        self.ends: list[socket.socket] = []
        self.refusals: list[Exception] = []
        self.attempts: list[float] = []  # the times of the loop at which a process was to be started

    def send(self, message: wire.Message, fds: Sequence[Any] = ()) -> None:
        self.orders.append((message["op"], str(message.get("name", ""))))
        if message["op"] in ("put", "drop"):
            for fd in self.entries.pop(message["name"], (None, []))[1]:
                os.close(fd)
        if message["op"] == "put":
            owned = [os.dup(fd if isinstance(fd, int) else fd.fileno()) for fd in fds]
            self.entries[message["name"]] = message.get("meta"), owned

    async def call(self, message: wire.Message, fds: Sequence[Any] = ()) -> tuple[wire.Message, list[int]]:
        if message["op"] == "get":
            meta, kept = self.entries.get(message["name"], (None, []))
            return {"meta": meta}, [os.dup(fd) for fd in kept]
        if message["op"] != "spawn":
            self.send(message, fds)
            return {}, []
        self.attempts.append(asyncio.get_running_loop().time())
        if self.refusals:
            raise self.refusals.pop(0)
        self.spawned.append(message)
        return {"pid": self.start(message, fds)}, []

    def start(self, message: wire.Message, fds: Sequence[Any]) -> int:
        """Start what the order names; returns the pid."""
        self.ends.append(wire.socket_from_fd(os.dup(fds[0].fileno())))
        return (1 << 22) + len(self.spawned)  # more than any Linux system has

    def hold(self, name: str, meta: object, sock: socket.socket) -> None:
        """Hold a link that an earlier supervisor, or the start of the pool, has left. Owns `sock`."""
        self.entries[name] = meta, [sock.detach()]

    async def say(self, message: wire.Message, fds: Sequence[int] = (), *, end: int = -1) -> None:
        """Send a message as the process would, and let it be handled."""
        wire.send(self.ends[end], message, [*fds])
        await self.settle()

    async def settle(self) -> None:
        """Let everything happen that follows from what has happened."""
        for _ in range(20):
            await asyncio.sleep(0)

    def heard(self, end: int = -1) -> list[wire.Message]:
        """The messages that the process has got since, other than pings. Their descriptors are closed."""
        found = []
        self.ends[end].setblocking(False)
        while True:
            try:
                received = wire.receive(self.ends[end])
            except (BlockingIOError, ConnectionResetError):
                break
            if received is None:
                break
            for fd in received[1]:
                os.close(fd)
            if received[0].get("t") != "ping":
                found.append(received[0])
        return found

    async def heard_next(self, kind: str, end: int = -1) -> tuple[wire.Message, list[int]]:
        """The next message of this kind that the process gets, with its descriptors."""
        self.ends[end].setblocking(False)
        for _ in range(1000):
            try:
                received = wire.receive(self.ends[end])
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert received is not None
            if received[0].get("t") == kind:
                return received
            for fd in received[1]:
                os.close(fd)
        raise AssertionError(f"no message {kind!r}")

    def end(self, end: int = -1) -> None:
        """Let the process exit."""
        self.ends[end].close()

    def close(self) -> None:
        for name in list(self.entries):
            self.send({"op": "drop", "name": name})
        for sock in self.ends:
            sock.close()


class ExecutingKeeper(HelperKeeper):
    """Starts the processes, as its own children, and passes their exits to `report`. Keeps only what it is to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: list[int] = []
        self.report: Callable[[wire.Message], None] = lambda report: None
        self._reaping: list[asyncio.Future[None]] = []

    def send(self, message: wire.Message, fds: Sequence[Any] = ()) -> None:
        """Keep nothing, so that a process ends with its link, also after a test that does not end it."""

    def start(self, message: wire.Message, fds: Sequence[Any]) -> int:
        argv, numbers = [*message["argv"]], [fd if isinstance(fd, int) else fd.fileno() for fd in fds]
        unset, output = message.get("without", ()), message["output"] or numbers.pop()
        try:
            pid = spawn(argv, None, numbers, output, session=message["session"], without=unset)
        except OSError as error:
            refused = Refused(str(error))
            refused.errno = error.errno
            raise refused from error
        self.pids.append(pid)
        loop = asyncio.get_running_loop()
        reaped = loop.create_future()
        self._reaping.append(reaped)
        threading.Thread(target=self._reap, args=(pid, loop, reaped), daemon=True).start()
        return pid

    def _reap(self, pid: int, loop: asyncio.AbstractEventLoop, reaped: asyncio.Future[None]) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        status, number = (code, None) if code >= 0 else (None, -code)
        report = {"event": "exit", "pid": pid, "status": status, "signal": number}

        def tell() -> None:
            self.report(report)
            reaped.set_result(None)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell)

    async def wait_for_exits(self) -> None:
        """Wait until every process has exited."""
        if self._reaping:
            await asyncio.wait(self._reaping)
