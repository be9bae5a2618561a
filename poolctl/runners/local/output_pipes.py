"""Connects the output pipes of workers and helpers to the logger, the helper that moves their content into files."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from poolctl.bootstrap import command
from poolctl.config import ServerConfig, masked_text
from poolctl.config.model.server_tables import Log
from poolctl.errors import ServerError
from poolctl.keeper import fd_store, wire
from poolctl.logs.internal_log import InternalLogRotator
from poolctl.logs.log_line import stamp
from poolctl.logs.log_tail import tail

from ..helper_process import HelperKind, HelperOwner, HelperProcess, Helpers
from ..process_link import Descriptor, Link, LinkLost
from ..runner_protocol import RunnerEventHandler
from ..worker_spec import give_output_to_user, user_ids

LOGGER = HelperKind(
    name="logger",
    label="the logger",
    argv=(*command(sys.executable, "logs", isolated=True),),
    entry=fd_store.LOGGER,
    overlaps=False,  # two would share the lines of a pipe
    # Workers block once they have filled their pipes (64 KiB).
    first_pause_seconds=0.0,
    max_pause_seconds=0.2,
    drain_seconds=None,
)
_APPEND_SECONDS = 1.0
_MAX_REPORT_FILES = 3
_MAX_LINE_LENGTH = 4096
# How many pipes' last output is kept, for messages about exited workers.
MAX_TAILS = 100
# How much a program can write into a pipe without waiting.
_LOG_PIPE_BYTES = 1024 * 1024


class _Pipe(NamedTuple):
    """An output pipe: its read end, and the message that registers it with a logger.

    `finished` is set at end of file. `ready` is done when the logger has found the `ready_line`, which the message then
    no longer has; its exception says why the logger does not look for it.
    """

    read: Descriptor
    message: wire.Message
    finished: asyncio.Event
    ready: asyncio.Future[None]

    @classmethod
    def of(cls, read: int, message: wire.Message) -> _Pipe:
        ready = asyncio.get_running_loop().create_future()
        if "ready_line" not in message:
            ready.set_result(None)
        return cls(Descriptor(read), message, asyncio.Event(), ready)


class OutputPipes(HelperOwner[HelperProcess]):
    """The output pipes of workers and helpers; the logger process copies what arrives in them into files.

    The read ends are kept here and by the keeper, so that no output is lost when a logger exits: its successor
    continues where it stopped. Output that could not be written, for example to a full disk, is reported to the
    receiver that `events` returns.
    """

    def __init__(
        self,
        keeper: Link,
        helpers: Helpers,
        logs_directory: str,
        events: Callable[[], RunnerEventHandler],
    ) -> None:
        self._keeper = keeper
        kind = replace(LOGGER, argv=(*LOGGER.argv, helpers.directory))
        self._helper = helpers.add(kind, self, HelperProcess)
        helpers.pipes = self
        self._log_rotation = InternalLogRotator(helpers.directory)
        self.logs_directory = logs_directory
        self._events = events
        self.paths: dict[str, str] = {}  # the log file of each server that has had a worker
        self._pipes: dict[str, _Pipe] = {}
        self._tails: dict[str, str] = {}  # the last output of the pipes that were closed last, by key
        self._numbers = itertools.count(1)

    @property
    def is_logger_up(self) -> bool:
        """Whether a logger reads the pipes."""
        return self._helper.process is not None

    async def start(self) -> None:
        """Adopt the running logger, or have one started, which gets every pipe. Raises LinkLost."""
        await self._helper.adopt()
        self._helper.reconcile()

    def use(self, process: HelperProcess, *, is_new: bool) -> None:
        for pipe in self._pipes.values():
            process.link.send(pipe.message, [pipe.read])

    def path(self, server: ServerConfig) -> str:
        """The path of the server's log file."""
        return server.log.path or os.path.join(self.logs_directory, f"{server.name}.log")

    def create_pipe(self, server: ServerConfig) -> tuple[str, int]:
        """Create a pipe for a worker; returns its key and its write end. The caller closes that end in this process."""
        log = server.log
        path = self.paths[server.name] = self.path(server)
        key, write = self._add_pipe(
            server.name,
            path,
            log.format,
            log,
            owner=_owner_of_log_directories(server),
            **({} if server.ready_line is None else {"ready_line": server.ready_line}),
        )
        give_output_to_user(write, server)
        return key, write

    def create_log_pipe(self, name: str, path: str, form: str, limits: Log) -> tuple[str, int]:
        """Create a pipe, like `create_pipe`, for lines that do not come from a server. They go to the file `path`.

        `name` is in brackets, unlike a server's name. `form` is the file's format, in which lines get their time, or
        "raw"; `limits` bounds its size and age. Writing never waits: lines that the pipe cannot take are lost.
        """
        key, write = self._add_pipe(name, path, form, limits)
        os.set_blocking(write, False)
        with contextlib.suppress(PermissionError):  # a user with many pipes cannot enlarge them
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _LOG_PIPE_BYTES)
        return key, write

    def _add_pipe(self, name: str, path: str, form: str, log: Log, **more: object) -> tuple[str, int]:
        # Unique, because a worker and its replacement have a pipe each.
        key = f"{name}.{os.getpid()}.{next(self._numbers)}"
        message = {"t": "add", "id": key, "name": name, "pid": 0, "path": path, "format": form, **more}
        message |= {"max_size": log.max_size, "keep": log.keep, "max_age": log.max_age}
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._pipes[key] = _Pipe.of(read, message)
        return key, write

    def register_pipe(self, key: str, pid: int) -> None:
        """Have the logger read this pipe, into which the process `pid` writes."""
        if key not in self._pipes:
            return  # closed since
        read, message = self._pipes[key][:2]
        message["pid"] = pid
        self._keeper.send({"op": "put", "name": entry_name(message), "meta": message}, [read])
        if self._helper.process is not None:
            self._helper.process.link.send(message, [read])

    def discard(self, key: str) -> None:
        """Close and forget a pipe whose worker could not be created."""
        if key in self._pipes:  # not closed since
            self._pipes.pop(key).read.close()

    async def append_lines(self, server: ServerConfig, lines: Sequence[str]) -> None:
        """Append lines to the server's log as if one of its processes had printed them.

        Returns when they are written, or after a time limit. Lines that exceed the capacity of a pipe are dropped.
        """
        key, write = self.create_pipe(server)
        os.set_blocking(write, False)
        with contextlib.suppress(OSError):  # lines that exceed the pipe are dropped
            os.write(write, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
        os.close(write)
        self.register_pipe(key, os.getpid())
        await self.wait_until_stored(key, _APPEND_SECONDS)

    def adopt(self, key: str, message: wire.Message, fds: list[int]) -> list[Descriptor]:
        """Adopt a pipe from the keeper's store; returns the owner of its descriptor. Must be called before `start`."""
        pipe = self._pipes[key] = _Pipe.of(fds[0], message)
        if _is_server_output(message):
            self.paths[str(message["name"])] = str(message["path"])
        return [pipe.read]

    async def wait_for_ready_line(self, key: str) -> None:
        """Wait until the worker has printed its `ready_line`; for ever, if it has closed its output before.

        Raises ServerError if the logger does not look for it, because that takes too long.
        """
        pipe = self._pipes.get(key)
        await (asyncio.get_running_loop().create_future() if pipe is None else asyncio.shield(pipe.ready))

    async def wait_until_stored(self, key: str, timeout_seconds: float) -> None:
        """Wait until the worker's whole output is in its file, or the timeout has passed."""
        if key in self._pipes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._pipes[key].finished.wait()

    def last_lines(self, key: str, lines: int) -> list[str] | None:
        """The last lines of a pipe that was closed a short time ago, with passwords in URLs masked; None if unknown."""
        output = self._tails.get(key)
        if output is None:
            return None
        return [masked_text(line[:_MAX_LINE_LENGTH]) for line in output.splitlines()[-lines:]]

    async def wait_until_all_stored(self, timeout_seconds: float) -> None:
        """Wait until all that was written into the pipes so far is in its files, or the timeout has passed."""
        if (process := self._helper.process) is not None:
            with contextlib.suppress(LinkLost, TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await process.wait_until_performed()

    def shut_down(self) -> None:
        """Close this process's output pipes, and order the logger to store their content and exit. Does not wait.

        Output that workers write later is lost, unless a later supervisor starts another logger.
        """
        self._helper.close()
        for pipe in self._pipes.values():
            pipe.read.close()
        self._pipes.clear()
        self._log_rotation.close()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        super().received(message, fds)
        key = str(message.get("id"))
        if message.get("t") == "eof" and key in self._pipes:
            pipe = self._pipes.pop(key)
            pipe.read.close()
            self._tails[key] = str(message["tail"])
            if len(self._tails) > MAX_TAILS:
                del self._tails[next(iter(self._tails))]
            pipe.finished.set()
            self._keeper.send({"op": "drop", "name": entry_name(pipe.message)})
        elif message.get("t") == "ready" and key in self._pipes and not self._pipes[key].ready.done():
            pipe = self._pipes[key]
            if message["error"]:
                error = ServerError(f"ready_line: {message['error']}", hint=str(message["fix"]))
                pipe.ready.set_exception(error)
                pipe.ready.exception()  # perhaps nothing waits for it
            else:
                pipe.ready.set_result(None)
                # The next logger need not look for it, and the next supervisor knows that it was printed.
                del pipe.message["ready_line"]
                self._keeper.send({"op": "note", "name": entry_name(pipe.message), "meta": pipe.message})
        elif message.get("t") == "dropped" and key in self._pipes:
            server, path = (str(self._pipes[key].message[field]) for field in ("name", "path"))
            self._events().output_lost(
                server, int(message.get("bytes", 0)), path, str(message.get("error") or "")
            )


def _is_server_output(message: wire.Message) -> bool:
    return not str(message["name"]).startswith("[")


def entry_name(message: wire.Message) -> str:
    """The name in the keeper's store of the pipe that this message registers."""
    kind = fd_store.OUTPUT if _is_server_output(message) else fd_store.HELPER_OUTPUT
    return f"{kind}{message['id']}"


def _owner_of_log_directories(server: ServerConfig) -> tuple[int, int] | None:
    """The server's user and group, which own directories made for `log.path`; None for the pool's own."""
    if server.log.path is None:
        return None  # in the state directory, which is private
    with contextlib.suppress(ServerError):  # reported when the worker is started
        return user_ids(server)
    return None


def last_lines(path: str, lines: int, since: float) -> list[str]:
    """The last lines of a log since a time (seconds since the epoch), with passwords in URLs masked.

    Unless `since` is 0, lines of unknown age, which another program has written into the file, are left out.
    """
    last = tail(path, lines, since=stamp(since), max_files=_MAX_REPORT_FILES, max_length=_MAX_LINE_LENGTH)
    return [masked_text(line.text) for line in last if line.time or not since]
