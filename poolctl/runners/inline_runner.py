"""Runs workers as tasks of this process, on the caller's loop: for embedded pools and for tests.

Settings that need a separate process (another program, user, environment or interpreter) are refused, never ignored.
Modules are imported once per process, so that a restart here runs the code that is already loaded.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from poolctl.config import Log, ServerConfig, default_env_file
from poolctl.errors import ServerError
from poolctl.listeners import open_listener
from poolctl.listeners.open_listener import Identity, inherited_descriptors
from poolctl.worker.serving.accepting import stop_reading

from .inline_worker import InlineWorker
from .listener_opener import Opener
from .process_link import redirect_parent_fds_to_null, runners_to_forget
from .process_usage import ProcessUsages
from .runner_protocol import (
    IMPORTS_PER_CPU,
    Exit,
    Placement,
    Runner,
    RunnerEventHandler,
    WorkerFailed,
    app_state,
)
from .socket_access import change_server_socket_access, server_socket_access
from .worker_spec import missing_module_hint

_KILL_SIGNAL = 9

# Keys that need a separate process: a server that uses one is refused.
_NEED_A_PROCESS = ("command", "job", "user", "umask", "env", "env_file", "hooks")


class InlineRunner(Runner):
    """Runs workers as tasks of this process, with real sockets and uvicorn servers."""

    events = RunnerEventHandler()
    in_this_process = True

    def __init__(self) -> None:
        self.usages = ProcessUsages()
        self._listeners: dict[str, tuple[list[socket.socket], Identity | None]] = {}
        self._opener = Opener()
        self._workers: dict[str, InlineWorker] = {}
        # The running loop, and the semaphore that limits how many imports run on it at once.
        self._turns: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None
        runners_to_forget.add(self)

    def __repr__(self) -> str:
        return f"<InlineRunner {len(self._workers)} workers on {len(self._listeners)} listeners>"

    async def open(self, server: ServerConfig, beside: Sequence[str] = ()) -> tuple[str, ...]:
        _refuse_process_settings(server)
        key, address = server.key, server.address
        held, _ = self._listeners.get(key, ([], None))
        others = {other: self._listeners[other][0] for other in beside if other in self._listeners}
        inherited = inherited_descriptors(os.environ) if address.kind == "fd" else None
        access = server_socket_access(server)
        if opened := await self._opener.open_missing(address, held, others, inherited, access):
            self._listeners[key] = ([*held, *opened], open_listener.socket_file_identity(key))
        return tuple(map(open_listener.describe, self._of(server)))

    def _of(self, server: ServerConfig) -> list[socket.socket]:
        return open_listener.needed_listeners(server.address, self._listeners[server.key][0])

    def close_unneeded(self, server: ServerConfig) -> tuple[str, ...]:
        held, identity = self._listeners[server.key]
        needed = self._opener.close_unneeded(server.address, held)
        self._listeners[server.key] = needed, identity
        return tuple(map(open_listener.describe, needed))

    def change_socket_access(self, server: ServerConfig) -> None:
        sockets, _ = self._listeners.get(server.key, ([], None))
        change_server_socket_access(server, sockets)

    async def close(self, key: str) -> None:
        self.disarm(key)
        self._opener.closing(key)
        sockets, path = self._listeners.pop(key, ([], None))
        if not key.startswith("fd:"):  # an inherited socket is returned unchanged
            # A forked child of the embedding program may hold them.
            open_listener.refuse_new_connections(sockets)
        open_listener.close_listener(sockets, path)

    def refuse_connections(self, server: ServerConfig, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse connections to the server from now on, and end its workers as soon as the loop answers again.

        Called from another thread, because an application blocks the loop.
        """
        for worker in [worker for worker in self._workers.values() if worker.server.key == server.key]:
            # First, so that the loop does not accept from a listener that has been shut down.
            loop.call_soon_threadsafe(functools.partial(worker.begin_shutdown, drain=False))
        sockets, _ = self._listeners.get(server.key, ([], None))
        if server.address.kind != "fd":
            open_listener.refuse_new_connections(sockets)

    async def begin_hook(self, server: ServerConfig, hook: str) -> Placement:
        """Raise ServerError: a hook is a command, which needs a process of its own."""
        raise _refusal(server, ["hooks"])

    async def preload_application(self, server: ServerConfig, since: float) -> str:
        """Return "" (success): this process imports a module only once, so there is nothing to prepare."""
        return ""

    async def check_startable(self, server: ServerConfig) -> None:
        """Do nothing: a worker in this process needs no other user, interpreter or program that could be missing."""

    async def place(
        self, server: ServerConfig, generation: int, index: int, *, resting: bool = False
    ) -> Placement:
        _refuse_process_settings(server)
        placement = Placement.of(server.name, generation, index, pid=os.getpid())
        loop = asyncio.get_running_loop()
        if self._turns is None or self._turns[0] is not loop:
            self._turns = loop, asyncio.Semaphore(IMPORTS_PER_CPU * (os.cpu_count() or 1))
        worker = InlineWorker(
            placement,
            server,
            dict(app_state.get()),
            self._turns[1],
            on_expired=lambda: self.events.expired(placement),
        )
        worker.start(self._of(server), resting=resting)
        self._workers[placement.id] = worker
        return placement

    async def wait_for_begin_or_exit(self, placement: Placement) -> None:
        if worker := self._workers.get(placement.id):
            either: set[asyncio.Future[Any]] = {worker.begun, worker.exited}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def wait_until_ready(self, placement: Placement) -> None:
        worker = self._workers[placement.id]
        either: set[asyncio.Future[Any]] = {worker.answered, worker.exited}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if worker.exited.done():
            exit_ = worker.exited.result()
            hint = worker.missing_module and missing_module_hint(worker.missing_module, worker.server)
            raise WorkerFailed(exit_.message_before_ready(worker.reason), hint=hint, exit=exit_)

    async def set_in_rotation(self, placement: Placement, in_rotation: bool) -> None:
        """Do nothing: clients of a server in this process connect to it directly."""

    async def set_accepting(self, placement: Placement, accepting: bool) -> None:
        if worker := self._workers.get(placement.id):
            worker.set_accepting(accepting)

    async def connect_for_probe(
        self, placement: Placement, kind: str, plain: bool, *, exact: bool = False
    ) -> socket.socket:
        worker = self._workers.get(placement.id)
        if worker is None or worker.exited.done():
            raise ConnectionRefusedError("it has ended")
        return worker.connect(kind, plain)

    async def reload_tls(self, placement: Placement, server: ServerConfig) -> None:
        if worker := self._workers.get(placement.id):
            worker.reload_tls(server)

    async def begin_drain(self, placement: Placement, *, replaced: bool = True) -> None:
        """Let the worker stop accepting now, and end once its requests are finished. Does not wait.

        `replaced` makes no difference: workers in this process do not hand connections to each other.
        """
        if worker := self._workers.get(placement.id):
            worker.begin_shutdown(drain=True)

    async def drain(self, placement: Placement, *, replaced: bool = True) -> None:
        if worker := self._workers.get(placement.id):
            worker.begin_shutdown(drain=True)
            await asyncio.wait({worker.exited}, timeout=worker.server.drain_timeout)

    def watch_idleness(self, placement: Placement, seconds: float) -> None:
        """Do nothing: an idle worker has no process to end."""

    def arm(self, server: ServerConfig, on_request: Callable[[], None]) -> None:
        """Watch the listeners; call `on_request` once, at the first connection, which the next worker will accept."""
        sockets, _ = self._listeners[server.key]

        def request_arrived() -> None:
            self.disarm(server.key)
            on_request()

        for sock in sockets:
            asyncio.get_running_loop().add_reader(sock.fileno(), request_arrived)

    def disarm(self, key: str) -> None:
        sockets, _ = self._listeners.get(key, ([], None))
        stop_reading(sockets)

    def close_arriving(self, server: ServerConfig) -> None:
        """Do nothing: connections at an inherited socket are left to the embedding program."""

    def close_waiting(self, key: str) -> None:
        """Do nothing: without a worker this runner accepts no connections."""

    def counts(self, placement: Placement) -> None:
        """Return None: workers in this process do not count requests."""

    async def stacks(self, worker: str, seconds: float) -> None:
        """Return None: the program's own stacks are read without the loop, which may hang."""

    async def logs(self, name: str, lines: int, since: float = 0.0, worker: str = "") -> list[str]:
        """Return nothing: the output is the program's own."""
        return []

    async def stop(self, placement: Placement, timeout_seconds: float, *, replaced: bool = False) -> Exit:
        """Stop the worker and return its exit. After the timeout it is cancelled, and its connections are reset."""
        worker = self._workers.get(placement.id)
        if worker is None:
            return Exit(message="has ended before")
        worker.begin_shutdown(drain=False)
        await asyncio.wait({worker.exited}, timeout=timeout_seconds)
        if not worker.exited.done():
            await worker.kill(Exit(signal=_KILL_SIGNAL, message=f"cancelled after {timeout_seconds:g} s"))
        return worker.exited.result()

    async def wait_for_exit(self, placement: Placement) -> Exit:
        worker = self._workers.get(placement.id)
        if worker is None:
            return Exit(message="has ended before")
        exit_ = await asyncio.shield(worker.exited)
        self._workers.pop(placement.id, None)
        return exit_

    async def aclose(self) -> None:
        self.events.closing()
        workers = list(self._workers.values())
        await asyncio.gather(*(self.stop(worker.placement, worker.server.stop_timeout) for worker in workers))
        for key in list(self._listeners):
            await self.close(key)

    def release_after_fork(self) -> None:
        """In a forked child, release every socket without touching the state shared with the parent process."""
        sockets = [sock for opened, _ in self._listeners.values() for sock in opened]
        redirect_parent_fds_to_null(
            open_listener.listener_and_connection_descriptors(sockets), (self._listeners, self._workers)
        )
        self._listeners, self._workers = {}, {}


