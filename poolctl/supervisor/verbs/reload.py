"""The verb `reload`: applies the files, and changes only servers whose configuration differs.

Before a reload, other commands report how changed files differ from the active configuration.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from signal import Signals
from typing import NamedTuple

from poolctl.config import Section, ServerConfig, Stamp, Table, changed_files, stamp_of
from poolctl.control.answers import (
    ChangedFiles,
    ErrorEntry,
    Item,
    PlannedChange,
    ReloadResult,
    Result,
    failure,
    item_from_config,
)
from poolctl.core.configuration_diff import (
    Change,
    CurrentServer,
    Kind,
    changes_socket_access,
    digest_of,
    key_list_text,
    planned_changes,
    read_digests_by_key,
)
from poolctl.core.core import Core
from poolctl.core.decide import NO_OVERRIDES, Desired
from poolctl.core.server_entry import Cause, Entry
from poolctl.core.workqueue import CURRENT_CAUSE
from poolctl.errors import PoolParamError, PoolRestartError, PoolStopError, PoolValidateError, ServerError
from poolctl.exit_codes import FAILED, INVALID_CONFIGURATION, NOT_AS_DESIRED, NOTHING_MATCHED, TIMED_OUT
from poolctl.json_form import to_json
from poolctl.runners.local.local_runner import LocalRunner
from poolctl.runners.withheld_variables import withheld_variables
from poolctl.selection.selector import NothingMatched, Selector, select

from ..configuration_reader import ReaderFailed, Reading
from .changing_verbs import check_pool_file_limit, expired_certificate_error
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
# Commands that always report changed files; quick ones do not wait long for the numbers of changes.
_REPORTING = frozenset({"start", "restart", "show", "list", "status"})
_QUICK = frozenset({"list", "status", "stats"})
# How long a command waits for the search of changed files, whose disk may hang, and for the numbers of changes.
_SEARCH_SECONDS, _QUICK_SECONDS, _NUMBERS_SECONDS = 2.0, 0.1, 10.0
# The limit for comparing files, because reloads wait for it.
_COMPARE_SECONDS = 60.0
# A watcher (--watch) applies a change within this time.
_WATCHER_SECONDS = 5.0

logger = logging.getLogger("poolctl.supervisor")


class PlannedReload(NamedTuple):
    """The content of the files, and the changes that a reload would make: none if the files have `problems`."""

    reading: Reading
    changes: list[Change]
    problems: list[ErrorEntry]

    @property
    def is_empty(self) -> bool:
        """Whether the files have neither problems nor changes, except of live changes."""
        return not (any(_counted(self.changes)) or self.problems)


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
        force = bool(call.options.get("force"))
        async with self._configuration.turn:
            reading = await self._configuration.read(call.options.get("env"), keep=self._core.entries)
            names = self._selected_names(call, reading)
            changes, problems = await self._plan(reading, names, force=force)
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
            applied = _ReloadRun(self._core, self._runner, changes, servers, names)
            applied.apply_to_core(allow_expired=force, proves=call.options.get("check", True))
            self._record(plan)
            previous = self._configuration.marks
            exposed = self._activate(reading, call.options.get("env"), applied, names)
            unhandled = await self._send_signals(signals)
            renewal = [*applied.change_socket_access(), *await applied.renew_changed_certificates()]
        code, errors, warnings = await applied.wait_for_changes(call)
        if names is not None and not await self._all_changes(reading):
            self._configuration.marks = reading.marks
            self._core.servers.note_revision()
        elif names is None and errors and await self._server_changes(reading):
            # A server whose new process has failed keeps its old configuration, so the files still differ.
            self._configuration.marks = previous
            self._core.servers.note_revision()
        errors += [*renewal, *unhandled]
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
        candidates = [*self._all_items(), *_new_items(reading, self._core)]
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
            applied = _ReloadRun(self._core, self._runner, of_servers, reading.servers)
            applied.apply_to_core(allow_expired=False, starts=False)
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
        self, reading: Reading, names: Collection[str] | None, *, force: bool
    ) -> tuple[list[Change], list[ErrorEntry]]:
        """The changes that a reload of the servers called `names` makes, None: all; and the problems that prevent it.

        `force` ignores expired certificates.
        """
        if problems := self._configuration_errors(reading):
            return [], problems
        changes = await self._server_changes(reading)
        changes = [change for change in changes if names is None or change.name in names]
        problems = await self._configuration.check_external(reading, {change.name for change in changes})
        if not force:
            problems += await asyncio.to_thread(self._certificate_expiry_errors, reading.servers, changes)
        return changes, problems

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

    def _certificate_expiry_errors(
        self, servers: Iterable[ServerConfig], changes: Iterable[Change]
    ) -> list[ErrorEntry]:
        reading = {
            change.name
            for change in changes
            if change.kind is Kind.RESTART or any(key.partition(".")[0] == "tls" for key in change.keys)
        }
        now, entries = self._core.clock.time(), self._core.entries
        errors = [
            expired_certificate_error(entries[server.name], server, now)
            for server in servers
            if server.name in reading and server.name in entries
        ]
        return [error_of_kind(PoolValidateError, error) for error in errors if error is not None]

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
        runner: LocalRunner,
        changes: Iterable[Change],
        servers: Iterable[ServerConfig],
        names: Collection[str] | None = None,
    ) -> None:
        """Only the servers called `names` are changed; None: all."""
        self._names = names
        self._core = core
        self._runner = runner
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

    def apply_to_core(self, *, allow_expired: bool, starts: bool = True, proves: bool = False) -> None:
        """Make all changes in the core at once. With `allow_expired`, expired certificates are loaded too.

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
        for name in self._kinds if allow_expired else ():
            if (changed := core.entries.get(name)) is not None:
                self._runner.force_certificate(name, changed.desired.generation)

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

    def change_socket_access(self) -> list[ErrorEntry]:
        """Give the files of open Unix sockets their changed modes and owners; returns the errors."""
        errors: list[ErrorEntry] = []
        for name, keys in self._keys.items():
            entry = self._core.entries.get(name)
            if entry is None or not changes_socket_access(keys):
                continue
            try:
                self._core.change_socket_access(entry)
            except ServerError as problem:
                errors.append(error_of_kind(PoolRestartError, problem))
        return errors

    async def renew_changed_certificates(self) -> list[ErrorEntry]:
        """Load changed certificates into running servers; returns the errors."""
        errors: list[ErrorEntry] = []
        for name, keys in self._keys.items():
            entry = self._core.entries.get(name)
            certificates = any(key.partition(".")[0] == "tls" for key in keys)
            if entry is None or not certificates or Kind.UPDATE not in self._kinds[name]:
                continue
            try:
                await self._core.reload_tls(entry)
            except ServerError as problem:
                errors.append(error_of_kind(PoolRestartError, problem))
        return errors

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


