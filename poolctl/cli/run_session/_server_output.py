"""The output of the pool's servers, printed as it arrives in their logs."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from time import time

from poolctl.cli import log_rendering
from poolctl.cli.output import LineOutput
from poolctl.cli.pool_ref import PoolRef
from poolctl.control.client import AsyncClient
from poolctl.control.server_answers import ServerDetails, ShowResult
from poolctl.errors import ControlError
from poolctl.logs.line_filter import LineFilter
from poolctl.logs.log_line import LogLine, stamp
from poolctl.logs.log_tail import SETTLE_SECONDS, Follower, LogReorderBuffer

from ._loop import in_thread

# Maximum wait for output that the servers write while they stop.
LAST_OUTPUT_SECONDS = 2.0


def own_line(text: str, level: str = "", *, objects: bool) -> str:
    """A message of `run` itself as an output line; with `objects`, as a JSON line in the form of the servers' lines."""
    return log_rendering.json_line(LogLine(text, time=stamp(time()), level=level)) if objects else f"{text}\n"


class ServerOutput:
    """Prints new output of the pool's servers, each line after its server's name; as JSON objects if `objects`.

    `times` shows the time of each line. `reader_lost` is called if nothing reads the output any longer.
    """

    def __init__(
        self, pool: PoolRef, reader_lost: Callable[[], object], *, times: bool, objects: bool
    ) -> None:
        self._pool = pool
        self._reader_lost = reader_lost
        self._times = times
        self._objects = objects
        self._since = stamp(time())
        self._output = LineOutput(sys.stdout, self._own_line)
        self._is_over = False
        self._wake = asyncio.Event()  # for new lines, and for the end
        self._printing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Print new output from now on; returns at once."""
        self._printing = asyncio.create_task(self._print())

    async def finish(self) -> None:
        """Print the pending output, then stop; do not wait for a stalled reader."""
        self._is_over = True
        self._wake.set()
        if self._printing is not None:
            await asyncio.wait([self._printing], timeout=LAST_OUTPUT_SECONDS)
        if loss := self._output.loss:
            sys.stderr.write(self._own_line(f"[poolctl: last lines of output lost: {loss}]"))

    def _own_line(self, text: str) -> str:
        return own_line(text, objects=self._objects)

    async def _print(self) -> None:
        try:
            items = (await AsyncClient(self._pool.socket).ask(ShowResult, "show")).items
        except ControlError:
            return  # the command waiting for the start reports the reason
        paths = log_rendering.log_paths(items, self._pool.logs_directory)
        form = self._line_formatter(items, list(paths))
        try:
            async with contextlib.aclosing(self._new_lines(paths)) as batches:
                async for lines in batches:
                    await in_thread(self._write_lines, lines, form)
        except BrokenPipeError:
            # The reader of the output is gone, so there is no reason to keep running in the foreground.
            self._reader_lost()
        except OSError as error:
            why = (
                f"the servers' output is not shown any longer, as their logs cannot be read: {error.strerror}"
            )
            sys.stderr.write(self._own_line(f"[poolctl: {why}]"))

    def _line_formatter(self, items: Sequence[ServerDetails], names: list[str]) -> Callable[[LogLine], str]:
        if self._objects:
            return log_rendering.json_line
        # Files and log collectors of containers get the lines unchanged, but for commands to a CI.
        times = log_rendering.STAMPS if self._times else log_rendering.NO_TIMES
        terminal = sys.stdout.isatty()
        with_ids = {item.name for item in items if (item.config.get("http") or {}).get("request_id")}
        ids = with_ids if terminal and not self._times else None
        return log_rendering.PrefixedLineFormatter(names, times=times, records=terminal, request_ids=ids).line

    def _write_lines(self, lines: list[LogLine], form: Callable[[LogLine], str]) -> None:
        for line in lines:
            self._output.write(form(line))

    async def _new_lines(self, paths: Mapping[str, str]) -> AsyncGenerator[list[LogLine]]:
        """Yield the new lines of the logs, merged by time, until the end and all lines so far."""
        wanted = LineFilter(levels=True) if self._objects else None

        def report(name: str, error: OSError) -> None:
            why = f"{paths[name]} cannot be read: {error.strerror}"
            sys.stderr.write(self._own_line(f"[poolctl: the output of {name} is not shown, as {why}]"))

        follower = await in_thread(
            lambda: Follower(paths, lines=None, since=self._since, wanted=wanted, unreadable=report)
        )
        merge = LogReorderBuffer()
        lines, is_over = follower.first, False
        try:
            while not is_over:
                # While one file was read, an earlier line may have been added to another.
                yield lines if len(paths) < 2 else merge.hold_back(lines)
                if merge.holds:
                    await asyncio.sleep(SETTLE_SECONDS)
                else:
                    await self._await_new_lines(follower)
                is_over = self._is_over
                lines = await in_thread(follower.read)
            yield [*merge.hold_back(lines), *merge.hold_back([])]
        finally:
            follower.close()

    async def _await_new_lines(self, follower: Follower) -> None:
        loop, descriptor = asyncio.get_running_loop(), follower.fileno()
        if descriptor >= 0:
            loop.add_reader(descriptor, self._wake.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(follower.poll_seconds):
                    await self._wake.wait()
        finally:
            if descriptor >= 0:
                loop.remove_reader(descriptor)
            self._wake.clear()
