"""The verbs that start and end processes: start, stop, restart."""

from __future__ import annotations

import asyncio

from poolctl.control.answers import Result
from poolctl.core.state import Entry
from poolctl.errors import PoolRestartError, PoolStartError, PoolStopError, ServerError
from poolctl.states import Status

from .reports import disabled, drained, items, unwell
from .start_checks import ensure_open_files, expired, size, startup_warnings
from .verb import Call, Operation, Verb, VerbContext, selected, with_dependents


class Lifecycle:
    """Tells the core which servers are wanted."""

    def __init__(self, context: VerbContext) -> None:
        self._context = context
        self._core = context.core

    async def start(self, call: Call) -> Result:
        """Start the selected servers and what they depend on; return when each is ready or has failed."""
        chosen = selected(self._core, call.selector)
        runnable = [entry for entry in chosen if not entry.is_disabled]
        deps = call.options.get("deps", True)
        graph = self._core.servers
        needed = graph.closure(runnable, graph.dependencies) if deps else runnable
        all_of_them = [entry for entry in needed if not entry.is_disabled]
        ensure_open_files(self._core, ((entry.config, size(entry)) for entry in all_of_them))
        operation = Operation(self._core, PoolStartError, all_of_them)
        for entry in all_of_them:
            if not (entry.wanted and entry.ready):
                self._core.start(entry, ignore_dependencies=not deps)
        if call.selector.targets:
            operation.problems += [disabled(entry) for entry in chosen if entry.is_disabled]
            operation.problems += [drained(entry) for entry in chosen if entry.out]
        complaint = self._core.health.complaint
        operation.problems += [unwell(entry, complaint(entry)) for entry in chosen if _is_unwell(entry)]
        servers = [entry.config for entry in self._core.entries.values()]
        names = {entry.name for entry in all_of_them}
        warnings = asyncio.ensure_future(startup_warnings(servers, names, self._context.configuration.tables))
        result = await operation.conclude(chosen, call)
        sleepless = [
            f"{entry.name}: scale.min = 0 has no effect, because its runner cannot let servers sleep; "
            "set scale.min = 1, or leave `scale` out"
            for entry in all_of_them
            if not (entry.can_sleep or entry.config.scale.min)
        ]
        return result.but(warnings=(*result.warnings, *await warnings, *sleepless))

    async def restart(self, call: Call) -> Result:
        """Replace the selected servers, each when its replacement has answered; start those that do not run."""
        chosen = selected(self._core, call.selector)
        runnable = [entry for entry in chosen if not entry.is_disabled]
        refused: list[ServerError] = []
        if not call.options.get("force") and any(entry.certificate_ends is not None for entry in runnable):
            now = self._core.clock.time()
            found = [await asyncio.to_thread(expired, entry, entry.config, now) for entry in runnable]
            refused = [problem for problem in found if problem is not None]
            names = {problem.name for problem in refused}
            runnable = [entry for entry in runnable if entry.name not in names]
        ensure_open_files(self._core, ((entry.config, size(entry)) for entry in runnable))
        operation = Operation(self._core, PoolRestartError, runnable)
        operation.problems += refused
        environment = call.options.get("env")
        if environment:
            self._core.servers.revise()  # it is saved for a successor
        for entry in runnable:
            if environment:
                self._context.configuration.environments[entry.name] = environment
            self._core.restart(entry)
            if call.options.get("force"):
                self._core.runner.force_certificate(entry.name, entry.generation)
        operation.problems += [
            disabled(entry) for entry in chosen if entry.is_disabled and call.selector.targets
        ]
        return await operation.conclude(chosen, call)

    async def stop(self, call: Call) -> Result:
        """Stop the selected servers, what depends on them first; without a selection end the supervisor too.

        With the option `idle` only if none of them is wanted or runs.
        """
        chosen = selected(self._core, call.selector)
        if call.options.get("idle") and any(entry.wanted or entry.workers for entry in chosen):
            return Result(items=items(self._core, chosen))
        all_of_them = (
            with_dependents(self._core, chosen, call.progress) if call.options.get("deps", True) else chosen
        )
        operation = Operation(self._core, PoolStopError, all_of_them)
        for entry in all_of_them:
            self._core.stop(entry, kill=bool(call.options.get("kill")))
        result = await operation.conclude(chosen, call)
        if call.selector.selects_all and not result.exit_code and call.options.get("wait", True):
            return result.but(ended=True, keeper_pid=self._context.daemon.shut_down())
        return result


def _is_unwell(entry: Entry) -> bool:
    """It runs, so that there is nothing to start, but it is not ready."""
    return entry.wanted and entry.complete and entry.health is Status.KO


def verbs(context: VerbContext) -> dict[str, Verb]:
    """The verbs of this file."""
    lifecycle = Lifecycle(context)
    return {"start": lifecycle.start, "stop": lifecycle.stop, "restart": lifecycle.restart}
