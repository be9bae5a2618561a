"""Performs the decided actions on listeners, workers and hooks, and records the results in the entries.

Also explains failures of servers: message, hint, and the cause found in a program's output.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from poolctl.clock import Clock
from poolctl.config import ServerConfig, masked_text
from poolctl.errors import PoolError, PoolStartError, PoolStopError, ServerError
from poolctl.json_form import Table, to_json
from poolctl.logs.line_filter import without_control
from poolctl.runners.runner_protocol import Exit, Placement, Runner, WorkerFailed, app_state
from poolctl.units import format_duration

from . import decide
from .configuration_diff import expired_message, read_certificate_expiry, read_digests_by_key
from .decide import ASLEEP, AWAKE, BEFORE_START, LEAVING, Action, Desired, ListenerState, WorkerPhase
from .health_checks import HealthChecks
from .schedules import moment_text, record_run_end
from .server_entry import (
    MAX_ATTEMPTS_AWAITED,
    RUN_FAILED,
    STEADY_SECONDS,
    Entry,
    RunningHook,
    Slot,
    Worker,
)
from .servers import (
    AddressRegistry,
    Recorder,
    ServerRegistry,
    Workqueue,
    caused_by,
    listeners_beside,
    same_listener,
)

if TYPE_CHECKING:
    from poolctl.runners.stack_report import WorkerStacks

T = TypeVar("T")

logger = logging.getLogger("poolctl.supervisor")


_MORE_FILES = "raise the limit of open files where the pool is started: ulimit -n"
_FIXES = {
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: "raise the machine's limit of open files: fs.file-max",
    errno.ENOSPC: "free some space",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit of processes: ulimit -u, or the container's",
}

# Maximum lines of a start's output that are searched for an explanation.
LINES_READ = 500
LAST_LINES = 5  # maximum number of explanatory lines shown
_MAX_CHARACTERS = 300
_FINAL_LINE_CHARACTERS = 200
_IN_TRACEBACK = ("During handling of the above exception", "The above exception was the direct cause")
# Compiled on first use, because a supervisor needs them only when a start fails.
# Both match at the beginning of a text: a search for `.*/` would go through a program's line from each place in it.
_FRAME = r'\s+File "(.+)", line [0-9]'
_LIBRARY_FILE = r"<frozen |.*/(site-packages|dist-packages|lib/python3[.0-9]*)/"
# The margin of an exception group: "  | " of a line, "  +-+-" between two.
_GROUP_MARGIN = r"^ +(\| ?|\+ |\+-\+(?=-)|\+(?=-))"
# uvicorn's messages about a worker's startup and shutdown.
_LIFECYCLE_LINE = (
    r"INFO:\s+(Started server process|Finished server process|Waiting for application|Shutting down"
    r"|Application (startup|shutdown) complete)|ERROR:\s+Application startup failed\. Exiting\."
)
# Lines that node prints around an error: its place, its stack, its properties, and node's version.
_NODE_LINE = (
    r"node:\S+:[0-9]+$|\s+throw \w+;|\s+\^+$|\s+at .*[0-9]\)?( \{)?$|Emitted 'error' event on|\}$|Node\.js v[0-9]"
    r"|\s+(code|errno|syscall|address|port|path|dest|requireStack): |Require stack:$"
)
# "ValueError: …", "shop.errors.Refused: …", "Error [ERR_X]: …", "panic: …", "error: …".
_ERROR_LINE = (
    r"(Uncaught )?([\w.$]*(Error|Exception|Exit|Interrupt)\b|[\w.]+\.[A-Z]\w+|(?i:panic|fatal|error))"
    r"( \[\w+\])?: ?\S"
)
# Errors in the program's own code, which occur whether another process runs or not.
_CODE_ERROR = r"\b((Syntax|Indentation|Tab|Import|ModuleNotFound|Name)Error: |Cannot find (module|package) )"
_ADDRESS_IN_USE = r"EADDRINUSE|AddrInUse|address (is )?already in use|port [0-9]+ (is|was) (already )?in use"
# The number after a colon, after "port", or after the host in a Python tuple.
_PORT = r"(?:[:\]]|\bport[ =:]+|', )([0-9]{2,5})\b"
_MIN_PORT = 60  # numbers below 60 may belong to a time of day
# Maximum time that commands and failure reports wait for the output of a server.
LOGS_SECONDS = 5.0


def note_failure(entry: Entry, failure: ServerError) -> None:
    """Note that an attempt to start or stop the server has failed."""
    entry.observed.failures += 1
    entry.observed.failure = failure


def warn_once(entry: Entry, message: str) -> None:
    """Add a warning about the server to the command in progress, unless another worker has caused the same one."""
    warning = f"{entry.name}: {message}"
    if warning not in entry.observed.warnings:
        entry.observed.warnings.append(warning)


def failure_of(
    entry: Entry,
    message: str,
    hint: str | None = None,
    kind: type[PoolError] = PoolStartError,
    *,
    cause: Exception | None = None,
) -> ServerError:
    """The failure of a server as an error, with the error code of `kind`. `cause` is the exception behind it, if any.

    Without a `hint`, the hint is the command that shows the server's output.
    """
    if hint is None:
        hint = f"poolctl logs {entry.name}"
    failure = ServerError(
        message, name=entry.name, bind=entry.config.bind, hint=hint, code=kind.code, error=kind.error
    )
    # A ServerError of the runner is replaced by the new one. Frames are removed: they would be kept as long
    # as the failure.
    original = cause.__cause__ if isinstance(cause, ServerError) else cause
    failure.__cause__ = None if original is None else original.with_traceback(None)
    return failure


def message_and_hint(error: Exception) -> tuple[str, str]:
    """The message and the hint for an exception of a runner.

    An unexpected exception is logged: the server has failed in any case, and no exception may be lost.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return f"the machine refuses a worker: {os.strerror(error.errno)}", _FIXES.get(error.errno, "")
    if not isinstance(error, (ServerError, WorkerFailed, OSError)):
        logger.error("not expected of a runner", exc_info=error)
    return getattr(error, "message", str(error)), getattr(error, "hint", "")


def restart_text(delay_seconds: float, count: int) -> str:
    """Return a text such as "restarting in 2s (3rd time)" for the restart number `count`; number 1 is left out."""
    # Rounded, because pauses have a random part.
    pause = format_duration(round(delay_seconds, 2 if delay_seconds < 1 else 1))
    when = f"restarting in {pause}" if delay_seconds > 0 else "restarting"
    return f"{when} ({_ordinal(count)} time)" if count > 1 else when


def give_up_text(entry: Entry, restarts: int = 0) -> str:
    """A sentence about a final exit: the number of restarts before it, and where to find the output."""
    counted = decide.restarts_within(restarts, entry.config.restart)
    return f"{f'given up after {counted}' if restarts else 'not restarted'}: poolctl logs {entry.name}"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number // 10 % 10 != 1 else "th"
    return f"{number}{ending}"


@contextlib.contextmanager
def logged_exceptions(consequence: str) -> Iterator[None]:
    """Context manager: pass an unexpected exception to the event loop, which logs it with its consequence."""
    try:
        yield
    except Exception as error:
        asyncio.get_running_loop().call_exception_handler({"message": consequence, "exception": error})


async def last_lines(runner: Runner, name: str, lines: int, since: float, worker: str = "") -> list[str]:
    """The server's last output lines since a time (epoch); empty if its runner keeps no output, or is slow.

    For `worker`, which has just exited, see `Runner.logs`.
    """
    with logged_exceptions(f"{name}: its output cannot be read"), contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(LOGS_SECONDS):
            return await runner.logs(name, lines, since, worker)
    return []


