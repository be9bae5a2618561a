"""The verbs that change no server: list, show, status, wait, stacks, exec, events."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Collection

from poolctl.control.answers import (
    ErrorEntry,
    JournalPositionResult,
    OwnProcess,
    ProgressLine,
    Result,
    StatusResult,
    Summary,
)
from poolctl.control.control_server import Progress
from poolctl.control.server_answers import ExecResult, ShowResult, StacksResult
from poolctl.core.command_goal import CommandGoal, goal_error, wait_until
from poolctl.core.configuration_diff import date_text
from poolctl.core.health_checks import lasting_problem
from poolctl.core.schedules import failed_run_message
from poolctl.core.server_entry import Entry
from poolctl.core.server_state import ListenerState
from poolctl.errors import PoolMonitorError, ServerError
from poolctl.exit_codes import FAILED, NOT_AS_DESIRED, TIMED_OUT
from poolctl.json_form import Table
from poolctl.monitor.journal import KINDS, MAX_LINES, EventFilter, JournalEvent, parse_filter_or_none, recent
from poolctl.platform import memory_bytes
from poolctl.runners.runner_protocol import Placement
from poolctl.runners.stack_report import WorkerStacks
from poolctl.selection.selector import SelectorError
from poolctl.states import State, Status, in_words

from .verb import (
    Call,
    Verb,
    VerbContext,
    details,
    items,
    reporter,
    selected,
    unhealthy_error,
    without_unnamed_on_demand,
)

_GOALS = ("ready", "healthy", *(state.value for state in State))
_EVENTS_SHAPE = f"since as in the journal, lines and after as numbers, kind as a list of {', '.join(KINDS)}"
_DAY_SECONDS = 86400.0
_STACKS_SECONDS = 2.0
_STACKS_AT_ONCE = 50


class ReadingVerbs:
    """The verbs that do not change servers."""

    def __init__(self, context: VerbContext) -> None:
        self._context = context
        self._core = context.core

    async def listing(self, call: Call) -> Result:
        """The current state of the selected servers."""
        return Result(items=items(self._core, selected(self._core, call.selector)))

    async def show(self, call: Call) -> Result:
        """The selected servers with their configuration, its origins, and their workers; secrets only with `reveal`."""
        entries = selected(self._core, call.selector)
        reveal = call.options.get("reveal") is True
        in_files = [entry.name for entry in entries if not entry.added]
        origins = await self._context.configuration.key_origins(in_files)
        shown = (details(self._core, entry, origins.get(entry.name), reveal=reveal) for entry in entries)
        return ShowResult(items=tuple(shown))

    async def status(self, call: Call) -> Result:
        """Every selected server, and a summary; exit code 3 if a server that should run is not ready."""
        # Measured first, so that the rest is from one moment.
        pids = self._context.daemon.own_processes()
        processes = await asyncio.to_thread(
            lambda: tuple(
                OwnProcess(name=name, pid=pid, memory_bytes=memory_bytes(pid)) for name, pid in pids.items()
            )
        )
        entries = selected(self._core, call.selector)
        should_run = [entry for entry in entries if entry.should_run]
        missing = [entry for entry in entries if entry.is_missing]
        summary = Summary(
            **vars(self._context.daemon.identity()),
            servers=len(entries),
            should_run=len(should_run),
            ready=sum(entry.ready for entry in should_run),
            states=dict(Counter(entry.state for entry in entries)),
            health=dict(Counter(entry.health.value for entry in entries)),
            processes=processes,
        )
        failed_runs = [
            f"{entry.name}: {failed}" for entry in entries if (failed := failed_run_message(entry))
        ]
        lasting = [f"{entry.name}: {text}" for entry in entries if (text := lasting_problem(entry))]
        lasting += [
            f"{entry.name}: keeps its workers until {awaited.name}, on which it depends, is ready"
            for entry in entries
            if entry.awaits_replacement and (awaited := self._core.servers.awaited_dependency(entry))
        ]
        lasting += await _removed_socket_warnings(entries)
        problems = [problem for entry in missing if (problem := self._problem(entry)) is not None]
        now = self._core.clock.time()
        return StatusResult(
            items=items(self._core, entries),
            errors=tuple(map(ErrorEntry.of, problems)),
            exit_code=NOT_AS_DESIRED if missing else 0,
            warnings=(
                *failed_runs,
                *lasting,
                *filter(None, (expiry_warning(entry, now) for entry in entries)),
            ),
            summary=summary,
        )

    async def wait(self, call: Call) -> Result:
        """Return when each selected server is in the state named by `for`; exit code 124 after the timeout.

        A sleeping server counts as ready and healthy.
        """
        entries = selected(self._core, call.selector)
        goal = str(call.options.get("for") or "ready")
        if goal not in _GOALS:
            raise SelectorError(f"nothing can be {goal!r}", hint=f"one of: {', '.join(_GOALS)}")
        tests: dict[str, Callable[[Entry], bool]] = {
            # A sleeping server serves the next request; `start` and `status` accept it too.
            "ready": lambda entry: entry.ready or entry.state == State.SLEEPING,
            "healthy": lambda entry: (
                (entry.ready and entry.health is Status.OK) or entry.state == State.SLEEPING
            ),
            "stopped": lambda entry: entry.is_fully_stopped and not entry.failed,
        }
        test = tests.get(goal, lambda entry: entry.state == goal)
        if goal in ("ready", "healthy", "running"):
            entries = [entry for entry in without_unnamed_on_demand(entries, call) if not entry.is_disabled]
        late = await wait_until(self._core, entries, test, call.options.get("timeout"), reporter(call, test))
        problems = [
            (None if goal == State.STOPPED else self._unstartable_dependency_error(entry))
            or goal_error(entry, PoolMonitorError, self._why_not(entry, goal), _fix_for(entry, goal))
            for entry in late
        ]
        return Result(
            items=items(self._core, selected(self._core, call.selector)),
            errors=tuple(map(ErrorEntry.of, problems)),
            exit_code=TIMED_OUT if late else 0,
        )

    async def stacks(self, call: Call) -> StacksResult:
        """The current stacks of each worker of the selected servers. The workers continue to run."""
        chosen = selected(self._core, call.selector)
        warnings = [f"{entry.name}: has no worker" for entry in chosen if not entry.observed.workers]
        turn = asyncio.Semaphore(_STACKS_AT_ONCE)

        async def stacks_of(placement: Placement) -> WorkerStacks | None:
            async with turn:
                return await self._context.runner.stacks(placement.id, _STACKS_SECONDS)

        workers = [worker for entry in chosen for worker in entry.observed.workers.values()]
        placements = [worker.placement for worker in workers if worker.placement is not None]
        stacks = await asyncio.gather(*map(stacks_of, placements))
        return StacksResult(
            items=tuple(item for item in stacks if item is not None),
            warnings=tuple(warnings) if call.selector.targets else (),
        )

    async def exec(self, call: Call) -> ExecResult:
        """The specification of a command in the selected server's place, which the client runs itself."""
        chosen = selected(self._core, call.selector)
        listed = items(self._core, chosen)
        if len(chosen) != 1:
            return ExecResult(items=listed)
        try:
            spec = await asyncio.to_thread(self._context.runner.forker.exec_spec, chosen[0].config)
        except ServerError as problem:
            return ExecResult(items=listed, errors=(ErrorEntry.of(problem),), exit_code=FAILED)
        # Root may run a command in the pool of another user.
        spec["user"] = spec["user"] or (os.geteuid(), os.getegid())
        return ExecResult(items=listed, spec=spec)

    async def events(self, call: Call) -> JournalPositionResult:
        """Send the last `lines` matching events (at most 10,000), and with `follow` each new event.

        The result has the journal's path and the number of its last event.
        """
        chosen = selected(self._core, call.selector)
        names = None if call.selector.selects_all else {entry.name for entry in chosen}
        event_filter, lines = _parse_events_options(names, call.options)
        events = self._context.events
        events.flush()
        if event_filter.after > events.seq:
            # The number is from an earlier journal, which has been removed.
            event_filter = event_filter._replace(after=0)
        queue: asyncio.Queue[JournalEvent] = asyncio.Queue()

        def offer(event: JournalEvent) -> None:
            if event_filter.matches(event):
                queue.put_nowait(event)

        end = events.subscribe(offer)
        try:
            path = events.journal.path if events.journal is not None else ""
            if path:
                # In a thread, because the journal may be large and its disk slow; new events are queued meanwhile.
                past = event_filter._replace(until=events.seq)
                for event in await asyncio.to_thread(recent, path, past, lines) if events.seq else ():
                    call.progress(ProgressLine(event=event.to_json()))
            if call.options.get("follow"):
                await self._follow(queue, call.progress)
        finally:
            end()
        return JournalPositionResult(seq=events.seq, path=path)

    async def _follow(self, queue: asyncio.Queue[JournalEvent], progress: Progress) -> None:
        over = asyncio.ensure_future(self._context.over.wait())
        try:
            while not over.done():
                next_event = asyncio.ensure_future(queue.get())
                try:
                    await asyncio.wait({next_event, over}, return_when=asyncio.FIRST_COMPLETED)
                    if next_event.done():
                        progress(ProgressLine(event=next_event.result().to_json()))
                finally:
                    next_event.cancel()
        finally:
            over.cancel()

    def _problem(self, entry: Entry) -> ServerError | None:
        complaint = self._core.health.first_worker_problem(entry)
        if complaint and entry.state == State.RUNNING:
            return unhealthy_error(entry, complaint)
        return entry.observed.failure or self._unstartable_dependency_error(entry)

    def _unstartable_dependency_error(self, entry: Entry) -> ServerError | None:
        """The error if the server waits for a dependency that will not start, such as a disabled one; else None."""
        command = CommandGoal(self._core, PoolMonitorError, [entry])
        return command.problem(entry) if entry.wanted and command.is_over(entry) else None

    def _why_not(self, entry: Entry, goal: str) -> str:
        why = self._core.health.first_worker_problem(entry) if entry.state == State.RUNNING else ""
        if not why and (failure := entry.present_failure) is not None:
            why = failure.message
        return f"is {in_words(entry.state)}, not {goal}{f': {why}' if why else ''}"


