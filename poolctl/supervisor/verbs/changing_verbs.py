"""The verbs that change the running pool: the lifecycle, and changes that override the files until a reload."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from signal import SIGINT, SIGKILL, SIGTERM, Signals, valid_signals

from poolctl.config import (
    BINDS_ITSELF,
    Configuration,
    EventsTable,
    Finding,
    ServerConfig,
    Tables,
    find_path_others_may_change,
    problem_of,
)
from poolctl.control.answers import ErrorEntry, ProgressLine, Result, error_entries
from poolctl.core.command_goal import goal_error
from poolctl.core.decide import ASLEEP
from poolctl.core.schedules import moment_text, window_effect_text
from poolctl.core.server_entry import Entry
from poolctl.core.worker import Worker
from poolctl.errors import (
    PoolError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
    PoolValidateError,
    ServerError,
)
from poolctl.exit_codes import CONFLICT, FAILED, INVALID_CONFIGURATION
from poolctl.keeper.left_children import left_daemons
from poolctl.platform import process_name
from poolctl.selection.selector import SelectorError, missing_selection_error
from poolctl.states import Status, in_words

from ..active_configuration import obstacles_to_adding
from .open_file_limit import check_open_file_limit, requested_worker_count
from .reading_verbs import expiry_warning
from .verb import (
    Call,
    Operation,
    Verb,
    VerbContext,
    disabled_error,
    drained_error,
    error_of_kind,
    handled_signals,
    is_named,
    items,
    names_of,
    selected,
    send_signal,
    server_problem,
    unhealthy_error,
    with_dependents,
    without_unnamed_on_demand,
    workers_to_signal,
)

_ADD_SHAPE = "add: `server` is a table as in a file, `base_dir` the directory of its relative paths"
_SERVING = frozenset({"running", "draining"})
_ALIVE = _SERVING | {"starting", "backoff"}
_WHEN_IT_RUNS, _NEVER = "and out of rotation when it runs", "there is nothing to drain"
_NAMES_SHOWN = 3
_ENDS_APPLICATION = frozenset({SIGTERM, SIGINT, SIGKILL})  # and another worker replaces it
_DAEMONS_SECONDS = 1.0


class Lifecycle:
    """The verbs that start, stop, restart and change servers."""

    def __init__(self, context: VerbContext) -> None:
        self._context = context
        self._core = context.core
        self._stops: set[asyncio.Task[Result]] = set()  # because the loop holds no reference to them

    async def start(self, call: Call) -> Result:
        """Start the selected servers and their dependencies; returns when each is ready or has failed."""
        chosen = selected(self._core, call.selector)
        requested = without_unnamed_on_demand(chosen, call)
        runnable = [entry for entry in requested if not entry.is_disabled]
        deps = call.options.get("deps", True)
        graph = self._core.servers
        with_dependencies = graph.closure(runnable, graph.dependencies) if deps else runnable
        all_of_them = [entry for entry in with_dependencies if not entry.is_disabled]
        self._check_open_files(all_of_them)
        operation = Operation(self._core, PoolStartError, all_of_them)
        await self._leave_ports_in_use(all_of_them)
        for entry in all_of_them:
            if not (entry.wanted and entry.ready):
                final = call.options.get("final") is True
                self._core.start(entry, ignore_dependencies=not deps, final=final)
        if call.selector.targets:
            operation.problems += [disabled_error(entry) for entry in chosen if entry.is_disabled]
            operation.problems += [drained_error(entry) for entry in chosen if entry.out_of_rotation]
        complaint = self._core.health.first_worker_problem
        # A server that already runs need not be started, but may be unhealthy.
        operation.problems += [
            unhealthy_error(entry, complaint(entry))
            for entry in chosen
            if entry.wanted and entry.is_fully_ready and entry.health is Status.KO
        ]
        servers = [entry.config for entry in self._core.entries.values()]
        names = {entry.name for entry in all_of_them}
        configuration = self._context.configuration
        warned = await configuration.swap_warned(entry.config for entry in all_of_them)
        warnings = asyncio.ensure_future(startup_warnings(servers, names, configuration.tables, warned))
        result = await operation.wait_for_result(chosen, call)
        asleep = kept_asleep_warnings(chosen, self._core.clock.time()) if call.selector.targets else []
        hints = [] if requested else _naming_hint(chosen, call)
        return replace(result, warnings=(*result.warnings, *await warnings, *asleep, *hints))

    async def restart(self, call: Call) -> Result:
        """Replace the processes of the selected servers; old processes stop when the new ones are ready.

        Stopped servers are started after their dependencies. A job with a schedule runs once if it is selected by
        name: restarting a pool, or a part of it, is not meant to run its nightly jobs.
        """
        chosen = selected(self._core, call.selector)
        requested = without_unnamed_on_demand(chosen, call)
        runnable = [entry for entry in requested if not entry.is_disabled]
        refused: list[ServerError] = []
        named = {entry.name for entry in requested}
        unchanged = [entry.name for entry in chosen if not (entry.name in named or entry.is_disabled)]
        for entry in [entry for entry in runnable if entry.config.every is not None]:
            if not is_named(entry, call):
                self._core.start(entry)
                unchanged.append(entry.name)
            elif entry.observed.workers:
                refused.append(_already_running_error(entry))
            else:
                continue
            runnable.remove(entry)
        deps = call.options.get("deps", True)
        dependencies = self._unready_dependencies(runnable, requested) if deps else []
        self._check_open_files([*dependencies, *runnable])
        operation = Operation(self._core, PoolRestartError, [*dependencies, *runnable])
        operation.problems += refused
        await self._leave_ports_in_use([*dependencies, *runnable])
        for entry in dependencies:
            self._core.start(entry)
        environment = call.options.get("env")
        if environment:
            self._core.servers.note_revision()
        for entry in runnable:
            if environment:
                self._context.configuration.environments[entry.name] = environment
            if entry.config.every is not None:
                self._core.run_now(entry, ignore_dependencies=not deps)
            else:
                proves = call.options.get("check", True)
                self._core.restart(entry, ignore_dependencies=not deps, proves=proves)
        operation.problems += [
            disabled_error(entry) for entry in chosen if entry.is_disabled and call.selector.targets
        ]
        result = await operation.wait_for_result(chosen, call)
        now = self._core.clock.time()
        expiries = filter(None, (expiry_warning(entry, now) for entry in runnable))
        hints = [] if requested else _naming_hint(chosen, call)
        warnings = (*result.warnings, *expiries, *hints)
        return replace(result, unchanged=tuple(unchanged) or None, warnings=warnings)

    def _check_open_files(self, entries: list[Entry]) -> None:
        coming = ((entry.config, requested_worker_count(entry)) for entry in entries)
        check_open_file_limit(self._core, coming)

    async def _leave_ports_in_use(self, entries: list[Entry]) -> None:
        ports = await self._context.configuration.leave_ports_in_use(self._core, entries)
        for name, (before, after) in ports.items():
            message = f"another program uses port {before}: {after} was chosen"
            self._context.events.record(
                "config", "port changed",
                server=name, before=before, after=after, message=message, severity="warning",
            )  # fmt: skip
            self._core.add_command_warning(self._core.entries[name], f"{name}: {message}")

    def _unready_dependencies(self, entries: list[Entry], requested: list[Entry]) -> list[Entry]:
        """Return the servers to start before a restart of `entries`: their dependencies, direct or not.

        Skips dependencies that are ready, disabled, or in `requested`, and the dependencies of entries with serving
        workers, which are replaced while they serve.
        """
        graph = self._core.servers
        names = {entry.name for entry in requested}
        dependencies = graph.closure(
            [entry for entry in entries if not entry.has_worker_of_serving_generation], graph.dependencies
        )
        return [
            entry
            for entry in dependencies
            if not (entry.name in names or entry.is_disabled or (entry.wanted and entry.ready))
        ]

    async def stop(self, call: Call) -> Result:
        """Stop the selected servers, their dependents first; without a selection, also end the supervisor.

        With the option `idle`, does nothing if a selected server runs or should run. With `unit`, the service manager
        stops the pool's unit, perhaps to restart it. A stop of everything is completed even if the client, which may be
        a program of the pool, disconnects.
        """
        if not call.selector.selects_all:
            return await self._stop(call)

        def report(interim: ProgressLine) -> None:
            with contextlib.suppress(ConnectionError):
                call.progress(interim)

        task = asyncio.ensure_future(self._stop(call._replace(progress=report)))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)
        return await asyncio.shield(task)

    async def _stop(self, call: Call) -> Result:
        chosen = selected(self._core, call.selector)
        if call.options.get("idle") and any(entry.wanted or entry.observed.workers for entry in chosen):
            return Result(items=items(self._core, chosen))
        all_of_them = (
            with_dependents(self._core, chosen, call.progress) if call.options.get("deps", True) else chosen
        )
        selected_names = {entry.name for entry in chosen}
        also = [
            entry for entry in all_of_them if entry.has_or_wants_workers and entry.name not in selected_names
        ]
        unchanged = names_of([entry for entry in chosen if not entry.has_or_wants_workers])
        operation = Operation(self._core, PoolStopError, all_of_them)
        if call.options.get("unit") and self._context.daemon.leave_listeners_open():
            # First: while its servers stop, a gateway would answer connections that can wait for the next run.
            await self._finish_features_within(call.options.get("timeout"))
        for entry in all_of_them:
            self._core.stop(entry, kill=bool(call.options.get("kill")))
        result = await operation.wait_for_result(chosen, call)
        result = replace(
            result,
            dependents=names_of(also),
            unchanged=unchanged,
            warnings=(*result.warnings, *await self._daemon_warnings(all_of_them)),
        )
        if call.selector.selects_all and not result.exit_code and call.options.get("wait", True):
            try:
                if not call.options.get("kill"):
                    await self._finish_features_within(call.options.get("timeout"))
            finally:
                keeper_pid = self._context.daemon.shut_down_soon()
            return replace(result, ended=True, keeper_pid=keeper_pid)
        return result

    async def _daemon_warnings(self, entries: list[Entry]) -> list[str]:
        """Name the processes that programs of these servers have left behind with sessions of their own."""
        programs = {entry.name for entry in entries if entry.config.command}
        if not programs:
            return []
        pids = {
            worker.placement.pid
            for entry in self._core.entries.values()
            for worker in entry.observed.workers.values()
            if worker.placement is not None
        }
        keeper_pid = self._context.daemon.identity().keeper_pid
        try:
            async with asyncio.timeout(_DAEMONS_SECONDS):
                daemons = await asyncio.to_thread(left_daemons, keeper_pid, pids)
        except (OSError, TimeoutError):  # a warning is not worth a stop that does not return
            return []
        return [
            f"{name}: pid {pid} ({process_name(pid)}) was not asked to end, because it has a session of its own"
            for name, pid in daemons
            if name in programs
        ]

    async def _finish_features_within(self, limit_seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                await self._context.daemon.finish()

    # Live changes, which last until a reload.

    async def scale(self, call: Call) -> Result:
        """Set the number of workers of each selected server; returns when that many are ready.

        With the option `auto`, autoscaling triggers set the number again.
        """
        if call.options.get("auto") is True:
            return await self._scale_by_triggers(call)
        workers = call.options.get("workers")
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise SelectorError(
                f"{workers!r} is not a number of workers",
                hint="a whole number from 1; poolctl stop ends all of them",
            )
        chosen = self._chosen("scale", call)
        refused = {entry.name: why for entry in chosen if (why := _worker_count_error(entry, workers))}
        able = [entry for entry in chosen if entry.name not in refused]
        running = [entry for entry in able if not entry.wants_no_worker]
        check_open_file_limit(self._core, ((entry.config, workers) for entry in running))
        operation = Operation(self._core, PoolStartError, running)
        operation.problems += refused.values()
        for entry in able:
            # For a server that may sleep, or with triggers, the minimum is not a constant number of workers.
            fixed = entry.config.scale.min and not entry.config.scale.is_automatic
            count = None if fixed and workers == entry.config.scale.min else workers
            self._core.replace_overrides(entry, replace(entry.desired.overrides, workers=count))
        code = await operation.wait_for_outcome(call)
        operation.problems += [
            goal_error(entry, PoolStartError, f"was scaled to {entry.size} by another command meanwhile")
            for entry in able
            if entry.size != workers
        ]
        return operation.result(chosen, code or (FAILED if operation.problems else 0))

    async def _scale_by_triggers(self, call: Call) -> Result:
        chosen = self._chosen("scale", call)
        able = [entry for entry in chosen if entry.config.scale.is_automatic]
        awaited = [entry for entry in able if not entry.wants_no_worker]
        operation = Operation(self._core, PoolStartError, awaited)
        operation.problems += [_no_triggers_error(entry) for entry in chosen if entry not in able]
        for entry in able:
            self._core.replace_overrides(entry, replace(entry.desired.overrides, workers=None))
        code = await operation.wait_for_outcome(call)
        return operation.result(able, code or (FAILED if operation.problems else 0))

    async def signal(self, call: Call) -> Result:
        """Send a signal to each worker of the selected servers, and not to their children.

        An application gets only signals that it handles, and signals that stop it gracefully. Does not wait.
        """
        number = call.options.get("signal")
        if number not in valid_signals():
            raise SelectorError(f"{number!r} is not a signal", hint="a number of signal(7)")
        chosen = self._chosen("signal", call)
        workers = {entry.name: workers_to_signal(entry) for entry in chosen}
        for entry in chosen:
            for worker in workers[entry.name]:
                refuse_unhandled_signal(entry, worker, number)
        for worker in itertools.chain.from_iterable(workers.values()):
            await send_signal(self._core, self._context.runner, worker, number)
        errors = [
            server_problem(
                entry, f"has no process: it is {in_words(entry.state)}", f"poolctl start {entry.name}"
            )
            for entry in chosen
            if not workers[entry.name]
        ]
        return Result(
            items=items(self._core, chosen),
            errors=tuple(error_of_kind(PoolStartError, error) for error in errors),
            exit_code=FAILED if errors else 0,
        )

    async def drain(self, call: Call) -> Result:
        """Take the selected servers out of rotation; they still answer direct requests."""
        chosen = self._chosen("drain", call)
        warnings = tuple(filter(None, map(_undrainable_reason, chosen)))
        for entry in chosen:
            if entry.state in _ALIVE and entry.config.listens:
                self._core.replace_overrides(entry, replace(entry.desired.overrides, out=True))
        return Result(items=items(self._core, chosen), warnings=warnings)

    async def undrain(self, call: Call) -> Result:
        """Put drained servers back into rotation."""
        chosen = self._chosen("undrain", call)
        for entry in chosen:
            self._core.replace_overrides(entry, replace(entry.desired.overrides, out=False))
        return Result(items=items(self._core, chosen))

    async def enable(self, call: Call) -> Result:
        """Enable and start the selected servers that are disabled; also start dependents stopped with them.

        A server that starts on demand is only enabled, unless it is selected by name.
        """
        chosen = self._chosen("enable", call)
        enabled = [entry for entry in chosen if entry.is_disabled]
        starting = [entry for entry in enabled if not entry.config.on_demand or is_named(entry, call)]
        also = self._core.servers.stopped_along_with(enabled)
        unchanged = names_of([entry for entry in chosen if not (entry.is_disabled or entry in also)])
        for entry in also:
            for_whom = ", ".join(entry.desired.stopped_with)
            call.progress(
                ProgressLine(warning=f"starting {entry.name} as well, which was stopped with {for_whom}")
            )
        self._check_open_files([*starting, *also])
        operation = Operation(self._core, PoolStartError, [*starting, *also])
        for entry in enabled:
            self._core.enable_and_start(entry, by_name=is_named(entry, call))
        result = await operation.wait_for_result(chosen, call)
        return replace(result, dependents=names_of(also), unchanged=unchanged)

    async def disable(self, call: Call) -> Result:
        """Stop and disable the selected servers, after stopping their dependents; returns when all have stopped."""
        chosen = self._chosen("disable", call)
        selected_names = {entry.name for entry in chosen}
        all_of_them = with_dependents(self._core, chosen, call.progress)
        also = [entry for entry in all_of_them if entry.name not in selected_names]
        running = [entry for entry in also if entry.has_or_wants_workers]
        stopped = {
            entry.name: entry.desired.stopped_with
            for entry in also
            if entry.wanted or entry.desired.stopped_with
        }
        operation = Operation(self._core, PoolStopError, [*also, *chosen])
        for entry in also:
            self._core.stop(entry)
        for entry in chosen:
            self._core.disable(entry)
        self._core.servers.note_stopped_with(stopped, chosen)
        return replace((await operation.wait_for_result(chosen, call)), dependents=names_of(running))

    async def add(self, call: Call) -> Result:
        """Add and start a server that is in no file; returns when it is ready or has failed.

        Exit code 8 if its name or address is taken.
        """
        table, base_dir = call.options.get("server"), call.options.get("base_dir")
        if not isinstance(table, dict) or not isinstance(base_dir, str):
            raise SelectorError("add: which server?", hint=_ADD_SHAPE)
        try:
            existing = [entry.config for entry in self._core.entries.values()]
            config = await self._context.configuration.resolve_added(table, base_dir, existing)
        except PoolError as error:
            return Result(errors=error_entries(error), exit_code=INVALID_CONFIGURATION)
        except ServerError as problem:
            return Result(errors=(ErrorEntry.of(problem),), exit_code=CONFLICT)
        if obstacles := self._obstacles_to_adding(config):
            code, findings = obstacles
            problems = [problem_of(finding, name=config.name, bind=config.bind) for finding in findings]
            refusal = PoolValidateError("the server cannot be added", problems)
            return Result(errors=error_entries(refusal), exit_code=code)
        check_open_file_limit(self._core, [(config, config.scale.min)])
        entry = self._core.add(config, (table, base_dir))
        self._core.replace_overrides(entry)
        self._core.start(entry)
        operation = Operation(self._core, PoolStartError, [entry] if entry.wanted else [])
        servers = [server.config for server in self._core.entries.values()]
        tables = self._context.configuration.tables
        warnings = asyncio.ensure_future(startup_warnings(servers, {entry.name}, tables, of_tables=False))
        result = await operation.wait_for_result([entry], call)
        return replace(result, warnings=(*result.warnings, *await warnings))

    async def remove(self, call: Call) -> Result:
        """Stop the selected servers, their dependents first, and forget them; the result lists the removed ones."""
        chosen = self._chosen("remove", call)
        deps = call.options.get("deps", True)
        also = with_dependents(self._core, chosen, call.progress) if deps else chosen
        operation = Operation(self._core, PoolStopError, also)
        for entry in also:
            if entry not in chosen:
                self._core.stop(entry)
        for entry in chosen:
            if not entry.added:
                self._context.configuration.missing.add(entry.name)
            self._core.schedule_removal(entry, ignore_dependents=not deps)
        self._core.servers.note_revision()
        return await operation.wait_for_result(chosen, call)

    def _chosen(self, verb: str, call: Call) -> list[Entry]:
        """The selected entries. Raises SelectorError without a selection, unless the option `all` is given."""
        if call.selector.selects_all and call.options.get("all") is not True:
            raise missing_selection_error(verb, len(self._core.entries))
        return selected(self._core, call.selector)

    def _obstacles_to_adding(self, config: ServerConfig) -> tuple[int, list[Finding]] | None:
        """None if the server can be added to the pool; else the exit code and the problems that prevent it."""
        entries = self._core.entries.values()
        if any(entry.removed and entry.name == config.name for entry in entries):
            return CONFLICT, [Finding(("name",), "a server of that name is still being removed", "try again")]
        existing = (entry.config for entry in entries if not entry.removed)
        return obstacles_to_adding(config, existing, self._context.configuration.tables)


def _naming_hint(chosen: Sequence[Entry], call: Call) -> list[str]:
    """The warning that nothing was started, because all `chosen` servers start on demand; [] for the whole pool."""
    if call.selector.selects_all or not chosen:
        return []
    names = [entry.name for entry in chosen]
    start, them = ("starts", "it") if len(names) == 1 else ("start", "them")
    command = " ".join(names[:_NAMES_SHOWN])
    return [f"{name_list(names)} {start} on demand: name {them}, as in `poolctl start {command}`"]


def _already_running_error(entry: Entry) -> ServerError:
    since = f" since {moment_text(entry.schedule.run_since)}" if entry.schedule.run_since else ""
    hint = f"wait until it has ended, or end it: poolctl stop {entry.name}"
    return server_problem(entry, f"runs{since}, and does not run twice at once", hint)


def _no_triggers_error(entry: Entry) -> ServerError:
    hint = "add scale = { max = 4, triggers = { in_flight = 20 } } to its table, then poolctl reload"
    return server_problem(entry, "has no triggers that could change its number of workers", hint)


def _undrainable_reason(entry: Entry) -> str:
    """Why the server cannot drain now; "" if it can."""
    if not entry.config.listens:
        return f"{entry.name}: has no connections to drain; poolctl stop {entry.name} ends it"
    if entry.state in _SERVING:
        return ""
    return f"{entry.name}: is {in_words(entry.state)}, {_WHEN_IT_RUNS if entry.state in _ALIVE else _NEVER}"


def _worker_count_error(entry: Entry, workers: int) -> ServerError | None:
    """The error if the server cannot have this number of workers, else None."""
    config = entry.config
    if workers == 1 or not (config.job or config.binds_itself or not config.overlap):
        return None
    if config.job:
        message, hint = f"is a job, which runs once, and this is {workers} workers", "leave it out"
    elif config.binds_itself:
        message = f"{workers} processes cannot all bind {config.key}"
        hint = "let the program take the socket ({fd}, or LISTEN_FDS)"
    else:
        message = f"must not run twice at once (overlap = false), and this is {workers} workers"
        hint = "remove `overlap = false` if it may"
    return server_problem(entry, message, hint)


def verbs(context: VerbContext) -> dict[str, Verb]:
    """The functions that handle this module's verbs, by verb."""
    lifecycle = Lifecycle(context)
    return {
        "start": lifecycle.start,
        "stop": lifecycle.stop,
        "restart": lifecycle.restart,
        "scale": lifecycle.scale,
        "drain": lifecycle.drain,
        "undrain": lifecycle.undrain,
        "signal": lifecycle.signal,
        "enable": lifecycle.enable,
        "disable": lifecycle.disable,
        "add": lifecycle.add,
        "remove": lifecycle.remove,
    }