def _new_items(reading: Reading, core: Core) -> list[Item]:
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


class _ChangedInputs(NamedTuple):
    """The changed files with their stat stamps, the servers' revision, and digests of the env files in use."""

    files: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    revision: int
    variables: frozenset[tuple[str, str]]  # server names with the digests of their workers' env files


def _works(entry: Entry) -> bool:
    """Whether the server serves, sleeps, is scheduled, or starts without failures so far."""
    workers = entry.observed.workers
    starts = bool(workers) and not entry.observed.failures
    is_ready = any(worker.ready_at is not None for worker in workers.values())
    return entry.is_asleep or entry.on_schedule or starts or is_ready


class ConfigurationDrift:
    """Detects changed files, and computes the effect of a reload once per change."""

    def __init__(self, context: VerbContext) -> None:
        self._core = context.core
        self._configuration = context.configuration
        self._reload = Reload(context)
        self._is_saving = False
        self._search: asyncio.Future[_ChangedInputs | None] | None = None
        self._comparing: tuple[_ChangedInputs, asyncio.Task[PlannedReload | None]] | None = None
        # By the paths of env files: their stamps from stat(2), and the digest of their contents.
        self._variables: dict[tuple[str, ...], tuple[list[Stamp], str]] = {}

    async def add_changed_files(self, verb: str, call: Call, result: Result) -> Result:
        """The result, with the changed files added if the command reports them and there are any."""
        if not (verb in _REPORTING or call.options.get("files") is True) or result.ended:
            return result
        if (inputs := await self._find_changes()) is None:
            return result
        quick = verb in _QUICK and not (self._is_saving or call.options.get("counts") is True)
        seconds = _QUICK_SECONDS if quick else _NUMBERS_SECONDS
        difference = await self._difference_within_seconds(inputs, seconds)
        if self._is_saving and difference is not None and difference.is_empty:
            self._is_saving = False
            self._configuration.marks = difference.reading.marks
            self._core.servers.note_revision()
            return result
        return replace(result, changed=to_json(_summarize_changed_files(inputs.files, difference)))

    async def apply_if_at_rest(self, call: Call) -> Result | None:
        """Apply changed files whose servers are all at rest, or fail; return the errors or, in `changed`, the changes.

        Return None, and apply nothing, if the files change a server that works, the pool is empty, or no file has
        changed. Also return None if commands have changed servers, because such changes stay in effect until a reload.
        """
        entries = self._core.entries.values()
        is_changed_live = bool(self._configuration.missing) or any(
            entry.added or entry.desired.overrides != NO_OVERRIDES for entry in entries
        )
        if not entries or is_changed_live or (inputs := await self._find_changes()) is None:
            return None
        working = [entry.name for entry in entries if _works(entry)]
        plan = await self._reload.apply_to_servers_at_rest(call, working)
        if plan is None:
            return None
        if plan.problems:
            return Result(errors=tuple(plan.problems), exit_code=INVALID_CONFIGURATION)
        if plan.is_empty:
            return Result()
        return Result(changed=to_json(replace(_summarize_changed_files(inputs.files, plan), applied=True)))

    async def explain_missing_servers(self, call: Call, result: Result) -> Result:
        """If the files now have all selected servers that the pool lacks, return an error for each; else `result`."""
        if not call.selector.targets or (inputs := await self._find_changes()) is None:
            return result
        difference = await self._difference_within_seconds(inputs, _NUMBERS_SECONDS)
        if difference is None:
            return result
        in_pool = items(self._core, self._core.entries.values())
        new = _new_items(difference.reading, self._core)
        names: dict[str, None] = {}
        for target in call.selector.targets:
            if not _names_matching(in_pool, target):
                if not (in_files := _names_matching(new, target)):
                    return replace(
                        result, changed=to_json(_summarize_changed_files(inputs.files, difference))
                    )
                names.update(dict.fromkeys(in_files))
        file = self._configuration.files[0]
        errors = []
        for name in names:
            written = os.path.basename(difference.reading.files.get(name, file))
            message = f"{name} is in {written} but not in the running pool: poolctl reload"
            errors.append(failure(PoolParamError, message))
        return Result(errors=tuple(errors), exit_code=NOTHING_MATCHED) if errors else result

    def ignore_next_change(self) -> None:
        """Do not report the next change of the files, because a command is about to save its own change there."""
        self._is_saving = True

    async def _find_changes(self) -> _ChangedInputs | None:
        """Return the changed files; None if there are none, if `--watch` applies them, or if the disk hangs."""
        if self._configuration.marks is None:
            return None
        if self._search is None or self._search.done():
            reading = [
                entry
                for entry in self._core.entries.values()
                if entry.config.env_file and entry.observed.workers and "env_file" in entry.observed.files
            ]
            in_use = {(entry.config.env_file_paths, entry.observed.files["env_file"]) for entry in reading}
            variables = frozenset((entry.name, entry.observed.files["env_file"]) for entry in reading)
            work = asyncio.to_thread(
                self._find_changed_inputs, in_use, self._core.servers.revision, variables
            )
            self._search = asyncio.ensure_future(work)
        try:
            return await asyncio.wait_for(asyncio.shield(self._search), _SEARCH_SECONDS)
        except TimeoutError:
            return None

    def _find_changed_inputs(
        self, in_use: set[tuple[tuple[str, ...], str]], revision: int, variables: frozenset[tuple[str, str]]
    ) -> _ChangedInputs | None:
        """Return the changed files; None if there are none, or if a `--watch` process is about to apply the changes.

        Each pair in `in_use` has the paths of env files, and the digest of the contents that running workers have read.
        """
        named = self._configuration.files
        files = changed_files(self._configuration.marks or {}, named)
        # A missing env file is reported by every command that would read it.
        files = [path for path in files if path not in named or os.path.lexists(path)]
        files += dict.fromkeys(
            path for paths, digest in in_use for path in self._modified_env_files(paths, digest)
        )
        if not files:
            return None
        stamps = tuple(map(stamp_of, files))
        newest = max((stamp[1] for stamp in stamps if stamp is not None), default=0)
        young = 0 <= self._core.clock.time() * 1e9 - newest < _WATCHER_SECONDS * 1e9
        if young and _has_watch_process(self._configuration.runtime_directory):
            return None
        return _ChangedInputs(tuple(files), stamps, revision, variables)

    def _modified_env_files(self, paths: tuple[str, ...], digest: str) -> list[str]:
        """The env files in `paths` that were modified; empty if their combined contents still have this digest."""
        stamps_before, current = self._variables.get(paths, ([], ""))
        stamps = [stamp_of(path) for path in paths]
        if stamps != stamps_before:
            current = digest_of(paths)
        if current == digest:
            self._variables[paths] = stamps, current
            return []
        return [path for path, stamp in zip(paths, stamps, strict=True) if stamp not in stamps_before] or [
            *paths
        ]

    async def _difference_within_seconds(
        self, inputs: _ChangedInputs, seconds: float
    ) -> PlannedReload | None:
        """The changes that a reload of these files would make; None if they are not computed within `seconds`."""
        if self._comparing is None or self._comparing[0] != inputs:
            self._comparing = inputs, asyncio.ensure_future(self._compare())
        try:
            return await asyncio.wait_for(asyncio.shield(self._comparing[1]), seconds)
        except TimeoutError:
            return None

    async def _compare(self) -> PlannedReload | None:
        try:
            async with asyncio.timeout(_COMPARE_SECONDS):
                return await self._reload.difference()
        except (ReaderFailed, TimeoutError):
            return None  # the reason is reported by a reload
        except Exception:
            logger.exception("the changed files cannot be compared with the configuration in force")
            return None


def _counted(changes: Sequence[Change]) -> tuple[int, int, int]:
    """Return the numbers of servers and tables that are added, removed and changed.

    A reload also undoes changes that commands have made; servers that differ only in this are not counted.
    """
    kinds = ((Kind.ADD,), (Kind.REMOVE,), (Kind.RESTART, Kind.UPDATE))
    added, removed, changed = (
        len({change.name for change in changes if change.kind in kind}) for kind in kinds
    )
    return added, removed, changed


def _has_watch_process(directory: str) -> bool:
    """Whether a `--watch` process watches the pool's files; such a process locks the pool's runtime directory."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _names_matching(servers: Iterable[Item], target: str) -> list[str]:
    """The names of the servers that `target` selects; empty if it matches none."""
    try:
        return [item.name for item in select(servers, Selector([target]))]
    except NothingMatched:
        return []


def _summarize_changed_files(files: tuple[str, ...], difference: PlannedReload | None) -> ChangedFiles:
    if difference is None:
        return ChangedFiles(files=files)
    if difference.problems:
        return ChangedFiles(files=files, problem=difference.problems[0], problems=len(difference.problems))
    added, removed, changed = _counted(difference.changes)
    return ChangedFiles(files=files, added=added, removed=removed, changed=changed)
