"""The verb `reload`: puts the files in force, and touches only the servers that differ."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from poolctl.config import Marks, ServerConfig, Table
from poolctl.control.answers import ErrorEntry, Item, PlannedChange, ReloadResult, failure
from poolctl.core.configuration_diff import Kind, Running, listed, plan
from poolctl.core.core import Core
from poolctl.core.server_entry import Cause, Entry
from poolctl.core.server_files import digests
from poolctl.core.servers import CURRENT_CAUSE
from poolctl.errors import PoolRestartError, PoolStopError, PoolValidateError, ServerError
from poolctl.exit_codes import FAILED, INVALID_CONFIGURATION, NOT_AS_DESIRED, TIMED_OUT
from poolctl.runners.process_link import withheld_variables

from ..active_configuration import ResolvedConfig
from .changing_verbs import ensure_open_files_for_all, expired
from .verb import Call, Operation, VerbContext, as_kind, items

# The name of the pool itself in the plan; no server can have it.
POOL = "[pool]"

AnyTable = Table | tuple[Table, ...] | None


class Difference(NamedTuple):
    """The servers of the files, and the changes that a reload would make; empty for files with problems."""

    servers: list[ServerConfig]
    changes: list[PlannedChange]
    problems: list[ErrorEntry]
    marks: Marks | None
    files: Mapping[str, str]


class Reload:
    """One reload at a time: a second one reads the files after the first has applied them."""

    def __init__(self, context: VerbContext) -> None:
        self._core = context.core
        self._events = context.events
        self._configuration = context.configuration
        self._turn = context.configuration.turn

    async def reload(self, call: Call) -> ReloadResult:
        """Apply the changes in the files to the configuration in force, or list them; refuse files with problems."""
        force = bool(call.options.get("force"))
        async with self._turn:
            resolved = await self._configuration.read(call.options.get("env"), keep=self._core.entries)
            changes, problems = await self._plan(resolved, force=force)
            if problems:
                return self._refused(problems)
            lines = (*self._of_the_pool(resolved), *changes)
            if call.options.get("dry_run"):
                code = NOT_AS_DESIRED if lines else 0
                return ReloadResult(
                    items=self._items(), exit_code=code, warnings=tuple(resolved.remarks), changes=lines
                )
            ensure_open_files_for_all(self._core, resolved.servers)
            applied = _Application(self._core, changes, resolved.servers)
            applied.begin(force=force)
            self._record(lines)
            former = self._configuration.marks
            exposed = self._accept(resolved, call.options.get("env"), applied)
            renewal = await applied.renew()
        code, errors, warnings = await applied.conclude(call)
        if errors and await self._planned(resolved):
            # A server whose new process has failed keeps its old configuration: the files still say something else.
            self._configuration.marks = former
            self._core.servers.revise()  # saved for a successor
        errors += renewal
        warnings += [*self._exposed_to(exposed, applied.replaced), *resolved.remarks]
        return ReloadResult(
            items=self._items(),
            errors=tuple(errors),
            exit_code=code or (FAILED if errors else 0),
            warnings=tuple(warnings),
            changes=lines,
        )

    async def apply_at_rest(self, call: Call) -> ReloadResult:
        """Apply the differences to a pool of which no server runs; new servers are not started."""
        async with self._turn:
            resolved = await self._configuration.read(keep=self._core.entries)
            found = await self._difference(resolved)
            if found.problems:
                return ReloadResult(errors=tuple(found.problems), exit_code=INVALID_CONFIGURATION)
            of_servers = [each for each in found.changes if not each.name.startswith("[")]
            applied = _Application(self._core, of_servers, resolved.servers)
            applied.begin(force=False, starts=False)
            self._record(found.changes)
            self._accept(resolved, None, applied)
        await applied.leave(call)
        return ReloadResult(changes=tuple(found.changes))

    async def difference(self) -> Difference:
        """The changes that a reload would make, without checks outside the files."""
        async with self._turn:
            resolved = await self._configuration.read(keep=self._core.entries)
            return await self._difference(resolved)

    async def _difference(self, resolved: ResolvedConfig) -> Difference:
        if problems := self._invalid(resolved):
            return Difference([], [], problems, resolved.marks, {})
        changes = [*self._of_the_pool(resolved), *await self._planned(resolved)]
        return Difference(resolved.servers, changes, [], resolved.marks, resolved.files)

    def _invalid(self, resolved: ResolvedConfig) -> list[ErrorEntry]:
        if resolved.is_empty and self._core.entries and not resolved.problems:
            hint = "poolctl stop ends the pool"
            return [failure(PoolValidateError, "there is no server in the files", hint)]
        return resolved.problems

    async def _planned(self, resolved: ResolvedConfig) -> list[PlannedChange]:
        """The changes of the servers."""
        files = await asyncio.to_thread(_files, resolved.servers)
        now = [
            Running(each.config, each.desired.overrides, each.added, each.observed.files)
            for each in self._core.entries.values()
        ]
        return [
            PlannedChange(
                name=each.name, bind=each.bind, change=each.kind.value, keys=each.keys, message=each.message
            )
            for each in plan(now, resolved.servers, files, self._configuration.missing)
        ]

    async def _plan(
        self, resolved: ResolvedConfig, *, force: bool
    ) -> tuple[list[PlannedChange], list[ErrorEntry]]:
        """The changes, and the problems that forbid them."""
        if problems := self._invalid(resolved):
            return [], problems
        changes = await self._planned(resolved)
        problems = await self._configuration.outside(resolved, {change.name for change in changes})
        if not force:
            problems += await asyncio.to_thread(self._expired, resolved.servers, changes)
        return changes, problems

    def _accept(
        self, resolved: ResolvedConfig, environment: Mapping[str, str] | None, applied: _Application
    ) -> list[str]:
        """Put the files in force; the variables that are withheld from servers from now on."""
        known = withheld_variables()
        self._configuration.accept(resolved, environment)
        if environment:
            for name in applied.replaced:
                self._configuration.environments[name] = environment
        return [name for name in withheld_variables() if name not in known]

    def _expired(self, servers: Iterable[ServerConfig], changes: Iterable[PlannedChange]) -> list[ErrorEntry]:
        """Expired certificates that would replace valid ones."""
        reading = {
            each.name
            for each in changes
            if each.change == Kind.RESTART or any(key.partition(".")[0] == "tls" for key in each.keys)
        }
        now, entries = self._core.clock.time(), self._core.entries
        found = [
            expired(entries[server.name], server, now)
            for server in servers
            if server.name in reading and server.name in entries
        ]
        return [as_kind(PoolValidateError, each) for each in found if each is not None]

    def _record(self, lines: Iterable[PlannedChange]) -> None:
        who = CURRENT_CAUSE.get() or Cause("reload")
        for line in lines:
            where = {"bind": line.bind} if line.bind else {}
            self._events.record(
                "config",
                line.change,
                server="" if line.name.startswith("[") else line.name,
                message=line.message,
                cause=who.cause,
                by=who.by,
                keys=list(line.keys),
                **where,
            )

    def _of_the_pool(self, resolved: ResolvedConfig) -> Iterable[PlannedChange]:
        if resolved.name != self._configuration.name:
            message = f"the pool's name: {self._configuration.name} → {resolved.name}"
            yield _of_pool(POOL, ("pool.name",), message)
        before, after = self._configuration.tables.by_name(), resolved.tables.by_name()
        for name in before | after:
            if before.get(name) != after.get(name):
                keys = _changed(name, before.get(name), after.get(name))
                yield _of_pool(f"[{name}]", keys, f"[{name}]: {listed(keys)}")

    def _exposed_to(self, variables: Iterable[str], replaced: Collection[str]) -> Iterable[str]:
        """Notes about running servers whose environment has variables that are now withheld."""
        names = [
            entry.name
            for entry in self._core.entries.values()
            if entry.observed.workers and entry.name not in replaced
        ]
        if names:
            for variable in variables:
                yield f"{variable} is still in the environment of {', '.join(names)}; poolctl restart removes it"

    def _refused(self, problems: list[ErrorEntry]) -> ReloadResult:
        return ReloadResult(items=self._items(), errors=tuple(problems), exit_code=INVALID_CONFIGURATION)

    def _items(self) -> tuple[Item, ...]:
        return items(self._core, self._core.entries.values())


class _Application:
    """The changes of one reload under way."""

    def __init__(self, core: Core, changes: Iterable[PlannedChange], servers: Iterable[ServerConfig]) -> None:
        self._core = core
        self._servers = {server.name: server for server in servers}
        self._kinds: dict[str, set[Kind]] = {}
        self._keys: dict[str, set[str]] = {}
        for change in changes:
            self._kinds.setdefault(change.name, set()).add(Kind(change.change))
            self._keys.setdefault(change.name, set()).update(change.keys)

    @property
    def replaced(self) -> list[str]:
        """The names of the servers that a reload gives new processes."""
        new = {Kind.ADD, Kind.RESTART}
        return [name for name, kinds in self._kinds.items() if kinds & new and name in self._servers]

    def begin(self, *, force: bool, starts: bool = True) -> None:
        """Make all changes in the core at once; with `force` expired certificates are loaded too.

        Without `starts` new servers are not started.
        """
        core = self._core
        gone = [entry for name, entry in core.entries.items() if name not in self._servers]
        for entry in gone:
            core.remove(entry)
        coming = [self._configured(server, starts) for server in self._servers.values()]
        core.servers.arrange(self._servers)
        awaited = [entry for entry in coming if self._awaited(entry)]
        self._coming = Operation(core, PoolRestartError, awaited)
        stopping = [entry for entry in coming if entry.is_disabled and not entry.at_rest]
        self._going = Operation(core, PoolStopError, [*gone, *stopping])
        if force:
            for entry in self._changed_entries():
                core.runner.force_certificate(entry.name, entry.desired.generation)

    def _changed_entries(self) -> list[Entry]:
        """The changed servers that are still in the pool."""
        return [entry for name in self._kinds if (entry := self._core.entries.get(name)) is not None]

    def _configured(self, server: ServerConfig, starts: bool) -> Entry:
        entry = self._core.entries.get(server.name)
        if entry is None or entry.removed:
            entry = self._core.add(server)
            self._core.override(entry)
            if starts:
                self._core.start(entry)
        else:
            live = Kind.RESTART not in self._kinds.get(server.name, ())
            self._core.change(entry, server, live=live)
            self._core.override(entry)
        return entry

    def _awaited(self, entry: Entry) -> bool:
        """Whether to wait for the server: not if it rests for another reason, nor for the run of a scheduled job."""
        at_rest = entry.rests or entry.is_disabled or entry.on_schedule
        return entry.name in self._kinds and not at_rest

    async def renew(self) -> list[ErrorEntry]:
        """Load changed certificates into running servers; the errors."""
        errors: list[ErrorEntry] = []
        for name, keys in self._keys.items():
            entry = self._core.entries.get(name)
            certificates = any(key.partition(".")[0] == "tls" for key in keys)
            if entry is None or not certificates or Kind.UPDATE not in self._kinds[name]:
                continue
            try:
                await self._core.renew_tls(entry)
            except ServerError as problem:
                errors.append(as_kind(PoolRestartError, problem))
        return errors

    async def leave(self, call: Call) -> None:
        """Wait until the servers that are no longer in the files have stopped, and forget them."""
        await self._going.settle(call)
        for entry in [each for each in self._core.entries.values() if each.removed and each.at_rest]:
            self._core.forget(entry)

    async def conclude(self, call: Call) -> tuple[int, list[ErrorEntry], list[str]]:
        """Exit code, errors and warnings, when every server has reached its goal or failed."""
        codes = await asyncio.gather(self._coming.settle(call), self._going.settle(call))
        code = TIMED_OUT if TIMED_OUT in codes else max(codes)
        return code, self._coming.errors + self._going.errors, self._coming.warnings + self._going.warnings


def _of_pool(table: str, keys: tuple[str, ...], message: str) -> PlannedChange:
    return PlannedChange(name=table, bind="", change=Kind.UPDATE.value, keys=keys, message=message)


def _changed(name: str, before: AnyTable, after: AnyTable) -> tuple[str, ...]:
    """The keys of a table that differ; for a list of tables the names of the differing tables."""
    one, other = _named(before), _named(after)
    if not one or not other:
        return (name,)
    changed = tuple(f"{name}.{key}" for key in {**one, **other} if one.get(key) != other.get(key))
    return changed or (name,)  # in another order, or by a secret


def _named(table: AnyTable) -> dict[str, object]:
    if isinstance(table, tuple):
        return {each.label: each.to_dict() for each in table}
    return table.to_dict() if table is not None else {}


def _files(servers: Iterable[ServerConfig]) -> Mapping[str, Mapping[str, str]]:
    found = {server.name: digests(server) for server in servers}
    return {name: files for name, files in found.items() if files}