async def startup_warnings(
    servers: Iterable[ServerConfig],
    names: set[str],
    tables: Tables,
    warned: Set[str] = frozenset(),
    *,
    of_tables: bool = True,
) -> list[str]:
    """Return the warnings of `poolctl validate` about the servers called `names` and, if `of_tables`, about tables.

    The warning that a program binds its own address is left out for the servers in `warned`.
    """
    servers = list(servers)
    chosen = [server for server in servers if server.name in names]
    events = tables.get(EventsTable)
    journal = events is not None and events.path
    tables_checked = of_tables and bool(journal or any(table.has_startup_warnings for _, table in tables))
    checked = tables_checked or any(map(_may_have_warnings, chosen))
    # The check takes time, and most pools need none.
    pythons = {
        server.python or sys.executable
        for server in chosen
        if not (os.geteuid() or server.user or server.command)  # root runs Python
    }
    if not (checked or pythons):
        return []

    def find_warnings() -> list[str]:
        if not (checked or any(find_path_others_may_change(python, os.environ) for python in pythons)):
            return []
        config = Configuration(servers, tables)
        config.check_external(names=())
        names_by_text: dict[str, list[str]] = {}
        for warning in config.warnings:
            if warning.message == BINDS_ITSELF and warning.name in warned:
                continue
            if warning.name in names or (of_tables and not warning.name):
                text = str(warning).removeprefix(f"{warning.name}: ")
                names_by_text.setdefault(text, []).append(warning.name)
        listed = ((name_list(owners), text) for text, owners in names_by_text.items())
        return [f"{owners}: {text}" if owners else text for owners, text in listed]

    return await asyncio.to_thread(find_warnings)


def refuse_unhandled_signal(entry: Entry, worker: Worker, number: int) -> None:
    """Raise SelectorError if the signal would kill the worker's application without a graceful stop."""
    if worker.config.command or number in _ENDS_APPLICATION or number in (handled := handled_signals(worker)):
        return
    names = ", ".join(map(_signal_name, sorted(handled | _ENDS_APPLICATION)))
    message = f"{entry.name} does not handle {_signal_name(number)}, which may end its worker"
    raise SelectorError(message, hint=f"it handles {names}")


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _may_have_warnings(server: ServerConfig) -> bool:
    named = server.tls or server.depends_on or server.log.path
    words = (*server.command, *server.env.values()) if server.command else ()
    braces = any("{" in word for word in words)
    return bool(named or braces or (server.user and os.geteuid()))


def name_list(names: list[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def kept_asleep_warnings(entries: Iterable[Entry], now: float) -> list[str]:
    """Warnings about servers that a scheduled time window keeps asleep now."""
    return [
        f"{entry.name} is {window_effect_text(entry, now)}; `poolctl scale {entry.name} 1` runs it in spite of that"
        for entry in entries
        if entry.window_demand == ASLEEP and not entry.wants_no_worker
    ]