async def explain_last_lines(
    runner: Runner, name: str, since: float, explain: Callable[[list[str]], T], worker: str = ""
) -> T:
    """Return what `explain` makes of the server's last output lines since a time (epoch), or of the `worker`'s own.

    `explain` runs in a thread, because a program may print lines that take long to search.
    """
    lines = await last_lines(runner, name, LINES_READ, since, worker)
    return await asyncio.to_thread(explain, lines) if lines else explain(lines)


class OutputCause(NamedTuple):
    """The output line with the reason for an exit ("" if none), and whether the server's address was in use."""

    text: str = ""
    own_address: bool = False


def cause_of(lines: Iterable[str], server: ServerConfig, *, refused: bool = True) -> OutputCause:
    """Return the reason for an exit, as found in the last output of the server's program.

    An error about the server's own address is preferred to the last error. Without any error, the reason is the last
    line if `refused` is set, which means that the program failed before it was ready, and "" if `refused` is not set.
    """
    explanations = [line.strip() for line in explanatory_lines(lines)]
    conflicts = [line for line in explanations if re.search(_ADDRESS_IN_USE, line, re.IGNORECASE)]
    if any(server.address.port in _ports_in(line) for line in conflicts):
        by_whom = "" if server.binds_itself else " (by this pool)"
        return OutputCause(f"address {server.key} is in use{by_whom}", own_address=True)
    last = next(
        (line for line in reversed(explanations) if line in conflicts or re.match(_ERROR_LINE, line)), ""
    )
    text = last or (explanations[-1] if explanations and refused else "")
    return OutputCause(text[:_MAX_CHARACTERS], own_address=last in conflicts and not _ports_in(last))


def final_line(lines: Sequence[str]) -> str:
    """The last line that is not blank, as plain text of at most 200 characters, passwords in URLs masked; else ""."""
    for line in reversed(lines):
        shown = without_control(line).rstrip().rpartition("\r")[2]  # the last state of a progress bar
        if text := "".join(c if c.isprintable() else " " for c in shown).strip():
            return masked_text(text)[:_FINAL_LINE_CHARACTERS]
    return ""


def is_quoted(line: str, message: str) -> bool:
    """Whether the failure's message already contains the line or names the same error."""
    _, error, text = line.rpartition("Error: ")
    return text in message if error else message.endswith(text)


def _ports_in(line: str) -> set[int]:
    ports = {int(port) for port in re.findall(_PORT, line, re.IGNORECASE)}
    return {port for port in ports if port >= _MIN_PORT}


def explanatory_lines(lines: Iterable[str]) -> list[str]:
    """The lines that may explain a failure; for a traceback, the error and its place in the application.

    Omits uvicorn's startup and shutdown messages, and node's stacks.
    """
    explanations = []
    place = ""
    in_traceback = True  # the first line may be within a traceback
    of_node = False
    for line in lines:
        text = re.sub(_GROUP_MARGIN, "", line) if in_traceback else line
        if re.match(r"Node\.js v[0-9]|node:\S+:[0-9]+$", line):
            of_node = True
        if "Traceback (most recent call last):" in line:
            in_traceback, place = True, ""
        elif in_traceback and text[:1].isspace():
            if (frame := re.match(_FRAME, text)) and not (place and re.match(_LIBRARY_FILE, frame[1])):
                place = text.strip()
        elif not (in_traceback and text.startswith("--")):
            in_traceback = text != line  # a margin: the exception group continues
            if text.strip() and not text.startswith(_IN_TRACEBACK) and not re.match(_LIFECYCLE_LINE, text):
                explanations += [place, text] if place else [text]
                place = ""
    return [line for line in explanations if not re.match(_NODE_LINE, line)] if of_node else explanations


# The end of a worker is delayed at most this long for its stacks; an answer takes a few milliseconds.
_STACKS_SECONDS = 1.0
_ANSWER_SHARE = 0.9  # the runner's share of that time
# These limits keep an event, and the state given to a successor, below about 50 KB.
_MAX_STACKS, _MAX_FRAMES = 20, 20


class StackRecorder:
    """Reads the stacks of workers from the runner."""

    def __init__(self, runner: Runner, recorder: Recorder) -> None:
        self._runner = runner
        self._recorder = recorder

    async def record_stacks(self, entry: Entry, worker: Worker) -> WorkerStacks | None:
        """The worker's stacks, or None if they are unknown. Takes at most a second, and never raises."""
        if worker.placement is None:
            return None
        try:
            async with asyncio.timeout(_STACKS_SECONDS):
                found = await self._runner.stacks(worker.placement.id, _STACKS_SECONDS * _ANSWER_SHARE)
        except TimeoutError:
            return None
        except Exception:
            logger.exception("the stacks of worker %s cannot be taken", worker.id)
            return None
        if found is None:
            return None
        entry.observed.stacks = found.shortened(_MAX_STACKS, _MAX_FRAMES)
        return entry.observed.stacks

    async def record_stacks_and_extend_message(self, entry: Entry, worker: Worker, message: str) -> str:
        """Record the stacks of a worker not ready in time; returns `message`, plus where it hangs if that is known."""
        stacks = await self.record_stacks(entry, worker)
        if stacks is None:
            return message
        if stacks.place:
            message += f", in {stacks.place}"
        process: Table = {} if stacks.pid is None else {"pid": stacks.pid}
        self._recorder.record(
            "lifecycle",
            "start timed out",
            server=entry.name,
            bind=entry.config.key,
            message=f"worker {worker.id} {message}",
            worker=worker.id,
            **process,
            severity="info",
            stacks=[to_json(stacks)],
        )
        return message


# An interpreter may take 30 s until it can fork.
_CHECK_SECONDS = 40.0
# Reports that have arrived are read within this time.
_REPORTS_SECONDS = 0.1
# Time for a worker with a stuck event loop to recover and end by itself.
STUCK_SECONDS = 1.0
_OWN_SOCKET = (
    "the pool listens there for it: have it take that socket ({fd}, LISTEN_FDS), "
    'or write socket = "program" to let it open its own'
)


