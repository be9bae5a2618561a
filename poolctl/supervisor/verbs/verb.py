"""Base of all verbs of the control socket: calls, selection of servers, waiting, and results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from signal import valid_signals
from typing import TYPE_CHECKING, NamedTuple, Protocol

from poolctl.bootstrap import PACKAGE, installed_build, is_package_changed_since
from poolctl.config import masked
from poolctl.control.answers import (
    ErrorEntry,
    Item,
    ProgressLine,
    Result,
    ServerProgress,
    SupervisorIdentity,
    ended_text,
)
from poolctl.control.control_server import Attach, Progress, refuse_attachment
from poolctl.control.server_answers import LiveOverrides, ProbeResult, ServerDetails, WorkerDetails
from poolctl.core.command_goal import CommandGoal
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.core.worker import LEAVING, Worker, WorkerPhase
from poolctl.errors import PoolError, ServerError
from poolctl.exit_codes import FAILED, TIMED_OUT
from poolctl.json_form import Table, to_json
from poolctl.monitor.event_queue import EventBus
from poolctl.platform import status_of
from poolctl.runners.local.local_runner import LocalRunner
from poolctl.runners.withheld_variables import withheld_values
from poolctl.runners.worker_spec import logged_requests
from poolctl.selection.regular_expressions import run_in_turn
from poolctl.selection.selector import EXPRESSIONS, Selector, matching_values, select
from poolctl.states import Status
from poolctl.worker.tally import ASK, ASK_AGAIN

from ..active_configuration import ActiveConfiguration

if TYPE_CHECKING:
    from poolctl.probes.worker_probes import WorkerProbes


class Daemon(Protocol):
    """The supervisor and keeper of one pool, as far as verbs use them."""

    def identity(self) -> SupervisorIdentity:
        """The answer to a ping, and part of `status`: the pool's name and files, versions and pids."""

    def own_processes(self) -> Mapping[str, int]:
        """The pids of the pool's own processes, such as keeper and helpers, by their names."""

    async def wait_for_effects(self, verb: str, call: Call, result: Result) -> Result:
        """Return the verb's result, with the fields that features add to it, such as the gateway's status.

        After a command that changes servers, wait until the features have applied its changes. The result of `start`
        also warns of each table, such as [metrics], whose address cannot be served.
        """

    async def finish(self) -> None:
        """Let the features finish requests in progress. Called as the pool ends, after all servers have stopped."""

    def leave_listeners_open(self) -> bool:
        """Leave the listeners open for the pool's next run, if a service manager holds copies; returns whether it does.

        From now on, closing a listener closes only this pool's copy.
        """

    def shut_down_soon(self) -> int:
        """End the supervisor after the answer in progress, and then the keeper; returns the keeper's pid."""

    def hand_over(self, keeper: list[str], supervisor: list[str]) -> None:
        """Let another version of poolctl take over after the answer; `keeper` and `supervisor` are its commands."""


class Call(NamedTuple):
    """A request for a verb: the selected servers, the options, and the receiver of progress lines.

    `by` returns the sender, for the audit trail; `attach` sends the client a descriptor.
    """

    selector: Selector
    options: Table
    progress: Progress
    by: Callable[[], Table] = dict
    attach: Attach = refuse_attachment


Verb = Callable[[Call], Awaitable[Result]]


# A file's ctime may lag behind the clock by this much.
_FILE_TIME_SECONDS = 0.02


class RunningPoolctlBuild:
    """The build of poolctl in this process; the build in the directory `package` may be newer."""

    def __init__(self, package: str = PACKAGE) -> None:
        self._package = package
        self._began = time.time()
        self._digest: asyncio.Future[str] | None = None

    @property
    def known_digest(self) -> str:
        """The digest of the running build; "" before the first call of `digest`, or if it is unknown."""
        return self._digest.result() if self._digest is not None and self._digest.done() else ""

    async def digest(self) -> str:
        """Return a digest of the running build's files; "" if they had been replaced before the first call."""
        if self._digest is None:
            self._digest = asyncio.ensure_future(asyncio.to_thread(self._compute_digest))
        return await asyncio.shield(self._digest)

    def _compute_digest(self) -> str:
        digest = installed_build(self._package)
        began = self._began - _FILE_TIME_SECONDS
        return "" if is_package_changed_since(began, self._package) else digest

    async def is_running(self, build: str) -> bool:
        """Whether `build` is the digest of the running build; False if either is unknown."""
        return build != "" and build == await self.digest()

    async def is_replaced(self) -> bool:
        """Whether another build of poolctl has been installed on disk since this process started."""
        return await self.digest() != await asyncio.to_thread(installed_build, self._package)


