"""A lifecycle command under way, and its outcome for each server."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from poolctl.control.answers import ErrorEntry, ProgressLine, Result
from poolctl.control.messages import Document
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.core.rollout import Rollout
from poolctl.core.state import Entry
from poolctl.errors import PoolError, ServerError
from poolctl.exit_codes import FAILED, TIMED_OUT

from .reports import Reports, as_kind, reporter


class Operation(Rollout):
    """A rollout whose outcome is an answer to a client. `problems` may hold problems found before it began."""

    def __init__(
        self,
        core: Core,
        kind: type[PoolError],
        entries: Iterable[Entry],
        reached: Callable[[Entry], bool],
    ) -> None:
        super().__init__(core, kind, entries, reached)
        self.problems: list[ServerError] = []
        for entry in self._entries:
            core.clear_warnings(entry)

    async def conclude(self, chosen: list[Entry], options: Document, progress: Progress) -> Result:
        """Wait until each has reached its goal or failed; the result with every failure."""
        return self.result(chosen, await self.settle(options, progress))

    def result(self, chosen: list[Entry], code: int) -> Result:
        """The result, with every failure; `code` is that of `settle`."""
        items = Reports(self._core).items(chosen)
        return Result(items=items, errors=tuple(self.errors), exit_code=code, warnings=tuple(self.warnings))

    async def settle(self, options: Document, progress: Progress) -> int:
        """Wait until each has reached its goal or failed; the exit code."""
        if not options.get("wait", True):
            return 0
        await self.wait(options.get("timeout"), reporter(progress, options))
        found = (self.problem(entry) for entry in self._entries)
        self.problems += [problem for problem in found if problem is not None]
        return TIMED_OUT if self.missing else FAILED if self.problems else 0

    @property
    def errors(self) -> list[ErrorEntry]:
        """Every failure, with the code of the command."""
        return [as_kind(self._kind, problem) for problem in self.problems]

    @property
    def warnings(self) -> list[str]:
        """The warnings about the servers since it began."""
        return [warning for entry in self._entries for warning in entry.warnings]


def with_dependents(core: Core, chosen: list[Entry], progress: Progress) -> list[Entry]:
    """The entries and all that depend on them; the client is warned of those that it did not select."""
    graph = core.graph
    all_of_them = graph.closure(chosen, graph.dependents)
    names = {entry.name for entry in chosen}
    for entry in all_of_them:
        if entry.name not in names and entry.wanted:
            on = ", ".join(each.name for each in graph.dependencies(entry) if each in all_of_them)
            progress(ProgressLine(warning=f"stopping {entry.name} as well, which depends on {on}"))
    return all_of_them
