"""What a command waits for, and the errors of servers that do not get there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from poolctl.errors import PoolError, PoolRestartError, PoolStartError, PoolStopError, ServerError
from poolctl.states import State, in_words

from .core import Core
from .explain import LAST_LINES, explain_blocker, explain_last_lines, explanatory_lines, is_quoted
from .server_entry import Entry
from .server_state import ListenerState

_DOWN = (State.STARTING, State.BACKOFF, State.STOPPED)


class CommandGoal:
    """The state that a command wants its servers to reach.

    Create a goal before the command changes the core, so that only later failures count. `kind` is the class of the
    error that the command raises if it fails. If `kind` is PoolStopError, all servers must stop. Otherwise all servers
    must run and, if `kind` is PoolRestartError, no listener at a previous address may remain open.
    """

    def __init__(self, core: Core, kind: type[PoolError], entries: Iterable[Entry]) -> None:
        self.missing: list[Entry] = []  # undecided at the timeout: neither at the goal nor failed
        self._core = core
        self._kind = kind
        self._entries = list(entries)
        self._failures = {entry.name: entry.observed.failures for entry in self._entries}
        self._exits_before = {entry.name: entry.observed.last_exit for entry in self._entries}
        # By the name of a waiting server: the dependency that cannot become ready.
        self._stuck: dict[str, Entry] = {}
        self._last_lines: dict[str, list[str]] = {}  # by the name of a failed server

    async def wait_until_settled(
        self, timeout_seconds: float | None, report: Callable[[Entry], None] = lambda entry: None
    ) -> None:
        """Wait until every server has reached its goal or failed, or the timeout has passed.

        `report` is called after each change of a server.
        """
        self.missing = await wait_until(self._core, self._entries, self.is_over, timeout_seconds, report)
        failed = [
            entry
            for entry in self._entries
            if self.has_failed(entry) or self._has_exited_since_creation(entry)
        ]
        await asyncio.gather(*map(self._read_last_lines, failed))

    async def _read_last_lines(self, entry: Entry) -> None:
        runner, since = self._core.runner, entry.observed.failed_since
        worker = entry.observed.failed_worker
        lines = await explain_last_lines(runner, entry.name, since, explanatory_lines, worker)
        self._last_lines[entry.name] = lines[-LAST_LINES:]

    def is_overtaken(self, entry: Entry) -> bool:
        """Whether another command has meanwhile stopped a server that is to run, or started one that is to stop."""
        return entry.wanted is (self._kind is PoolStopError) and entry.desired.queued_start is None

    def problem(self, entry: Entry) -> ServerError | None:
        """The reason why the server has not reached its goal, with its last output; None if it has."""
        if self.has_failed(entry) and entry.observed.failure is not None and not self.was_retried(entry):
            return self._with_last_lines(entry, entry.observed.failure)
        if self._reached(entry):
            return None
        if self.is_overtaken(entry):
            opposite = "started" if self._kind is PoolStopError else "stopped"
            reason = self._core.reason or f"was {opposite} by another command meanwhile"
            return goal_error(entry, self._kind, reason)
        if entry.name in self._stuck:
            blocker = self._stuck[entry.name]
            why, hint = explain_blocker(blocker)
            return goal_error(entry, self._kind, f"waits for {blocker.name}, which {why}", hint)
        if entry.failed:
            failure = entry.observed.failure or ServerError("has failed before")
            return goal_error(entry, self._kind, failure.message, failure.hint)
        if entry in self.missing:
            return goal_error(entry, self._kind, f"is still {in_words(entry.state)}")
        if self._has_exited_since_creation(entry) and entry.observed.last_exit is not None:
            message = f"ended after it was ready: {entry.observed.last_exit.message}"
            return self._with_last_lines(entry, goal_error(entry, self._kind, message, _logs_command(entry)))
        return None

    def _reached(self, entry: Entry) -> bool:
        if self._kind is PoolStopError:
            return entry.is_fully_stopped
        if self._kind is PoolRestartError and entry.on_schedule:
            return entry.wants_no_worker  # the run has ended
        has_previous = bool(entry.listener.previous_configs or entry.listener.releasing)
        return entry.settled and not (has_previous and self._kind is PoolRestartError)

    def has_failed(self, entry: Entry) -> bool:
        """Return whether an attempt to start or stop the server has failed since this goal was created."""
        if entry.on_schedule and self._kind is not PoolRestartError:
            return False  # the command has not failed if a run fails meanwhile
        return entry.observed.failures > self._failures[entry.name]

    def was_retried(self, entry: Entry) -> bool:
        """Whether a failed start of the server was retried, with success, while the command still waited."""
        return self._kind is PoolStartError and self.has_failed(entry) and entry.is_fully_ready

    def _has_exited_since_creation(self, entry: Entry) -> bool:
        """Return whether a server that should run has ended since this goal was created, and is not ready again."""
        if self._kind is PoolStopError or self._reached(entry) or entry in self.missing:
            return False
        return entry.state in _DOWN and entry.observed.last_exit is not self._exits_before[entry.name]

    def _with_last_lines(self, entry: Entry, failure: ServerError) -> ServerError:
        # Each line once: several workers, and each attempt, print the same.
        printed = dict.fromkeys(self._last_lines.get(entry.name, []))
        lines = [line for line in printed if not is_quoted(line, failure.message)]
        message = "\n    ".join([failure.message, *lines])
        described = ServerError(message, name=entry.name, bind=entry.config.key, hint=failure.hint)
        described.__cause__ = failure.__cause__
        return described

    def is_over(self, entry: Entry) -> bool:
        """Return whether waiting for this server can end: the server has reached the goal, or will not reach it."""
        if entry.desired.queued_start is not None and self._kind is not PoolStopError:
            # A failure of the stop in progress is not a failure of the queued start.
            self._failures[entry.name] = entry.observed.failures
            return False
        if entry.failed and entry.listener.state is not ListenerState.CLOSED:
            return False  # connections must be refused before the failure is reported
        if entry.desired.fallback is entry.config:
            return False  # it has failed, and its previous configuration is being started again
        if entry.failed or entry.completed or self.has_failed(entry):
            return True
        if blocker := self._blocker(entry):
            self._stuck[entry.name] = blocker
            return True
        return self._reached(entry) or self.is_overtaken(entry)

    def _blocker(self, entry: Entry) -> Entry | None:
        if entry.desired.ignore_dependencies or entry.has_worker_of_serving_generation or not entry.wanted:
            return None
        for dependency in self._core.servers.dependencies(entry):
            since = self._failures.get(dependency.name, dependency.observed.failures)
            failed = dependency.observed.failures > since or dependency.name in self._stuck
            is_stuck = dependency.name in self._stuck and not self._core.servers.may_start(entry)
            starts = (dependency.ready and not is_stuck) or dependency.desired.queued_start is not None
            if (failed or dependency.wants_no_worker) and not starts:
                return dependency
        return None


def goal_error(entry: Entry, kind: type[PoolError], message: str, hint: str = "") -> ServerError:
    """The error for a server that missed the goal of a command; `kind` is the command's error class."""
    failure = entry.present_failure
    return ServerError(
        message,
        name=entry.name,
        bind=entry.config.key,
        hint=hint or (failure.message if failure is not None else _logs_command(entry)),
        code=kind.code,
        error=kind.error,
    )


