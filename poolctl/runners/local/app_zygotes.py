"""Processes that have imported an application, and fork its workers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from poolctl.config import ServerConfig, masked_text
from poolctl.keeper import fd_store, wire
from poolctl.units import format_duration

from ..process_link import Link, LinkHandler, LinkLost, Refused, sanitized_text_or_empty
from ..runner_protocol import IMPORTS_PER_CPU, Exit, WorkerFailed
from ..worker_spec import Spec, missing_module_hint, spec_file
from .children import Children, Forged, ProcessIdentity
from .output_pipes import OutputPipes, last_lines
from .zygotes import END_SECONDS, SILENT_SECONDS, InterpreterZygoteIdentity, Zygotes

logger = logging.getLogger("poolctl.supervisor")

_EXIT_SECONDS = 1.0
_LAST_OUTPUT_SECONDS = 10.0  # the first import of a pool may fail before its logger is up
_LAST_LINES = 200
_ADOPTED_IMPORT_SECONDS = 30.0


class ImportFailed(WorkerFailed):
    """The application cannot be imported. `printed` is its output, which is already in the log of `server`.

    `missing` is the name of the module that was not found, or "".
    """

    def __init__(
        self,
        message: str,
        server: str,
        printed: list[str],
        missing: str = "",
        *,
        hint: str = "",
        exit: Exit | None,
    ) -> None:
        super().__init__(message, hint=hint or f"poolctl logs {server}", exit=exit)
        self.server = server
        self.printed = printed
        self.missing = missing


class AppZygote(LinkHandler):
    """A process that imports an application and forks workers from it.

    `code_since` is a monotonic time: the process has imported code that was current then, or newer code. It is infinite
    until the import begins. The result of the future `up` is "" once the process can fork workers, or the reason why it
    never can; its exception is LinkLost if the process exits before that.
    """

    def __init__(
        self,
        keeper: Link,
        children: Children,
        sock: socket.socket,
        key: str,
        process: ProcessIdentity,
        uid: int | None,
        server: str,
        code_since: float = math.inf,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._keeper = keeper
        self._children = children
        self.key = key
        self.code_since = code_since
        self.process = process
        self.uid = uid  # the user it runs as; None for the pool's own
        self.server = server  # the output of the import goes to this server's log
        self.begun: asyncio.Future[None] = loop.create_future()
        self.imported: asyncio.Future[None] = loop.create_future()
        self.up: asyncio.Future[str] = loop.create_future()
        self.up.add_done_callback(self._mark_import_finished)
        self.exited: asyncio.Future[Exit] = loop.create_future()
        self._reason = self._missing_module = ""
        self._forks = 0  # in progress
        self._ends = False
        self.link = Link(sock, self, trusted=False)
        if (early := children.register_unless_exited(process.pid)) is not None:
            self.exited.set_result(early)

    @property
    def name(self) -> str:
        """The name of the zygote's entry in the keeper's store."""
        return f"{fd_store.APP_ZYGOTE}{self.key}.{self.process.pid}"

    @property
    def usable(self) -> bool:
        """Whether the zygote can be asked to fork."""
        return not self._ends and self.link.sock.fileno() >= 0

    def begin_import(self) -> None:
        self.code_since = min(self.code_since, time.monotonic())
        self.link.send({"order": "go"})
        self._mark_begun()

    def received(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        event = sanitized_text_or_empty(message, "event")
        if event == "failed":
            self._reason = masked_text(sanitized_text_or_empty(message, "message"))
            self._missing_module = sanitized_text_or_empty(message, "missing")
        elif event in ("up", "unusable") and not self.up.done():
            self.up.set_result(sanitized_text_or_empty(message, "problem"))

    def on_link_lost(self) -> None:
        self._keeper.send({"op": "drop", "name": self.name})
        self._fail_startup()
        self._children.kill_group_after(self.process, self.exited, END_SECONDS)

    def on_violation(self, violation: str) -> None:
        logger.warning("the process that has imported %s %s: killing it", self.server, violation)
        self._children.kill_group_after(self.process, self.exited, 0.0)

    async def fork_obstacle_after_import(
        self, timeout_seconds: float, output: OutputPipes, pipe: str = ""
    ) -> str:
        """Wait for the import to finish. Return "", or why the imported application must not be forked.

        If the import fails, raise ImportFailed, after the output from `pipe` was logged. If cancelled, end the zygote.
        """
        since = time.time()
        exit_ = None
        try:
            await asyncio.shield(self.begun)
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(self.up)
        except TimeoutError:
            message = f"was not ready within {format_duration(timeout_seconds)}"
            hint = f"poolctl logs {self.server}; start_timeout sets how long it may take"
        except LinkLost:
            exit_ = Exit(message="ended")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXIT_SECONDS):
                    exit_ = await asyncio.shield(self.exited)
            message = exit_.message_before_ready(self._reason)
            hint = ""
        except asyncio.CancelledError:
            self.end()
            raise
        self.end()
        await output.wait_until_stored(pipe, _LAST_OUTPUT_SECONDS)
        path = output.paths.get(self.server, "")
        printed = await asyncio.to_thread(last_lines, path, _LAST_LINES, since) if path else []
        raise ImportFailed(message, self.server, printed, self._missing_module, hint=hint, exit=exit_)

    async def fork(self, fds: Sequence[int]) -> ProcessIdentity:
        """Fork a worker that inherits `fds`. Raises WorkerFailed, or LinkLost if the zygote has exited."""
        self._forks += 1
        try:
            reply, _ = await self.link.call({"op": "worker"}, fds, patience_seconds=SILENT_SECONDS)
            return await self._children.verified_process(reply, self.uid, self.process.start)
        except Refused as error:
            raise WorkerFailed(f"no worker can be forked: {error}") from error
        except Forged as error:
            self.link.cut_off(str(error))
            raise WorkerFailed(
                f"its preloaded application {error}: it is not trusted",
                hint=f"check what {self.server} imports",
            ) from error
        finally:
            self._forks -= 1
            if self._ends:
                self._close_if_no_forks_pending()

    def end(self) -> None:
        """Let the process exit after the forks in progress; a process that is importing is killed."""
        importing = not self.up.done()
        seconds = END_SECONDS + (SILENT_SECONDS if self._forks else 0.0)
        self._ends = True
        self._close_if_no_forks_pending()
        self._fail_startup()
        self._children.kill_group_after(self.process, self.exited, 0.0 if importing else seconds)

    def _close_if_no_forks_pending(self) -> None:
        if not self._forks:
            self.link.close()
            # Only now: the keeper shuts down a socket that it drops, and our descriptor refers to the same socket.
            self._keeper.send({"op": "drop", "name": self.name})

    def _fail_startup(self) -> None:
        if not self.up.done():
            self.up.set_exception(LinkLost("the process has exited"))

    def _mark_import_finished(self, up: asyncio.Future[str]) -> None:
        up.exception()  # mark it as retrieved, because there may be no caller that awaits it
        self.imported.set_result(None)
        self._mark_begun()

    def _mark_begun(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)


class ImportLimit:
    """The limit of how many processes import their applications at once; further processes wait in a queue.

    Waiting processes are already forked, so that forks and imports run at the same time on different processors.
    """

    def __init__(self, at_once: int = IMPORTS_PER_CPU * (os.cpu_count() or 1)) -> None:
        self._free = at_once
        self._waiting: deque[tuple[Callable[[], None], asyncio.Future[None]]] = deque()

    def queue(self, begin: Callable[[], None], imported: asyncio.Future[None]) -> None:
        """Call `begin` when an import may start, perhaps at once. The import runs until `imported` is done."""
        self._waiting.append((begin, imported))
        self._begin_queued_imports()

    def _begin_queued_imports(self) -> None:
        while self._free and self._waiting:
            begin, imported = self._waiting.popleft()
            # A process that has exited while it waited is not counted.
            if not imported.done():
                self._free -= 1
                imported.add_done_callback(self._end_import)
            begin()

    def _end_import(self, imported: asyncio.Future[None]) -> None:
        self._free += 1
        self._begin_queued_imports()


class _ImportInProgress:
    """An import in progress, or waiting for its turn."""

    task: asyncio.Task[AppZygote | str]

    def __init__(self, zygote: AppZygote | None = None) -> None:
        self.zygote = zygote

    @property
    def code_since(self) -> float:
        return math.inf if self.zygote is None else self.zygote.code_since


class AppZygotes:
    """Starts app zygotes when servers need them, and ends unused ones. `turns` limits concurrent imports."""

    def __init__(
        self, keeper: Link, children: Children, zygotes: Zygotes, output: OutputPipes, turns: ImportLimit
    ) -> None:
        self._keeper = keeper
        self._children = children
        self._zygotes = zygotes
        self._output = output
        self._turns = turns
        self._by_pid: dict[int, AppZygote] = {}
        self._present: dict[str, AppZygote] = {}
        self._imports_in_progress: dict[str, _ImportInProgress] = {}
        self._unusable: dict[str, tuple[float, str]] = {}
        self._key_of: dict[str, str] = {}  # a zygote's key by the server's address

    async def get_or_import(self, server: ServerConfig, spec: Spec, since: float) -> AppZygote | str:
        """A zygote with code not older than `since` (monotonic seconds), or the reason why no zygote can be used.

        Raises WorkerFailed if the application cannot be imported.
        """
        key = self.retain_and_get_key(server, spec)
        present = self._present.get(key)
        if present is not None and present.usable and present.code_since >= since:
            return present
        tried_at, problem = self._unusable.get(key, (-1.0, ""))
        if tried_at >= since:
            return problem
        pending = self._imports_in_progress.get(key)
        if pending is None or pending.code_since < since:
            pending = _ImportInProgress()
            self._start_import_task(key, pending, self._fork_and_import(key, server, spec, pending))
        task = pending.task
        try:
            return await asyncio.shield(task)
        except ImportFailed as failure:
            hint = failure.hint.replace(f"poolctl logs {failure.server}", f"poolctl logs {server.name}")
            if failure.missing:
                hint = f"{missing_module_hint(failure.missing, server)}; {hint}"
            if failure.server != server.name:
                # Several servers share the import, and the log of each gets its output.
                await self._output.append_lines(server, failure.printed)
            raise WorkerFailed(failure.message, hint=hint, exit=failure.exit) from None
        except asyncio.CancelledError:
            if task.cancelled():
                raise WorkerFailed("was stopped before its application was imported") from None
            raise

    def retain_and_get_key(self, server: ServerConfig, spec: Spec) -> str:
        """Record that the server needs a zygote; returns the zygote's key."""
        key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
        if self._key_of.get(server.key) != key:
            self.release(server.key)
            self._key_of[server.key] = key
        return key

    def release(self, address: str) -> None:
        """Record that the server of this address has been stopped. A zygote that no server needs is ended."""
        key = self._key_of.pop(address, None)
        if key is not None:
            self._end_if_unneeded(key)

    def handle_exit(self, pid: int, exit_: Exit) -> bool:
        """Handle the exit of a process. Returns whether it was an app zygote."""
        zygote = self._by_pid.pop(pid, None)
        if zygote is not None:
            zygote.exited.set_result(exit_)
        return zygote is not None

    @property
    def processes(self) -> list[ProcessIdentity]:
        """The processes of all app zygotes that have not exited."""
        return [zygote.process for zygote in self._by_pid.values()]

    def adopt(self, _: str, meta: wire.Message, fds: list[int]) -> tuple[()]:
        """Adopt an earlier supervisor's app zygote. When all are adopted, the caller calls `end_unneeded`."""
        process = ProcessIdentity(int(meta["pid"]), meta.get("start"))
        code_since, server, uid = float(meta["asked_at"]), str(meta["server"]), meta.get("uid")
        sock, key = wire.socket_from_fd(fds[0]), meta["key"]
        zygote = AppZygote(self._keeper, self._children, sock, key, process, uid, server, code_since)
        self._register(zygote)
        before = self._imports_in_progress.get(zygote.key)
        if before is not None and before.code_since > zygote.code_since:
            zygote.end()
            return ()
        zygote.begin_import()
        # A ping, because it may have reported to another supervisor that it is up.
        zygote.link.send({"op": "ping"})
        if before is not None:
            before.task.cancel()
        self._start_import_task(
            zygote.key, _ImportInProgress(zygote), self._finish_import(zygote, _ADOPTED_IMPORT_SECONDS)
        )
        return ()

    def end_unneeded(self) -> None:
        """End the zygotes that no server needs."""
        for key in {*self._present, *self._imports_in_progress}:
            self._end_if_unneeded(key)

    def close(self) -> None:
        """End all app zygotes. Workers keep running."""
        self._key_of.clear()
        self.end_unneeded()

    def _end_if_unneeded(self, key: str) -> None:
        if key in self._key_of.values():
            return
        self._unusable.pop(key, None)
        if (pending := self._imports_in_progress.get(key)) is not None:
            pending.task.cancel()
        if (zygote := self._present.pop(key, None)) is not None:
            zygote.end()

    def _start_import_task(
        self, key: str, pending: _ImportInProgress, work: Coroutine[Any, Any, AppZygote | str]
    ) -> None:
        pending.task = asyncio.ensure_future(work)
        self._imports_in_progress[key] = pending

        def done(task: asyncio.Task[AppZygote | str]) -> None:
            if self._imports_in_progress.get(key) is pending:
                del self._imports_in_progress[key]
            # Mark the exception as retrieved, because there may be no caller that awaits this task.
            if not task.cancelled():
                task.exception()

        pending.task.add_done_callback(done)

    async def _fork_and_import(
        self, key: str, server: ServerConfig, spec: Spec, pending: _ImportInProgress
    ) -> AppZygote | str:
        pending.zygote, pipe = await self._fork_with_output_pipe(key, server, spec)
        self._turns.queue(pending.zygote.begin_import, pending.zygote.imported)
        return await self._finish_import(pending.zygote, server.start_timeout, pipe)

    async def _fork_with_output_pipe(
        self, key: str, server: ServerConfig, spec: Spec
    ) -> tuple[AppZygote, str]:
        """Fork a process that waits for its turn to import, and return it with the key of its output pipe."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as if_failed:
            link, theirs = wire.pair()
            if_failed.enter_context(link)
            ours.enter_context(theirs)
            pipe, write = self._output.create_pipe(server)
            if_failed.callback(self._output.discard, pipe)
            ours.callback(os.close, write)
            file = spec_file({**spec, "server": server.name})
            ours.callback(os.close, file)
            # If the base zygote exits now, the request can be repeated.
            fds = [file, theirs.fileno(), write]
            source = InterpreterZygoteIdentity.for_user(spec["python"], spec["user"])
            process = await self._zygotes.with_retry(source, lambda: self._zygotes.fork(source, fds, "app"))
            if_failed.pop_all()
            self._output.register_pipe(pipe, process.pid)
            uid = spec["user"][0] if spec["user"] is not None else None
            zygote = AppZygote(self._keeper, self._children, link, key, process, uid, server.name)
            self._register(zygote)
            if source.user is not None:

                def on_forged(violation: str) -> None:
                    self._zygotes.discard(source, violation)
                    zygote.link.cut_off(violation)

                self._children.schedule_parent_check(process, on_forged)
            meta = {
                "key": key,
                "asked_at": time.monotonic(),
                "pid": process.pid,
                "start": process.start,
                "uid": uid,
                "server": server.name,
            }
            self._keeper.send({"op": "put", "name": zygote.name, "meta": meta}, [link.fileno()])
        return zygote, pipe

    def _register(self, zygote: AppZygote) -> None:
        if not zygote.exited.done():
            self._by_pid[zygote.process.pid] = zygote

    async def _finish_import(
        self, zygote: AppZygote, timeout_seconds: float, pipe: str = ""
    ) -> AppZygote | str:
        problem = await zygote.fork_obstacle_after_import(timeout_seconds, self._output, pipe)
        if problem:
            self._unusable[zygote.key] = (zygote.code_since, problem)
            zygote.end()
            return problem
        before = self._present.get(zygote.key)
        if before is None or not before.usable:
            newest = zygote
        else:
            # Imports may end in a different order than they began.
            older, newest = sorted((before, zygote), key=lambda candidate: candidate.code_since)
            older.end()
        self._present[zygote.key] = newest
        return newest
