"""The verbs that start and end processes: start, stop, restart."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable

from poolctl.config import Configuration, ServerConfig, Tables, changed_by
from poolctl.control.answers import Result
from poolctl.control.messages import Document
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.core.state import Entry
from poolctl.errors import PoolRestartError, PoolStartError, PoolStopError, ServerError
from poolctl.pool.select import Selector
from poolctl.states import Status

from ..active_configuration import ActiveConfiguration
from ..daemon import Daemon
from .certificate_expiry import expired
from .open_file_limit import ensure_open_files, size
from .operation import Operation, with_dependents
from .reports import disabled, drained, unwell
from .selection import Selection

_NAMES_SHOWN = 3


class Lifecycle:
    """Tells the core which servers are wanted."""

    def __init__(self, core: Core, daemon: Daemon, configuration: ActiveConfiguration) -> None:
        self._core = core
        self._daemon = daemon
        self._configuration = configuration
        self._selection = Selection(core)

    async def start(self, selector: Selector, options: Document, progress: Progress) -> Result:
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
        warnings = asyncio.ensure_future(startup_warnings(servers, names, self._configuration.tables))
        result = await operation.conclude(chosen, options, progress)
        sleepless = [
            f"{entry.name}: scale.min = 0 has no effect, because its runner cannot let servers sleep; "
            "set scale.min = 1, or leave `scale` out"
            for entry in all_of_them
            if not (entry.can_sleep or entry.config.scale.min)
        ]
        return result.but(warnings=(*result.warnings, *await warnings, *sleepless))

    async def restart(self, selector: Selector, options: Document, progress: Progress) -> Result:
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
            self._core.registry.revise()  # it is saved for a successor
        for entry in runnable:
            if environment:
                self._configuration.environments[entry.name] = environment
            self._core.restart(entry)
            if options.get("force"):
                self._core.runner.force_certificate(entry.name, entry.generation)
        operation.problems += [disabled(entry) for entry in chosen if entry.is_disabled and selector.targets]
        return await operation.conclude(chosen, options, progress)

    async def stop(self, selector: Selector, options: Document, progress: Progress) -> Result:
        """Stop the selected servers, what depends on them first; without a selection end the supervisor too.

        With the option `idle` only if none of them is wanted or runs.
        """
        chosen = self._selection.of(selector)
        if options.get("idle") and any(entry.wanted or entry.workers for entry in chosen):
            return Result(items=self._selection.items(selector))
        all_of_them = with_dependents(self._core, chosen, progress) if options.get("deps", True) else chosen
        operation = Operation(self._core, PoolStopError, all_of_them, lambda entry: entry.at_rest)
        for entry in all_of_them:
            self._core.stop(entry, kill=bool(options.get("kill")))
        result = await operation.conclude(chosen, options, progress)
        if selector.selects_all and not result.exit_code and options.get("wait", True):
            return result.but(ended=True, keeper_pid=self._daemon.shut_down())
        return result


def _is_unwell(entry: Entry) -> bool:
    """It runs, so that there is nothing to start, but it is not ready."""
    return entry.wanted and entry.complete and entry.health is Status.KO


async def startup_warnings(servers: Iterable[ServerConfig], names: set[str], tables: Tables) -> list[str]:
    """What `poolctl validate` warns of about the servers with these names, and about the pool's tables."""
    there = list(servers)
    chosen = [server for server in there if server.name in names]
    journal = tables.events is not None and tables.events.path
    beside = journal or tables.notify or (tables.dashboard is not None and tables.dashboard.tls)
    pythons = {server.python or sys.executable for server in chosen if _runs_python_as_root(server)}
    if beside or any(map(_may_be_warned_of, chosen)):
        return await asyncio.to_thread(_look, there, names, tables)
    # Most pools have neither, and a check of everything takes time.
    return await asyncio.to_thread(_look_if_changed, pythons, there, names, tables) if pythons else []


def _may_be_warned_of(server: ServerConfig) -> bool:
    named = server.tls or server.depends_on or server.log.path
    return bool(named or server.binds_itself or (server.user and os.geteuid()))


def _runs_python_as_root(server: ServerConfig) -> bool:
    return not (os.geteuid() or server.user or server.command)


def _look_if_changed(
    pythons: set[str], servers: list[ServerConfig], names: set[str], tables: Tables
) -> list[str]:
    return _look(servers, names, tables) if any(changed_by(each, os.environ) for each in pythons) else []


def _look(servers: list[ServerConfig], names: set[str], tables: Tables) -> list[str]:
    config = Configuration(servers, tables=tables)
    config.outside(names=())
    found: dict[str, list[str]] = {}
    for warning in config.warnings:
        if not warning.name or warning.name in names:
            text = str(warning).removeprefix(f"{warning.name}: ")
            found.setdefault(text, []).append(warning.name)
    return [f"{who}: {text}" if (who := _listed(whose)) else text for text, whose in found.items()]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
