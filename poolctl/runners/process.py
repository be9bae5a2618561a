"""The process runner for programs that embed a pool: `Pool(runner=ProcessRunner())`."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
import weakref
from collections.abc import Callable

from poolctl.bootstrap import command
from poolctl.config import ServerConfig
from poolctl.keeper import wire
from poolctl.keeper.spawn import in_background

from . import withheld
from .link import KeeperLink, Receiver, give_up
from .local.runner import LocalRunner
from .protocol import Capabilities, Endpoints, Exit, Placement, RunnerEvents

_KEEPER_SECONDS = 10.0


class ProcessRunner:
    """A process for each worker, with a keeper of its own that ends, and ends them, when this program does.

    Started by the first server that is opened. Linux only. Output is kept in `logs_directory`, a temporary directory by
    default.
    """

    def __init__(self, logs_directory: str | None = None) -> None:
        self.events: RunnerEvents | None = None  # set before the first server is opened
        self._logs_directory = logs_directory
        self._started: asyncio.Task[LocalRunner] | None = None
        self._link: KeeperLink | None = None
        self._directory: str | None = None
        _runners.add(self)

    def __repr__(self) -> str:
        return f"<ProcessRunner {'started' if self._started else 'not started'}>"

    @property
    def capabilities(self) -> Capabilities:
        """See Runner."""
        return Capabilities(sleep=self, logs=self)

    async def open(self, server: ServerConfig) -> Endpoints:
        """See Runner."""
        if server.tls and server.tls is not True and server.tls.password_env:
            withheld.withhold([server.tls.password_env])
        return await (await self._runner()).open(server)

    async def close(self, key: str) -> None:
        """See Runner."""
        if self._started is not None:
            await (await self._runner()).close(key)

    async def prepare(self, server: ServerConfig, since: float) -> str:
        """See Runner."""
        return await (await self._runner()).prepare(server, since)

    async def check(self, server: ServerConfig) -> None:
        """See Runner."""
        await (await self._runner()).check(server)

    async def place(self, server: ServerConfig, generation: int, index: int) -> Placement:
        """See Runner."""
        return await (await self._runner()).place(server, generation, index)

    async def begun(self, placement: Placement) -> None:
        """See Runner."""
        await (await self._runner()).begun(placement)

    async def ready(self, placement: Placement) -> None:
        """See Runner."""
        await (await self._runner()).ready(placement)

    async def leave(self, placement: Placement, *, replaced: bool = True) -> None:
        """See Runner."""
        await (await self._runner()).leave(placement, replaced=replaced)

    async def drain(self, placement: Placement, *, replaced: bool = True) -> None:
        """See Runner."""
        await (await self._runner()).drain(placement, replaced=replaced)

    async def rotate(self, placement: Placement, in_rotation: bool) -> None:
        """See Runner."""
        await (await self._runner()).rotate(placement, in_rotation)

    async def attend(self, placement: Placement, accepting: bool) -> None:
        """See Runner."""
        await (await self._runner()).attend(placement, accepting)

    async def connect(self, placement: Placement, kind: str, plain: bool) -> socket.socket:
        """See Runner."""
        return await (await self._runner()).connect(placement, kind, plain)

    async def renew_tls(self, placement: Placement, server: ServerConfig) -> None:
        """See Runner."""
        await (await self._runner()).renew_tls(placement, server)

    def force_certificate(self, name: str, generation: int) -> None:
        """See Runner."""
        if started := self._running():
            started.force_certificate(name, generation)

    def idle_after(self, placement: Placement, seconds: float) -> None:
        """See Sleep."""
        if started := self._running():
            started.idle_after(placement, seconds)

    def arm(self, server: ServerConfig, on_request: Callable[[], None]) -> None:
        """See Sleep."""
        started = self._running()
        assert started is not None, "its listener is open"
        started.arm(server, on_request)

    def disarm(self, key: str) -> None:
        """See Sleep."""
        if started := self._running():
            started.disarm(key)

    def dismiss(self, key: str) -> None:
        """See Sleep."""
        if started := self._running():
            started.dismiss(key)

    async def stop(self, placement: Placement, timeout_seconds: float, *, replaced: bool = False) -> Exit:
        """See Runner."""
        return await (await self._runner()).stop(placement, timeout_seconds, replaced=replaced)

    async def watch(self, placement: Placement) -> Exit:
        """See Runner."""
        return await (await self._runner()).watch(placement)

    async def logs(self, name: str, lines: int, since: float = 0.0) -> list[str]:
        """See Logs."""
        started = self._running()
        return await started.logs(name, lines, since) if started else []

    async def aclose(self) -> None:
        """End every worker and the keeper; a server that is opened afterwards starts new ones."""
        if self._started is not None:
            runner = await self._runner()
            self._started = self._link = None
            await runner.aclose()
            runner.keeper.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _running(self) -> LocalRunner | None:
        task = self._started
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    async def _runner(self) -> LocalRunner:
        if self._started is None:
            self._started = asyncio.ensure_future(self._start())
        return await asyncio.shield(self._started)

    async def _start(self) -> LocalRunner:
        directory = self._directory = tempfile.mkdtemp(prefix="poolctl-")
        logs = self._logs_directory or os.path.join(directory, "logs")
        os.makedirs(logs, mode=0o700, exist_ok=True)
        ours, theirs = wire.pair()
        keeper = _Keeper()
        link = self._link = KeeperLink(ours, keeper)
        argv = command(sys.executable, "keeper", directory, "3", isolated=True)
        with theirs:
            # Not our child, so that it need not be reaped; in a session of its own, away from our terminal.
            await asyncio.to_thread(in_background, argv, dict(os.environ), [theirs.fileno()])
        runner = keeper.runner = LocalRunner(link, directory, logs, events=self.events)
        async with asyncio.timeout(_KEEPER_SECONDS):
            said = await keeper.hello
        runner.children.keeper_pid = int(said["pid"])
        soft, hard = said["open_files"]
        runner.forker.open_files = (soft, hard)
        await runner.output.start()
        return runner

    def forget_descriptors(self) -> None:
        """Let go of the keeper, which ends with the last one that holds its link, and of the listeners.

        For a forked child; it has no servers, and starts a keeper of its own for those that it opens.
        """
        if self._link is not None:
            held = [fd for _, fds in self._link.held().values() for fd in fds]
            give_up([self._link.sock.fileno(), *held])
            _of_parents.append((self._started, self._link))
        self._started = self._link = self._directory = None


class _Keeper(Receiver):
    """The messages of the runner's keeper."""

    runner: LocalRunner

    def __init__(self) -> None:
        self.hello: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        if message.get("event") == "hello":
            self.hello.set_result(message)
        elif message.get("event") == "exit":
            self.runner.exit_reported(message)


_runners: weakref.WeakSet[ProcessRunner] = weakref.WeakSet()
_of_parents: list[
    object
] = []  # kept by a forked child, because collecting them would touch the parent's loop


def _forget_in_child() -> None:
    for runner in list(_runners):
        runner.forget_descriptors()


os.register_at_fork(after_in_child=_forget_in_child)