class Executor:
    """Performs actions in tasks: one for the whole life of each worker, and a further one for each action on it.

    They record the progress of workers and the consequences of exits in the entry.
    """

    def __init__(
        self,
        runner: Runner,
        clock: Clock,
        queue: Workqueue,
        addresses: AddressRegistry,
        servers: ServerRegistry,
        health: HealthChecks,
        stacks: StackRecorder,
        recorder: Recorder,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._queue = queue
        self._addresses = addresses
        self._servers = servers
        self._health = health
        self._stacks = stacks
        self._recorder = recorder
        self._random = random.Random()

    def perform(self, entry: Entry, action: Action) -> None:
        """Begin the action. The entry shows at once that it has begun."""
        match action:
            case decide.Open():
                entry.listener.state, entry.listener.bound = ListenerState.OPENING, entry.config
                self._queue.run(self._open_listener(entry))
            case decide.Close() | decide.Refuse():
                entry.listener.state = ListenerState.CLOSING
                self._queue.run(self._close_listener(entry, refuses=isinstance(action, decide.Refuse)))
            case decide.Release(key):
                held = next(config for config in entry.listener.previous_configs if config.key == key)
                entry.listener.previous_configs.remove(held)
                entry.listener.releasing.append(held)
                self._queue.run(self._close_unless_claimed(entry, held))
            case decide.Spawn(generation, index):
                self._spawn(entry, generation, index)
            case decide.Check():
                entry.observed.checking = True
                self._queue.run(self._check_startable_or_roll_back(entry, entry.desired.generation))
            case decide.Drain(name):
                self._end(entry, entry.observed.workers[name], WorkerPhase.DRAINING, replaced=False)
            case decide.Stop(name):
                worker = entry.observed.workers[name]
                # A replacement that waits for the worker's end takes over its connections.
                successor = not entry.wants_no_worker and _takes_connections_of(worker, entry.config)
                self._end(entry, worker, WorkerPhase.STOPPING, replaced=successor)
            case decide.Rotate(name, in_rotation):
                worker = entry.observed.workers[name]
                worker.out = not in_rotation
                assert worker.placement is not None
                self._queue.run(self._runner.set_in_rotation(worker.placement, in_rotation))
            case decide.Accept(name, accepting):
                worker = entry.observed.workers[name]
                worker.resting = not accepting
                assert worker.placement is not None
                self._queue.run(self._runner.set_accepting(worker.placement, accepting))
            case decide.Arm():
                self._prepare_wake_on_request(entry)
            case decide.Disarm():
                self.stop_watching_listener(entry)
            case decide.FallAsleep():
                self._fall_asleep(entry)
            case decide.RunHook(hook):
                self.run_hook(entry, RunningHook(hook))
            case decide.EndHook():
                self._end_hook(entry, entry.config.stop_timeout)

    def _spawn(self, entry: Entry, generation: int, index: int) -> None:
        config = entry.config
        worker = Worker(f"{entry.name}.{generation}.{index}", generation, index, config)
        may_accept = self._addresses.may_accept(entry)
        worker.resting = not config.command and (config.health.gated or not may_accept)
        entry.observed.workers[worker.id] = worker
        worker.task = self._queue.run(self._mind(entry, worker, self._run_worker(entry, worker)))

    def _end(self, entry: Entry, worker: Worker, phase: WorkerPhase, *, replaced: bool) -> None:
        """Drain or stop the worker, as `phase` says; one that has no process yet is ended as soon as it has one."""
        worker.phase = phase
        if phase is WorkerPhase.STOPPING:
            self._touch_with_parties(entry)
        if worker.placement is not None:
            leave = self._drain_worker if phase is WorkerPhase.DRAINING else self._stop_worker
            self._queue.run(leave(entry, worker, replaced=replaced))
        elif worker.preloading is not None:
            worker.preloading.cancel()

    def adopt(self, entry: Entry, worker: Worker) -> None:
        """Manage a worker that another supervisor has started."""
        worker.task = self._queue.run(self._mind(entry, worker, self._watch_until_exit(entry, worker)))

    def kill(self, entry: Entry, worker: Worker) -> None:
        """Kill the worker at once, even if it is already leaving."""
        worker.stop_seconds = 0
        self._end(entry, worker, WorkerPhase.STOPPING, replaced=False)

    def close(self, held: ServerConfig) -> None:
        """Close the listener of the configuration `held`, which no server uses any longer. Does not wait."""
        self._addresses.closed(held.key)
        self._queue.run(self._runner.close(held.key))

    async def _check_startable_or_roll_back(self, entry: Entry, generation: int) -> None:
        """Check that workers of the generation can be started. If not, abandon it: the running workers stay."""
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._runner.check_startable(entry.config)
        except Exception as error:
            if entry.wanted and entry.desired.generation == generation:
                message, hint = message_and_hint(error)
                message = message or f"checking that a worker can start took longer than {_CHECK_SECONDS:g} s"
                # Output from before the check does not explain the failure.
                entry.observed.failed_since, entry.observed.failed_worker = self._clock.time(), ""
                note_failure(entry, failure_of(entry, message, hint))
                self.roll_back(entry)
        # Without running workers to keep, the start itself reports the problem.
        entry.observed.feasible = generation
        entry.observed.checking = False
        self._queue.touch(entry, progressed=True)

    async def _open_listener(self, entry: Entry) -> None:
        server = entry.listener.bound
        assert server is not None
        try:
            if entry.config is server and (holder := self._addresses.other_holder(entry)):
                message = (
                    f"its address is used by {holder.name}, which went back to its previous configuration"
                )
                raise ServerError(message, hint=f"poolctl logs {holder.name}; poolctl reload")
            beside = [held.key for held in listeners_beside(entry) if held.key != server.key]
            endpoints = await self._runner.open(server, beside)
        except Exception as error:
            entry.listener.state, entry.listener.bound = ListenerState.CLOSED, None
            if entry.wanted:  # otherwise it was stopped meanwhile, which is no failure
                message, hint = message_and_hint(error)
                entry.observed.failed_since, entry.observed.failed_worker = self._clock.time(), ""
                note_failure(entry, failure_of(entry, message, hint, cause=error))
                if not self.roll_back(entry):
                    self._decide_after_exit(entry, Exit(message=message), ready_at=None, index=0)
                    self._have_others_wait_with(entry, entry.slot(0))
        else:
            entry.listener.state = ListenerState.OPEN
            self._addresses.record_opened(entry, server.key, endpoints)
        self._queue.touch(entry, progressed=True)

    def change_socket_access(self, entry: Entry) -> None:
        """Give the file of the server's open Unix socket its configured mode and owner. Raises ServerError."""
        held = entry.listener.bound if entry.listener.state is ListenerState.OPEN else None
        if held is not None and same_listener(held, entry.config):
            self._runner.change_socket_access(entry.config)

    def change_socket_access_or_warn(self, entry: Entry) -> None:
        """Like `change_socket_access`, but an error is a warning."""
        try:
            self.change_socket_access(entry)
        except ServerError as error:
            self._record_and_warn(entry, "socket unchanged", error.message)

    async def _close_listener(self, entry: Entry, *, refuses: bool) -> None:
        held = entry.listener.bound
        assert held is not None
        await self._close_unless_claimed(entry, held)
        entry.listener.state, entry.listener.bound, entry.listener.vacates = ListenerState.CLOSED, None, False
        self._queue.touch(entry, progressed=True)
        if refuses and held.address.kind == "fd":
            self._runner.close_arriving(held)

    async def _close_unless_claimed(self, entry: Entry, held: ServerConfig) -> None:
        bound = entry.listener.bound
        if bound is not None and bound is not held and bound.key == held.key:
            endpoints = self._runner.close_unneeded(bound)
            self._addresses.record_opened(entry, bound.key, endpoints)
        elif self._addresses.release_unless_claimed(entry, held):
            self._addresses.closed(held.key)
            with logged_exceptions(f"{held.key} cannot be closed"):
                await self._runner.close(held.key)
        if held in entry.listener.releasing:
            entry.listener.releasing.remove(held)
        self._queue.touch(entry, progressed=True)

    # Sleep: the runner watches the listener, and the first request wakes the server.

    def _prepare_wake_on_request(self, entry: Entry) -> None:
        entry.desired.fallback = None
        entry.listener.armed = entry.config
        self._runner.arm(entry.config, partial(self._on_request, entry))
        self.preload(entry)

    def stop_watching_listener(self, entry: Entry) -> None:
        """Stop watching for a request. The next workers take the waiting connections."""
        if entry.listener.armed is not None:
            self._runner.disarm(entry.listener.armed.key)
            entry.listener.armed = None

    def wake(self, entry: Entry) -> None:
        """Wake the server if it sleeps or is falling asleep, even if no connection waits for it."""
        falls_asleep = entry.should_sleep and entry.observed.workers and entry.window_demand != ASLEEP
        if entry.listener.armed is not None:
            self.stop_watching_listener(entry)
            self._on_request(entry)
        elif falls_asleep and entry.desired.state is Desired.RUN:
            self._on_request(entry)

    def watch_idleness(self, entry: Entry, seconds: float) -> None:
        """Have the entry's workers report when they have had no traffic for this number of seconds."""
        for worker in entry.observed.workers.values():
            worker.idle = False
            if worker.placement is not None:
                self._runner.watch_idleness(worker.placement, seconds)

    def _fall_asleep(self, entry: Entry) -> None:
        # The activator, or the next worker, takes over the connections of the ready workers.
        entry.observed.called, entry.desired.automatic = False, None
        entry.begin_generation()
        entry.fill_vacant_slots()
        for worker in entry.observed.staying:
            self._end(entry, worker, WorkerPhase.DRAINING, replaced=True)
        self._queue.touch(entry, progressed=True)

    def preload(self, entry: Entry) -> None:
        """Import the current application of a sleeping server, so that waking it requires only a fork."""
        if entry.config.preload:
            self._queue.run(self._preload(entry))

    async def _preload(self, entry: Entry) -> None:
        config, since = entry.config, entry.desired.code_since
        try:
            entry.observed.preload_problem = await self._runner.preload_application(config, since)
        except (ServerError, WorkerFailed, OSError):
            # The next start reports the problem; until then it is only in the server's log.
            return
        self._queue.note(entry)

    def _on_request(self, entry: Entry) -> None:
        entry.listener.armed = None
        entry.observed.called = True
        loop = asyncio.get_running_loop()
        loop.call_later(
            entry.config.start_timeout, self._close_waiting_if_not_started, entry, entry.desired.newest
        )
        with caused_by("a request"):
            self._queue.touch(entry, progressed=True)

    def _close_waiting_if_not_started(self, entry: Entry, newest: int) -> None:
        """Close the connections that wait for the first worker of a woken server.

        Does nothing if the server is ready, sleeps again, or has a generation newer than `newest`. While a worker is
        starting, the connections are closed only after this worker has failed.
        """
        if entry.desired.newest != newest or entry.ready or entry.listener.armed is not None:
            return
        for worker in entry.observed.workers.values():
            if worker.phase in (WorkerPhase.PLACING, WorkerPhase.STARTING):
                self._queue.run(self._close_connections_after_failed_start(entry, worker, newest))
                return
        self._runner.close_waiting(entry.config.key)

    async def _close_connections_after_failed_start(self, entry: Entry, worker: Worker, newest: int) -> None:
        assert worker.task is not None
        await asyncio.wait({worker.task})
        if worker.ready_at is None:
            self._close_waiting_if_not_started(entry, newest)

    # Hooks, one at a time for each server. A start waits for its hook, and fails if the hook fails; a stop
    # only waits.

    def run_hook(self, entry: Entry, hook: RunningHook) -> None:
        """Start the hook and wait for its end in a task. If it has a placement already, only wait for its end."""
        entry.hooks.running = hook
        self._queue.run(self._run_hook(entry, hook))

    def _end_hook(self, entry: Entry, limit_seconds: float) -> None:
        hook = entry.hooks.running
        if hook is not None:
            hook.ends = True
            if hook.placement is not None:
                self._queue.run(self._end_hook_process(entry, hook, limit_seconds))

    def abort_hooks(self, entry: Entry) -> None:
        """Kill the running hook at once, and cancel the after_stop hook of the stop in progress."""
        if entry.hooks.after_stop_due:
            entry.observed.warnings.append(
                f"{entry.name}: was killed: hooks.after_stop was not run to its end"
            )
            entry.hooks.after_stop_due = False
        self._end_hook(entry, 0)

    async def _run_hook(self, entry: Entry, hook: RunningHook) -> None:
        begun_at = self._clock.time()
        try:
            exit_, hint = await self._run_hook_until_exit(entry, hook)
        except Exception as error:
            reason, hint = message_and_hint(error)
            exit_ = Exit(message=f"cannot be run: {reason}")
        message, printed_by = "", hook.placement.id if hook.placement is not None else ""
        if not (exit_.ok or hook.ends):
            how = exit_.message if exit_.signal is None else f"was {exit_.message}"
            message = await self._hook_message(entry, f"hooks.{hook.name} {how}", begun_at, printed_by)
        entry.hooks.running = None
        if hook.name != BEFORE_START:
            entry.hooks.after_stop_due = False
            if message:
                cause = entry.desired.cause.cause if entry.desired.cause is not None else ""
                self._record_and_warn(entry, "hook failed", message, cause=cause)
        elif hook.ends:
            pass  # the hook runs again if the server has been started meanwhile
        elif message and entry.wanted:
            # The failure is reported with the lines that the hook printed.
            entry.observed.failed_since, entry.observed.failed_worker = begun_at, printed_by
            entry.observed.last_exit, entry.observed.next_step = exit_, give_up_text(entry)
            note_failure(entry, failure_of(entry, message, hint))
            entry.set_desired(Desired.FAILED)
        elif not message:
            entry.hooks.before_start_due = False
        self._queue.touch(entry, progressed=True)

    async def _run_hook_until_exit(self, entry: Entry, hook: RunningHook) -> tuple[Exit, str]:
        config, is_start = entry.config, hook.name == BEFORE_START
        limit = config.start_timeout if is_start else config.stop_timeout
        if not is_start and entry.desired.stop_seconds is not None:
            limit = min(limit, entry.desired.stop_seconds)
        if hook.placement is None:
            if config.hooks is None or not getattr(config.hooks, hook.name):
                # A reload removed the hook while the start or the stop waited.
                return Exit.from_returncode(0), ""
            hook.placement = await self._runner.begin_hook(config, hook.name)
        exit_ = await self._wait_or_kill_hook(entry, hook, hook.placement, limit)
        hint = f"poolctl logs {entry.name}"
        if exit_.status is None and exit_.signal is None:
            which = "start_timeout" if is_start else "stop_timeout"
            hint += f"; {which} says how long it may take"
        return exit_, hint

    async def _wait_or_kill_hook(
        self, entry: Entry, hook: RunningHook, placement: Placement, limit_seconds: float
    ) -> Exit:
        """Wait until the hook has ended; returns its exit.

        After the time limit the hook is killed, and the returned exit has neither status nor signal.
        """
        ending = asyncio.ensure_future(self._runner.wait_for_exit(placement))
        if hook.ends:
            # The end was ordered before the hook had a process.
            await self._end_hook_process(entry, hook, 0)
        await asyncio.wait({ending}, timeout=limit_seconds)
        if ending.done():
            return ending.result()
        await self._end_hook_process(entry, hook, 0)
        # Wait even for a process that SIGKILL does not end: its server cannot be started earlier.
        await ending
        return Exit(message=f"had not ended after {format_duration(limit_seconds)}, and was killed")

    async def _end_hook_process(self, entry: Entry, hook: RunningHook, seconds: float) -> None:
        assert hook.placement is not None
        hook.unstoppable = False
        try:
            await self._runner.stop(hook.placement, seconds)
        except TimeoutError:
            hook.unstoppable = True
            message = f"hooks.{hook.name} could not be ended, not even by SIGKILL ({hook.placement.where})"
            note_failure(entry, failure_of(entry, message, "see what it waits for", PoolStopError))
            self._queue.touch(entry, progressed=True)

    async def _hook_message(self, entry: Entry, message: str, since: float, worker: str) -> str:
        explain = partial(cause_of, server=entry.config)
        reason = (await explain_last_lines(self._runner, entry.name, since, explain, worker)).text
        return f"{message}: {reason}" if reason and not is_quoted(reason, message) else message

    def _record_and_warn(self, entry: Entry, event: str, message: str, **detail: str) -> None:
        """Report a problem: as a warning of the current command, in the log, and as an event."""
        entry.observed.warnings.append(f"{entry.name}: {message}")
        logger.warning("%s: %s", entry.name, message)
        self._recorder.record(
            "lifecycle", event, server=entry.name, bind=entry.config.key, message=message, **detail
        )

    # Workers that start.

    async def _mind(self, entry: Entry, worker: Worker, life: Awaitable[Exit]) -> None:
        """Await the worker's exit, the result of `life`, and handle it. An unexpected exception ends the worker."""
        try:
            exit_ = await life
        except Exception as error:
            message, hint = message_and_hint(error)
            worker.failure = failure_of(entry, message, hint, cause=error)
            exit_ = Exit(message=message)
            with logged_exceptions(f"worker {worker.id} may still run"):
                exit_ = await self._end_unwatched(entry, worker) or exit_
        await self._handle_worker_exit(entry, worker, exit_)

    async def _end_unwatched(self, entry: Entry, worker: Worker) -> Exit | None:
        if worker.placement is None:
            return None
        await self._end_worker(entry, worker, 0, replaced=False)
        return await self._runner.wait_for_exit(worker.placement)

    async def _run_worker(self, entry: Entry, worker: Worker) -> Exit:
        exit_ = Exit(message="was stopped before it was placed")
        if worker.phase is WorkerPhase.PLACING:
            exit_ = await self._place_and_watch(entry, worker)
        worker.exit = exit_
        self._queue.touch(entry)  # a gateway sends it nothing more, while its output is read
        if worker.ready_at is None and worker.phase not in LEAVING and entry.observed.files == worker.files:
            # Files read by a worker that failed before it was ready are not in use.
            entry.observed.files = worker.files_before or entry.observed.files
        if worker.phase not in LEAVING:
            await self._add_cause_to_failure(entry, worker, exit_)
        return exit_

    async def _add_cause_to_failure(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        """Add the cause found in the worker's output to `worker.failure`, if the exit status alone explains nothing.

        The output of a worker that failed after it was ready is read in two cases, in which no restart follows at once:
        the restart policy is "no", or a worker with its index has been restarted within the restart window.
        """
        failure, config = worker.failure, worker.config
        if exit_.ok and config.restart_policy != "always" and not config.job and config.every is None:
            worker.last_line = await explain_last_lines(
                self._runner, entry.name, worker.placed_at, final_line, worker.id
            )
        since = self._clock.monotonic() - config.restart.window
        restarts = entry.slot(worker.index).restart_times
        waits = entry.restart_policy == "no" or any(restart >= since for restart in restarts)
        if worker.ready_at is not None and waits and not exit_.ok:
            failure = worker.failure = failure_of(entry, exit_.message)
        late = worker.given_up and bool(config.command)
        if failure is None or not (
            late or failure.message in (exit_.message, exit_.message_before_ready(""))
        ):
            return
        refused = bool(exit_.status) and not late and worker.ready_at is None
        explain = partial(cause_of, server=config, refused=refused)
        printed_by = worker.id if worker.placement is not None else ""
        cause = await explain_last_lines(self._runner, entry.name, worker.placed_at, explain, printed_by)
        worker.address_taken = cause.own_address and worker.ready_at is None
        if cause.text and (cause.own_address or not late) and not is_quoted(cause.text, failure.message):
            is_ours = worker.address_taken and config.command and not config.binds_itself
            hint = f"{_OWN_SOCKET}; {failure.hint}" if is_ours else failure.hint
            worker.failure = failure_of(entry, f"{failure.message}: {cause.text}", hint, cause=failure)

    # Programs that bind a socket of their own instead of using the pool's.

    def _may_retry_without_listener(self, entry: Entry, worker: Worker) -> bool:
        """Whether to start the program again without the pool's listener, which may prevent it from binding."""
        config = worker.config
        return (
            not (
                entry.observed.socket_found
                or "socket" in config.model_fields_set
                or config.binds_itself
                or config.job
            )
            and bool(config.command)
            and not any("{fd}" in word for word in config.command or ())
            and worker.config is entry.config
            and entry.wanted
            and entry.desired.retries
            and not entry.observed.workers
            and entry.size == config.scale.min == 1
        )

    def _switch_socket_opener(self, entry: Entry, finding: str) -> None:
        entry.observed.socket_found = finding
        socket = "program" if finding == "tried" else "pool"
        self._servers.replace_config(entry, entry.config.model_copy(update={"socket": socket}))
        self._queue.touch(entry, progressed=True)

    def _check_use_of_pool_socket(self, entry: Entry, worker: Worker) -> None:
        """Record whether a ready program uses the pool's socket. Warn if the program did not start with that socket."""
        if not worker.config.command or not worker.config.listens:
            return
        if entry.observed.socket_found != "tried":
            entry.observed.socket_found = entry.observed.socket_found or (
                "" if worker.config.binds_itself else "pool"
            )
            return
        entry.observed.socket_found = "program"
        message = (
            f"opens {entry.config.key} itself, and was started again without the pool's socket; write "
            'socket = "program" to its table: a restart ends the old process first'
        )
        self._record_and_warn(entry, "own socket", message)

    # Programs that cannot start while the previous process of their server runs.

    def _may_retry_without_overlap(self, entry: Entry, worker: Worker) -> bool:
        """Whether to start the program again after the end of the older process, which may have prevented its start.

        Not if an earlier start has succeeded while an older process ran, unless an address is in use.
        """
        config, observed = worker.config, entry.observed
        reason = worker.failure.message if worker.failure is not None else ""
        is_in_use = re.search(_ADDRESS_IN_USE, reason, re.IGNORECASE)
        return (
            entry.wanted
            and entry.may_overlap
            and config.takes_pool_socket
            and "overlap" not in config.model_fields_set
            and worker.placement is not None
            and worker.ready_at is None
            and not worker.given_up
            and entry.is_current(worker)
            and _has_older_worker(entry, worker)
            and bool(is_in_use or not (observed.overlap_found or re.search(_CODE_ERROR, reason)))
        )

    def _retry_without_overlap(self, entry: Entry, worker: Worker) -> None:
        if worker.generation != entry.desired.generation:
            entry.renew_worker(worker.index)
        # Other workers of the same generation may fail as well.
        elif entry.desired.restarting == entry.desired.generation:
            entry.order_restart()
        else:
            entry.begin_generation()
        entry.observed.overlap_found = "tried"
        self._queue.touch(entry, progressed=True)

    def _record_overlap(self, entry: Entry, worker: Worker) -> None:
        """Record whether a ready program has started while an older process ran. Warn if it could not."""
        if not worker.config.takes_pool_socket:
            return
        if entry.observed.overlap_found == "tried":
            entry.observed.overlap_found = "no"
            message = (
                "cannot start while its previous process runs, and was started again after its end; from now on a "
                "restart ends the old process first, and connections wait: overlap = false in its table says so"
            )
            self._record_and_warn(entry, "no overlap", message)
        elif not entry.observed.overlap_found and _has_older_worker(entry, worker):
            entry.observed.overlap_found = "yes"

    async def _place_and_watch(self, entry: Entry, worker: Worker) -> Exit:
        worker.placed_at = self._clock.time()
        worker.certificate_ends = read_certificate_expiry(worker.config)
        worker.files_before = _file_digests_before_replacement(entry, worker)
        worker.files = read_digests_by_key(worker.config)
        others = [each for each in entry.observed.staying if each is not worker and entry.is_current(each)]
        if entry.is_current(worker) and all(other.files == worker.files for other in others):
            entry.observed.files = worker.files
            self._queue.note(entry)
        try:
            if worker.config.preload and not await self._preload_while_wanted(entry, worker):
                return Exit(message="was stopped before its application was imported")
            app_state.set(entry.desired.app_state)  # in the context of this worker's task
            worker.placement = await self._runner.place(
                worker.config, worker.generation, worker.index, resting=worker.resting
            )
        except Exception as error:
            worker.failure = failure_of(entry, *message_and_hint(error), cause=error)
            return Exit(message=worker.failure.message)
        self._report_certificate_if_expired(entry, worker)
        if worker.phase is WorkerPhase.PLACING:
            worker.phase = WorkerPhase.STARTING
            self._queue.touch(entry, progressed=True)
        return await self._watch_until_exit(entry, worker)

    def _report_certificate_if_expired(self, entry: Entry, worker: Worker) -> None:
        assert worker.placement is not None
        expired, used = worker.certificate_ends, worker.placement.certificate_ends
        if expired is None or expired > self._clock.time():
            return
        if used is not None and used > expired:
            worker.certificate_ends, worker.passed_over = used, expired
            # The file still differs from the one in use, so the next reload must notice it.
            if entry.is_current(worker) and "tls" in worker.files_before:
                entry.observed.files = {**entry.observed.files, "tls": worker.files_before["tls"]}
        passed_over = worker.passed_over is not None
        message = expired_message(entry.config, expired, passed_over=passed_over)
        logger.warning("%s: %s", entry.name, message)
        self._recorder.record(
            "config",
            "expired certificate not used" if passed_over else "expired certificate in use",
            server=entry.name,
            bind=entry.config.key,
            message=message,
            worker=worker.id,
            severity="warning",
        )

    async def _watch_until_exit(self, entry: Entry, worker: Worker) -> Exit:
        """Wait until the worker is ready (unless it is leaving already), and then until it ends; returns its exit."""
        assert worker.placement is not None
        ending = asyncio.ensure_future(self._runner.wait_for_exit(worker.placement))
        if worker.phase is WorkerPhase.STARTING:
            await self._mark_ready_or_stop(entry, worker, ending)
        elif worker.phase in LEAVING:
            # The end was ordered before there was a process.
            self._end(entry, worker, worker.phase, replaced=False)
        return await ending

    async def _mark_ready_or_stop(self, entry: Entry, worker: Worker, ending: asyncio.Future[Exit]) -> None:
        assert worker.placement is not None
        config, logs = worker.config, f"poolctl logs {entry.name}"
        silence = _missing_readiness_sign(entry, worker)
        try:
            await self._runner.wait_for_begin_or_exit(worker.placement)
            unlimited = config.job or config.is_ready_by_running
            async with _timeout_unless_held_up(None if unlimited else config.start_timeout):
                await self._runner.wait_until_ready(worker.placement)
                silence = ""
                if config.health.gated:
                    await self._health.wait_until_probes_pass(entry, worker, ending)
            if worker.generation == entry.desired.unproven:
                await self._health.prove(entry, worker)
        except WorkerFailed as error:
            if not (config.job and error.exit is not None and error.exit.ok):
                worker.failure = failure_of(entry, error.message, error.hint, cause=error)
        except Exception as error:
            if worker.phase in LEAVING:
                return  # ended by its own time limits: it may have accepted, although it has not reported that
            message, hint = message_and_hint(error)
            if isinstance(error, TimeoutError):
                why = self._health.worker_problem(entry, worker) or silence
                message = (
                    f"was not ready within {format_duration(config.start_timeout)}{f': {why}' if why else ''}"
                )
                message = await self._stacks.record_stacks_and_extend_message(entry, worker, message)
                hint = f"{logs}; start_timeout says how long it may take"
                if silence and config.ready_line:
                    hint += (
                        '; lines may wait in a buffer: env = { PYTHONUNBUFFERED = "1" } has Python write them at once, '
                        'command = ["stdbuf", "-oL", …] many other programs'
                    )
            worker.failure = failure_of(entry, message, hint or logs, cause=error)
            worker.given_up = True
            await self._end_worker(entry, worker, 0, replaced=False)
        else:
            # The run of a job with a schedule never becomes ready: it ends.
            if worker.phase is WorkerPhase.STARTING and config.every is None:
                worker.phase = WorkerPhase.READY
                worker.ready_at = self._clock.monotonic()
                self._check_use_of_pool_socket(entry, worker)
                self._record_overlap(entry, worker)
                entry.count_restart_if_commanded(worker)
                self.note_ready(entry, worker)
                entry.observed.called = True
                entry.desired.fallback = None
                if worker.generation == entry.desired.unproven:
                    entry.desired.unproven = 0
                entry.desired.retries = entry.desired.retries or entry.is_fully_ready
                if entry.is_current(worker):
                    entry.observed.certificate_ends = worker.certificate_ends
                self._touch_with_parties(entry)

    def _touch_with_parties(self, entry: Entry) -> None:
        """Queue the entry, and the servers that wait for its workers before they leave an address or accept there."""
        self._queue.touch(entry, progressed=True)
        for other in self._addresses.parties(entry):
            self._queue.touch(other, progressed=True)

    def note_ready(self, entry: Entry, worker: Worker) -> None:
        """Record that the worker is ready, and watch whether none of its index dies for long: then it is steady."""
        entry.observed.was_up = True
        if not entry.is_current(worker):
            return
        slot = entry.slot(worker.index)
        slot.note_ready()
        if not slot.short_lives or worker.ready_at is None or slot.steady_timer is not None:
            return

        def steady() -> None:
            slot.short_lives, slot.steady_timer = 0, None
            self._queue.touch(entry)

        delay = worker.ready_at + STEADY_SECONDS - self._clock.monotonic()
        slot.steady_timer = asyncio.get_running_loop().call_later(max(0.0, delay), steady)

    async def _preload_while_wanted(self, entry: Entry, worker: Worker) -> bool:
        """Import the application before starting the worker; False if the worker is no longer wanted.

        Raises ServerError or WorkerFailed, as the runner does.
        """
        preload = self._runner.preload_application(worker.config, entry.desired.code_since)
        worker.preloading = asyncio.ensure_future(preload)
        await asyncio.wait({worker.preloading})
        if worker.preloading.cancelled():
            return False
        entry.observed.preload_problem = worker.preloading.result()
        if entry.observed.preload_problem:
            warn_once(entry, f"preload = true has no effect: {entry.observed.preload_problem}")
        return worker.phase is WorkerPhase.PLACING

    # Workers that are stopped.

    async def _drain_worker(self, entry: Entry, worker: Worker, *, replaced: bool) -> None:
        """Let the worker finish its requests and then end. With `replaced`, its connections go to another worker."""
        assert worker.placement is not None
        replaced = replaced or _has_ready_peer(entry, worker)
        with logged_exceptions(f"worker {worker.id} cannot be drained"):
            await self._runner.begin_drain(worker.placement, replaced=replaced)
            worker.stopped_accepting = True
            self._touch_with_parties(entry)
            await self._runner.drain(worker.placement, replaced=replaced)
        if entry.observed.workers.get(worker.id) is worker:
            await self._stop_worker(entry, worker, replaced=replaced)

    async def _stop_worker(self, entry: Entry, worker: Worker, *, replaced: bool) -> None:
        """Stop the worker; it is killed after its `stop_seconds` or, if unset, its server's `stop_timeout`.

        A stuck worker is killed after at most STUCK_SECONDS, because it cannot finish any request.
        """
        limit = worker.config.stop_timeout if worker.stop_seconds is None else worker.stop_seconds
        if worker.stuck:
            limit = min(limit, STUCK_SECONDS)
        exit_ = await self._end_worker(entry, worker, limit, replaced=replaced)
        if exit_ is not None and exit_.signal == signal.SIGKILL:
            warn_once(entry, f"had to be killed after {format_duration(limit)}")

    async def _end_worker(
        self, entry: Entry, worker: Worker, limit_seconds: float, *, replaced: bool
    ) -> Exit | None:
        """Stop the worker, and kill it after the time limit; returns its exit.

        If it cannot be ended, the server has failed to stop, the worker is `unstoppable`, and None is returned.
        """
        assert worker.placement is not None
        worker.unstoppable = False
        try:
            return await self._runner.stop(worker.placement, limit_seconds, replaced=replaced)
        except TimeoutError:
            message, hint = "could not be ended, not even by SIGKILL", "see what it waits for"
        except Exception as error:
            reason, hint = message_and_hint(error)
            message = f"could not be ended: {reason}"
        worker.unstoppable = True
        if worker.failure is not None:
            message = f"{worker.failure.message}; {message}"
        message = f"{message} ({worker.placement.where})"
        note_failure(entry, failure_of(entry, message, hint, PoolStopError))
        self._queue.touch(entry, progressed=True)
        return None

    # Workers that have ended.

    async def _handle_worker_exit(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        before, last = entry.health, entry.schedule.last_run
        self._remove_and_handle_exit(entry, worker, exit_)
        run = entry.schedule.last_run
        if run is last or not entry.on_schedule:
            return
        after = entry.health
        report = partial(
            self._recorder.record, "health", server=entry.name, bind=entry.config.key,
            before=before.value, after=after.value, worker=worker.id,
        )  # fmt: skip
        if run["result"] == RUN_FAILED:
            since = run["started_at"]
            found = await explain_last_lines(self._runner, entry.name, since, explanatory_lines, worker.id)
            report("run failed", message=run["message"], severity="error", output=found[-LAST_LINES:])
        elif after is not before:
            report("run succeeded")

    def _remove_and_handle_exit(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        self._touch_with_parties(entry)
        entry.observed.workers.pop(worker.id, None)
        self._health.stop_probes(worker)
        config, ends = worker.config, worker.phase not in LEAVING and worker.signals
        if ends and (config.job or config.every is not None):
            if exit_.signal in worker.signals:
                exit_ = replace(exit_, message=f"ended by {signal.Signals(exit_.signal).name}, as ordered")
                worker.failure = failure_of(entry, exit_.message)
        elif ends and decide.is_ordered_end(worker.signals, exit_, self._clock.monotonic()):
            # As if it had been asked in another way; another one replaces it.
            worker.phase = WorkerPhase.STOPPING
        worker.exit = exit_
        if worker.phase not in LEAVING:
            self._handle_unexpected_exit(entry, worker, exit_)
        elif entry.schedule.run_since:
            record_run_end(entry, exit_, self._clock.time(), stopped=True)

    def _handle_unexpected_exit(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        observed, was_ready = entry.observed, worker.ready_at is not None
        observed.failed_since = worker.placed_at
        observed.failed_worker = worker.id if worker.placement is not None else ""
        if worker.address_taken and self._may_retry_without_listener(entry, worker):
            self._switch_socket_opener(entry, "tried")
            return
        if worker.address_taken and observed.socket_found == "tried":
            # The address is in use without the pool's listener, too.
            self._switch_socket_opener(entry, "pool")
        if observed.overlap_found == "tried" and not was_ready:
            if not entry.is_current(worker):
                return
            # It cannot start without an older process, either.
            observed.overlap_found = ""
        if self._may_retry_without_overlap(entry, worker):
            worker.next_step = "starting again after the end of the previous process"
            self._retry_without_overlap(entry, worker)
            return
        if not was_ready and not (worker.config.job and exit_.ok):
            failure = worker.failure or failure_of(entry, f"{exit_.message} before it was ready")
            if worker.config.takes_pool_socket and entry.may_overlap and _has_older_worker(entry, worker):
                hint = f"{failure.hint}; overlap = false ends the previous process first"
                failure = failure_of(entry, failure.message, hint, cause=failure)
            note_failure(entry, failure)
        if not was_ready and entry.is_current(worker) and self._roll_back_from(entry, worker):
            return
        if worker.given_up and exit_.ok:
            exit_ = Exit(message=exit_.message)  # its status 0 is the result of the stop
        if entry.is_current(worker) and entry.wanted:
            if worker.failure is not None:
                exit_ = replace(exit_, message=worker.failure.message)
            self._decide_after_exit(
                entry, exit_, ready_at=worker.ready_at, index=worker.index, last_line=worker.last_line
            )
            worker.next_step = observed.next_step

    def _roll_back_from(self, entry: Entry, failed: Worker) -> bool:
        """Switch back to the ready workers that `failed` was to replace. Return whether there are any."""
        if str(failed.index) not in entry.desired.renewed:
            return self.roll_back(entry)
        replaced = [
            worker for worker in entry.observed.ready if worker.index == failed.index and worker is not failed
        ]
        before = [each.generation for each in replaced]
        if before:
            entry.desired.renewed[str(failed.index)] = max(before)
        return bool(before)

    def roll_back(self, entry: Entry) -> bool:
        """Undo the replacement of the server's workers, and that of servers with which it exchanges addresses.

        Return whether there is something to return to.
        """
        others = self._addresses.exchange(entry)
        if not self._roll_back_alone(entry):
            return False
        for other in others:
            message = f"was to exchange addresses with {entry.name}, which cannot have its new one"
            note_failure(other, failure_of(other, message, f"poolctl logs {entry.name}"))
            if not self._roll_back_alone(other):
                self._fail(other)
            self._queue.touch(other, progressed=True)
        return True

    def _roll_back_alone(self, entry: Entry) -> bool:
        """Switch back to the ready workers that are being replaced or, if there are none, start the `fallback`.

        Return whether there is either.
        """
        serving = [worker for worker in entry.observed.ready if not entry.is_current(worker)]
        if not serving:
            return self._start_fallback(entry)
        if entry.observed.overlap_found == "tried":
            entry.observed.overlap_found = ""  # the older process has not been ended
        entry.desired.retries = True
        entry.desired.fallback = None
        serving.sort(key=lambda each: each.generation)
        older = [worker for worker in serving if worker.generation < entry.desired.generation]
        if not older:
            # They are being replaced alone.
            entry.desired.renewed |= {str(worker.index): worker.generation for worker in serving}
            return True
        staying = older[-1]
        entry.desired.generation = staying.generation
        entry.desired.renewed = {
            str(worker.index): worker.generation
            for worker in older
            if worker.generation != staying.generation
        }
        # Its workers are replaced by forks of the existing import, even if a new import was requested
        # meanwhile.
        entry.desired.code_since = 0.0
        self._servers.replace_config(entry, staying.config)
        self.change_socket_access_or_warn(entry)
        return True

    def _start_fallback(self, entry: Entry) -> bool:
        """Start the previous configuration again, whose workers had to end before those that have failed started."""
        before = entry.desired.fallback
        if before is None or before is entry.config or self._addresses.is_claimed(entry, before):
            entry.desired.fallback = None
            return False
        self._servers.replace_config(entry, before)
        entry.begin_generation()
        entry.fill_vacant_slots()
        entry.desired.retries = True
        self._record_and_warn(entry, "rolled back", "was started again with its previous configuration")
        return True

    def _decide_after_exit(
        self, entry: Entry, exit_: Exit, *, ready_at: float | None, index: int, last_line: str = ""
    ) -> None:
        """Decide what follows, because the worker with this index ended by itself or could not start.

        `ready_at` is the monotonic time when it was ready, or None if it never was. The server waits for its next
        scheduled run, is completed, has failed or sleeps, or another worker starts.
        """
        observed, now = entry.observed, self._clock.monotonic()
        before = observed.last_exit
        observed.last_exit, observed.next_step = exit_, ""
        if entry.failed:
            return  # the server has already failed because of another worker
        if entry.config.every is not None:
            entry.set_desired(Desired.SCHEDULED)
            record_run_end(entry, exit_, self._clock.time())
            if not exit_.ok and entry.schedule.next_run is not None:
                observed.next_step = f"runs again at {moment_text(entry.schedule.next_run)}"
            return
        entry.schedule.run_since = 0.0
        if entry.config.job:
            entry.set_desired(Desired.COMPLETED if exit_.ok else Desired.FAILED)
            if not exit_.ok:
                observed.next_step = give_up_text(entry)
            return
        slot, was_ready = entry.slot(index), ready_at is not None
        verdict = decide.judge_exit(
            entry.restart_policy,
            entry.config.restart,
            exit_,
            self._exit_situation(entry, index, now, was_ready=was_ready),
            jitter=self._random.uniform(-1, 1),
        )
        if verdict.next is not decide.StepAfterExit.SLEEP:
            slot.note_end(None if ready_at is None else now - ready_at)
        match verdict.next:
            case decide.StepAfterExit.SLEEP:
                # It ended while idle, as socket-activated programs do, or because the previous supervisor had
                # put it to sleep. The next request wakes it.
                observed.called = False
                entry.fill_vacant_slots()
            case decide.StepAfterExit.VACATE:
                slot.vacant = "ended" if exit_.ok else "failed"
                observed.next_step = "not restarted"
            case decide.StepAfterExit.DONE:
                entry.set_desired(Desired.COMPLETED)
                observed.ended_at, observed.last_line = self._clock.time(), last_line
                observed.next_step = "not restarted"
            case decide.StepAfterExit.FAILED:
                observed.next_step = give_up_text(entry, verdict.restarts)
                self._fail(entry)
                if exit_.ok and not verdict.restarts and before is not None and not before.ok:
                    # Another worker has failed before; this one was only the last to end.
                    observed.last_exit = before
                    note_failure(entry, failure_of(entry, before.message))
                elif was_ready or (entry.desired.retries and entry.restart_policy != "no"):
                    note_failure(entry, failure_of(entry, verdict.reason))
            case decide.StepAfterExit.RESTART:
                window = entry.config.restart.window
                slot.restart_times = [time for time in slot.restart_times if now - time <= window] + [now]
                observed.restarts += 1
                slot.spent = verdict.spent
                if was_ready and verdict.delay_seconds > 0:
                    observed.failure = failure_of(entry, exit_.message)
                self._back_off(entry, slot, verdict.delay_seconds)

    def _exit_situation(
        self, entry: Entry, index: int, now: float, *, was_ready: bool
    ) -> decide.ExitSituation:
        others = [slot for other, slot in entry.observed.slots.items() if other != index]
        return decide.ExitSituation(
            now,
            was_ready,
            restarts=entry.slot(index).restart_times,
            was_up=entry.observed.was_up,
            spent=entry.slot(index).spent,
            others=bool(entry.observed.staying),
            others_wait=any(slot.backoff is not None for slot in others),
            others_failed=any(slot.vacant == "failed" for slot in others),
            may_sleep=entry.sleepy and not entry.observed.needed and entry.window_demand != AWAKE,
            retries=entry.desired.retries,
        )

    def _fail(self, entry: Entry) -> None:
        """Mark the server as failed.

        If it may sleep, it goes to sleep after the restart window, and a request then wakes it.
        """
        entry.set_desired(Desired.FAILED)
        if entry.sleepy and entry.desired.retries and entry.restart_policy != "no":
            entry.observed.called = False

            def sleep() -> None:
                entry.set_desired(Desired.RUN)
                self._queue.touch(entry, progressed=True)

            loop, window = asyncio.get_running_loop(), entry.config.restart.window
            entry.observed.sleep_timer = loop.call_later(window, sleep)

    def _have_others_wait_with(self, entry: Entry, slot: Slot) -> None:
        """Have every other worker wait for the backoff of this one, because none can start without a listener."""
        if slot.backoff is None:
            return
        delay_seconds = slot.backoff.when() - asyncio.get_running_loop().time()
        for other in map(entry.slot, range(entry.size)):
            if other is not slot and not other.vacant:
                self._begin_backoff(entry, other, delay_seconds)

    def _back_off(self, entry: Entry, slot: Slot, delay_seconds: float) -> None:
        entry.observed.next_step = restart_text(delay_seconds, len(slot.restart_times))
        if delay_seconds > 0:
            self._begin_backoff(entry, slot, delay_seconds)

    def _begin_backoff(self, entry: Entry, slot: Slot, delay_seconds: float) -> None:
        slot.end_backoff()

        def end() -> None:
            slot.end_backoff()
            self._queue.touch(entry, progressed=True)

        slot.backoff = asyncio.get_running_loop().call_later(delay_seconds, end)
        # A client waits only for an attempt that will probably succeed, and no longer than a start may take.
        is_hopeful = entry.observed.was_up and slot.failed_attempts <= MAX_ATTEMPTS_AWAITED
        slot.refuses = not is_hopeful or delay_seconds > entry.config.start_timeout


def _file_digests_before_replacement(entry: Entry, worker: Worker) -> dict[str, str]:
    """Return the digests of the files in use now or, during the replacement of a generation, before the replacement."""
    if any(each.generation < worker.generation for each in entry.observed.ready):
        for each in entry.observed.workers.values():
            if each.generation == worker.generation and each.files:
                return each.files_before
    return entry.observed.files


@contextlib.asynccontextmanager
async def _timeout_unless_held_up(seconds: float | None) -> AsyncIterator[None]:
    """Like asyncio.timeout, but time in which this process was held up does not count.

    Otherwise a worker would be killed that has long been serving, because the timer fires before its report is read.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        if seconds is None:
            yield
            return
        due = loop.time() + seconds
        timer = loop.call_at(due, lambda: limit.reschedule(2 * loop.time() - due + _REPORTS_SECONDS))
        try:
            yield
        finally:
            timer.cancel()


def _missing_readiness_sign(entry: Entry, worker: Worker) -> str:
    config = worker.config
    if config.ready_line:
        return f"it has printed no line that matches its ready_line: {config.ready_line}"
    if not config.command or config.job or not (config.notify or config.listens):
        return ""
    if config.notify:
        return "it has not sent READY=1"
    who = "it has not" if _has_older_worker(entry, worker) else "nothing has"
    return f"{who} accepted a connection on {config.key}"


def _has_older_worker(entry: Entry, worker: Worker) -> bool:
    """Whether a worker still runs that this one, or another of its generation, replaces."""
    return any(
        each.generation < worker.generation and not entry.is_current(each)
        for each in entry.observed.workers.values()
    )


def _has_ready_peer(entry: Entry, worker: Worker) -> bool:
    return any(_takes_connections_of(worker, each.config) for each in entry.observed.ready)


def _takes_connections_of(worker: Worker, config: ServerConfig) -> bool:
    """Whether a worker with this configuration can take over the connections of `worker`."""
    return config.key == worker.config.key and bool(config.tls) is bool(worker.config.tls)
