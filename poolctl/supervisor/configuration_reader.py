"""Has the files read, and servers validated, in a process of its own (poolctl/config/__main__.py).

It is started when it is needed, unless the supervisor has begun with one, and ended when it has not been used for a
while.
"""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import re
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any

from poolctl import __version__
from poolctl.child_process import ChildEnded, ChildOnDemand, ChildProcess
from poolctl.config import Marks, Reading, ServerConfig, Surroundings
from poolctl.config.__main__ import MOST_KEPT, message, reader_command
from poolctl.control.answers import Result, failure
from poolctl.control.pool_processes import last_words
from poolctl.errors import PoolError, PoolValidateError
from poolctl.exit_codes import CONFLICT
from poolctl.platform import process_cpu_ns

_IDLE_SECONDS = 10.0
# For operations that do not wait for the user's own disk.
_ADD_SECONDS = 30.0
_STALLED_SECONDS = 20.0
_STALLED_CHECKS = 20
_LONGEST_LINE = 200
_LINE = re.compile(rb"poolctl ([0-9A-Za-z.+?-]+) ([0-9]{1,9})")  # so less than a gigabyte

Outside = tuple[list[dict[str, Any]], list[str]]


class ReaderFailed(Exception):
    """The process could not answer; `installed` is its version if that differs from this version."""

    def __init__(self, message: str, hint: str, installed: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.installed = installed

    @property
    def result(self) -> Result:
        """The answer to a command that needs the process's result."""
        return Result(errors=(failure(PoolValidateError, str(self), self.hint),), exit_code=CONFLICT)


class _Stalled(Exception):
    """The process has used no processor time for too long."""


def _digests(reading: Reading) -> dict[str, str]:
    return {path: mark.digest for path, mark in reading.marks.items()}


async def _answer(process: ChildProcess) -> Any:
    """The answer to the request that was sent. Raises ChildEnded; ReaderFailed if another version answers."""
    line = await process.line(_LONGEST_LINE)
    match = _LINE.fullmatch(line)
    if match is None:
        said = line[:60].decode(errors="replace")
        raise ReaderFailed(f"the process that reads the files answered {said!r}", f"see {process.output}")
    installed = match[1].decode()
    if installed != __version__:
        message = f"poolctl {installed} is installed, and this pool runs {__version__}"
        raise ReaderFailed(message, "poolctl upgrade", installed)
    content = await process.exactly(int(match[2]))
    try:
        # In a thread, so that the loop continues.
        return await asyncio.to_thread(_decoded, content)
    except Exception as error:
        hint = "if poolctl is being installed at this moment, try again"
        raise ReaderFailed(f"what was read from the files cannot be taken over: {error!r}", hint) from error


def _decoded(content: bytes) -> Any:
    file = io.BytesIO(content)
    value = pickle.load(file)
    if file.tell() != len(content):
        raise ValueError("more than one value")
    return value


async def _unless_stalled(answer: Awaitable[Any], pid: int, stalled_seconds: float) -> Any:
    """The answer. Raises _Stalled when the process has made no progress for this time."""
    answering = asyncio.ensure_future(answer)
    used_ns, stalled_checks = None, 0
    try:
        # Counts checks instead of seconds, because a pause of the whole machine has no checks.
        while stalled_checks < _STALLED_CHECKS:
            await asyncio.wait({answering}, timeout=stalled_seconds / _STALLED_CHECKS)
            if answering.done():
                return answering.result()
            before_ns, used_ns = used_ns, process_cpu_ns(pid)
            stalled_checks = stalled_checks + 1 if used_ns == before_ns else 0
        message = f"the process that does it (pid {pid}) has used no processor time"
        raise _Stalled(f"{message} for {stalled_seconds:g} s")
    finally:
        answering.cancel()
        await asyncio.wait({answering})


def _exit_reason(ended: ChildEnded) -> str:
    """Why the process has ended by itself."""
    process, status = ended.process, ended.status
    if status is None:
        how = "has closed its link"
    else:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    why = last_words(process.output, process.output_start)
    return f"{how}: {why}" if why else how


class ConfigurationReader:
    """Belongs to the running loop. Requests are answered one after the other; one that is cancelled ends the process.

    A process that is killed, as by the kernel when memory runs out, is replaced once in a request.

    `directory` has the log for its errors. `process` is one that was started before.
    """

    def __init__(
        self,
        directory: str,
        process: ChildProcess | None = None,
        *,
        command: Sequence[str] = (),
        idle_seconds: float = _IDLE_SECONDS,
        stalled_seconds: float = _STALLED_SECONDS,
    ) -> None:
        self._log = os.path.join(directory, "supervisor.log")
        self._command = list(command) or reader_command()
        self._stalled_seconds = stalled_seconds
        self._child = ChildOnDemand(self._start, idle_seconds, process)
        self._number = 0
        # The requests for the readings that a process keeps, by their numbers, and the contents of the files at that
        # time.
        self._readings: dict[int, tuple[tuple[object, ...], dict[str, str]]] = {}

    async def read(
        self, files: Sequence[str], env: Mapping[str, str] | None, *, access_log: bool, first: bool = False
    ) -> tuple[int, Reading]:
        """The content of these files, and the number of the reading; None is this process's environment.

        The `first` reading of a pool ends when the process makes no progress: the command that starts the pool waits.
        Raises ReaderFailed, like the other methods.
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
        """The problems of everything that these servers of the reading refer to, and the warnings about all servers."""
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
        """The places in the files that configure these servers; empty once the files have changed."""
        found: dict[str, dict[str, str] | None]
        found = await self._ask("origins", [*files], env and dict(env), marks, [*names])
        return found

    def close(self) -> None:
        """End the process, if there is one."""
        self._child.close()

    async def _ask(
        self, *request: object, seconds: float | None = None, stalled_seconds: float | None = None
    ) -> Any:
        async def exchange(process: ChildProcess) -> Any:
            async with asyncio.timeout(seconds):
                await process.send(message(request))
                answer = _answer(process)
                if stalled_seconds is not None:
                    answer = _unless_stalled(answer, process.pid, stalled_seconds)
                return await answer

        was_killed = False
        while True:
            try:
                return await self._child.ask(exchange)
            except TimeoutError:
                silent = f"the process that reads the files has not answered for {seconds:g} s"
                raise ReaderFailed(silent, f"try again; see {self._log}") from None
            except ChildEnded as ended:
                # A process that has answered before may have ended long ago.
                if not ended.process.has_answered:
                    killed = ended.status is not None and ended.status < 0
                    if was_killed or not killed:
                        failed = f"the files cannot be read: the process that does it {_exit_reason(ended)}"
                        raise ReaderFailed(failed, f"see {self._log}") from None
                    was_killed = True

    def _start(self) -> ChildProcess:
        try:
            return ChildProcess(self._command, output=self._log)
        except OSError as error:
            failed = f"the files cannot be read: {self._command[0]} cannot be run: {error.strerror or error}"
            raise ReaderFailed(failed, "is poolctl being installed at this moment? Try again") from error