@dataclass(frozen=True, slots=True)
class VerbContext:
    """The pool that verbs act on."""

    core: Core
    runner: LocalRunner
    events: EventBus
    daemon: Daemon
    configuration: ActiveConfiguration
    over: asyncio.Event  # set when the supervisor ends
    build: RunningPoolctlBuild = field(default_factory=RunningPoolctlBuild)


async def match_expressions(core: Core, selector: Selector) -> None:
    """Match the selector's regular expressions in a thread, and set its `matched`. Raises SelectorError."""
    fields = [name for name in EXPRESSIONS if getattr(selector, name)]
    if not fields or selector.matched is None:
        return
    servers = items(core, core.entries.values())
    for name in fields:
        values = {str(getattr(server, name)) for server in servers}
        selector.matched[name] = await run_in_turn(matching_values, name, getattr(selector, name), values)


def selected(core: Core, selector: Selector) -> list[Entry]:
    """The selected entries, in file order. Raises NothingMatched."""
    entries = list(core.entries.values())
    if selector.selects_all:
        return entries
    names = {item.name for item in select(items(core, entries), selector)}
    return [entry for entry in entries if entry.name in names]


def is_named(entry: Entry, call: Call) -> bool:
    """Whether the user selected this entry by its name or address, and not by a pattern."""
    return call.selector.names(entry.name, entry.config.key)


def without_unnamed_on_demand(chosen: Iterable[Entry], call: Call) -> list[Entry]:
    """The selected servers without those that start on demand, do not run, and were not selected by name."""
    return [entry for entry in chosen if not entry.rests_until_named or is_named(entry, call)]


def reporter(call: Call, is_done: Callable[[Entry], bool]) -> Callable[[Entry], None]:
    """A function that sends a progress line for an entry, if the client wants progress.

    `is_done` returns whether the command is complete for an entry. The state alone does not show this: an entry that is
    being restarted is running, too.
    """
    if not call.options.get("progress", True):
        return lambda entry: None
    reported: dict[str, tuple[str, bool, bool]] = {}

    def report(entry: Entry) -> None:
        state, ready, done = progress = (entry.state, entry.ready, is_done(entry))
        if reported.get(entry.name) == progress:
            return
        reported[entry.name] = progress
        step = ServerProgress(
            name=entry.name,
            bind=entry.config.key,
            state=state,
            ready=ready,
            message=entry.observed.failure.message if entry.observed.failure else "",
            done=done,
        )
        call.progress(ProgressLine(progress=step))

    return report


