"""Has the files read, and servers validated, in a process of its own (poolctl/config/__main__.py).

It is started when it is needed, unless the supervisor has begun with one, and ended when it has not been used for a
while.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import pickle
import re
import signal
import socket
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from poolctl import __version__
from poolctl.config import Marks, Reading, ServerConfig, Surroundings
from poolctl.config.__main__ import MOST_KEPT, message, reader_command
from poolctl.control.answers import Result, failure
from poolctl.control.pool_processes import last_words
from poolctl.errors import PoolError, PoolValidateError
from poolctl.exit_codes import CONFLICT
from poolctl.keeper.spawn import spawn
from poolctl.platform import process_cpu_ns
from poolctl.runners.listener_opener import in_daemon_thread

if TYPE_CHECKING:
    from poolctl.config.__main__ import Begun

_IDLE_SECONDS = 10.0
# What does not wait for the user's own disk.
_ADD_SECONDS = 30.0
_STALLED_SECONDS = 20.0
_STALLED_CHECKS = 20
_EXIT_SECONDS = 5.0
_LONGEST_LINE = 200
_LINE = re.compile(rb"poolctl ([0-9A-Za-z.+?-]+) ([0-9]{1,9})")  # so less than a gigabyte
_CHUNK_BYTES = 1 << 20

Outside = tuple[list[dict[str, Any]], list[str]]


class ReaderFailed(Exception):
    """The process could not answer; `installed` is its version if that is another one than this."""

    def __init__(self, message: str, hint: str, installed: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.installed = installed

    @property
    def result(self) -> Result:
        """The answer to a command that needs it."""
        return Result(errors=(failure(PoolValidateError, str(self), self.hint),), exit_code=CONFLICT)


class _Ended(Exception):
    """The process has ended, or closed its link, in the middle of an exchange."""


class _Stalled(Exception):
    """The process has used no processor time for too long."""


class _Process:
    """The process at the other end of `link`, a child of this one.

    `log` is the file to which it writes errors, from `log_start` on. `under_way` is the request that it began with.
    """

    def __init__(
        self, link: socket.socket, pid: int, log: str, log_start: int = 0, under_way: tuple[object, ...] = ()
    ) -> None:
        link.setblocking(False)
        self._link = link
        self._pid = pid
        # Also when nothing has ended it: its loop may be gone.
        self.end = weakref.finalize(self, _finish, link, pid, os.getpid())
        self._log, self._log_start = log, log_start
        self._under_way = under_way
        self.has_answered = False

    def can_answer(self, request: tuple[object, ...]) -> bool:
        """Whether it is not at another request."""
        return self._under_way in ((), request)

    async def exchange(self, request: tuple[object, ...], stalled_seconds: float | None = None) -> Any:
        """The answer. Raises _Ended, _Stalled after this long without progress, and ReaderFailed for what is none."""
        loop = asyncio.get_running_loop()
        try:
            if not self._under_way:
                await loop.sock_sendall(self._link, message(request))
            self._under_way = ()
            if stalled_seconds is None:
                content = await self._received()
            else:
                content = await self._received_unless_stalled(stalled_seconds)
        except OSError as error:
            raise _Ended from error
        self.has_answered = True
        return await _decoded(content)

    async def _received_unless_stalled(self, stalled_seconds: float) -> bytes:
        receiving = asyncio.ensure_future(self._received())
        used_ns, stalled_checks = None, 0
        try:
            # Checks are counted, not seconds: in a pause of the whole machine there are none.
            while stalled_checks < _STALLED_CHECKS:
                await asyncio.wait({receiving}, timeout=stalled_seconds / _STALLED_CHECKS)
                if receiving.done():
                    return receiving.result()
                before_ns, used_ns = used_ns, process_cpu_ns(self._pid)
                stalled_checks = stalled_checks + 1 if used_ns == before_ns else 0
            message = f"the process that does it (pid {self._pid}) has used no processor time"
            raise _Stalled(f"{message} for {stalled_seconds:g} s")
        finally:
            receiving.cancel()
            await asyncio.wait({receiving})

    async def _received(self) -> bytes:
        found = bytearray()
        while b"\n" not in found and len(found) < _LONGEST_LINE:
            found += await self._more()
        line, _, content = found.partition(b"\n")
        match = _LINE.fullmatch(line)
        if match is None:
            said = line[:60].decode(errors="replace")
            raise ReaderFailed(f"the process that reads the files answered {said!r}", f"see {self._log}")
        installed, size = match[1].decode(), int(match[2])
        if installed != __version__:
            message = f"poolctl {installed} is installed, and this pool runs {__version__}"
            raise ReaderFailed(message, "poolctl upgrade", installed)
        while len(content) < size:
            content += await self._more()
        return bytes(content)

    async def _more(self) -> bytes:
        found = await asyncio.get_running_loop().sock_recv(self._link, _CHUNK_BYTES)
        if not found:
            raise _Ended
        return found

    async def exit_reason(self) -> tuple[str, bool]:
        """Why it has ended by itself, and whether it was killed."""
        how, killed = "has closed its link", False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_SECONDS):
                # Not reaped: that is for `end`.
                wait = functools.partial(os.waitid, os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
                found = await in_daemon_thread(wait)
            assert found is not None
            killed = found.si_code != os.CLD_EXITED
            how = f"{'was killed by signal' if killed else 'ended with status'} {found.si_status}"
        why = last_words(self._log, self._log_start)
        return f"{how}: {why}" if why else how, killed


def _finish(link: socket.socket, pid: int, owner: int) -> None:
    """End the process: what it is doing is of no use any more. In a forked child it belongs to the parent."""
    link.close()
    if os.getpid() == owner:
        os.kill(pid, signal.SIGKILL)
        # It may be blocked in the kernel, on a file system that does not answer.
        threading.Thread(target=os.waitpid, args=(pid, 0), daemon=True).start()


def _digests(reading: Reading) -> dict[str, str]:
    return {path: mark.digest for path, mark in reading.marks.items()}


async def _decoded(content: bytes) -> Any:
    """The value; the servers of a reading slice by slice, so that the loop is not held up."""
    file = io.BytesIO(content)
    unpickler = pickle.Unpickler(file)
    try:
        value = unpickler.load()
        while file.tell() < len(content):
            await asyncio.sleep(0)
            value.servers += unpickler.load()
    except Exception as error:
        hint = "if poolctl is being installed at this moment, try again"
        raise ReaderFailed(f"what was read from the files cannot be taken over: {error!r}", hint) from error
    return value


class ConfigurationReader:
    """Belongs to the running loop. Requests are answered one after the other; one that is cancelled ends the process.

    A process that is killed, as by the kernel when memory runs out, is replaced once in a request.

    `directory` has the log for its errors. `begun` is a process that was forked with its first request.
    """

    def __init__(
        self,
        directory: str,
        begun: Begun | None = None,
        *,
        command: Sequence[str] = (),
        idle_seconds: float = _IDLE_SECONDS,
        stalled_seconds: float = _STALLED_SECONDS,
    ) -> None:
        self._log = os.path.join(directory, "supervisor.log")
        self._command = list(command)
        self._idle_seconds = idle_seconds
        self._stalled_seconds = stalled_seconds
        self._turn = asyncio.Lock()
        self._number = 0
        # The requests for the readings that a process keeps, by their numbers, and what the files held then.
        self._readings: dict[int, tuple[tuple[object, ...], dict[str, str]]] = {}
        self._idle: asyncio.TimerHandle | None = None
        self._process: _Process | None = None
        if begun is not None:
            link, pid, log_start, request = begun
            self._process = _Process(link, pid, self._log, log_start, request)

    async def read(
        self, files: Sequence[str], env: Mapping[str, str] | None, *, access_log: bool, first: bool = False
    ) -> tuple[int, Reading]:
        """What these files say, and the number of the reading; None is this process's environment.

        The `first` reading of a pool ends when the process makes no progress: the command that starts the pool waits.
        Raises ReaderFailed, as do the others.
        """
        self._number += 1
        request = ("read", self._number, [*files], env and dict(env), access_log)
        try:
            found: Reading = await self._ask(
                *request, stalled_seconds=self._stalled_seconds if first else None
            )
        except _Stalled as stalled:
            hint = "a disk or name service that does not answer? poolctl validate reads the same files"
            raise ReaderFailed(f"{' and '.join(files)} cannot be read: {stalled}", hint) from None
        self._readings[request[1]] = request, _digests(found)
        if len(self._readings) > MOST_KEPT:
            del self._readings[next(iter(self._readings))]
        return request[1], found

    async def outside(self, number: int, names: Collection[str]) -> Outside:
        """The problems of what these servers of the reading refer to, and the warnings of all of them."""
        request = ("outside", number, [*names])
        found: Outside | None = await self._ask(*request)
        if found is None and number in self._readings:
            # The process that has read them has ended since.
            reading, digests = self._readings[number]
            if _digests(await self._ask(*reading)) != digests:
                raise ReaderFailed("the files have changed since they were read", "try again")
            found = await self._ask(*request)
        if found is None:
            raise ReaderFailed("the process that has read the files has ended", "try again")
        return found

    async def added(
        self,
        surroundings: Surroundings,
        table: Mapping[str, object],
        base_dir: str,
        env: Mapping[str, str] | None,
    ) -> ServerConfig:
        """The server of this table, which is in no file. Raises PoolValidateError."""
        given = (surroundings, dict(table), base_dir, env and dict(env))
        found: ServerConfig | PoolError = await self._ask("added", *given, seconds=_ADD_SECONDS)
        if isinstance(found, PoolError):
            raise found
        return found

    async def origins(
        self, files: Sequence[str], env: Mapping[str, str] | None, marks: Marks, names: Sequence[str]
    ) -> dict[str, dict[str, str] | None]:
        """Where the files say what they say of these servers; nothing once they have changed."""
        found: dict[str, dict[str, str] | None]
        found = await self._ask("origins", [*files], env and dict(env), marks, [*names])
        return found

    def close(self) -> None:
        """End the process, if there is one."""
        if self._idle is not None:
            self._idle.cancel()
        process, self._process = self._process, None
        if process is not None:
            process.end()

    async def _ask(
        self, *request: object, seconds: float | None = None, stalled_seconds: float | None = None
    ) -> Any:
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            try:
                return await self._answer(request, seconds, stalled_seconds)
            except BaseException:
                self.close()
                raise
            finally:
                if self._process is not None:
                    loop = asyncio.get_running_loop()
                    self._idle = loop.call_later(self._idle_seconds, self.close)

    async def _answer(
        self, request: tuple[object, ...], seconds: float | None, stalled_seconds: float | None
    ) -> Any:
        if self._process is not None and not self._process.can_answer(request):
            self.close()
        was_killed = False
        while True:
            process = self._process = self._process or self._start()
            try:
                async with asyncio.timeout(seconds):
                    return await process.exchange(request, stalled_seconds)
            except TimeoutError:
                message = f"the process that reads the files has not answered for {seconds:g} s"
                raise ReaderFailed(message, f"try again; see {self._log}") from None
            except _Ended:
                # Otherwise it may have ended long ago.
                if not process.has_answered:
                    reason, killed = await process.exit_reason()
                    if was_killed or not killed:
                        message = f"the files cannot be read: the process that does it {reason}"
                        raise ReaderFailed(message, f"see {self._log}") from None
                    was_killed = True
                self.close()

    def _start(self) -> _Process:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as if_failed:
            if_failed.callback(ours.close)
            command = self._command or reader_command()
            try:
                start = os.path.getsize(self._log)
            except OSError:
                start = 0
            try:
                pid = spawn(command, None, [theirs.fileno()], self._log, session=False)
            except OSError as error:
                message = f"the files cannot be read: {command[0]} cannot be run: {error.strerror or error}"
                raise ReaderFailed(message, "is poolctl being installed at this moment? Try again") from error
            if_failed.pop_all()
        return _Process(ours, pid, self._log, start)
