"""`poolctl run`: runs the pool in the foreground, or for the duration of a command (`run -- CMD…`)."""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from queue import SimpleQueue
from time import monotonic, sleep, time
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from poolctl.address import AddressError, parse
from poolctl.cli import log_rendering, render
from poolctl.cli.command_line import (
    NO_DEPS,
    OUTPUT,
    SELECTION,
    TIMEOUT,
    WATCH,
    Command,
    CommandRequest,
    Option,
    flag,
    validate_choice,
)
from poolctl.cli.offline import load, no_server_outcome
from poolctl.cli.outcome import Failure, Outcome, error, outcome_of
from poolctl.cli.output import LineOutput, unbuffered_writer
from poolctl.cli.pool_ref import PoolRef, find_pool, same_name_warning
from poolctl.cli.reload_on_change import PoolWatcher
from poolctl.cli.reload_plan import change_lines
from poolctl.cli.supervisor_requests import (
    Progress,
    await_exit_if_pool_ends,
    is_empty,
    refuse_without_linux,
    start_with_signals_blocked,
    startup_failure,
    supervisor_log_size,
)
from poolctl.config import Finding, address_parts
from poolctl.control import sd_notify
from poolctl.control.answers import (
    ErrorEntry,
    Item,
    JournalPositionResult,
    ProgressLine,
    ReloadResult,
    Result,
)
from poolctl.control.client import Client, NoSupervisor, SupervisorEnded, read_exit, wait_for_exit
from poolctl.control.pool_paths import ACCESS_LOG_VARIABLE
from poolctl.control.server_answers import ShowResult
from poolctl.errors import ControlError
from poolctl.exit_codes import (
    CONFLICT,
    DONE,
    FAILED,
    INTERRUPTED,
    INVALID_CONFIGURATION,
    NOT_EXECUTABLE,
    NOT_FOUND,
    READER_GONE,
)
from poolctl.file_access import why_execution_failed, why_not_executable
from poolctl.keeper.left_children import (
    SI_KERNEL,
    end_processes,
    left_children,
    reap_and_find_status,
    shell_status,
)
from poolctl.keeper.reap import children, deliver
from poolctl.logs.line_filter import LineFilter
from poolctl.logs.log_line import LogLine, stamp
from poolctl.logs.log_tail import follow, tail
from poolctl.monitor.journal import ERROR, INFO, MOST_LINES, WARNING, JournalEvent
from poolctl.platform import await_readable, subreaper

if TYPE_CHECKING:
    from poolctl.json_form import Table

# If SIGTERM arrives before CMD runs, `run -- CMD` exits as CMD would have.
_TERMINATED = 128 + signal.SIGTERM