def _refuse_process_settings(server: ServerConfig) -> None:
    if server.tls is True:  # never serve in the clear when encryption is configured
        raise ServerError("`tls = true` without a default certificate", name=server.name, bind=server.key)
    used = [key for key in _NEED_A_PROCESS if getattr(server, key)]
    if server.env_file == default_env_file(server.base_dir):
        used = [key for key in used if key != "env_file"]  # reading the file is left to the embedding program
    if server.workers > 1:
        used.append("workers")
    if server.limits.open_files is not None:
        used.append("limits.open_files")
    # By default it is the directory of the server's file, which may differ from the embedding program's.
    if server.cwd != server.base_dir and os.path.realpath(server.cwd) != os.getcwd():
        used.append("cwd")
    if server.log != Log():
        used.append("log")
    if server.http.loop != "auto":
        used.append("http.loop")
    if server.http.log_level != "info":
        used.append("http.log_level")  # the loggers belong to the embedding program
    if server.python and server.python != sys.executable:
        used.append("python")
    if used:
        raise _refusal(server, used)


def _refusal(server: ServerConfig, used: Sequence[str]) -> ServerError:
    return ServerError(
        f"{', '.join(f'`{key}`' for key in used)} cannot be honoured inside this process",
        name=server.name,
        bind=server.key,
        hint="run the pool with `poolctl start`, or Pool(…, runner=poolctl.ProcessRunner())",
    )
