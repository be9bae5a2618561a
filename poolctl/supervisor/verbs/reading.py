"""The verbs that change no server: list, show, status, wait, reopen."""

from __future__ import annotations

from collections.abc import Callable

from poolctl.control.answers import ErrorEntry, Result, ShowResult, StatusResult, Summary
from poolctl.control.messages import Document
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.core.desired import Desired
from poolctl.core.rollout import not_arrived, until
from poolctl.core.state import Entry
from poolctl.errors import PoolMonitorError, ServerError
from poolctl.exit_codes import NOT_AS_DESIRED, TIMED_OUT
from poolctl.pool.select import Selector, SelectorError
from poolctl.states import State, Status

from ..daemon import Daemon
from .certificate_expiry import expiring
from .reports import Reports, reporter, unwell
from .selection import Selection

_GOALS = ("ready", "healthy", *(state.value for state in State))


class Reading:
    """Changes nothing."""

    def __init__(self, core: Core, daemon: Daemon) -> None:
        self._core = core
        self._daemon = daemon
        self._selection = Selection(core)
        self._reports = Reports(core)

    async def listing(self, selector: Selector, options: Document, progress: Progress) -> Result:
        """The selected servers as they are."""
        return Result(items=self._selection.items(selector))

    async def show(self, selector: Selector, options: Document, progress: Progress) -> Result:
        """The selected servers with their configuration, its origins, and what happened last."""
        entries = self._selection.of(selector)
        reveal = options.get("reveal") is True
        return ShowResult(items=tuple(self._reports.details(entry, reveal=reveal) for entry in entries))

    async def status(self, selector: Selector, options: Document, progress: Progress) -> Result:
        """Every selected server, and a summary; exit code 3 unless all that should run is ready."""
        entries = self._selection.of(selector)
        should_run = [
            entry
            for entry in entries
            if not (entry.is_disabled or entry.desired in (Desired.STOPPED, Desired.REMOVED))
        ]
        counts: dict[str, int] = {}
        healths: dict[str, int] = {}
        for entry in entries:
            counts[entry.state] = counts.get(entry.state, 0) + 1
            healths[entry.health.value] = healths.get(entry.health.value, 0) + 1
        missing = [entry for entry in should_run if not (entry.ready or entry.asleep)]
        summary = Summary.extending(
            self._daemon.identity(),
            servers=len(entries),
            should_run=len(should_run),
            ready=sum(entry.ready for entry in should_run),
            states=counts,
            health=healths,
        )
        problems = [problem for entry in missing if (problem := self._problem(entry)) is not None]
        now = self._core.clock.time()
        return StatusResult(
            items=self._reports.items(entries),
            errors=tuple(map(ErrorEntry.of, problems)),
            exit_code=NOT_AS_DESIRED if missing else 0,
            warnings=tuple(filter(None, (expiring(entry, now) for entry in entries))),
            summary=summary,
        )

    async def wait(self, selector: Selector, options: Document, progress: Progress) -> Result:
        """Return when each selected server is in the state `for`; exit code 124 after the timeout."""
        entries = self._selection.of(selector)
        goal = str(options.get("for") or "ready")
        if goal not in _GOALS:
            raise SelectorError(f"nothing can be {goal!r}", hint=f"one of: {', '.join(_GOALS)}")
        tests: dict[str, Callable[[Entry], bool]] = {
            "ready": lambda entry: entry.ready,
            "healthy": lambda entry: entry.ready and entry.health is Status.OK,
            "stopped": lambda entry: entry.at_rest and not entry.failed,
        }
        test = tests.get(goal, lambda entry: entry.state == goal)
        if goal in ("ready", "healthy", "running"):
            entries = [entry for entry in entries if not entry.is_disabled]
        late = await until(self._core, entries, test, options.get("timeout"), reporter(progress, options))
        problems = [not_arrived(entry, PoolMonitorError, self._why_not(entry, goal)) for entry in late]
        return Result(
            items=self._selection.items(selector),
            errors=tuple(map(ErrorEntry.of, problems)),
            exit_code=TIMED_OUT if late else 0,
        )

    def _problem(self, entry: Entry) -> ServerError | None:
        complaint = self._core.health.complaint(entry)
        if complaint and entry.state == State.RUNNING:
            return unwell(entry, complaint)
        return entry.failure

    def _why_not(self, entry: Entry, goal: str) -> str:
        complaint = self._core.health.complaint(entry) if entry.state == State.RUNNING else ""
        return f"is {entry.state}, not {goal}{f': {complaint}' if complaint else ''}"

    async def reopen(self, selector: Selector, options: Document, progress: Progress) -> Result:
        """Reopen every log file; the selected servers."""
        items = self._selection.items(selector)
        if (log_files := self._core.runner.capabilities.log_files) is not None:
            await log_files.reopen_logs()
        return Result(items=items)