COMMAND = Command(
    "Run the pool in the foreground, or around a command: -- CMD…",
    SELECTION,
    OUTPUT,
    TIMEOUT,
    NO_DEPS,
    WATCH,
    flag("--no-access-log", "Log no requests, even if the file enables it."),
    flag("--debug", "Run a single server in this process, so that breakpoints work."),
    Option("--log-format", "FORM", "Servers' output as text (default) or json."),
    Option("--stop-timeout", "DURATION", "Time limit for stopping everything (default as PID 1: 8s)."),
    section="Get started",
    takes_command=True,
    examples=(
        "poolctl run                   until Ctrl-C",
        "poolctl run --watch           applies changed code and configuration",
        "poolctl run -- pytest tests   until the tests end; exits with their code",
        "poolctl run --debug users     this server alone; breakpoint() stops here",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Run the pool until it stops. The exit code says how it ended."""
    if request.get("debug"):
        from poolctl.cli.foreground_server import run_server_in_foreground

        run_server_in_foreground(request)
    refuse_without_linux()
    limit_seconds = request.seconds("stop_timeout")
    if os.getpid() == 1:  # in a container
        limit_seconds = STOP_SECONDS if limit_seconds is None else limit_seconds
        continue_in_child(limit_seconds)
    command = request.get("command") or []
    path = program(command, os.environ) if command else ""
    pool = find_pool(request)
    request.selector(), request.verb_options()  # a wrong value is reported before anything runs
    try:
        Client(pool.socket).ping()
    except NoSupervisor:
        pass
    else:
        message = "a supervisor is already running for this pool"
        raise ControlError(message, exit_code=CONFLICT, hint="stop it with poolctl stop")
    with (
        BackgroundWriter(sys.stderr) as stderr,
        redirect_stderr(stderr),
        StopSignalRaiser() as signals,
    ):
        session = RunSession(request, pool, command, limit_seconds, wakeup=signals.wakeup)
        # Here SIGHUP is not the hangup of a terminal, but the order to reload (systemd.service(5)).
        if sd_notify.enabled(os.environ):
            signal.signal(signal.SIGHUP, lambda number, frame: session.reload())
        code = _run(session, path, signals)
        session.flush_diagnostics()  # printed here, where a reader that has stopped reading blocks nothing
    session.outcome.exit_code = code
    return session.outcome


def _run(session: RunSession, path: str, signals: StopSignalRaiser) -> int:
    """Launch the pool, wait for its end, the user's command or a signal, and stop it; returns the exit code."""
    keeper_pid, lifeline, log_start = 0, -1, supervisor_log_size(session.pool)
    try:
        with deferred_signals():  # nothing could wait for a half-launched pool
            from poolctl.supervisor.launch import launch

            keeper_pid, lifeline = launch(session.pool.files, session.supervisor_environment(), lifeline=True)
        code = _start_and_run_until_end(session, path, lifeline, signals)
    except (ControlError, Failure) as failure:
        if isinstance(failure, (NoSupervisor, SupervisorEnded)):
            failure = startup_failure(failure, session.pool, log_start)
        session.outcome = outcome_of(failure) or session.outcome
        code = session.outcome.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Terminated:
        code = _TERMINATED if session.command else DONE
    try:
        if lifeline >= 0:
            session.stop(code)
            os.close(lifeline)
            wait_for_exit(keeper_pid)  # even if the supervisor was exiting and did not answer
            if signals.reader_is_gone and not session.command:
                code = READER_GONE
            code = INTERRUPTED if signals.interrupted else session.pool_exit_status_or(code)
            session.print_deaths_and_failure_logs()
            if session.command and sys.stderr.isatty():
                session.say("the pool has stopped")  # not visible from the end of CMD
    except (KeyboardInterrupt, Terminated):
        pass  # the third signal: the lifeline closes with this process, and the keeper stops the rest
    return code


def _start_and_run_until_end(session: RunSession, path: str, lifeline: int, signals: StopSignalRaiser) -> int:
    if not session.start_and_may_continue():
        code = session.outcome.exit_code
        session.flush_diagnostics()
        return code
    session.start_watcher()
    return (
        session.run_command(path, lifeline)
        if session.command
        else session.announce_and_wait(lifeline, signals)
    )


# Remaining time of the stop timeout when the remaining processes are killed.
_KILLING_SECONDS = 1.0
FORMAT_VARIABLE = "POOLCTL_LOG_FORMAT"
_ALIVE = ("running", "starting", "backoff", "draining")


class RunSession:
    """One invocation of `poolctl run`. Its pool ends when this process closes its end of a pipe, the lifeline.

    `limit_seconds` limits the time to stop the pool. `wakeup` is the descriptor of StopSignalRaiser' wake-up pipe.
    """

    def __init__(
        self,
        request: CommandRequest,
        pool: PoolRef,
        command: list[str],
        limit_seconds: float | None,
        *,
        wakeup: int,
    ) -> None:
        self.request = request
        self.pool = pool
        self.command = command
        self.client = Client(pool.socket)
        self._orders = Client(pool.socket, wakeup=wakeup)  # used by the main thread only
        self.outcome = Outcome()
        self.servers: Sequence[Item] = ()
        self._gateway: Table | None = None
        self._printer: LogPrinter | None = None
        self._events = PoolEventFollower(self.client, self._print_event, brief=bool(command))
        self._last_logs: dict[str, str] = {}  # of the servers that explain a failure
        self._failures: dict[str, str] = {}  # the reasons of the servers that did not start
        self._is_starting = bool(command)
        self._held_events: list[tuple[JournalEvent, str, str]] = []
        self._ran = False
        self._begun = time()
        self._ending = threading.Event()
        form = request.get("log_format") or os.environ.get(FORMAT_VARIABLE) or "text"
        self._objects = validate_choice("--log-format", form, ("text", "json")) == "json"
        self._limit_seconds = limit_seconds

    @property
    def _prints_logs(self) -> bool:
        """Return whether to print the servers' output: only if no command follows `--` and no option -o is given."""
        return not self.command and not self.request.output

    def supervisor_environment(self) -> Mapping[str, str]:
        """The environment of the pool's processes: this command's, and a variable that turns access logs on or off.

        --no-access-log turns them off. Otherwise they are on if the servers' output is printed to a terminal.
        """
        if self.request.get("no_access_log"):
            from poolctl.runners.worker_spec import NO_ACCESS_LOG_VARIABLE

            return {**os.environ, NO_ACCESS_LOG_VARIABLE: "1"}
        if self._prints_logs and sys.stdout.isatty():
            return {**os.environ, ACCESS_LOG_VARIABLE: "1"}
        return os.environ

    def start_and_may_continue(self) -> bool:
        """Start the selected servers and set `outcome`; returns whether to continue.

        After a failed start, it continues only if no user's command is given and at least one server is alive.
        """
        body = {"selector": self.request.selector().to_dict(), "options": self.request.verb_options()}
        if self._prints_logs:
            self._printer = LogPrinter(
                self.client, self.pool, times=self.request.verbose, objects=self._objects
            )
            self._printer.start()
        self._events.start()
        quiet = self.request.quiet or not self.command  # without a command, the logs show the progress
        with Progress("start", quiet=quiet) as progress:
            result = self._orders.ask(Result, "start", body, progress, self.request.seconds("timeout"))
        self.outcome, self.servers, self._gateway = Outcome.of(result), result.items, result.gateway
        self._failures = {each.name: each.message for each in result.errors if each.name}
        self._print_held_events()
        await_exit_if_pool_ends(result)
        self.outcome.warnings += [w for w in progress.warnings if w not in self.outcome.warnings]
        if warning := same_name_warning(self.pool):
            self.outcome.warnings.append(warning)
        if not self.outcome.exit_code:
            if is_empty(result) and not self.request.get("allow_empty"):
                self.outcome = no_server_outcome(self.pool)
            return not self.outcome.exit_code
        alive = any(item.state in _ALIVE for item in self.servers)
        return alive and self.outcome.exit_code == FAILED and not self.command

    def start_watcher(self) -> None:
        """With --watch, begin to apply changes of files in a thread; returns at once."""
        if self.request.get("watch"):
            watcher = PoolWatcher(self.request, self.pool, self.say, self._begun)
            thread = threading.Thread(
                target=self._apply_changes_until_end, args=(watcher,), name="watch", daemon=True
            )
            start_with_signals_blocked(thread)

    def reload(self) -> None:
        """Begin to apply the changed files in a thread, which prints the outcome; returns at once."""
        start_with_signals_blocked(threading.Thread(target=self._reload, name="reload", daemon=True))

    def _reload(self) -> None:
        sd_notify.notify(os.environ, *sd_notify.reloading())
        try:
            result = self.client.ask(ReloadResult, "reload")
        except ControlError as wrong:
            entry = error(wrong.exit_code, wrong.message, wrong.hint)
            result = ReloadResult(errors=(entry,), exit_code=wrong.exit_code)
        self.print_change(result)
        sd_notify.notify(os.environ, sd_notify.READY)

    def _apply_changes_until_end(self, watcher: PoolWatcher) -> None:
        try:
            for result in watcher.apply_changes(self._ending.is_set):
                self.print_change(result)
        except Failure as failure:  # further paths cannot be watched; the pool keeps running
            self._explain(failure.outcome)

    def print_change(self, result: Result) -> None:
        """Print the outcome of a change of the files, between the servers' output."""
        for line in change_lines(result, render.coloured(sys.stderr) and not self._objects):
            self.say(line)
        self._explain(Outcome.of(result))

    def _explain(self, outcome: Outcome) -> None:
        outcome.quiet = self.request.quiet
        render.print_diagnostics(outcome)

    def announce_and_wait(self, lifeline: int, signals: StopSignalRaiser) -> int:
        """Print addresses and problems, and wait until the pool has ended. Signals raise exceptions.

        Returns 0 if a command has ended it; 1 if its processes were killed.
        """
        expected = [
            item
            for item in self.servers
            if item.state not in ("disabled", "sleeping") and not render.rests_until_named(item)
        ]
        ready = sum(item.ready for item in expected)
        line = f"{render.server_count_text(ready, len(expected))} ready"
        if not (self.request.output or self._objects):
            for address in render.address_lines(self.servers):
                self.say(address)
        if self._gateway is not None and (serves := render.serves_line(self._gateway)):
            self.say(serves)
        if not self.outcome.exit_code:  # before the next line, at which a user may ask for a reload
            sd_notify.notify(os.environ, sd_notify.READY, sd_notify.status(line))
        self.say(f"{line}, Ctrl-C to stop")
        self.flush_diagnostics()  # failures are printed now, while other servers run
        signals.wait_for_closed_pipe(lifeline)  # the keeper holds the other end
        if not self._was_killed():
            return DONE
        self.say("the pool's supervisor was killed; poolctl stop ends what it has left", "error")
        return FAILED

    def _was_killed(self) -> bool:
        """Whether the pool has ended without an order: its socket is then left, and nothing listens on it."""
        if not os.path.lexists(self.pool.socket):
            return False
        try:
            self.client.ping()
        except ControlError:
            return True
        return False

    def flush_diagnostics(self) -> None:
        """Print the problems so far and clear them; with -o json and jsonl keep them for the output at the end."""
        if self.request.output not in ("json", "jsonl"):
            self.outcome.quiet = self.request.quiet
            render.print_diagnostics(self.outcome)
            self.outcome.errors, self.outcome.warnings = [], []

    def run_command(self, path: str, lifeline: int) -> int:
        """Run the user's command; returns its exit code. With -o its output goes to standard error."""
        stdout = sys.stderr.fileno() if self.request.output else None
        environment = command_environment(self.pool, self.client.ask(Result, "list").items)
        self._ran = True
        self._events.died.clear()  # the start has reported its own failures
        unwanted = self._ended_by_itself
        return run_to_end(
            path, self.command, environment, stdout=stdout, lifeline=lifeline, unwanted=unwanted
        )

    def pool_exit_status_or(self, code: int) -> int:
        """The pool's own exit status if it has ended by itself, because a mandatory server failed; else `code`."""
        left = read_exit(self.pool.directory)
        if not left:
            return code
        wait_for_exit(left["keeper_pid"])
        self.say(f"the pool has ended: {self._events.without_known_reasons(str(left['reason']))}", "error")
        return int(left["status"])

    def _ended_by_itself(self) -> bool:
        return bool(read_exit(self.pool.directory))

    def _find_failure_logs(self, code: int) -> dict[str, str]:
        """The logs that explain why servers or the user's command failed, by server name; empty if nothing failed.

        `code` is the exit code of the user's command. Must be called before the pool is stopped.
        """
        died = self._events.died
        unasked = code not in (DONE, INTERRUPTED, _TERMINATED)
        if not (died or self._failures or unasked):
            return {}
        names = [*died, *self._failures] or [item.name for item in self.servers]
        chosen = list(dict.fromkeys(names))[:_MOST_SERVERS]
        try:
            items = self.client.ask(ShowResult, "show").items
            paths = log_rendering.log_paths(
                [item for item in items if item.log_files is not False], self.pool.logs_directory
            )
        except ControlError:  # the pool has already ended
            paths = {name: f"{self.pool.logs_directory}/{name}.log" for name in chosen}
        return {name: paths[name] for name in chosen if name in paths}

    def print_deaths_and_failure_logs(self) -> None:
        """Print which servers died while the user's command ran, and the last lines of logs that explain a failure.

        These are the logs of servers that died or did not start. If no server failed but the command did, they are
        the logs of all servers. At most ten logs are printed. Without a command nothing is printed.
        """
        if not self.command:
            return
        died = self._events.died
        wanted = LineFilter(levels=True) if self._objects else None
        logs = {
            name: tail(
                path,
                _LINES,
                since=_start_of_last_attempt(died.get(name, ()), self._begun),
                name=name,
                wanted=wanted,
            )
            for name, path in self._last_logs.items()
        }
        if self._ran:
            for line in death_lines(died, os.path.basename(self.command[0]), logs):
                self.say(line, "error")
        if not self.request.quiet:
            sys.stderr.write(log_sections(logs, objects=self._objects))

    def stop(self, code: int) -> None:
        """Stop everything after the command has ended with `code`.

        A signal meanwhile, or the timeout, kills the remaining processes at once.
        """
        self._ending.set()
        sd_notify.notify(os.environ, sd_notify.STOPPING)
        try:
            if self._limit_seconds is not None:
                patience = max(self._limit_seconds - _KILLING_SECONDS, self._limit_seconds / 2)
                signal.setitimer(signal.ITIMER_REAL, max(patience, 0.001))
            self._events.finish()
            self._print_held_events()  # the start may have been interrupted
            if self.command:
                self._last_logs = self._find_failure_logs(code)
            self._stop({})
        except (KeyboardInterrupt, Terminated):
            self.say("killing the remaining processes")
            self._stop({"kill": True, "deps": False})
        finally:
            if self._printer is not None:
                self._printer.finish()

    def _stop(self, options: dict[str, object]) -> None:
        try:
            # The servers' last lines show the progress.
            with Progress("stop", quiet=self.request.quiet or self._prints_logs) as progress:
                result = self._orders.ask(Result, "stop", {"options": options}, progress)
        except ControlError:
            return  # it has ended already
        if self.outcome.items and result.items:
            names = {item.name for item in self.servers}
            self.outcome.items = [item for item in result.items if item.name in names]
        await_exit_if_pool_ends(result)

    def _print_held_events(self) -> None:
        """Print the events of a start that a command waits for, and from now on every event at once."""
        self._is_starting = False
        while self._held_events:
            self._print_event(*self._held_events.pop(0))

    def _is_reported(self, event: JournalEvent) -> bool:
        """Whether the failed start, which ends a pool with a command, has reported this death."""
        failure = self._failures.get(event.server, "")  # it may also have the place in the code
        return bool(self.command and event.next_step) and failure.startswith(_reason(event))

    def _print_event(self, event: JournalEvent, text: str, level: str) -> None:
        if self._is_starting:  # the result of the start may have the same cause
            self._held_events.append((event, text, level))
            return
        if self.request.quiet or self._is_reported(event):
            return
        if self._objects:
            document = {"time": event.time, "server": event.server, "message": text, "level": level}
            text = json.dumps(document)
        sys.stderr.write(f"{render.printable(text)}\n")

    def say(self, text: str, level: str = "info") -> None:
        if not self.request.quiet:
            sys.stderr.write(own_line(text, level, objects=self._objects))


def own_line(text: str, level: str = "", *, objects: bool) -> str:
    """A line of `run` itself, with its line break; with `objects` as a JSON line, like those of the servers."""
    return log_rendering.json_line(LogLine(text, time=stamp(time()), level=level)) if objects else f"{text}\n"


_KINDS = ["lifecycle", "recovery", "pool"]
# The pause between attempts while the supervisor is replaced.
_RETRY_SECONDS = 0.2
# No pings are needed, because the keeper replaces a hung supervisor.
_SILENCE_SECONDS = 86400.0
_LAST_SECONDS = 2.0


class Death(NamedTuple):
    """The end of a process that was not ordered: when it was recorded, and the reason."""

    time: str
    reason: str


def _reason(event: JournalEvent) -> str:
    return event.cause or event.message


class PoolEventFollower:
    """Follows the pool's events, and calls `report` once for each problem: with the event, a line and its level.

    With `brief` a line does not repeat the reason of a death that an earlier line has.
    """

    def __init__(
        self, client: Client, report: Callable[[JournalEvent, str, str], None], *, brief: bool = False
    ) -> None:
        self._client = client
        self._patient_client = Client(client.socket_path, silence_seconds=_SILENCE_SECONDS)
        self._report = report
        self._brief = brief
        self._last = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.died: dict[str, list[Death]] = {}  # by server name, in the order of the first death

    def start(self) -> None:
        """Follow new events from now on; returns at once."""
        start_with_signals_blocked(threading.Thread(target=self._follow, name="events", daemon=True))

    def finish(self) -> None:
        """Report all events up to now, then stop."""
        with self._lock:
            if self._over.is_set():
                return
        try:
            self._ask(self._client, {"after": self._last, "lines": MOST_LINES}, _LAST_SECONDS)
        except ControlError:
            pass  # the supervisor has reported its end
        self._over.set()

    def _follow(self) -> None:
        options: Table = {"lines": 0}
        while not self._over.is_set():
            try:
                self._ask(self._patient_client, options | {"follow": True})
            except ControlError:
                pass
            options = {"after": self._last, "lines": MOST_LINES}
            self._over.wait(_RETRY_SECONDS)

    def _ask(self, client: Client, options: Table, timeout_seconds: float | None = None) -> None:
        body = {"options": options | {"kind": _KINDS}}
        client.ask(JournalPositionResult, "events", body, self._report_event, timeout_seconds)

    def _report_event(self, line: ProgressLine) -> None:
        if line.event is None:
            return
        event = JournalEvent.from_json(line.event)
        with self._lock:
            if event.seq <= self._last or self._over.is_set():
                return
            self._last = event.seq
            if event.next_step:
                deaths = self.died.setdefault(event.server, [])
                reason = _reason(event)
                is_known = self._brief and deaths and deaths[-1].reason == reason
                said = "died again for the same reason" if is_known else reason
                deaths.append(Death(event.time, reason))
                final = ": poolctl logs" in event.next_step
                self._report(event, f"{event.server}: {said}; {event.next_step}", ERROR if final else WARNING)
            elif event.kind != "lifecycle" and event.severity != INFO:
                who = f"{event.server}: " if event.server else ""
                self._report(event, f"{who}{self.without_known_reasons(event.sentence)}", event.severity)

    def without_known_reasons(self, text: str) -> str:
        """The text; with `brief` without the reasons that the lines of deaths have."""
        for deaths in self.died.values() if self._brief else ():
            text = text.replace(f": {deaths[-1].reason}", "")
        return text


# Maximum wait for a text, so that it precedes the next one; after that it is written later.
PATIENCE_SECONDS = 0.5
# Maximum wait for the last texts.
END_SECONDS = 2.0
MOST_TEXTS = 1000
# Maximum wait for output that the servers write while they stop.
LAST_OUTPUT_SECONDS = 2.0


class BackgroundWriter:
    """A text stream that is written in a background thread, so that a stalled reader does not block the caller.

    `write` waits until the text is written. Once a wait has timed out, it only queues text, and drops it when the queue
    is full. Leaving the context waits for a limited time until the queued text is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._texts: SimpleQueue[tuple[str, threading.Lock]] = SimpleQueue()
        self._stuck = False
        self._thread: threading.Thread | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._stuck:
            self._enqueue_text("").acquire(timeout=END_SECONDS)

    def write(self, text: str) -> int:
        """Have the background thread write the text, and return the text's length.

        Waits until it is written, unless an earlier text could not be written in time and is still pending.
        """
        if self._texts.qsize() < MOST_TEXTS:
            written = self._enqueue_text(text)
            if not self._stuck:
                self._stuck = not written.acquire(timeout=PATIENCE_SECONDS)
        return len(text)

    def flush(self) -> None:
        """Does nothing, because `write` buffers nothing."""

    def _enqueue_text(self, text: str) -> threading.Lock:
        """Queue the text for the background thread. Acquiring the returned lock waits until the text is written."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_texts, name="standard error", daemon=True)
            start_with_signals_blocked(self._thread)
        # No other lock is shared with the thread: a signal handler may raise in the main thread while it holds one.
        written = threading.Lock()
        written.acquire()
        self._texts.put((text, written))
        return written

    def _write_texts(self) -> None:
        # Not by the stream: this thread may be blocked in a write, and a flush elsewhere would wait for its lock.
        write = unbuffered_writer(self._stream)
        while True:
            text, written = self._texts.get()
            try:
                write(text)
            except (OSError, ValueError):
                pass  # the reader or the stream is gone, or the disk is full
            if self._texts.empty():
                self._stuck = False
            written.release()


class LogPrinter:
    """Prints new output of the pool's servers, each line after its server's name; as JSON objects if `objects`."""

    def __init__(self, client: Client, pool: PoolRef, *, times: bool, objects: bool) -> None:
        self._objects = objects
        self._note = partial(own_line, objects=objects)
        self._client = client
        self._pool = pool
        self._times = times
        self._since = stamp(time())
        self._output: LineOutput | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow_logs, name="logs", daemon=True)

    def start(self) -> None:
        """Start printing the servers' new output in a background thread; return at once."""
        start_with_signals_blocked(self._thread)

    def finish(self) -> None:
        """Print the pending output, then stop; does not wait for a reader that has stopped reading."""
        self._over.set()
        self._thread.join(LAST_OUTPUT_SECONDS)
        if self._output is not None and (loss := self._output.loss):
            sys.stderr.write(self._note(f"[poolctl: last lines of output lost: {loss}]"))

    def _follow_logs(self) -> None:
        try:
            items = self._client.ask(ShowResult, "show").items
        except ControlError:
            return  # the command waiting for the start reports the reason
        paths = log_rendering.log_paths(items, self._pool.logs_directory)
        if self._objects:
            form = log_rendering.json_line
        else:  # files and log collectors of containers get the lines unchanged
            times = log_rendering.STAMPS if self._times else log_rendering.NO_TIMES
            terminal = sys.stdout.isatty()
            asked = {each.name for each in items if (each.config.get("http") or {}).get("request_id")}
            ids = asked if terminal and not self._times else None
            form = log_rendering.PrefixedLineFormatter(
                list(paths), times=times, records=terminal, request_ids=ids
            ).line
        output = self._output = LineOutput(sys.stdout, self._note)
        wanted = LineFilter(levels=True) if self._objects else None
        try:
            for line in follow(paths, lines=None, since=self._since, wanted=wanted, until=self._over.is_set):
                output.write(form(line))
        except BrokenPipeError:
            # The reader of the output is gone, so there is no reason to keep running in the foreground.
            StopSignalRaiser.stop_for_lost_output()
        except OSError as error:
            why = (
                f"the servers' output is not shown any longer, as their logs cannot be read: {error.strerror}"
            )
            sys.stderr.write(self._note(f"[poolctl: {why}]"))


def command_environment(
    pool: PoolRef, items: Sequence[Item], base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """`base` with POOLCTL_CONFIG, and the URL and port of each server.

    Raises Failure (exit 5) if variables of two servers would have the same name.
    """
    there = [item for item in items if item.state != "disabled" and item.expose]
    known: dict[str, Item] = {}
    for item in there:
        if (first := known.setdefault(word(item.name), item)) is not item:
            raise Failure(_same_variable_outcome(pool, first, item))
    found = {"POOLCTL_CONFIG": pool.files[0]} if pool.files else {}
    for item in there:
        try:
            parts = address_parts(item.expose, parse(item.address or item.bind))
        except AddressError:
            parts = {"url": item.expose}
        if item.address and item.expose == item.bind:  # an inherited socket has no other address
            parts["url"] = f"http://{item.address}"
        name = word(item.name)
        found |= {f"POOLCTL_{part.upper()}_{name}": parts[part] for part in ("url", "port") if part in parts}
    return {**base, **found}


def word(name: str) -> str:
    """The name of a server as a part of a variable name: `users-v1` becomes `USERS_V1`."""
    return re.sub("[^A-Z0-9]", "_", name.upper())


def _same_variable_outcome(pool: PoolRef, first: Item, second: Item) -> Outcome:
    variable = f"POOLCTL_URL_{word(first.name)}"
    message = f"{variable} of the command would be the address of {first.name!r} and of {second.name!r}"
    finding = Finding(("name",), message, "rename one of them", second.name)
    config = load(pool)
    problems = config.located((server, finding) for server in config if server.name == second.name)
    if not problems:  # a server added live
        return Outcome.failed(INVALID_CONFIGURATION, message, finding.hint)
    return Outcome(errors=[ErrorEntry.of(each) for each in problems], exit_code=INVALID_CONFIGURATION)


_LINES = 20
_MOST_SERVERS = 10


def death_lines(
    died: Mapping[str, Sequence[Death]], command: str, logs: Mapping[str, Sequence[LogLine]]
) -> Iterator[str]:
    """Yield one line for each server that died while `command` ran, with the reason for its last exit.

    What the reason quotes of the output is left out if the `logs`, which are printed below, have it.
    """
    for name, deaths in died.items():
        times = f" {len(deaths)} times" if len(deaths) > 1 else ""
        reason = deaths[-1].reason
        if any(reason.endswith(f": {line.text.strip()}") for line in logs.get(name, ())):
            reason = reason.partition(": ")[0]
        yield render.printable(f"{name} died{times} while {command} ran: {reason}")


def _start_of_last_attempt(deaths: Sequence[Death], begun: float) -> str:
    """When the output of the process that died last begins: after the death before, or when the pool was started."""
    return deaths[-2].time if len(deaths) > 1 else stamp(begun)


def log_sections(
    logs: Mapping[str, Sequence[LogLine]], env: Mapping[str, str] = os.environ, *, objects: bool
) -> str:
    """The lines of each log that has any, under a heading that GitHub and GitLab can fold.

    With `objects` they are JSON lines, without headings.
    """
    texts: list[str] = []
    for name, lines in logs.items():
        if lines:
            texts += (
                map(log_rendering.json_line, lines) if objects else _foldable_log_section(name, lines, env)
            )
    return "".join(texts)


def _foldable_log_section(name: str, lines: Sequence[LogLine], env: Mapping[str, str]) -> Iterator[str]:
    count = len(lines)
    head = f"last {count} lines of {name}" if count > 1 else f"last line of {name}"
    before, after = f"{head}:\n", ""
    if env.get("GITHUB_ACTIONS") == "true":
        before, after = f"::group::{head}\n", "::endgroup::\n"
    elif env.get("GITLAB_CI") == "true":
        moment, section = int(time()), f"poolctl_{name}"
        before = f"\x1b[0Ksection_start:{moment}:{section}[collapsed=true]\r\x1b[0K{head}\n"
        after = f"\x1b[0Ksection_end:{moment}:{section}\r\x1b[0K\n"
    yield before
    # The name at the beginning of each line also prevents output from being taken as GitHub workflow commands.
    yield from (f"{name} | {log_rendering.terminal_text(line.text, colours=False)}\n" for line in lines)
    yield after


Handler = Callable[[int, FrameType | None], object] | int | None

# Passed on to the command.
FORWARDED_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# Signals ignored by Python, which programs expect at their default.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ)
# Docker kills the container after ten.
STOP_SECONDS = 8.0
# How long processes that a command has left behind may take to end.
LEFT_SECONDS = 5.0
_WATCHED = (signal.SIGCHLD, *FORWARDED_SIGNALS)


def program(command: Sequence[str], env: Mapping[str, str]) -> str:
    """The program's path. Raises Failure with exit code 127 if it does not exist, 126 if it cannot be executed."""
    name, search_path = command[0], env.get("PATH", os.defpath)
    found = shutil.which(name, path=search_path) if name else None
    if found:
        return found
    paths = [name] if "/" in name else [f"{directory}/{name}" for directory in search_path.split(":")]
    if not name or not any(map(os.path.lexists, paths)):
        why, fix = (
            ("file not found", "check the path") if "/" in name else ("command not found", "is it in $PATH?")
        )
        raise Failure(Outcome.failed(NOT_FOUND, f"{name}: {why}", hint=fix))
    why, fix = why_not_executable(name, search_path, os.curdir) or ("cannot be executed", "")
    raise Failure(Outcome.failed(NOT_EXECUTABLE, f"{name}: {why}", hint=fix))


@subreaper()
def run_to_end(
    path: str,
    command: list[str],
    env: Mapping[str, str],
    *,
    stdout: int | None = None,
    lifeline: int = -1,
    unwanted: Callable[[], bool] = lambda: False,
) -> int:
    """Run the user's command; returns its exit status, 128 + N if signal N killed it. Passes signals on to it.

    Processes that it leaves behind get SIGTERM, and SIGKILL after LEFT_SECONDS. If the other end of the pipe `lifeline`
    is closed and `unwanted` returns true, the command gets SIGTERM. `stdout` replaces its standard output. Raises
    Failure (exit 126 or 127) if the command cannot be run.
    """
    watched = (signal.SIGCHLD, signal.SIGIO, *FORWARDED_SIGNALS)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    actions = [] if stdout is None else [(os.POSIX_SPAWN_DUP2, stdout, 1)]
    others = set(children())
    try:
        pid = os.posix_spawn(path, command, env, file_actions=actions, setsigmask=before, setsigdef=_RESET)
        if lifeline >= 0 and _enable_sigio_and_poll(lifeline) and unwanted():
            deliver(partial(os.kill, pid), signal.SIGTERM)
        while True:
            came = signal.sigwaitinfo(watched)
            if came.si_signo == signal.SIGCHLD:
                status = reap_and_find_status(pid, others)
                if status is not None:
                    end_processes(lambda: left_children(others), signal.SIGTERM, LEFT_SECONDS)
                    return status
            elif came.si_signo == signal.SIGIO:
                if unwanted():
                    deliver(partial(os.kill, pid), signal.SIGTERM)
            elif came.si_code != SI_KERNEL:
                deliver(partial(os.kill, pid), came.si_signo)
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        why = why_execution_failed(command[0], env.get("PATH", os.defpath), error)
        raise Failure(Outcome.failed(code, f"{command[0]}: {why}")) from None
    finally:
        if lifeline >= 0:
            _stop_sigio(lifeline)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _enable_sigio_and_poll(lifeline: int) -> bool:
    """Have the kernel send SIGIO when the other end of the pipe is closed (fcntl(2), O_ASYNC).

    Returns whether it is closed already.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)  # errors are always reported
    return bool(poll.poll(0))


def _stop_sigio(lifeline: int) -> None:
    """Disable SIGIO, which would kill this process once it no longer waits for the signal."""
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) & ~os.O_ASYNC)
    while signal.sigtimedwait((signal.SIGIO,), 0):
        continue


def continue_in_child(limit_seconds: float) -> None:
    """Fork, and return only in the child. The parent passes signals on to the child, and exits with the child's status.

    At the latest, the parent exits `limit_seconds` after SIGTERM or SIGINT; the kernel then kills the whole container.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = os.fork()
    if child:
        os._exit(_InitProcess(child, limit_seconds).forward_signals_until_exit())
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _InitProcess:
    def __init__(self, child: int, limit_seconds: float) -> None:
        self._child = child
        self._limit_seconds = limit_seconds
        self._due: float | None = None
        self._status: int | None = None

    def forward_signals_until_exit(self) -> int:
        """Return the child's exit status once it has exited and, if it was killed, once its pool has ended, too.

        Wait at most `limit_seconds` after SIGTERM, SIGINT or the child's exit; return 137 if the child still runs then.
        """
        while True:
            patience = 3600.0 if self._due is None else self._due - monotonic()
            came = signal.sigtimedwait(_WATCHED, max(0.0, patience))
            if self._due is not None and monotonic() >= self._due:
                return 128 + signal.SIGKILL if self._status is None else self._status
            if came is not None and came.si_signo != signal.SIGCHLD:
                self._forward(came)
            alone = self._reap_and_check_childless()
            if self._status is not None and (alone or self._status <= 128):
                return self._status

    def _forward(self, came: signal.struct_siginfo) -> None:
        # The terminal sends its signals to the child as well.
        if came.si_code != SI_KERNEL and self._status is None:
            os.kill(self._child, came.si_signo)
        if came.si_signo in (signal.SIGTERM, signal.SIGINT):
            self._end_soon()

    def _end_soon(self) -> None:
        if self._due is None:
            self._due = monotonic() + self._limit_seconds

    def _reap_and_check_childless(self) -> bool:
        """Reap children; returns whether no child is left."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._child:
                    self._status = shell_status(os.waitstatus_to_exitcode(ended[1]))
                    self._end_soon()
        except ChildProcessError:
            return True
        return False


_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
# Sent to this process: only a signal interrupts every kind of wait in the main thread.
_OUTPUT_LOST = signal.SIGIO
# By this time the callback in which a signal's exception was discarded has returned.
_DISCARDED_SECONDS = 0.01


class Terminated(BaseException):
    """SIGTERM, SIGHUP, or output without a reader: stop cleanly. Not caught by `except Exception`."""


class StopSignalRaiser:
    """Raises in the main thread on a signal that ends `run`: KeyboardInterrupt for SIGINT, else Terminated.

    A second signal raises again. If the stop began because the reader of the output is gone, the first signal is
    ignored. SIGALRM, sent at the end of the time for the stop, always raises Terminated.
    """

    def __init__(self) -> None:
        self._stopping = False
        self.reader_is_gone = False  # it stops for that reason, and not for a signal
        self._before: dict[int, Handler] = {}
        self.interrupted = False  # SIGINT has already raised
        self.wakeup = -1  # readable when a signal has arrived
        self._waker = self._waker_before = -1
        self._unraisable_before = sys.unraisablehook

    def __enter__(self) -> StopSignalRaiser:
        sys.unraisablehook = self._resend_discarded_signal
        self._before = {number: signal.getsignal(number) for number in (*_STOPPING, _OUTPUT_LOST)}
        for number in _STOPPING:
            if self._before[number] is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._note_or_raise_for_signal)
        signal.signal(_OUTPUT_LOST, self._terminate_for_lost_output)
        self.wakeup, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._waker_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        return self

    def __exit__(self, *raised: object) -> None:
        sys.unraisablehook = self._unraisable_before
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._waker_before)
        os.close(self.wakeup)
        os.close(self._waker)

    def wait_for_closed_pipe(self, fd: int) -> None:
        """Wait until the other end of the pipe `fd` is closed. A stop signal ends the wait with an exception."""
        with contextlib.suppress(BrokenPipeError):
            while True:
                await_readable(-1, None, fd, self.wakeup)

    @staticmethod
    def stop_for_lost_output() -> None:
        """Stop, unless already stopping, because the reader of the output is gone. Callable from any thread."""
        os.kill(os.getpid(), _OUTPUT_LOST)

    def _note_or_raise_for_signal(self, number: int, frame: FrameType | None) -> None:
        reader_is_gone, self._stopping = self.reader_is_gone, True
        if reader_is_gone and number != signal.SIGALRM:
            self.reader_is_gone = False
            self.interrupted = number == signal.SIGINT
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _resend_discarded_signal(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Raise again a signal's exception that was discarded in a finalizer or a weak reference's callback.

        Such callbacks run wherever an object is freed, even during imports, and a signal may arrive in one. The
        exception is raised a moment later, when the callback has returned.
        """
        discarded = unraisable.exc_type
        if (
            discarded in (KeyboardInterrupt, Terminated)
            and threading.current_thread() is threading.main_thread()
        ):
            number = signal.SIGINT if discarded is KeyboardInterrupt else signal.SIGALRM
            _thread.start_new_thread(self._resend_signal_after_pause, (number,))
        else:
            self._unraisable_before(unraisable)

    def _resend_signal_after_pause(self, number: int) -> None:
        sleep(_DISCARDED_SECONDS)
        if sys.unraisablehook == self._resend_discarded_signal:
            os.kill(os.getpid(), number)

    def _terminate_for_lost_output(self, number: int, frame: FrameType | None) -> None:
        if not self._stopping:
            self._stopping = self.reader_is_gone = True
            raise Terminated


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Context manager: a first signal takes effect only after the block, a second one at once."""
    before = {int(number): handler for number in _STOPPING if callable(handler := signal.getsignal(number))}
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            before[number](number, frame)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        before[came[0]](came[0], None)
