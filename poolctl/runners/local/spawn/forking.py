"""Makes a worker process from a server's configuration, with everything that it inherits."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from poolctl.config import RAISE_OPEN_FILES, ServerConfig, interpreter, missing_program
from poolctl.errors import ServerError
from poolctl.keeper import fd_store, pool_files, rendezvous, wire

from ...process_link import HasDescriptor, Link
from ...runner_protocol import Placement, RunnerEvents
from ...worker_spec import (
    Spec,
    app_spec,
    argument_vector,
    hook_config,
    hook_id,
    sealed_files,
    spec_file,
    tls_contents,
    user_id,
    user_ids,
    worker_spec,
)
from ..certificates_in_use import Certificates, Given
from ..fork_verification import Children, Process
from ..local_worker import LocalWorker
from ..output_pipes import Output
from ..program_readiness import NotifySocket
from ..server_sockets import AdoptionPairs, protocol
from ..tallies import Tally
from .app_zygote import AppZygote
from .app_zygotes import AppZygotes
from .zygotes import Source, Zygotes

# While a worker is being made: its own sockets, pipe, page, and the files that it is given.
_DESCRIPTORS_OF_ONE = 16
_PATIENCE_SECONDS = 10.0


class DescriptorBudget:
    """Limits how many workers are created at once, so that this process and the keeper do not run out of descriptors.

    In a restart of many servers the others wait until the first servers' old workers have exited. Used descriptors are
    counted only when all previously free descriptors may be taken, because counting takes longer the more there are.
    """

    def __init__(self, in_use: Callable[[], int] = lambda: len(os.listdir("/proc/self/fd"))) -> None:
        self._in_use = in_use
        self._free = 0  # at least
        self._exhausted = False  # by a count since the last exit of a worker
        self._ended = asyncio.Event()

    async def enter(self) -> None:
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

    def ended(self) -> None:
        """Note that a worker has exited and that its descriptors are free."""
        self._exhausted = False
        self._ended.set()

    def _take(self) -> bool:
        if self._free < _DESCRIPTORS_OF_ONE and not self._exhausted:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self._free = limit - self._in_use()
        self._exhausted = self._free < _DESCRIPTORS_OF_ONE
        if self._exhausted:
            return False
        self._free -= _DESCRIPTORS_OF_ONE
        return True


@dataclass(frozen=True, slots=True)
class _Inheritance:
    """The descriptors that a new worker inherits, in order, and this process's ends of them.

    `place` is the path of the socket on which the worker listens if it is orphaned, if that was bound here.
    """

    fds: list[int]
    control: socket.socket
    tally: Tally | None
    notify: NotifySocket | None
    place: str | None


class Forker:
    """Makes worker processes. `open_files` are their soft and hard limits; `environments` replace the pool's own."""

    def __init__(
        self,
        keeper: Link,
        children: Children,
        events: RunnerEvents,
        zygotes: Zygotes,
        app_zygotes: AppZygotes,
        output: Output,
        adoptions: AdoptionPairs,
        open_files: tuple[int, int],
        environments: Mapping[str, Mapping[str, str]],
        adoption_directory: str | None,
    ) -> None:
        self._adoption_directory = adoption_directory
        self._keeper = keeper
        self._children = children
        self._events = events
        self._zygotes = zygotes
        self._app_zygotes = app_zygotes
        self._output = output
        self._adoptions = adoptions
        self.open_files = open_files
        self.certificates = Certificates(keeper)
        self.room = DescriptorBudget()
        self._environments = environments
        self._code_since: dict[str, float] = {}

    async def fork(
        self, server: ServerConfig, generation: int, index: int, sockets: list[socket.socket], *, woken: bool
    ) -> LocalWorker:
        """Fork a worker, with its control socket, its output pipe, and its entry in the keeper's store.

        `woken`: no other worker has served since the server slept. Raises WorkerFailed, or ServerError if the machine
        lacks something that the configuration names.
        """
        await self.room.enter()
        forked_from = self._source(server)
        return await self._zygotes.twice(
            forked_from, lambda: self._fork_once(server, generation, index, sockets, forked_from, woken)
        )

    async def fork_hook(self, server: ServerConfig, hook: str) -> LocalWorker:
        """Run a command of the server's `hooks` in a process. Raises ServerError, WorkerFailed."""
        await self.room.enter()
        program = hook_config(server, hook)
        forked_from = self._source(program)
        return await self._zygotes.twice(
            forked_from, lambda: self._fork_once(program, 0, 0, [], forked_from, woken=False, hook=hook)
        )

    async def check(self, server: ServerConfig) -> None:
        """Return if a worker could be forked, that is, if its interpreter, user, files and program exist.

        Raises ServerError, WorkerFailed.
        """
        forked_from = self._source(server)
        await self._zygotes.twice(forked_from, lambda: self._zygotes.up(forked_from))
        await asyncio.to_thread(self._check_files, server)

    def _check_files(self, server: ServerConfig) -> None:
        spec = self._app_spec(server)
        tls_contents(server)
        base = os.environ if spec["env_base"] is None else spec["env_base"]
        if server.command and (finding := missing_program(server, {**base, **spec["env"]})):
            raise ServerError(finding.message, name=server.name, bind=server.bind, hint=finding.hint)

    async def prepare(self, server: ServerConfig, since: float) -> str:
        """Import the server's application in a zygote, with code no older than `since`.

        Returns "", or the reason why workers cannot be forked from a zygote. Raises ServerError, WorkerFailed.
        """
        self._code_since[server.key] = since
        found = await self._app_zygote(server)
        return found if isinstance(found, str) else ""

    def warm(self, server: ServerConfig) -> None:
        """Start the zygote for the server's workers before one is needed."""
        self._zygotes.adopt(self._source(server))

    def need(self, server: ServerConfig) -> None:
        """Prevent the zygote of the server's workers from being ended, if there is one."""
        with contextlib.suppress(ServerError):
            self._app_zygotes.need(server, self._app_spec(server))

    async def _app_zygote(self, server: ServerConfig) -> AppZygote | str:
        if not server.preload or server.command:
            return ""
        return await self._app_zygotes.get(
            server, self._app_spec(server), self._code_since.get(server.key, 0.0)
        )

    def _app_spec(self, server: ServerConfig) -> Spec:
        return app_spec(
            server,
            interpreter=_interpreter(server),
            open_files=self.open_files,
            env_base=self._environments.get(server.name),
        )

    async def _fork_once(
        self,
        server: ServerConfig,
        generation: int,
        index: int,
        sockets: list[socket.socket],
        forked_from: Source,
        woken: bool,
        hook: str = "",
    ) -> LocalWorker:
        app_zygote = await self._app_zygote(server)
        given = self.certificates.for_worker(server, generation)
        spec = worker_spec(
            server,
            interpreter=forked_from.interpreter,
            listeners=len(sockets),
            tls_files=len(given.contents),
            open_files=self.open_files,
            env_base=self._environments.get(server.name),
        )
        with contextlib.ExitStack() as afterwards, contextlib.ExitStack() as if_failed:
            output, write = self._output.attach(server)
            if_failed.callback(self._output.discard, output)
            afterwards.callback(os.close, write)
            if not hook:
                spec["index"] = index
            spec["woken"] = woken
            spec["orphanage"] = self._place(server, generation, index, output)
            inheritance = self._inheritance(
                server, spec, [write, *(sock.fileno() for sock in sockets)], given, afterwards, if_failed
            )
            if isinstance(app_zygote, AppZygote):
                process = await app_zygote.fork(inheritance.fds)
            else:
                process = await self._zygotes.fork(forked_from, inheritance.fds)
            if_failed.pop_all()
            pid, start = process
            # A program reports nothing itself: the logger knows its pid, if all other processes exit.
            self._output.follow(output, pid, start, generation=generation, index=index, hook=hook)
            placement = Placement.of(server.name, generation, index, where=f"pid {pid}", pid=pid)
            placement = replace(placement, certificate_ends=given.ends)
            if hook:
                placement = replace(placement, id=hook_id(server.name, hook))
            spoken = None if server.command else protocol(server)
            worker = LocalWorker(self._children, self._events, placement, server, output, spoken)
            worker.start, worker.place, worker.tally = start, inheritance.place, inheritance.tally
            worker.hook = hook
            worker.preloaded = isinstance(app_zygote, AppZygote)
            worker.answered.add_done_callback(
                functools.partial(self.certificates.keep_if_ready, server, generation, given)
            )
            self._enrol(worker, inheritance)
        if isinstance(app_zygote, AppZygote):
            self._confirm(worker, process, app_zygote.forged)
        elif forked_from.user is not None:
            self._confirm(worker, process, functools.partial(self._zygotes.forged, forked_from))
        return worker

    def _inheritance(
        self,
        server: ServerConfig,
        spec: Spec,
        output_and_listeners: list[int],
        given: Given,
        afterwards: contextlib.ExitStack,
        if_failed: contextlib.ExitStack,
    ) -> _Inheritance:
        """Create the descriptors that the worker inherits.

        `afterwards` closes the worker's ends in this process, `if_failed` closes this process's own ends.
        """
        notify = None
        if server.command:
            spec["argv"] = argument_vector(server)
            if server.notify:
                notify = NotifySocket.open(user_id(server))
                if_failed.callback(notify.close)
                spec["env"]["NOTIFY_SOCKET"] = notify.path
        control, theirs = wire.pair()
        if_failed.enter_context(control)
        afterwards.enter_context(theirs)
        file = spec_file(spec)
        afterwards.callback(os.close, file)
        certificates = afterwards.enter_context(sealed_files(given.contents))
        adoption = [sock.fileno() for sock in self._adoptions.of(server)]
        fds = [file, theirs.fileno(), *output_and_listeners, *certificates, *adoption]
        tally = place = None
        if not server.command:
            tally = Tally.new()
            if_failed.callback(tally.close)
            fds.append(tally.fd)
        if spec["orphanage"] is not None and spec["orphanage"]["bound"]:
            bound, place = rendezvous.bind(spec["orphanage"]["directory"], pool_files.WORKER)
            fds.append(afterwards.enter_context(bound).fileno())
            if_failed.callback(pool_files.forget, place)
        return _Inheritance(fds, control, tally, notify, place)

    def _confirm(self, worker: LocalWorker, process: Process, forged: Callable[[str], None]) -> None:
        """Check that a process named by an untrusted zygote is a child of the keeper."""

        def on_forged(deed: str) -> None:
            forged(deed)
            worker.disown(deed)

        self._children.confirm(process, on_forged)

    def _source(self, server: ServerConfig) -> Source:
        """The zygote that forks the server's processes.

        It runs as the server's user if others can change its environment.
        """
        if server.command:
            # A command does not need the application's interpreter: any zygote can execute it.
            return Source(sys.executable)
        return self._zygotes.source(_interpreter(server), user_ids(server))

    def _place(
        self, server: ServerConfig, generation: int, index: int, output: str
    ) -> dict[str, object] | None:
        """What the worker answers when it is found as an orphan; None if it is to exit then."""
        if self._adoption_directory is None:
            return None
        return {
            "directory": self._adoption_directory,
            "server": server.name,
            "key": server.key,
            "generation": generation,
            "index": index,
            "output": output,
            "protocol": None if server.command else protocol(server),
            # Another user's worker cannot enter the directory: it gets a socket that is bound there.
            "bound": not server.command and user_ids(server) is not None,
        }

    def _enrol(self, worker: LocalWorker, inheritance: _Inheritance) -> None:
        control, notify = inheritance.control, inheritance.notify
        if notify is not None:
            worker.listen(notify)
        # Our end, which the keeper holds too: a worker must not get end of file when its supervisor is replaced.
        of_the_worker = (None, notify) if worker.server.command else (control, worker.tally)
        kept: list[HasDescriptor] = [each for each in of_the_worker if each is not None]
        self._keeper.send(
            {"op": "put", "name": f"{fd_store.WORKER}{worker.placement.id}", "meta": worker.meta()}, kept
        )
        # First recorded, then ordered to begin: at no moment does a supervisor's exit leave it unknown.
        if worker.server.command:
            with contextlib.suppress(OSError):
                wire.send(control, {"order": "go"})
            control.close()
        else:
            worker.control_by(control)


def _interpreter(server: ServerConfig) -> str:
    return interpreter(server.python, server.base_dir, os.environ)