def _logs_command(entry: Entry) -> str:
    return f"poolctl logs {entry.name}"


async def wait_until(
    core: Core,
    entries: Iterable[Entry],
    is_finished: Callable[[Entry], bool],
    timeout_seconds: float | None,
    report: Callable[[Entry], None] = lambda entry: None,
) -> list[Entry]:
    """Wait until `is_finished` is true for each entry, or the timeout. Returns the unfinished entries.

    `report` is called with an entry whenever something about the entry has changed.
    """
    waiting = {entry.name: entry for entry in entries}
    all_finished = asyncio.get_running_loop().create_future()

    def check(changed: Entry) -> None:
        pending = [changed]
        while pending:
            entry = pending.pop()
            if entry.name not in waiting:
                continue
            report(entry)
            if is_finished(entry):
                del waiting[entry.name]
                # Dependents may now be finished as well, although their own state has not changed.
                pending += core.servers.dependents(entry)
        if not waiting and not all_finished.done():
            all_finished.set_result(None)

    for entry in list(waiting.values()):
        check(entry)
    if waiting:
        core.observers.add(check)
        try:
            async with asyncio.timeout(timeout_seconds):
                await all_finished
        except TimeoutError:
            pass
        finally:
            core.observers.discard(check)
    return list(waiting.values())