class Operation(CommandGoal):
    """Waits until servers have reached the state that a command wants, and makes the answer to its client.

    `problems` are the failures; the caller may add others, such as servers that the command has refused.
    """

    def __init__(self, core: Core, kind: type[PoolError], entries: Iterable[Entry]) -> None:
        super().__init__(core, kind, entries)
        self.problems: list[ServerError] = []
        for entry in self._entries:
            core.clear_warnings(entry)

    async def wait_for_result(self, chosen: list[Entry], call: Call) -> Result:
        """Wait until each server has reached its goal or failed, or the timeout; return the command's result.

        The result lists the `chosen` servers, and has an error for each failure.
        """
        return self.result(chosen, await self.wait_for_outcome(call))

    def result(self, chosen: list[Entry], code: int) -> Result:
        """Make the command's result: the `chosen` servers, an error for each failure, and the exit code `code`."""
        return Result(
            items=items(self._core, chosen),
            errors=tuple(self.errors),
            exit_code=code,
            warnings=tuple(self.warnings),
        )

    async def wait_for_outcome(self, call: Call) -> int:
        """Wait until each server has reached its goal or failed, or the timeout; returns the exit code.

        If the option `wait` is false, returns 0 at once.
        """
        if not call.options.get("wait", True):
            return 0
        await self.wait_until_settled(call.options.get("timeout"), reporter(call, self.is_over))
        self.problems += filter(None, map(self.problem, self._entries))
        return TIMED_OUT if self.missing else FAILED if self.problems else 0

    @property
    def errors(self) -> list[ErrorEntry]:
        """Return an ErrorEntry for each failure of a server in `problems`, with the command's error code."""
        return [error_of_kind(self._kind, problem) for problem in self.problems]

    @property
    def warnings(self) -> list[str]:
        """The warnings about the servers since the operation began."""
        retried = [
            f"{entry.name}: {entry.observed.failure.message}; another attempt succeeded"
            for entry in self._entries
            if entry.observed.failure is not None and self.was_retried(entry)
        ]
        return [*(warning for entry in self._entries for warning in entry.observed.warnings), *retried]


def names_of(entries: list[Entry]) -> tuple[str, ...] | None:
    """The names of the entries; None if there are none, so that the field is left out of a result."""
    return tuple(entry.name for entry in entries) or None


def with_dependents(core: Core, chosen: list[Entry], progress: Progress) -> list[Entry]:
    """The entries and all their dependents. The client is warned of active dependents that it did not select."""
    graph = core.servers
    all_of_them = graph.closure(chosen, graph.dependents)
    names = {entry.name for entry in chosen}
    for entry in all_of_them:
        if entry.name not in names and entry.has_or_wants_workers:
            on = ", ".join(
                dependency.name for dependency in graph.dependencies(entry) if dependency in all_of_them
            )
            progress(ProgressLine(warning=f"stopping {entry.name} as well, which depends on {on}"))
    return all_of_them


def items(core: Core, entries: Iterable[Entry]) -> tuple[Item, ...]:
    """Convert the entries to Items, the form in which every command prints servers."""
    now = core.clock.monotonic()
    return tuple(_item(core, entry, now) for entry in entries)


def _item(core: Core, entry: Entry, now: float) -> Item:
    config = entry.config
    demand = "" if entry.wants_no_worker else entry.window_demand
    inherited = config.address.kind == "fd"
    last_run = entry.schedule.last_run
    return Item(
        name=config.name,
        bind=config.key,
        expose=config.expose,
        state=entry.state,
        ready=entry.ready,
        health=entry.health.value,
        pids=tuple(entry.pids),
        workers=entry.size,
        uptime_seconds=round(entry.uptime_seconds(now), 3),
        restarts=entry.observed.restarts,
        tags=tuple(config.tags),
        address=", ".join(core.endpoints(config)) if inherited else None,
        on_demand=config.on_demand or None,
        # A program that is stopped because it ended by itself.
        ended={"status": 0, "signal": None, "at": _iso(entry.observed.ended_at or None)}
        if entry.ended
        else None,
        last_line=(entry.ended and entry.observed.last_line) or None,
        flapping=entry.flapping or None,
        kept=demand or None,
        kept_until=_iso(entry.observed.window.until) if demand else None,
        next_run_at=_iso(entry.schedule.next_run) if entry.on_schedule else None,
        last_run={**last_run, **{key: _iso(last_run[key]) for key in ("started_at", "ended_at")}}
        if config.every is not None and last_run
        else None,
    )


