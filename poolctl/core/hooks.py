"""Runs the hooks of servers: one at a time for each server."""

from __future__ import annotations

import asyncio
from functools import partial

from poolctl.clock import Clock
from poolctl.errors import PoolStopError
from poolctl.runners.runner_protocol import Exit, Placement, Runner
from poolctl.units import format_duration

from .decide import BEFORE_START
from .explain import (
    cause_of,
    explain_last_lines,
    failure_of,
    give_up_text,
    is_quoted,
    message_and_hint,
    note_failure,
    record_warning,
)
from .server_entry import Entry
from .server_state import Desired, RunningHook
from .workqueue import Recorder, Workqueue


class HookRunner:
    """Runs hooks in tasks. A start waits for its hook, and fails if the hook fails; a stop only waits."""

    def __init__(self, runner: Runner, clock: Clock, queue: Workqueue, recorder: Recorder) -> None:
        self._runner = runner
        self._clock = clock
        self._queue = queue
        self._recorder = recorder

    def run(self, entry: Entry, hook: RunningHook) -> None:
        """Run the hook in a task, to its end. A hook with a placement was adopted, and is only awaited."""
        entry.hooks.running = hook
        self._queue.run(self._run(entry, hook))

    def end(self, entry: Entry, limit_seconds: float) -> None:
        """Ask the running hook to end, if there is one, and kill it after the time limit."""
        hook = entry.hooks.running
        if hook is not None:
            hook.ends = True
            if hook.placement is not None:
                self._queue.run(self._end_process(entry, hook, limit_seconds))

    def abort(self, entry: Entry) -> None:
        """Kill the running hook at once, and cancel the after_stop hook of the stop in progress."""
        if entry.hooks.after_stop_due:
            entry.observed.warnings.append(
                f"{entry.name}: was killed: hooks.after_stop was not run to its end"
            )
            entry.hooks.after_stop_due = False
        self.end(entry, 0)

    async def _run(self, entry: Entry, hook: RunningHook) -> None:
        begun_at = self._clock.time()
        try:
            exit_, hint = await self._run_until_exit(entry, hook)
        except Exception as error:
            reason, hint = message_and_hint(error)
            exit_ = Exit(message=f"cannot be run: {reason}")
        message, printed_by = "", hook.placement.id if hook.placement is not None else ""
        if not (exit_.ok or hook.ends):
            how = exit_.message if exit_.signal is None else f"was {exit_.message}"
            message, explain = f"hooks.{hook.name} {how}", partial(cause_of, server=entry.config)
            output = await explain_last_lines(self._runner, entry.name, begun_at, explain, printed_by)
            if output.text and not is_quoted(output.text, message):
                message = f"{message}: {output.text}"
        entry.hooks.running = None
        if hook.name != BEFORE_START:
            entry.hooks.after_stop_due = False
            if message:
                cause = entry.desired.cause.cause if entry.desired.cause is not None else ""
                record_warning(self._recorder, entry, "hook failed", message, cause=cause)
        elif hook.ends:
            pass  # the hook runs again if the server has been started meanwhile
        elif message and entry.wanted:
            # The failure is reported with the lines that the hook printed.
            entry.observed.failed_since, entry.observed.failed_worker = begun_at, printed_by
            entry.observed.last_exit, entry.observed.next_step = exit_, give_up_text(entry)
            note_failure(entry, failure_of(entry, message, hint))
            entry.set_desired(Desired.FAILED)
        elif not message:
            entry.hooks.before_start_due = False
        self._queue.touch(entry, progressed=True)

    async def _run_until_exit(self, entry: Entry, hook: RunningHook) -> tuple[Exit, str]:
        config, is_start = entry.config, hook.name == BEFORE_START
        limit = config.start_timeout if is_start else config.stop_timeout
        if not is_start and entry.desired.stop_seconds is not None:
            limit = min(limit, entry.desired.stop_seconds)
        if hook.placement is None:
            if config.hooks is None or not getattr(config.hooks, hook.name):
                # A reload removed the hook while the start or the stop waited.
                return Exit.from_returncode(0), ""
            hook.placement = await self._runner.begin_hook(config, hook.name)
        exit_ = await self._wait_or_kill(entry, hook, hook.placement, limit)
        hint = f"poolctl logs {entry.name}"
        if exit_.status is None and exit_.signal is None:
            which = "start_timeout" if is_start else "stop_timeout"
            hint += f"; {which} says how long it may take"
        return exit_, hint

    async def _wait_or_kill(
        self, entry: Entry, hook: RunningHook, placement: Placement, limit_seconds: float
    ) -> Exit:
        """Wait until the hook has ended; returns its exit.

        After the time limit the hook is killed, and the returned exit has neither status nor signal.
        """
        ending = asyncio.ensure_future(self._runner.wait_for_exit(placement))
        if hook.ends:
            # The end was ordered before the hook had a process.
            await self._end_process(entry, hook, 0)
        await asyncio.wait({ending}, timeout=limit_seconds)
        if ending.done():
            return ending.result()
        await self._end_process(entry, hook, 0)
        # Wait even for a process that SIGKILL does not end: its server cannot be started earlier.
        await ending
        return Exit(message=f"had not ended after {format_duration(limit_seconds)}, and was killed")

    async def _end_process(self, entry: Entry, hook: RunningHook, seconds: float) -> None:
        assert hook.placement is not None
        hook.unstoppable = False
        try:
            await self._runner.stop(hook.placement, seconds)
        except TimeoutError:
            hook.unstoppable = True
            message = f"hooks.{hook.name} still running after SIGKILL ({hook.placement.where})"
            note_failure(entry, failure_of(entry, message, "see what it waits for", PoolStopError))
            self._queue.touch(entry, progressed=True)
