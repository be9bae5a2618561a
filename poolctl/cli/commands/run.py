"""`poolctl run`: runs the pool in the foreground, or for the duration of a command (`run -- CMD…`)."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import redirect_stderr
from time import time
from typing import TYPE_CHECKING

from poolctl.cli.command import GET_STARTED, NO_DEPS, OUTPUT, SELECTION, TIMEOUT, WATCH, Command, Option, flag
from poolctl.cli.command_line import CommandRequest, one_of
from poolctl.cli.log_rendering import JsonLines
from poolctl.cli.outcome import Failure, Outcome, error, outcome_of
from poolctl.cli.pool_ref import PoolRef, find_pool, others_named_alike
from poolctl.cli.render import coloured, explain, printable, servers
from poolctl.cli.run.command_failure import LastLines, deaths_of
from poolctl.cli.run.pool_events import PoolEvents
from poolctl.cli.run.run_output import BackgroundStream, LogPrinter
from poolctl.cli.run.signals import (
    STOP_SECONDS,
    StopSignals,
    Terminated,
    UserCommand,
    continue_in_child,
    deferred_signals,
    is_first_process,
    program,
)
from poolctl.cli.server_lines import address_lines
from poolctl.cli.supervisor_requests import (
    Progress,
    SupervisorLog,
    await_pool_end,
    is_empty,
    refuse_without_linux,
    start_unsignalled,
)
from poolctl.control import sd_notify
from poolctl.control.answers import Item, ReloadResult, Result
from poolctl.control.client import Client, NoSupervisor, SupervisorEnded
from poolctl.control.pool_paths import ACCESS_LOG_VARIABLE
from poolctl.control.pool_processes import await_end, read_exit
from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT, DONE, FAILED, INTERRUPTED, INVALID_CONFIGURATION
from poolctl.logs.log_line import LogLine, stamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolctl.cli.reload_on_change import PoolWatcher
    from poolctl.json_form import Table
    from poolctl.monitor.journal import JournalEvent

# If SIGTERM arrives before CMD runs, `run -- CMD` exits as CMD would have.
_TERMINATED = 128 + signal.SIGTERM

COMMAND = Command(
    "Run the pool in the foreground, or around a command: -- CMD…",
    SELECTION,
    OUTPUT,
    TIMEOUT,
    NO_DEPS,
    WATCH,
    flag("no_access_log", "--no-access-log", help="Log no requests, even if the file enables it."),
    flag("debug", "--debug", help="Run a single server in this process, so that breakpoints work."),
    Option("log_format", "--log-format", metavar="FORM", help="Servers' output as text (default) or json."),
    Option(
        "stop_timeout",
        "--stop-timeout",
        metavar="DURATION",
        help="Time limit for stopping everything (default as PID 1: 8s).",
    ),
    section=GET_STARTED,
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
        from poolctl.cli.run.debug_server import perform as become

        become(request)
    refuse_without_linux()
    limit_seconds = request.seconds("stop_timeout")
    if is_first_process():
        limit_seconds = STOP_SECONDS if limit_seconds is None else limit_seconds
        continue_in_child(limit_seconds)
    command = request.get("command") or []
    path = program(command, os.environ) if command else ""
    pool = find_pool(request)
    request.selector(), request.options()  # a wrong value is reported before anything runs
    _refuse_running(Client(pool.socket))
    with (
        BackgroundStream(sys.stderr) as stderr,
        redirect_stderr(stderr),
        StopSignals() as signals,
    ):
        session = RunSession(request, pool, command, limit_seconds, wakeup=signals.wakeup)
        if sd_notify.enabled(
            os.environ
        ):  # not a hangup of a terminal: systemd.service(5) uses SIGHUP as the order to reload
            signal.signal(signal.SIGHUP, lambda number, frame: session.reload())
        code = _run(session, path, signals)
        session.report()  # printed here, where a reader that has stopped reading blocks nothing
    session.outcome.exit_code = code
    return session.outcome


def _run(session: RunSession, path: str, signals: StopSignals) -> int:
    """Launch the pool, serve until something ends it, and stop it; returns the exit code."""
    keeper_pid, lifeline, log = 0, -1, SupervisorLog(session.pool)
    try:
        with deferred_signals():  # nothing could wait for a half-launched pool
            from poolctl.supervisor.launch import launch

            keeper_pid, lifeline = launch(session.pool.files, session.environment(), lifeline=True)
        code = _serve(session, path, lifeline, signals)
    except (ControlError, Failure) as failure:
        if isinstance(failure, (NoSupervisor, SupervisorEnded)):
            failure = log.explained(failure)
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
            await_end(keeper_pid)  # even if the supervisor was exiting and did not answer
            code = INTERRUPTED if signals.interrupted else session.status_of_pool(code)
            session.print_conclusion()
            if session.command and sys.stderr.isatty():
                session.say("the pool has stopped")  # not visible from the end of CMD
    except (KeyboardInterrupt, Terminated):
        pass  # the third signal: the lifeline closes with this process, and the keeper stops the rest
    return code


def _serve(session: RunSession, path: str, lifeline: int, signals: StopSignals) -> int:
    if not session.start():
        code = session.outcome.exit_code
        session.report()
        return code
    session.watch()
    return session.run_command(path, lifeline) if session.command else session.stay(lifeline, signals)


def _refuse_running(client: Client) -> None:
    try:
        client.ping()
    except NoSupervisor:
        return
    raise ControlError(
        "a supervisor is already running for this pool", exit_code=CONFLICT, hint="stop it with poolctl stop"
    )


# Remaining time of the stop timeout when the remaining processes are killed.
_KILLING_SECONDS = 1.0
FORMAT_VARIABLE = "POOLCTL_LOG_FORMAT"
_ALIVE = ("running", "starting", "backoff", "draining")


class RunSession:
    """One `run` with its pool, which runs while this process holds the lifeline.

    `limit_seconds` limits the whole stop. `wakeup` is the wake-up pipe of StopSignals.
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
        self._events = PoolEvents(self.client, self._print_event)
        self._last_lines: LastLines | None = None
        self._failed: list[str] = []  # servers that did not start
        self._ran = False
        self._begun = time()
        self._ending = threading.Event()
        self._objects = _as_objects(request)
        self._limit_seconds = limit_seconds

    @property
    def _prints_logs(self) -> bool:
        """Whether the servers' output is shown; with a command or -o json that output is printed instead."""
        return not self.command and not self.request.output

    def environment(self) -> Mapping[str, str]:
        """The pool's environment; in a terminal, servers log requests by default."""
        if self.request.get("no_access_log"):
            from poolctl.runners.worker_spec import NO_ACCESS_LOG_VARIABLE

            return {**os.environ, NO_ACCESS_LOG_VARIABLE: "1"}
        if self._prints_logs and sys.stdout.isatty():
            return {**os.environ, ACCESS_LOG_VARIABLE: "1"}
        return os.environ

    def start(self) -> bool:
        """Start the selected servers; returns whether there is anything to wait for."""
        body = {"selector": self.request.selector().to_dict(), "options": self.request.options()}
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
        self._failed = [each.name for each in result.errors if each.name]
        await_pool_end(result)
        self.outcome.warnings += [w for w in progress.warnings if w not in self.outcome.warnings]
        if warning := others_named_alike(self.pool):
            self.outcome.warnings.append(warning)
        if not self.outcome.exit_code:
            if is_empty(result) and not self.request.get("allow_empty"):
                from poolctl.cli.offline import no_server

                self.outcome = Outcome(errors=[no_server(self.pool)], exit_code=INVALID_CONFIGURATION)
            return not self.outcome.exit_code
        alive = any(item.state in _ALIVE for item in self.servers)
        return alive and self.outcome.exit_code == FAILED and not self.command

    def watch(self) -> None:
        """Apply changes from now on, if requested; returns at once."""
        if self.request.get("watch"):
            from poolctl.cli.reload_on_change import PoolWatcher

            watcher = PoolWatcher(self.request, self.pool, self.say, self._begun)
            thread = threading.Thread(target=self._watch, args=(watcher,), name="watch", daemon=True)
            start_unsignalled(thread)

    def reload(self) -> None:
        """Apply the changed file; returns at once."""
        start_unsignalled(threading.Thread(target=self._reload, name="reload", daemon=True))

    def _reload(self) -> None:
        sd_notify.notify(os.environ, *sd_notify.reloading())
        try:
            result = self.client.ask(ReloadResult, "reload")
        except ControlError as wrong:
            entry = error(wrong.exit_code, wrong.message, wrong.hint)
            result = ReloadResult(errors=(entry,), exit_code=wrong.exit_code)
        self.changed(result)
        sd_notify.notify(os.environ, sd_notify.READY)

    def _watch(self, watcher: PoolWatcher) -> None:
        try:
            for result in watcher.changes(self._ending.is_set):
                self.changed(result)
        except Failure as failure:  # further paths cannot be watched; the pool keeps running
            self._explain(failure.outcome)

    def changed(self, result: Result) -> None:
        """Print the outcome of a change of the files, between the servers' output."""
        from poolctl.cli.reload_plan import change_lines

        for line in change_lines(result, coloured(sys.stderr) and not self._objects):
            self.say(line)
        self._explain(Outcome.of(result))

    def _explain(self, outcome: Outcome) -> None:
        outcome.quiet = self.request.quiet
        explain(outcome)

    def stay(self, lifeline: int, signals: StopSignals) -> int:
        """Wait until the pool has ended, or a signal is raised; returns the exit code if the pool ended."""
        expected = [item for item in self.servers if item.state not in ("disabled", "sleeping")]
        ready = sum(item.ready for item in expected)
        line = f"{servers(ready, len(expected))} ready"
        if not (self.request.output or self._objects):
            for address in address_lines(self.servers):
                self.say(address)
        if self._gateway is not None:
            from poolctl.cli.gateway_line import serves_line

            if serves := serves_line(self._gateway):
                self.say(serves)
        self.say(f"{line}, Ctrl-C to stop")
        self.report()  # failures are printed now, while other servers run
        if not self.outcome.exit_code:
            sd_notify.notify(os.environ, sd_notify.READY, sd_notify.status(line))
        signals.wait_for_end(lifeline)  # the keeper holds the other end
        return DONE

    def report(self) -> None:
        """Print the problems so far; a JSON document has them at the end."""
        if self.request.output != "json":
            self.outcome.quiet = self.request.quiet
            explain(self.outcome)
            self.outcome.errors, self.outcome.warnings = [], []

    def run_command(self, path: str, lifeline: int) -> int:
        """Run the user's command; returns its exit code. If the pool cannot continue, the command gets SIGTERM.

        With -o json its output goes to standard error.
        """
        from poolctl.cli.run.command_environment import command_environment

        stdout = sys.stderr.fileno() if self.request.output else None
        environment = command_environment(self.pool, self.client.ask(Result, "list").items)
        foreground = UserCommand(path, self.command, environment)
        self._ran = True
        self._events.died.clear()  # the start has reported its own failures
        return foreground.run(stdout=stdout, lifeline=lifeline, unwanted=self._ended_by_itself)

    def status_of_pool(self, code: int) -> int:
        """The exit status of the pool itself, if a mandatory server has failed."""
        left = read_exit(self.pool.directory)
        if left is None:
            return code
        await_end(left.keeper_pid)
        self.say(f"the pool has ended: {left.reason}")
        return left.status

    def _ended_by_itself(self) -> bool:
        return read_exit(self.pool.directory) is not None

    def _conclude(self, code: int) -> None:
        """Collect explanations for the failure of the command or its servers while the pool still exists."""
        self._events.finish()
        if not self.command:
            return
        died = self._events.died
        unasked = code not in (DONE, INTERRUPTED, _TERMINATED)
        if died or self._failed or unasked:
            names = [*died, *self._failed] or [item.name for item in self.servers]
            self._last_lines = LastLines.of(self.client, self.pool, names, since=stamp(self._begun))

    def print_conclusion(self) -> None:
        """Name the servers that died while the command ran, and print the last lines of the relevant servers."""
        if not self.command:
            return
        if self._ran:
            for line in deaths_of(self._events.died, os.path.basename(self.command[0])):
                self.say(line)
        if self._last_lines is not None and not self.request.quiet:
            sys.stderr.write(self._last_lines.text(os.environ, objects=self._objects))

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
            self._conclude(code)
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
        await_pool_end(result)

    def _print_event(self, event: JournalEvent, text: str, level: str) -> None:
        """Print a line about one of the pool's servers, between their output."""
        if self.request.quiet:
            return
        if self._objects:
            document = {"time": event.time, "server": event.server, "message": text, "level": level}
            text = json.dumps(document)
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        if not self.request.quiet:
            if self._objects:
                text = JsonLines().line(LogLine(text, time=stamp(time()), name="")).rstrip()
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def _as_objects(request: CommandRequest) -> bool:
    form = request.get("log_format") or os.environ.get(FORMAT_VARIABLE) or "text"
    return one_of("--log-format", form, ("text", "json")) == "json"
