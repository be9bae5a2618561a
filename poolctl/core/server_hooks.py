"""Runs the commands of a server's `hooks`, limits their time, and applies the consequences of their exits."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from poolctl.clock import Clock
from poolctl.runners.runner_protocol import Exit, Placement, Runner
from poolctl.units import format_duration

from .decision_input import BEFORE_START, Desired
from .failures import (
    LINES_READ,
    cause_of,
    explained,
    failure_of,
    given_up,
    is_quoted,
    last_lines,
    note_failure,
)
from .server_changes import Recorder, Workqueue
from .server_entry import Entry, RunningHook

_NOT_HERE = "its runner makes no processes: run the pool with `poolctl start`, or leave `hooks` out"

logger = logging.getLogger("poolctl.supervisor")


class ServerHooks:
    """Runs the hooks of servers, one at a time for each server.

    A start waits for its hook, and fails if the hook fails; a stop only waits.
    """

    def __init__(self, runner: Runner, clock: Clock, queue: Workqueue, recorder: Recorder) -> None:
        self._runner = runner
        self._clock = clock
        self._queue = queue
        self._recorder = recorder

    def begin(self, entry: Entry, hook: RunningHook) -> None:
        """Run the hook. A hook that has a placement was started by another supervisor."""
        entry.hooks.running = hook
        self._queue.run(self._run(entry, hook))

    def end(self, entry: Entry) -> None:
        """Ask the running hook to end; kill it after the server's `stop_timeout`."""
        assert entry.hooks.running is not None
        entry.hooks.running.ends = True
        if entry.hooks.running.placement is not None:
            self._queue.run(self._stop(entry.hooks.running.placement, entry.config.stop_timeout))

    def kill(self, entry: Entry) -> None:
        """Kill the running hook at once, and run none after the stop in progress."""
        if entry.hooks.after_stop_due:
            entry.observed.warnings.append(
                f"{entry.name}: was killed: hooks.after_stop was not run to its end"
            )
            entry.hooks.after_stop_due = False
        if entry.hooks.running is not None:
            entry.hooks.running.ends = True
            if entry.hooks.running.placement is not None:
                self._queue.run(self._stop(entry.hooks.running.placement, 0))

    async def _run(self, entry: Entry, hook: RunningHook) -> None:
        begun_at = self._clock.time()
        exit_, hint = await self._outcome(entry, hook)
        message = ""
        if not (exit_.ok or hook.ends):
            how = exit_.message if exit_.signal is None else f"was {exit_.message}"
            message = await self._message(entry, f"hooks.{hook.name} {how}", begun_at)
        entry.hooks.running = None
        if hook.name == BEFORE_START:
            self._started(entry, hook, exit_, message, hint, begun_at)
        else:
            entry.hooks.after_stop_due = False
            if message:
                self._report(entry, message)
        self._queue.touch(entry, progressed=True)

    async def _outcome(self, entry: Entry, hook: RunningHook) -> tuple[Exit, str]:
        """How the hook ended, or why it was not begun, and a hint."""
        config = entry.config
        if hook.name == BEFORE_START:
            limit = config.start_timeout
        else:
            limit = config.stop_timeout
            if entry.desired.stop_seconds is not None:
                limit = min(limit, entry.desired.stop_seconds)
        hooks = self._runner.capabilities.hooks
        if hook.placement is None:
            if config.hooks is None or not getattr(config.hooks, hook.name):
                return Exit.from_status(0), ""  # a reload took it out while the start or the stop waited
            if hooks is None:
                return Exit(message="cannot be run"), _NOT_HERE
            try:
                hook.placement = await hooks.begin_hook(config, hook.name)
            except Exception as error:
                message, hint = explained(error)
                return Exit(message=f"cannot be run: {message}"), hint
        exit_ = await self._end_of(hook, hook.placement, limit)
        hint = f"poolctl logs {entry.name}"
        if exit_.status is None and exit_.signal is None:
            which = "start_timeout" if hook.name == BEFORE_START else "stop_timeout"
            hint += f"; {which} says how long it may take"
        return exit_, hint

    async def _end_of(self, hook: RunningHook, placement: Placement, limit_seconds: float) -> Exit:
        """The exit of the hook; without status and signal if it exceeded its time limit."""
        ending = asyncio.ensure_future(self._runner.watch(placement))
        if hook.ends:
            # That was decided before it had a process.
            await self._stop(placement, 0)
        await asyncio.wait({ending}, timeout=limit_seconds)
        if ending.done():
            return ending.result()
        await self._stop(placement, 0)
        await ending
        return Exit(message=f"had not ended after {format_duration(limit_seconds)}, and was killed")

    async def _stop(self, placement: Placement, seconds: float) -> None:
        # Wait even for a process that SIGKILL does not end: its server cannot be started earlier.
        with contextlib.suppress(TimeoutError):
            await self._runner.stop(placement, seconds)

    async def _message(self, entry: Entry, message: str, since: float) -> str:
        """The message with the reason that the hook printed."""
        lines = await last_lines(self._runner, entry.name, LINES_READ, since)
        reason = cause_of(lines, entry.config).text
        return f"{message}: {reason}" if reason and not is_quoted(reason, message) else message

    def _started(
        self, entry: Entry, hook: RunningHook, exit_: Exit, message: str, hint: str, begun_at: float
    ) -> None:
        if hook.ends:
            return  # it is run again if the server has been started meanwhile
        if not message:
            entry.hooks.before_start_due = False
        elif entry.wanted:
            # The lines that it printed belong to the report of the failure.
            entry.observed.failed_since = begun_at
            entry.observed.last_exit, entry.observed.next_step = exit_, given_up(entry)
            note_failure(entry, failure_of(entry, message, hint))
            entry.become(Desired.FAILED)

    def _report(self, entry: Entry, message: str) -> None:
        entry.observed.warnings.append(f"{entry.name}: {message}")
        logger.warning("%s: %s", entry.name, message)
        cause = entry.desired.cause.cause if entry.desired.cause is not None else ""
        self._recorder.record(
            "lifecycle", "hook failed", server=entry.name, bind=entry.config.key, message=message, cause=cause
        )