def details(core: Core, entry: Entry, origin: dict[str, str] | None, *, reveal: bool) -> ServerDetails:
    """The details that `show` reports, with the places where keys are set. Secrets are masked unless `reveal`."""
    config, live = entry.config, entry.desired.overrides
    table = config.to_dict()
    if table["http"]["access_log"] and not logged_requests(config):
        table["http"]["access_log"] = False
        origin = origin and {**origin, "http.access_log": "run --no-access-log"}
    return ServerDetails(
        **vars(_item(core, entry, core.clock.monotonic())),
        overrides=LiveOverrides(
            workers=live.workers,
            disabled=live.disabled,
            drained=live.out or None,
            added=entry.added or None,
        ),
        endpoints=core.endpoints(config),
        generation=entry.desired.generation,
        worker_list=tuple(
            WorkerDetails(
                id=worker.id,
                pid=worker.placement.pid if worker.placement else None,
                phase=worker.phase.value,
                health=worker.status.value if worker.phase is WorkerPhase.READY else Status.UNKNOWN.value,
                resting=worker.resting,
                probes=_probes(worker.probes),
                placed_at=worker.placed_at or None,
            )
            for worker in entry.observed.workers.values()
        ),
        complaint=core.health.first_worker_problem(entry),
        preload_problem=entry.observed.preload_problem,
        certificate_expires=_iso(entry.observed.certificate_ends),
        failure=ErrorEntry.of(entry.observed.failure) if entry.observed.failure else None,
        config=table if reveal else masked(table, hidden=withheld_values()),
        origin=origin,
        stacks=None if entry.observed.stacks is None else to_json(entry.observed.stacks),
    )


def workers_to_signal(entry: Entry) -> list[Worker]:
    """The workers of the server that have a process and have not been asked to end."""
    workers = entry.observed.workers.values()
    return [worker for worker in workers if worker.phase not in LEAVING and worker.placement is not None]


def handled_signals(worker: Worker) -> set[int]:
    """The signals that the worker's process handles, without those of poolctl itself."""
    pid = worker.placement.pid if worker.placement is not None else None
    caught = int(status_of(pid or 0).get(b"SigCgt", b"0"), 16)
    return {int(signal) for signal in valid_signals() if caught >> (signal - 1) & 1} - {ASK, ASK_AGAIN}


async def send_signal(core: Core, runner: LocalRunner, worker: Worker, number: int) -> None:
    """Send the signal to the worker, which has a process. If the signal ends it, it has not failed."""
    assert worker.placement is not None
    core.note_signal(worker, number)
    await runner.signal(worker.placement, number)


def server_problem(entry: Entry, message: str, hint: str) -> ServerError:
    """An error about the server, still without the error code that `error_of_kind` adds."""
    return ServerError(message, name=entry.name, bind=entry.config.key, hint=hint)


def disabled_error(entry: Entry) -> ServerError:
    """The error for starting a disabled server."""
    hint = f"poolctl enable {entry.name}, or remove `disabled = true` from its table"
    return server_problem(entry, "is disabled", hint)


def drained_error(entry: Entry) -> ServerError:
    """The error for starting a drained server, which gets no traffic."""
    return server_problem(entry, "is drained: it runs, out of rotation", f"poolctl undrain {entry.name}")


def unhealthy_error(entry: Entry, complaint: str) -> ServerError:
    """The error about a running server that is unhealthy."""
    message = f"runs but is unhealthy{f': {complaint}' if complaint else ''}"
    return server_problem(entry, message, f"poolctl logs {entry.name}")


def complaint_of(core: Core, entry: Entry) -> str:
    """Why the server is unhealthy or not ready; "" if it is neither, or if the reason is unknown."""
    failure = entry.present_failure.message if entry.present_failure is not None else ""
    ended = ended_text(0, entry.observed.last_line) if entry.ended else ""
    return core.health.first_worker_problem(entry) or ended or failure


def error_of_kind(kind: type[PoolError], failure: ServerError) -> ErrorEntry:
    """Convert the failure of a server to an entry with the error code and name of `kind`, the command's error class."""
    return replace(ErrorEntry.of(failure), code=kind.code, error=kind.error)


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _probes(probes: WorkerProbes | None) -> tuple[ProbeResult, ...]:
    return tuple(
        ProbeResult(
            kind=probe.kind,
            status=probe.status.value,
            message=probe.message,
            latency_seconds=probe.latency_seconds,
        )
        for probe in (probes.probes if probes is not None else ())
    )
