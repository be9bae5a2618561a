"""Creates a worker process for a server, with everything that it inherits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from poolctl.address import Address
from poolctl.config import RAISE_OPEN_FILES, ServerConfig, interpreter, missing_program
from poolctl.errors import ServerError
from poolctl.keeper import fd_store, wire

from .. import worker_spec
from ..helper_process import Helpers
from ..left_overs import ProcessNote, ProcessNotes
from ..listener_opener import Opener
from ..process_link import HasDescriptor, KeeperLink
from ..runner_protocol import Placement, RunnerEventHandler
from ..worker_spec import Spec
from .app_zygotes import AppZygote, AppZygotes
from .children import Children, ProcessIdentity
from .local_worker import LocalWorker
from .notify_socket import NotifySocket
from .output_pipes import OutputPipes
from .server_sockets import AdoptionPairs, handover_group
from .tally_page import Tally
from .zygotes import InterpreterZygoteIdentity, Zygotes

logger = logging.getLogger("poolctl.supervisor")

# Maximum descriptors in use while a worker is created: its sockets, pipe and page, and files passed to it.
_DESCRIPTORS_PER_WORKER = 16
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerContext:
    """The pool that a runner works for. `open_files` are the soft and hard open-files limits of its processes.

    A runner adds its helpers to `helpers`. `directory` contains the pool's runtime files. `environments` holds, by
    server name, the environments that replace the pool's own (`restart --env`); it changes while the pool runs.
    Processes are noted in `notes`; None for a pool within a program, with which they end. `opener` opens the
    listeners.
    """

    keeper: KeeperLink
    keeper_pid: int
    helpers: Helpers
    open_files: tuple[int, int]
    directory: str
    logs_directory: str
    environments: Mapping[str, Mapping[str, str]]
    notes: ProcessNotes | None = None
    opener: Opener = field(default_factory=Opener)


class DescriptorBudget:
    """Limits how many workers are created at once, so that this process and the keeper do not run out of descriptors.

    When it is exhausted, for example by a restart of many servers, new workers wait until old ones have exited.
    Counting takes long if many are open, so they are counted again only when the free ones are used up.
    """

    def __init__(self, in_use: Callable[[], int] = lambda: len(os.listdir("/proc/self/fd"))) -> None:
        self._in_use = in_use
        self._free = 0  # the minimum number of free descriptors
        self._exhausted = False  # too few were free when last counted; reset when a worker exits
        self._ended = asyncio.Event()

    async def acquire(self) -> None:
        """Wait until there are enough free descriptors for one worker. Raises ServerError if that takes too long."""
        while not self._take():
            self._ended.clear()
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._ended.wait()
            except TimeoutError:
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                raise ServerError(
                    f"all {limit} open files of the pool are in use", hint=RAISE_OPEN_FILES
                ) from None

    def clear_exhausted(self) -> None:
        """Let waiting `acquire` calls count free descriptors again, because a worker has exited."""
        self._exhausted = False
        self._ended.set()

    def _take(self) -> bool:
        if self._free < _DESCRIPTORS_PER_WORKER and not self._exhausted:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self._free = limit - self._in_use()
        self._exhausted = self._free < _DESCRIPTORS_PER_WORKER
        if self._exhausted:
            return False
        self._free -= _DESCRIPTORS_PER_WORKER
        return True


class Forker:
    """Creates worker processes."""

    def __init__(
        self,
        context: RunnerContext,
        children: Children,
        events: Callable[[], RunnerEventHandler],
        zygotes: Zygotes,
        app_zygotes: AppZygotes,
        output: OutputPipes,
        adoptions: AdoptionPairs,
        on_never_started: Callable[[LocalWorker, str], None],
    ) -> None:
        self._context = context
        self._children = children
        self._events = events
        self._zygotes = zygotes
        self._app_zygotes = app_zygotes
        self._output = output
        self._adoptions = adoptions
        self._on_never_started = on_never_started
        self.room = DescriptorBudget()
        self._code_since: dict[str, float] = {}

    async def fork(
        self,
        server: ServerConfig,
        generation: int,
        index: int,
        sockets: list[socket.socket],
        *,
        woken: bool = False,
        hook: str = "",
        private: Address | None = None,
        resting: bool = False,
    ) -> LocalWorker:
        """Fork a worker, with its control socket, its output pipe, and its entry in the keeper's store.

        `sockets` are the listeners that it inherits. A process of a proxied server opens the `private` address.
        `woken` is set for the first worker after the server slept. For `resting`, see `Runner.place`.

        To run a server's hook command, pass the hook's name as `hook`, and the result of hook_config() as `server`.
        Raises WorkerFailed, or ServerError if something that the configuration names does not exist.
        """
        await self.room.acquire()
        forked_from = self._zygote_identity(server)
        return await self._zygotes.with_retry(
            forked_from,
            lambda: self._fork_once(
                server, generation, index, sockets, forked_from, woken, hook, private, resting
            ),
        )

    async def check_worker_prerequisites(self, server: ServerConfig) -> None:
        """Check that the interpreter, the user, the files and the program that a new worker needs exist.

        Raises ServerError or WorkerFailed if one is missing.
        """
        forked_from = self._zygote_identity(server)
        await self._zygotes.with_retry(forked_from, lambda: self._zygotes.ensure_zygote_up(forked_from))
        await asyncio.to_thread(self._check_files_and_program, server)

    def _check_files_and_program(self, server: ServerConfig) -> None:
        spec = self._preload_spec(server)
        worker_spec.tls_contents(server)
        base = os.environ if spec["env_base"] is None else spec["env_base"]
        if server.command and (finding := missing_program(server, {**base, **spec["env"]})):
            raise ServerError(finding.message, name=server.name, bind=server.bind, hint=finding.hint)

    async def import_in_app_zygote(self, server: ServerConfig, since: float) -> str:
        """Import the server's application in a zygote, with code no older than `since`.

        Returns "", or the reason why workers cannot be forked from a zygote. Raises ServerError, WorkerFailed.
        """
        self._code_since[server.key] = since
        outcome = await self._get_or_start_zygote(server)
        return outcome if isinstance(outcome, str) else ""

    def warm(self, server: ServerConfig) -> None:
        """Begin to start the zygote for the server's workers, before one is needed."""
        self._zygotes.start(self._zygote_identity(server))

    def retain_app_zygote(self, server: ServerConfig) -> None:
        """Record that the server uses its app zygote, so that `end_unneeded` does not end a zygote adopted for it."""
        with contextlib.suppress(ServerError):
            self._app_zygotes.retain_and_get_key(server, self._preload_spec(server))

    async def _get_or_start_zygote(self, server: ServerConfig) -> AppZygote | str:
        if not server.preload or server.command:
            return ""
        return await self._app_zygotes.get_or_import(
            server, self._preload_spec(server), self._code_since.get(server.key, 0.0)
        )

    def _preload_spec(self, server: ServerConfig) -> Spec:
        return worker_spec.preload_spec(
            server,
            interpreter=interpreter(server.python),
            open_files=self._context.open_files,
            env_base=self._context.environments.get(server.name),
        )

    def exec_spec(self, server: ServerConfig) -> Spec:
        """The specification of a command in the server's place (see `worker_spec.exec_spec`). Raises ServerError."""
        base = self._context.environments.get(server.name, os.environ)
        return worker_spec.exec_spec(server, open_files=self._context.open_files, env_base=base)

    async def _fork_once(
        self,
        server: ServerConfig,
        generation: int,
        index: int,
        sockets: list[socket.socket],
        forked_from: InterpreterZygoteIdentity,
        woken: bool,
        hook: str,
        private: Address | None,
        resting: bool,
    ) -> LocalWorker:
        app_zygote = await self._get_or_start_zygote(server)
        tls_contents = worker_spec.tls_contents(server)
        local_server = server if private is None else server.at_private_address(private)
        spec = worker_spec.worker_spec(
            local_server,
            interpreter=forked_from.interpreter,
            listeners=len(sockets),
            tls_files=len(tls_contents),
            open_files=self._context.open_files,
            env_base=self._context.environments.get(server.name),
        )
        with contextlib.ExitStack() as afterwards, contextlib.ExitStack() as if_failed:
            output, write = self._output.create_pipe(server)
            if_failed.callback(self._output.discard, output)
            afterwards.callback(os.close, write)
            if not hook:
                spec["index"] = index
            spec["woken"] = woken
            spec["resting"] = spec["resting"] or resting
            notify = tally = None
            if server.command:
                spec["argv"] = worker_spec.argument_vector(local_server)
                if server.notify:
                    notify = NotifySocket.open(worker_spec.user_id(server))
                    if_failed.callback(notify.close)
                    spec["env"]["NOTIFY_SOCKET"] = notify.path
            file = worker_spec.spec_file(spec)
            afterwards.callback(os.close, file)
            control, theirs = wire.pair()
            if_failed.enter_context(control)
            afterwards.enter_context(theirs)
            certificates = afterwards.enter_context(worker_spec.memory_files(tls_contents))
            adoption = [sock.fileno() for sock in self._adoptions.get_or_open(local_server)]
            listeners = [sock.fileno() for sock in sockets]
            fds = [file, theirs.fileno(), write, *listeners, *certificates, *adoption]
            if not server.command:
                tally = Tally.new()
                if_failed.callback(tally.close)
                fds.append(tally.fileno())
            preloaded = isinstance(app_zygote, AppZygote)
            if isinstance(app_zygote, AppZygote):
                process = await app_zygote.fork(fds)
            else:
                process = await self._zygotes.fork(forked_from, fds)
            if_failed.pop_all()
            pid, start = process
            self._output.register_pipe(output, pid)
            placement = Placement(
                worker_spec.hook_id(server.name, hook) if hook else f"{server.name}.{generation}.{index}",
                server.name,
                generation,
                index,
                where=f"pid {pid}",
                pid=pid,
                address="" if private is None else private.key,
            )
            worker = LocalWorker(
                self._children,
                self._events(),
                placement,
                server,
                output,
                start=start,
                control=None if server.command else control,
                notify=notify,
                tally=tally,
                handover_group=None if server.command else handover_group(server),
                private=private,
                hook=hook,
                preloaded=preloaded,
            )
            # Our end, which the keeper holds too: a worker must not get end of file when its supervisor is replaced.
            ours = (notify,) if server.command else (control, tally)
            kept: list[HasDescriptor] = [holder for holder in ours if holder is not None]
            name = f"{fd_store.WORKER}{placement.id}"
            self._context.keeper.send({"op": "put", "name": name, "meta": worker.meta()}, kept)
            # Recorded before it is ordered to begin, so that the next supervisor or pool always finds it.
            self._note(process, server)
            if server.command:
                with contextlib.suppress(OSError):
                    wire.send(control, {"order": "go"})
                control.close()

        def on_forged(violation: str) -> None:
            if isinstance(app_zygote, AppZygote):
                app_zygote.link.cut_off(violation)
            else:
                self._zygotes.discard(forked_from, violation)
            self._on_never_started(worker, violation)

        if preloaded or forked_from.user is not None:
            self._children.schedule_parent_check(process, on_forged)
        return worker

    def _note(self, process: ProcessIdentity, server: ServerConfig) -> None:
        if self._context.notes is not None and process.start is not None:
            note = ProcessNote(
                process.pid,
                process.start,
                server.name,
                server.name,
                server.stop_signal_number if server.command else signal.SIGTERM,
                server.stop_timeout,
                0.0 if server.command else server.drain_timeout,
            )
            self._context.notes.add(note)

    def _zygote_identity(self, server: ServerConfig) -> InterpreterZygoteIdentity:
        """The zygote from which the server's processes are forked.

        It runs as the server's user if other users can change the interpreter's files.
        """
        if server.command:
            # Any zygote can execute a command, which does not need the application's interpreter.
            return InterpreterZygoteIdentity(sys.executable)
        return InterpreterZygoteIdentity.for_user(interpreter(server.python), worker_spec.user_ids(server))