def _fix_for(entry: Entry, goal: str) -> str:
    """The fix for a server that has not reached the goal of a `wait`."""
    if goal == State.STOPPED:
        return f"poolctl stop {entry.name}"  # an earlier failure does not explain why it runs
    failure = entry.present_failure
    return (failure.hint if failure is not None else "") or f"poolctl logs {entry.name}"


async def _removed_socket_warnings(entries: Collection[Entry]) -> list[str]:
    """A warning for each open Unix socket of a server whose file is gone: no client can connect to it."""
    paths = {
        entry.name: entry.listener.bound.address.path
        for entry in entries
        if entry.listener.state is ListenerState.OPEN
        and entry.listener.bound is not None
        and entry.listener.bound.address.kind == "unix"
        and (entry.ready or not entry.config.binds_itself)
    }
    if not paths:
        return []
    removed = await asyncio.to_thread(lambda: [name for name in paths if not os.path.lexists(paths[name])])
    return [
        f"{name}: {paths[name]} has been removed, so that clients cannot connect; "
        f"poolctl stop {name} && poolctl start {name} opens it again"
        for name in removed
    ]


def expiry_warning(entry: Entry, now: float) -> str:
    """The warning that a certificate in use has expired, or expires within `tls.warn_before`; "" if it does not."""
    ends, tls = entry.observed.certificate_ends, entry.config.tls
    if not entry.observed.workers or ends is None or not tls or tls is True:
        return ""
    if now + tls.warn_before <= ends:
        return ""
    if ends <= now:
        return f"{entry.name}: its certificate expired on {date_text(ends)}; renew it, then poolctl reload"
    days = int((ends - now) // _DAY_SECONDS)
    remaining = f"in {days} day{'' if days == 1 else 's'}" if days else "within a day"
    return f"{entry.name}: its certificate expires on {date_text(ends)} ({remaining}); renew it, then poolctl reload"


def _parse_events_options(names: Collection[str] | None, options: Table) -> tuple[EventFilter, int]:
    """Return the filter for a command's events, and the maximum number of past events to send. Raises SelectorError."""
    lines = options.get("lines", MAX_LINES)
    event_filter = parse_filter_or_none(
        servers=names, kinds=options.get("kind"), since=options.get("since"), after=options.get("after")
    )
    if event_filter is None or not isinstance(lines, int) or isinstance(lines, bool) or lines < 0:
        raise SelectorError("events: what is wanted?", hint=_EVENTS_SHAPE)
    return event_filter, min(lines, MAX_LINES)


def verbs(context: VerbContext) -> dict[str, Verb]:
    """The functions that handle this module's verbs, by verb."""
    reading = ReadingVerbs(context)
    return {
        "list": reading.listing,
        "show": reading.show,
        "status": reading.status,
        "wait": reading.wait,
        "stacks": reading.stacks,
        "exec": reading.exec,
        "events": reading.events,
    }
