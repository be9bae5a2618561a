"""The verb `reload`: applies the files, and changes only servers whose configuration differs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from signal import Signals
from typing import NamedTuple

from poolctl.config import Section, ServerConfig, Table
from poolctl.control.answers import (
    ErrorEntry,
    Item,
    PlannedChange,
    ReloadResult,
    failure,
    item_from_config,
)
from poolctl.core.configuration_diff import (
    Change,
    CurrentServer,
    Kind,
    changes_certificates,
    changes_socket_access,
    key_list_text,
    planned_changes,
    read_digests_by_key,
)
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.core.server_state import Cause, Desired
from poolctl.core.workqueue import CURRENT_CAUSE
from poolctl.errors import PoolRestartError, PoolStopError, PoolValidateError, ServerError
from poolctl.exit_codes import FAILED, INVALID_CONFIGURATION, NOT_AS_DESIRED, TIMED_OUT
from poolctl.runners.withheld_variables import withheld_variables
from poolctl.selection.selector import select

from ..configuration_reader import Reading
from .open_file_limit import check_pool_file_limit
from .verb import (
    Call,
    Operation,
    VerbContext,
    error_of_kind,
    handled_signals,
    items,
    send_signal,
    server_problem,
    workers_to_signal,
)

# The name of the pool itself in the plan; no server can have it.
POOL = "[pool]"

AnyTable = Table | tuple[Table, ...] | None


class PlannedReload(NamedTuple):
    """The content of the files, and the changes that a reload would make: none if the files have `problems`."""

    reading: Reading
    changes: list[Change]
    problems: list[ErrorEntry]

    @property
    def counts(self) -> tuple[int, int, int]:
        """The numbers of servers and tables that are added, removed and changed.

        A reload also undoes changes that commands have made; servers that differ only in this are not counted.
        """
        kinds = ((Kind.ADD,), (Kind.REMOVE,), (Kind.RESTART, Kind.UPDATE))
        added, removed, changed = (
            len({change.name for change in self.changes if change.kind in kind}) for kind in kinds
        )
        return added, removed, changed

    @property
    def is_empty(self) -> bool:
        """Whether the files have neither problems nor changes, except of live changes."""
        return not (any(self.counts) or self.problems)


class Reload:
    """Runs reloads one at a time: a second one reads the files after the first has applied them."""

    def __init__(self, context: VerbContext) -> None:
        self._core = context.core
        self._runner = context.runner
        self._events = context.events
        self._configuration = context.configuration

    async def reload(self, call: Call) -> ReloadResult:
        """Apply the changes in the files or, with `dry_run`, only list them. Files with problems are refused.

        With a selection, only its servers are reloaded; its unchanged servers get their `reload_signal`.
        """
        async with self._configuration.turn:
            reading = await self._configuration.read(call.options.get("env"), keep=self._core.entries)
            names = self._selected_names(call, reading)
            changes, problems = await self._plan(reading, names)
            if problems:
                return ReloadResult(
                    items=self._all_items(), errors=tuple(problems), exit_code=INVALID_CONFIGURATION
                )
            servers, signals = reading.servers, list[Change]()
            if names is None:
                plan = [*self._changes_outside_servers(reading), *changes]
            else:
                servers, signals = self._limited(reading.servers, names), self._signals(names, changes)
                plan = [*changes, *signals]
            if call.options.get("dry_run"):
                return ReloadResult(
                    items=self._all_items(),
                    exit_code=NOT_AS_DESIRED if plan else 0,
                    warnings=tuple(reading.remarks),
                    changes=_plan_lines(plan),
                )
            check_pool_file_limit(self._core, servers)
            applied = _ReloadRun(self._core, changes, servers, names)
            applied.apply_to_core(proves=call.options.get("check", True))
            self._record(plan)
            previous = self._configuration.marks
            exposed = self._activate(reading, call.options.get("env"), applied, names)
            unhandled = await self._send_signals(signals)
            unapplied = await applied.apply_to_running_servers()
        code, errors, warnings = await applied.wait_for_changes(call)
        if names is not None and not await self._all_changes(reading):
            self._configuration.marks = reading.marks
            self._core.servers.note_revision()
        elif names is None and errors and await self._server_changes(reading):
            # A server whose new process has failed keeps its old configuration, so the files still differ.
            self._configuration.marks = previous
            self._core.servers.note_revision()
        errors += [*unapplied, *unhandled]
        warnings += [*self._exposed_variable_warnings(exposed, applied.replaced), *reading.remarks]
        return ReloadResult(
            items=self._all_items(),
            errors=tuple(errors),
            exit_code=code or (FAILED if errors else 0),
            warnings=tuple(warnings),
            changes=_plan_lines(plan),
        )

    def _selected_names(self, call: Call, reading: Reading) -> set[str] | None:
        """The names of the selected servers, in the pool or in the files. Raises NothingMatched.

        None if the reload is about the whole pool, or the files have problems.
        """
        if call.selector.selects_all or self._configuration_errors(reading):
            return None
        candidates = [*self._all_items(), *new_items(reading, self._core)]
        return {item.name for item in select(candidates, call.selector)}

    def _limited(self, servers: Iterable[ServerConfig], names: Collection[str]) -> list[ServerConfig]:
        """The servers called `names` as in the files, and all others as they are in the pool."""
        entries = self._core.entries
        written = {server.name for server in servers}
        return [
            server if server.name in names else entries[server.name].config
            for server in servers
            if server.name in names or server.name in entries
        ] + [entry.config for name, entry in entries.items() if name not in written and name not in names]

    def _signals(self, names: Collection[str], changes: Iterable[Change]) -> list[Change]:
        """The reload signals for the running servers in `names` that have no changes."""
        unchanged = {*names} - {change.name for change in changes}
        return [
            Change(Kind.SIGNAL, entry.name, entry.config.key, (), entry.config.reload_signal)
            for entry in self._core.entries.values()
            if entry.name in unchanged and entry.config.reload_signal and workers_to_signal(entry)
        ]

    async def _send_signals(self, signals: Iterable[Change]) -> list[ErrorEntry]:
        """Send each server its signal; returns an error for each server that the signal would end."""
        errors = []
        for entry in [self._core.entries[signal.name] for signal in signals]:
            name = str(entry.config.reload_signal)
            workers, number = workers_to_signal(entry), Signals[name]
            if all(number in handled_signals(worker) for worker in workers):
                for worker in workers:
                    await send_signal(self._core, self._runner, worker, number)
            else:
                message = f"does not handle {name}, its reload_signal, which would end it"
                hint = "have the program handle it, or remove reload_signal"
                errors.append(error_of_kind(PoolRestartError, server_problem(entry, message, hint)))
        return errors

    async def _all_changes(self, reading: Reading) -> list[Change]:
        """The changes that a reload of these files would make now."""
        return [*self._changes_outside_servers(reading), *await self._server_changes(reading)]

    async def apply_to_servers_at_rest(self, call: Call, working: Collection[str]) -> PlannedReload | None:
        """Apply the files if they change none of the `working` servers; returns the changes, or None if they do.

        Files with problems are not applied; nor, while a server works, files that add or remove servers, or change
        tables of the pool. New servers are not started.
        """
        async with self._configuration.turn:
            reading = await self._configuration.read(keep=self._core.entries)
            plan = await self._difference(reading)
            at_rest = self._core.entries.keys() - {*working} & {server.name for server in reading.servers}
            if working and (plan.problems or not {change.name for change in plan.changes} <= at_rest):
                return None
            if plan.problems:
                return plan
            of_servers = [change for change in plan.changes if not change.name.startswith("[")]
            applied = _ReloadRun(self._core, of_servers, reading.servers)
            applied.apply_to_core(starts=False)
            self._record(plan.changes)
            self._activate(reading, None, applied)
        await applied.forget_removed_when_stopped(call)
        return plan

    async def difference(self) -> PlannedReload:
        """Return the changes that a reload would make, without checking the users and programs that servers name."""
        async with self._configuration.turn:
            reading = await self._configuration.read(keep=self._core.entries)
            return await self._difference(reading)

    async def _difference(self, reading: Reading) -> PlannedReload:
        if problems := self._configuration_errors(reading):
            return PlannedReload(reading, [], problems)
        return PlannedReload(reading, await self._all_changes(reading), [])

    def _configuration_errors(self, reading: Reading) -> list[ErrorEntry]:
        if reading.is_empty and self._core.entries and not reading.problems:
            hint = "poolctl stop ends the pool"
            return [failure(PoolValidateError, "there is no server in the files", hint)]
        return reading.problems

    async def _server_changes(self, reading: Reading) -> list[Change]:
        files = await asyncio.to_thread(
            lambda: {server.name: read_digests_by_key(server) for server in reading.servers}
        )
        running = [
            CurrentServer(entry.config, entry.desired.overrides, entry.added, entry.observed.files)
            for entry in self._core.entries.values()
        ]
        return planned_changes(running, reading.servers, files, self._configuration.missing)

    async def _plan(
        self, reading: Reading, names: Collection[str] | None
    ) -> tuple[list[Change], list[ErrorEntry]]:
        """The changes that a reload of the servers `names` makes, None: all; and the problems that prevent it."""
        if problems := self._configuration_errors(reading):
            return [], problems
        changes = await self._server_changes(reading)
        changes = [change for change in changes if names is None or change.name in names]
        return changes, await self._configuration.check_external(reading, {change.name for change in changes})

    def _activate(
        self,
        reading: Reading,
        environment: Mapping[str, str] | None,
        applied: _ReloadRun,
        names: Collection[str] | None = None,
    ) -> list[str]:
        """Activate `reading`; returns the environment variables that new workers no longer get.

        If the reload is limited to the servers called `names`, the rest of the files stays as it was.
        """
        before = withheld_variables()
        if names is None:
            self._configuration.activate(reading, environment)
        else:
            self._configuration.missing.difference_update(names)
        if environment:
            for name in applied.replaced:
                self._configuration.environments[name] = environment
        return [name for name in withheld_variables() if name not in before]

    def _record(self, changes: Iterable[Change]) -> None:
        who = CURRENT_CAUSE.get() or Cause("reload")
        for change in changes:
            bind = {"bind": change.bind} if change.bind else {}
            self._events.record(
                "config",
                change.kind.value,
                server="" if change.name.startswith("[") else change.name,
                message=change.message,
                cause=who.cause,
                by=who.by,
                keys=list(change.keys),
                **bind,
            )

    def _changes_outside_servers(self, reading: Reading) -> Iterable[Change]:
        if reading.name != self._configuration.name:
            message = f"the pool's name: {self._configuration.name} → {reading.name}"
            yield Change(Kind.UPDATE, POOL, "", ("pool.name",), message)
        before, after = self._configuration.tables.by_name(), reading.tables.by_name()
        for name in before | after:
            if before.get(name) != after.get(name):
                keys = changed_keys(name, before.get(name), after.get(name))
                yield Change(Kind.UPDATE, f"[{name}]", "", keys, f"[{name}]: {key_list_text(keys)}")

    def _exposed_variable_warnings(
        self, variables: Iterable[str], replaced: Collection[str]
    ) -> Iterable[str]:
        """Warnings about running servers that still have these environment variables, except servers in `replaced`."""
        names = [
            entry.name
            for entry in self._core.entries.values()
            if entry.observed.workers and entry.name not in replaced
        ]
        if names:
            for variable in variables:
                yield f"{variable} is still in the environment of {', '.join(names)}; poolctl restart removes it"

    def _all_items(self) -> tuple[Item, ...]:
        return items(self._core, self._core.entries.values())


class _ReloadRun:
    def __init__(
        self,
        core: Core,
        changes: Iterable[Change],
        servers: Iterable[ServerConfig],
        names: Collection[str] | None = None,
    ) -> None:
        """Only the servers called `names` are changed; None: all."""
        self._names = names
        self._core = core
        self._servers = {server.name: server for server in servers}
        self._kinds: dict[str, set[Kind]] = {}
        self._keys: dict[str, set[str]] = {}
        for change in changes:
            self._kinds.setdefault(change.name, set()).add(change.kind)
            self._keys.setdefault(change.name, set()).update(change.keys)

    @property
    def replaced(self) -> list[str]:
        """The names of the servers whose processes the reload replaces."""
        started = {Kind.ADD, Kind.RESTART}
        return [name for name, kinds in self._kinds.items() if kinds & started and name in self._servers]

    def apply_to_core(self, *, starts: bool = True, proves: bool = False) -> None:
        """Make all changes in the core at once.

        Without `starts`, new servers are not started. `proves`: see `Core.restart`.
        """
        core = self._core
        gone = [entry for name, entry in core.entries.items() if name not in self._servers]
        for entry in gone:
            core.schedule_removal(entry)
        coming = [self._add_or_change_server(server, starts, proves) for server in self._servers.values()]
        core.servers.sort(self._servers)
        for entry in coming if starts else ():
            if entry.on_schedule or not entry.wants_no_worker:
                core.start_dependencies_on_demand(entry)  # servers that are new or newly depended on
        awaited = [
            entry
            for entry in coming
            if entry.name in self._kinds
            and not (entry.wants_no_worker or entry.is_disabled or entry.on_schedule)
        ]
        self._starting = Operation(core, PoolRestartError, awaited)
        stopping = [entry for entry in coming if entry.is_disabled and not entry.is_fully_stopped]
        self._stopping = Operation(core, PoolStopError, [*gone, *stopping])

    def _add_or_change_server(self, server: ServerConfig, starts: bool, proves: bool) -> Entry:
        entry = self._core.entries.get(server.name)
        if entry is not None and self._names is not None and server.name not in self._names:
            return entry
        if entry is None or entry.removed:
            entry = self._core.add(server)
            self._core.replace_overrides(entry)
            if starts and not server.on_demand:
                self._core.start(entry)
        else:
            kinds = self._kinds.get(server.name, set())
            live = Kind.RESTART not in kinds
            was_on_demand = entry.config.on_demand and entry.desired.state is Desired.IDLE
            is_due = (entry.failed and Kind.UPDATE in kinds) or (was_on_demand and not server.on_demand)
            self._core.change(entry, server, live=live, proves=proves)
            self._core.replace_overrides(entry)
            if starts and is_due:
                self._core.start(entry)
        return entry

    async def apply_to_running_servers(self) -> list[ErrorEntry]:
        """Give open Unix sockets their changed access, and running servers changed certificates; returns the errors."""
        errors: list[ServerError] = []
        for name, keys in self._keys.items():
            if (entry := self._core.entries.get(name)) is None:
                continue
            try:
                if changes_socket_access(keys):
                    self._core.change_socket_access(entry)
            except ServerError as problem:
                errors.append(problem)
            try:
                if changes_certificates(keys) and Kind.UPDATE in self._kinds[name]:
                    await self._core.reload_tls(entry)
            except ServerError as problem:
                errors.append(problem)
        return [error_of_kind(PoolRestartError, problem) for problem in errors]

    async def forget_removed_when_stopped(self, call: Call) -> None:
        """Wait until the servers that were removed from the files have stopped, and forget them."""
        await self._stopping.wait_for_outcome(call)
        for entry in [*self._core.entries.values()]:
            if entry.removed and entry.is_fully_stopped:
                self._core.forget(entry)

    async def wait_for_changes(self, call: Call) -> tuple[int, list[ErrorEntry], list[str]]:
        """Wait until every server has reached its goal or failed; returns exit code, errors and warnings."""
        codes = await asyncio.gather(
            self._starting.wait_for_outcome(call), self._stopping.wait_for_outcome(call)
        )
        code = TIMED_OUT if TIMED_OUT in codes else max(codes)
        return (
            code,
            self._starting.errors + self._stopping.errors,
            self._starting.warnings + self._stopping.warnings,
        )


def _plan_lines(changes: Iterable[Change]) -> tuple[PlannedChange, ...]:
    return tuple(
        PlannedChange(
            name=change.name,
            bind=change.bind,
            change=change.kind.value,
            keys=change.keys,
            message=change.message,
        )
        for change in changes
    )


def new_items(reading: Reading, core: Core) -> list[Item]:
    """The servers of the files that the pool does not have."""
    return [item_from_config(server) for server in reading.servers if server.name not in core.entries]


def changed_keys(name: str, before: AnyTable, after: AnyTable) -> tuple[str, ...]:
    """Return what differs: NAME.KEY for each key of a table, NAME.LABEL for each item of a list, or NAME if unknown."""
    old, new = _values_by_name(before), _values_by_name(after)
    if not old or not new:
        return (name,)
    pairs = ((key, old.get(key), new.get(key)) for key in {**old, **new})
    # `_written` is slow, and most values are equal.
    changed = tuple(f"{name}.{key}" for key, a, b in pairs if a != b and _written(a) != _written(b))
    return changed or (name,)  # the order differs, or a secret


def _written(value: object) -> object:
    return value.to_dict() if isinstance(value, Section) else value


def _values_by_name(table: AnyTable) -> dict[str, object]:
    if isinstance(table, tuple):
        return {item.label: item for item in table}
    return table.to_dict() if table is not None else {}
