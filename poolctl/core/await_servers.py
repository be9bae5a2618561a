"""Waits until each server of a command has reached its goal, or reports why it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from poolctl.errors import PoolError, PoolRestartError, PoolStopError, ServerError
from poolctl.states import State, in_words

from .core import Core
from .decision_input import Listener
from .failures import LAST_LINES, LINES_READ, explaining, is_quoted
from .server_entry import Entry

_DOWN = (State.STARTING, State.BACKOFF, State.STOPPED)


class Goal:
    """The state that a command wants its servers to reach.

    Must be created before the command changes the core, so that later failures count as the command's own. `kind` is
    the error that the command raises: for a PoolStopError the servers are to stop, for any other error they are to run,
    and for a PoolRestartError no earlier process may be left.
    """

    def __init__(self, core: Core, kind: type[PoolError], entries: Iterable[Entry]) -> None:
        self.missing: list[Entry] = []  # which had neither reached it nor failed at the timeout
        self._core = core
        self._kind = kind
        self._entries = list(entries)
        self._failures = {entry.name: entry.observed.failures for entry in self._entries}
        self._exits = {entry.name: entry.observed.last_exit for entry in self._entries}
        # Servers that wait for a server that cannot become ready, mapped to that server.
        self._stuck: dict[str, Entry] = {}
        self._last_lines: dict[str, list[str]] = {}  # of the servers that have failed

    async def wait(
        self, timeout_seconds: float | None, report: Callable[[Entry], None] = lambda entry: None
    ) -> None:
        """Wait until every server has reached its goal or failed, or the timeout has passed.

        `report` is called after each change of a server.
        """
        self.missing = await until(self._core, self._entries, self.is_over, timeout_seconds, report)
        failed = [entry for entry in self._entries if self.has_failed(entry) or self._has_ended(entry)]
        found = await asyncio.gather(
            *(self._core.last_lines(entry, LINES_READ, entry.observed.failed_since) for entry in failed)
        )
        self._last_lines = {
            entry.name: explaining(lines)[-LAST_LINES:] for entry, lines in zip(failed, found, strict=True)
        }

    def is_overtaken(self, entry: Entry) -> bool:
        """Whether another command has since ordered the opposite."""
        return entry.wanted is (self._kind is PoolStopError) and entry.desired.queued_start is None

    def problem(self, entry: Entry) -> ServerError | None:
        """The reason why the server has not reached its goal, with its last output; None if it has."""
        if self.has_failed(entry) and entry.observed.failure is not None:
            return self._with_last_lines(entry, entry.observed.failure)
        if self._reached(entry):
            return None
        if self.is_overtaken(entry):
            opposite = "started" if self._kind is PoolStopError else "stopped"
            reason = self._core.reason or f"was {opposite} by another command meanwhile"
            return not_arrived(entry, self._kind, reason)
        if entry.name in self._stuck:
            blocker = self._stuck[entry.name]
            why, hint = _explain_blocker(blocker)
            return not_arrived(entry, self._kind, f"waits for {blocker.name}, which {why}", hint)
        if entry.failed:
            failure = entry.observed.failure or ServerError("has failed before")
            return not_arrived(entry, self._kind, failure.message, failure.hint)
        if entry in self.missing:
            return not_arrived(entry, self._kind, f"is still {in_words(entry.state)}")
        if self._has_ended(entry) and entry.observed.last_exit is not None:
            message = f"ended after it was ready: {entry.observed.last_exit.message}"
            return self._with_last_lines(entry, not_arrived(entry, self._kind, message, _logs_command(entry)))
        return None

    def _reached(self, entry: Entry) -> bool:
        if self._kind is PoolStopError:
            return entry.at_rest
        if self._kind is PoolRestartError and entry.on_schedule:
            return entry.rests  # the run has ended
        moved = self._kind is not PoolRestartError or not (entry.listener.former or entry.listener.releasing)
        return entry.settled and moved

    def has_failed(self, entry: Entry) -> bool:
        """Whether an attempt to start or stop the server has failed since the command began."""
        if entry.on_schedule and self._kind is not PoolRestartError:
            return False  # a run that fails meanwhile is no failure of the command
        return entry.observed.failures > self._failures[entry.name]

    def _has_ended(self, entry: Entry) -> bool:
        """Whether the server became ready and has ended since, even if it is started again."""
        if self._kind is PoolStopError or self._reached(entry) or entry in self.missing:
            return False
        return entry.state in _DOWN and entry.observed.last_exit is not self._exits[entry.name]

    def _with_last_lines(self, entry: Entry, failure: ServerError) -> ServerError:
        lines = self._last_lines.get(entry.name, [])
        lines = [line for line in lines if not is_quoted(line, failure.message)]
        message = "\n    ".join([failure.message, *lines])
        described = ServerError(message, name=entry.name, bind=entry.config.key, hint=failure.hint)
        described.__cause__ = failure.__cause__
        return described

    def is_over(self, entry: Entry) -> bool:
        """Whether the command can stop waiting for this server."""
        if entry.desired.queued_start is not None and self._kind is not PoolStopError:
            # If the stop under way fails, this start has not failed.
            self._failures[entry.name] = entry.observed.failures
            return False
        if entry.failed and entry.listener.state is not Listener.CLOSED:
            return False  # once the failure is reported, connections must be refused
        over = entry.failed or entry.completed
        return over or self._failed(entry) or self._reached(entry) or self.is_overtaken(entry)

    def _failed(self, entry: Entry) -> bool:
        if self.has_failed(entry):
            return True
        blocker = self._blocker(entry)
        if blocker is not None:
            self._stuck[entry.name] = blocker
        return blocker is not None

    def _blocker(self, entry: Entry) -> Entry | None:
        """The failed or stuck dependency that prevents the entry from starting, if any."""
        if entry.desired.ignore_dependencies or entry.begun or not entry.wanted:
            return None
        for dependency in self._core.servers.dependencies(entry):
            since = self._failures.get(dependency.name, dependency.observed.failures)
            idle = dependency.rests or dependency.observed.failures > since or dependency.name in self._stuck
            if idle and not dependency.ready and dependency.desired.queued_start is None:
                return dependency
        return None


def not_arrived(entry: Entry, kind: type[PoolError], message: str, hint: str = "") -> ServerError:
    """The error for a server that has not reached the goal of a command of this kind."""
    return ServerError(
        message,
        name=entry.name,
        bind=entry.config.key,
        hint=hint or (entry.observed.failure.message if entry.observed.failure else _logs_command(entry)),
        code=kind.code,
        error=kind.error,
    )


def _logs_command(entry: Entry) -> str:
    return f"poolctl logs {entry.name}"


def _explain_blocker(blocker: Entry) -> tuple[str, str]:
    """The reason why this dependency does not become ready, and a hint."""
    if blocker.is_disabled:
        return "is disabled", f"poolctl enable {blocker.name}"
    if blocker.completed:
        return "has ended", f"poolctl start {blocker.name}"
    if blocker.rests and not blocker.failed:
        return "is stopped", f"poolctl start {blocker.name}"
    return "did not become ready", f"poolctl logs {blocker.name}"


async def until(
    core: Core,
    entries: Iterable[Entry],
    finished: Callable[[Entry], bool],
    timeout_seconds: float | None,
    report: Callable[[Entry], None],
) -> list[Entry]:
    """Wait until `finished` is true for each entry, or the timeout. Returns the entries for which it is not.

    `report` gets an entry whenever something about it has changed. One callback serves all of them.
    """
    waiting = {entry.name: entry for entry in entries}
    everything = asyncio.get_running_loop().create_future()

    def look(changed: Entry) -> None:
        ahead = [changed]
        while ahead:
            entry = ahead.pop()
            if entry.name not in waiting:
                continue
            report(entry)
            if finished(entry):
                del waiting[entry.name]
                # Its dependents may be finished by this, although nothing about them has changed.
                ahead += core.servers.dependents(entry)
        if not waiting and not everything.done():
            everything.set_result(None)

    for entry in list(waiting.values()):
        look(entry)
    if waiting:
        core.listeners.add(look)
        try:
            async with asyncio.timeout(timeout_seconds):
                await everything
        except TimeoutError:
            pass
        finally:
            core.listeners.discard(look)
    return list(waiting.values())
