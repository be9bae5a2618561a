"""The verbs that start and end processes: start, stop, restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from poolctl.control.messages import Document, result
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.core.state import Entry
from poolctl.errors import PoolRestartError, PoolStartError, PoolStopError, ServerError
from poolctl.pool.select import Selector
from poolctl.states import Status

from ..active_configuration import ActiveConfiguration
from .advice import advice
from .certificate_expiry import expired
from .open_file_limit import ensure_open_files, size
from .operation import Operation
from .reports import disabled, drained, unwell
from .selection import Selection


class Lifecycle:
    """`shut_down` ends the supervisor."""

    def __init__(self, core: Core, shut_down: Callable[[], int], configuration: ActiveConfiguration) -> None:
        self._core = core
        self._shut_down = shut_down
        self._configuration = configuration
        self._selection = Selection(core)

    async def start(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """Start the selected servers and what they depend on; return when each is ready or has failed."""
        chosen = self._selection.of(selector)
        runnable = [entry for entry in chosen if not entry.is_disabled]
        deps = options.get("deps", True)
        graph = self._core.graph
        needed = graph.closure(runnable, graph.dependencies) if deps else runnable
        all_of_them = [entry for entry in needed if not entry.is_disabled]
        ensure_open_files(self._core, ((entry.config, size(entry)) for entry in all_of_them))
        operation = Operation(self._core, PoolStartError, all_of_them, lambda entry: entry.settled)
        for entry in all_of_them:
            if not (entry.wanted and entry.ready):
                self._core.start(entry, ignore_dependencies=not deps)
        if selector.targets:
            operation.problems += [disabled(entry) for entry in chosen if entry.is_disabled]
            operation.problems += [drained(entry) for entry in chosen if entry.out]
        complaint = self._core.health.complaint
        operation.problems += [unwell(entry, complaint(entry)) for entry in chosen if _is_unwell(entry)]
        servers = [entry.config for entry in self._core.entries.values()]
        names = {entry.name for entry in all_of_them}
        warnings = asyncio.ensure_future(advice(servers, names, self._configuration.tables))
        document = await operation.conclude(chosen, options, progress)
        document["warnings"] += await warnings
        return document

    async def restart(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """Replace the selected servers, each when its replacement has answered; start those that do not run."""
        chosen = self._selection.of(selector)
        runnable = [entry for entry in chosen if not entry.is_disabled]
        refused: list[ServerError] = []
        if not options.get("force") and any(entry.certificate_ends is not None for entry in runnable):
            now = self._core.clock.time()
            found = [await asyncio.to_thread(expired, entry, entry.config, now) for entry in runnable]
            refused = [problem for problem in found if problem is not None]
            names = {problem.name for problem in refused}
            runnable = [entry for entry in runnable if entry.name not in names]
        ensure_open_files(self._core, ((entry.config, size(entry)) for entry in runnable))
        operation = Operation(self._core, PoolRestartError, runnable, lambda entry: entry.settled)
        operation.problems += refused
        environment = options.get("env")
        if environment:
            self._core.registry.revise()  # a successor has to know of it
        for entry in runnable:
            if environment:
                self._configuration.environments[entry.name] = environment
            self._core.restart(entry)
            if options.get("force"):
                self._core.runner.force_certificate(entry.name, entry.generation)
        operation.problems += [disabled(entry) for entry in chosen if entry.is_disabled and selector.targets]
        return await operation.conclude(chosen, options, progress)

    async def stop(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """Stop the selected servers, what depends on them first; without a selection end the supervisor too.

        With the option `idle` only if nobody wants any of them.
        """
        chosen = self._selection.of(selector)
        if options.get("idle") and any(entry.wanted or entry.workers for entry in chosen):
            return result(self._selection.items(selector))
        all_of_them = self.with_dependents(chosen, progress) if options.get("deps", True) else chosen
        operation = Operation(self._core, PoolStopError, all_of_them, lambda entry: entry.at_rest)
        for entry in all_of_them:
            self._core.stop(entry, kill=bool(options.get("kill")))
        document = await operation.conclude(chosen, options, progress)
        if selector.selects_all and document["exit_code"] == 0 and options.get("wait", True):
            document["ended"] = True
            document["keeper_pid"] = self._shut_down()
        return document

    def with_dependents(self, chosen: list[Entry], progress: Progress) -> list[Entry]:
        """The entries and all that depend on them; says which those are."""
        graph = self._core.graph
        all_of_them = graph.closure(chosen, graph.dependents)
        names = {entry.name for entry in chosen}
        for entry in all_of_them:
            if entry.name not in names and entry.wanted:
                on = ", ".join(each.name for each in graph.dependencies(entry) if each in all_of_them)
                progress({"warning": f"stopping {entry.name} as well, which depends on {on}"})
        return all_of_them


def _is_unwell(entry: Entry) -> bool:
    """It runs, so that there is nothing to start, and is not ready all the same."""
    return entry.wanted and entry.complete and entry.health is Status.KO
