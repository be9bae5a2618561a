"""The process runner for programs that embed a pool: `Pool(runner=ProcessRunner())`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence

from poolctl.bootstrap import command
from poolctl.config import ServerConfig
from poolctl.config.values.path_variables import with_absolute_paths
from poolctl.keeper import wire
from poolctl.keeper.spawn import start_detached

from .helper_process import Helpers
from .local.forking import RunnerContext
from .local.local_runner import LocalRunner
from .local.local_worker import LocalWorker
from .process_link import KeeperLink, LinkHandler, redirect_parent_fds_to_null, runners_to_forget
from .process_usage import ProcessUsages
from .runner_protocol import Exit, Placement
from .withheld_variables import withhold_variables
from .worker_spec import hook_id

_KEEPER_SECONDS = 10.0
# How long keeper, zygotes and logger keep running after the last server was closed.
_IDLE_SECONDS = 10.0
# The pauses before successive attempts to replace a keeper that has died.
_REPLACEMENT_PAUSES_SECONDS = (0.0, 0.2, 1.0, 5.0, 10.0, 30.0)

logger = logging.getLogger("poolctl")


class ProcessRunner(LocalRunner):
    """Runs each worker as a process; workers end when this program ends. Linux only.

    A helper process, the keeper, starts the workers. It is started when the first server is opened, and ends some
    seconds after the last server is closed. If the keeper dies it is replaced, and the workers continue. Output is kept
    in `logs_directory`, by default a temporary directory.
    """

    def __init__(self, logs_directory: str | None = None) -> None:
        # LocalRunner.__init__ is called once the keeper runs: until then there is no worker to ask about.
        self._logs_directory = logs_directory
        self._start_task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._users: set[str] = set()  # keys of opened servers, and of running hooks: they need the keeper
        self._idle: asyncio.TimerHandle | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._directory: str | None = None
        self.usages = ProcessUsages()
        runners_to_forget.add(self)

    def __repr__(self) -> str:
        return f"<ProcessRunner {'started' if self._start_task else 'not started'}>"

    async def open(self, server: ServerConfig, beside: Sequence[str] = ()) -> tuple[str, ...]:
        if server.tls and server.tls is not True and server.tls.password_env:
            withhold_variables([server.tls.password_env])
        self._users.add(server.key)
        self._cancel_idle_end()
        try:
            await self.start()
            return await super().open(server, beside)
        except BaseException:
            self._release(server.key)
            raise

    async def begin_hook(self, server: ServerConfig, hook: str) -> Placement:
        """Start the server's `hook` command, and keep the keeper process running until the command has ended."""
        key = hook_id(server.name, hook)
        self._users.add(key)
        self._cancel_idle_end()
        try:
            await self.start()
            placement = await super().begin_hook(server, hook)
        except BaseException:
            self._release(key)
            raise
        self._workers[placement.id].exited.add_done_callback(lambda _: self._release(key))
        return placement

    async def preload_application(self, server: ServerConfig, since: float) -> str:
        await self.start()
        return await super().preload_application(server, since)

    async def check_startable(self, server: ServerConfig) -> None:
        await self.start()
        await super().check_startable(server)

    async def close(self, key: str) -> None:
        if self._start_task is not None:
            await self.start()
            await super().close(key)
            self._release(key)

    def _release(self, key: str) -> None:
        self._users.discard(key)
        if not self._users:
            self._cancel_idle_end()
            self._idle = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end_if_idle)

    def _cancel_idle_end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()

    def _end_if_idle(self) -> None:
        if not self._users and self._ending is None:
            self._ending = asyncio.ensure_future(self._end_keeper())

    async def end_if_unused(self) -> None:
        """End the keeper and its zygotes and logger if no server is open. The next server starts them again."""
        self._end_if_idle()
        if self._ending is not None:
            await self._ending

    async def logs(self, name: str, lines: int, since: float = 0.0, worker: str = "") -> list[str]:
        """The last lines of the server's output; empty if no keeper has been started yet."""
        return await super().logs(name, lines, since, worker) if hasattr(self, "output") else []

    def _handle_worker_exit(self, worker: LocalWorker, exit_: Exit) -> None:
        super()._handle_worker_exit(worker, exit_)
        self.tallies.discard_saved_counts()  # no other supervisor adds them up again

    async def aclose(self) -> None:
        """End every worker and the keeper. A server that is opened afterwards starts another keeper."""
        self.events.closing()
        if self._ending is None:
            self._users.clear()
            self._ending = asyncio.ensure_future(self._end_keeper())
        await self._ending
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    async def _end_keeper(self) -> None:
        started, self._start_task = self._start_task, None
        self._cancel_idle_end()
        try:
            if started is not None:
                await asyncio.wait({started})
                # `open` has already reported a failed start.
                if not started.cancelled() and started.exception() is None:
                    await self.end_left_groups()
                    await super().aclose()
                    if self._replacing is not None:
                        self._replacing.cancel()
                    self.keeper.close()
        finally:
            self._ending = None

    async def start(self) -> None:
        """Start the keeper, unless it is running already, and wait until it has answered."""
        while self._ending is not None:
            await asyncio.wait({self._ending})
        if self._start_task is None:
            self._start_task = asyncio.ensure_future(self._start())
        await asyncio.shield(self._start_task)

    async def _start(self) -> None:
        with contextlib.ExitStack() as if_failed:
            if_failed.callback(setattr, self, "_start_task", None)  # the next call of `open` tries again
            directory = self._directory = self._directory or tempfile.mkdtemp(prefix="poolctl-")
            logs = self._logs_directory or os.path.join(directory, "logs")
            os.makedirs(logs, mode=0o700, exist_ok=True)
            ours, theirs = wire.pair()
            receiver = _KeeperReceiver(self)
            keeper = self.keeper = KeeperLink(ours, receiver)
            if_failed.callback(keeper.close)  # the keeper exits when its link is closed
            hello = await _launch(directory, theirs, receiver)
            soft, hard = hello["open_files"]
            site = RunnerContext(
                keeper=keeper,
                keeper_pid=int(hello["pid"]),
                helpers=Helpers(keeper, directory),
                open_files=(soft, hard),
                directory=directory,
                logs_directory=logs,
                environments={},
            )
            super().__init__(site)
            receiver.on_lost = lambda: self._on_keeper_lost(directory)
            await self.output.start()
            if_failed.pop_all()

    def _on_keeper_lost(self, directory: str) -> None:
        if self._start_task is not None:
            logger.error("the keeper (pid %d) has died: another one is started", self.children.keeper_pid)
            self._replacing = asyncio.ensure_future(self._replace_keeper(directory))

    async def _replace_keeper(self, directory: str) -> None:
        """Start a new keeper with the dead keeper's descriptors; workers continue. Gives up after several failures."""
        for pause in _REPLACEMENT_PAUSES_SECONDS:
            await asyncio.sleep(pause)
            ours, theirs = wire.pair()
            receiver = _KeeperReceiver(self)
            self.keeper.reconnect(ours, receiver)
            try:
                hello = await _launch(directory, theirs, receiver)
            except (OSError, TimeoutError) as error:
                logger.error("no keeper can be started: %r", error)
                continue
            receiver.on_lost = lambda: self._on_keeper_lost(directory)
            self.attach_keeper(int(hello["pid"]))
            return

    def release_after_fork(self) -> None:
        """In a forked child, release the listeners and the child's copy of the link to the parent's keeper.

        The parent's keeper exits only when all copies of the link are closed. The child has no servers afterwards;
        when it opens a server, it starts its own keeper.
        """
        if self._start_task is not None and hasattr(self, "keeper"):
            held = [fd for _, fds in self.keeper.recorded_entries().values() for fd in fds]
            owners = (self._start_task, dict(vars(self)))
            redirect_parent_fds_to_null([self.keeper.sock.fileno(), *held], owners)
        self._start_task = self._ending = self._idle = self._replacing = self._directory = None
        self._users = set()


class _KeeperReceiver(LinkHandler):
    """Receives the keeper's messages for the runner, and calls `on_lost` when the keeper has died."""

    def __init__(self, runner: LocalRunner) -> None:
        self.hello: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()
        self.on_lost: Callable[[], None] = lambda: None
        self._runner = runner

    def received(self, message: wire.Message, fds: list[int]) -> None:
        if message.get("event") == "hello":
            self.hello.set_result(message)
        elif message.get("event") in ("exit", "gone"):
            self._runner.handle_exit_report(message)

    def on_link_lost(self) -> None:
        self.on_lost()


async def _launch(directory: str, theirs: socket.socket, receiver: _KeeperReceiver) -> wire.Message:
    """Start a keeper that inherits `theirs`, and return the first message that `receiver` gets.

    Closes `theirs` in this process. Raises OSError, or TimeoutError if no message arrives.
    """
    argv = command(sys.executable, "keeper", directory, "3", isolated=True)
    with theirs:
        # Started in the background: it is not our child, which we would have to reap, nor in our terminal's session.
        await asyncio.to_thread(start_detached, argv, with_absolute_paths(os.environ), [theirs.fileno()])
    async with asyncio.timeout(_KEEPER_SECONDS):
        return await receiver.hello
