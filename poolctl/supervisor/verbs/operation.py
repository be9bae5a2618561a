"""A lifecycle command under way: what each of its servers has to reach, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from poolctl.control.messages import Document, result
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.core.state import Entry
from poolctl.core.view import Listener
from poolctl.errors import PoolError, PoolStopError, ServerError
from poolctl.exit_codes import FAILED, TIMED_OUT

from .reports import Reports, as_kind, late, reporter


class Operation:
    """Made before the core is told what is wanted, so that failures since then are the command's own.

    `problems` takes what is wrong from the beginning.
    """

    def __init__(
        self,
        core: Core,
        kind: type[PoolError],
        entries: Iterable[Entry],
        reached: Callable[[Entry], bool],
    ) -> None:
        self.problems: list[ServerError] = []
        self._core = core
        self._kind = kind
        self._entries = list(entries)
        self._reached = reached
        self._failures = {entry.name: entry.failures for entry in self._entries}
        # Who waits for whom in vain; noted in this order: first who failed, then who waits for those.
        self._stuck: dict[str, Entry] = {}
        for entry in self._entries:
            core.clear_warnings(entry)

    async def conclude(self, chosen: list[Entry], options: Document, progress: Progress) -> Document:
        """Wait until each has reached its end or failed since; the result with every failure."""
        return self.result(chosen, await self.settle(options, progress))

    def result(self, chosen: list[Entry], code: int) -> Document:
        """What came of it, with every failure; `code` is that of `settle`."""
        items = Reports(self._core).items(chosen)
        return result(items, self.errors, exit_code=code, warnings=self.warnings)

    async def settle(self, options: Document, progress: Progress) -> int:
        """Wait until each has reached its end or failed since; the exit code."""
        if not options.get("wait", True):
            return 0
        reports = Reports(self._core)
        timeout = options.get("timeout")
        missing = await until(self._core, self._entries, self._settled, timeout, reporter(progress, options))
        found = [self._problem(reports, entry, missing) for entry in self._entries]
        self.problems += [problem for problem in found if problem is not None]
        return TIMED_OUT if missing else FAILED if self.problems else 0

    @property
    def errors(self) -> list[Document]:
        """What has failed, with the code of the command."""
        return [as_kind(self._kind, problem) for problem in self.problems]

    @property
    def warnings(self) -> list[str]:
        """What happened to the servers on the way."""
        return [warning for entry in self._entries for warning in entry.warnings]

    def _settled(self, entry: Entry) -> bool:
        if entry.failed and entry.listener is not Listener.CLOSED:
            return False  # whoever is told that it has failed is to be refused there
        over = entry.failed or entry.completed
        return over or self._failed(entry) or self._reached(entry) or self._overtaken(entry)

    def _failed(self, entry: Entry) -> bool:
        if entry.failures > self._failures[entry.name]:
            return True
        blocker = self._blocker(entry)
        if blocker is not None:
            self._stuck[entry.name] = blocker
        return blocker is not None

    def _overtaken(self, entry: Entry) -> bool:
        """Another command wants the opposite meanwhile."""
        return entry.wanted is (self._kind is PoolStopError)

    def _blocker(self, entry: Entry) -> Entry | None:
        """A dependency that has failed since, or is stuck itself, and without which the entry cannot start."""
        begun = any(worker.generation == entry.generation for worker in entry.workers.values())
        if entry.ignore_dependencies or begun or not entry.wanted:
            return None
        for dependency in self._core.graph.dependencies(entry):
            since = self._failures.get(dependency.name, dependency.failures)
            idle = dependency.rests or dependency.failures > since or dependency.name in self._stuck
            if idle and not dependency.ready:
                return dependency
        return None

    def _problem(self, reports: Reports, entry: Entry, missing: list[Entry]) -> ServerError | None:
        """Why the entry has not reached what it should; None when it has."""
        if entry.failures > self._failures[entry.name] and entry.failure is not None:
            return reports.with_last_lines(entry, entry.failure)
        if self._reached(entry):
            return None
        if self._overtaken(entry):
            opposite = "started" if self._kind is PoolStopError else "stopped"
            reason = self._core.reason or f"was {opposite} by another command meanwhile"
            return late(entry, self._kind, reason)
        if entry.name in self._stuck:
            blocker = self._stuck[entry.name]
            return late(entry, self._kind, f"waits for {blocker.name}, which {_why(blocker)}")
        if entry.failed:
            return late(entry, self._kind, "has failed before")
        return late(entry, self._kind, f"is still {entry.state}") if entry in missing else None


def _why(blocker: Entry) -> str:
    """What it is that keeps others waiting in vain."""
    if blocker.is_disabled:
        return "is disabled"
    return "has ended" if blocker.completed else "did not become ready"


async def until(
    core: Core,
    entries: Iterable[Entry],
    finished: Callable[[Entry], bool],
    timeout_seconds: float | None,
    report: Callable[[Entry], None],
) -> list[Entry]:
    """Return when `finished` has been true of each entry, or the time is over; the entries still missing.

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
                ahead += core.graph.dependents(entry)
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
