"""Requests to a running supervisor, which some commands launch if needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from poolctl.cli.options import Filters
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, same_name_warning
from poolctl.cli.render import NAMES_SHOWN, abbreviated_list
from poolctl.control.answers import ProgressLine, Result
from poolctl.control.client import (
    Client,
    NoSupervisor,
    SupervisorEnded,
    failure_reason,
    wait_for_exit,
)
from poolctl.errors import ControlError
from poolctl.exit_codes import INTERRUPTED, NOTHING_MATCHED

if TYPE_CHECKING:
    from threading import Timer

    from rich.status import Status

    from poolctl.control.server_answers import ServerDescription

Answer = TypeVar("Answer", bound=Result)
Launch = Callable[[Sequence[str], Mapping[str, str]], object]
# Reported by status and doctor while the supervisor replaces nothing.
CRASH_LOOP = (
    "the supervisor crashed five times within a minute: for five minutes it serves commands only and replaces no "
    "process that exits (see supervisor.log next to its socket)"
)
_MAX_LAUNCHES = 4  # attempts if other commands stop the pool immediately


EVERYWHERE, EVERYTHING = Place(), Filters()


@dataclass(frozen=True)
class Request:
    """What a command asks of a pool's supervisor: `verb`, for the selected servers, with options of the protocol.

    `command` is the command's name if that is another. A `timeout` is in seconds.
    """

    verb: str
    place: Place = EVERYWHERE
    selection: Filters = EVERYTHING
    options: Mapping[str, object] = field(default_factory=dict)
    timeout: float | None = None
    command: str = ""


def ask(request: Request, pool: PoolRef) -> Result:
    """Send the request to the supervisor, and return its answer.

    Raises SelectorError for a bad selection, ControlError, and Failure if a change continues after Ctrl-C.
    """
    return ask_for(Result, request, pool)


def ask_for(kind: type[Answer], request: Request, pool: PoolRef) -> Answer:
    """Send a request to the pool as `ask` does, but return the answer as an instance of the class `kind`."""
    command = request.command or request.verb
    with Progress(command, quiet=request.place.quiet, verbose=request.place.verbose) as progress:
        body = {
            "selector": request.selection.selector().to_dict(),
            "options": {"timeout": request.timeout, **request.options, "progress": progress.wanted},
        }
        try:
            result = _ask_until_answered(kind, pool, request, body, progress)
        except KeyboardInterrupt:
            from poolctl.control.protocol import CHANGING_VERBS
            from poolctl.feature import features

            feature_verbs = (verb for feature in features() for verb in feature.changing)
            if command not in CHANGING_VERBS.union(feature_verbs):
                raise
            hint = f"the {command} continues in the background: poolctl status"
            raise Failure(Outcome.failed(INTERRUPTED, "interrupted", hint)) from None
    if progress.warnings:
        result = replace(result, warnings=(*dict.fromkeys([*progress.warnings, *result.warnings]),))
    await_exit_if_pool_ends(result)  # so that the next command finds no remains of this pool
    return result


def await_exit_if_pool_ends(result: Result) -> None:
    """Wait until the pool's last process has exited if `result` says that the pool ends; otherwise return at once."""
    if result.ended:
        wait_for_exit(result.keeper_pid or 0)


def _ask_until_answered(
    kind: type[Answer], pool: PoolRef, request: Request, body: Mapping[str, object], progress: Progress
) -> Answer:
    """Send a request to the supervisor, and return its answer; retries if another supervisor takes over."""
    client = Client(pool.socket)
    while True:
        before = _socket_identity(pool.socket)
        try:
            return client.ask(kind, request.verb, body, progress, request.timeout)
        except SupervisorEnded:
            # A supervisor that exits regularly removes its socket before closing connections; a killed one does not.
            if _socket_identity(pool.socket) == before:
                raise


def _socket_identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def launch_supervisor(files: Sequence[str], env: Mapping[str, str]) -> None:
    """Start a supervisor for the pool of these files: its socket listens at once, and it answers when started."""
    from poolctl.supervisor.launch import launch

    launch(files, env)


def ask_or_launch(request: Request, pool: PoolRef, launch: Launch = launch_supervisor) -> Result:
    """Like ask(), but launches a missing supervisor, which validates the files itself.

    Also raises ControlError if it cannot start, and Failure (exit 5) for a pool without servers.
    """
    try:
        return ask(request, pool)
    except (NoSupervisor, SupervisorEnded):  # a previous supervisor may have been exiting
        if not pool.files or request.place.pool:
            raise
    request.selection.selector()  # a mistake in it is reported before anything is launched
    log_start = supervisor_log_size(pool)
    try:
        result = _launch_and_ask(request, pool, launch)
    except (NoSupervisor, SupervisorEnded) as ended:
        failure = startup_failure(ended, pool, log_start)
        if isinstance(ended, SupervisorEnded):
            _end_idle(pool)  # its successor, started by the keeper
        raise failure from None
    if result.exit_code == NOTHING_MATCHED:
        # Stop the supervisor launched for this request, because it did nothing.
        return replace(result, ended=_end_idle(pool))
    if is_empty(result) and not request.selection.allow_empty:
        from poolctl.cli.offline import no_server_outcome

        _end_idle(pool)
        raise Failure(no_server_outcome(pool))
    if warning := same_name_warning(pool):
        return replace(result, warnings=(*result.warnings, warning))
    return result


def is_empty(result: Result) -> bool:
    """Whether a start succeeded but found neither servers nor routes."""
    return not (result.items or result.exit_code or result.without_servers)


def _launch_and_ask(request: Request, pool: PoolRef, launch: Launch) -> Result:
    refuse_without_linux()
    from poolctl.control.other_users import refuse_second_pool

    note = refuse_second_pool(pool.files)
    for _ in range(_MAX_LAUNCHES):
        launch(pool.files, os.environ)
        try:
            result = ask(replace(request, verb="start", command=request.verb), pool)
            return replace(result, warnings=(*result.warnings, note)) if note else result
        except NoSupervisor:
            pass  # another command stopped it before this request was handled
    raise NoSupervisor


def supervisor_log_size(pool: PoolRef) -> int:
    """The size of the supervisor's log in bytes, 0 without a log: the next supervisor's log begins there."""
    try:
        return os.stat(f"{pool.directory}/supervisor.log").st_size
    except OSError:
        return 0


def startup_failure(failure: NoSupervisor | SupervisorEnded, pool: PoolRef, log_start: int) -> ControlError:
    """The failure with the reason that the supervisor logged after `log_start`, if any."""
    if not (why := failure_reason(f"{pool.directory}/supervisor.log", log_start)):
        return failure
    ended = SupervisorEnded(pool.socket)
    return ControlError(f"the supervisor could not start: {why}", exit_code=ended.exit_code, hint=ended.hint)


def _end_idle(pool: PoolRef) -> bool:
    """Stop a supervisor that was launched unnecessarily, if it is idle; returns whether it has exited."""
    try:
        result = Client(pool.socket).ask(Result, "stop", {"options": {"idle": True}})
    except ControlError:
        return False  # stopped by another command
    await_exit_if_pool_ends(result)
    return bool(result.ended)


def refuse_without_linux() -> None:
    """Raise ControlError unless this machine runs Linux, which is needed to run servers in processes of their own."""
    if not sys.platform.startswith("linux"):  # poolctl.platform would import socket modules
        raise ControlError(
            "only Linux can run servers in processes of their own",
            hint="here poolctl.Pool serves in a Python process, and validate, list, filter and config work",
        )


def selected(
    place: Place, selection: Filters, pool: PoolRef, *, command: str, measured: bool = False
) -> Result:
    """The selected servers with their current state, from the supervisor, or from the files if none runs.

    If `measured` the supervisor adds their figures, such as memory. Raises Failure if nothing is selected.
    """
    try:
        if measured:
            from poolctl.control.server_answers import StatsResult

            result: Result = ask_for(
                StatsResult, Request("stats", place, selection, {"files": True}, command=command), pool
            )
        else:
            result = ask(Request("list", place, selection, command=command), pool)
    except NoSupervisor:
        if not pool.files:
            raise
        from poolctl.cli.offline import select_from_files

        return Result(items=tuple(select_from_files(selection, pool)))
    if result.exit_code:
        raise Failure(Outcome.of(result))
    return result


def ask_or_read_files(request: Request, pool: PoolRef) -> tuple[Sequence[ServerDescription], Result | None]:
    """Details of the selected servers, and the supervisor's answer.

    If no supervisor runs, the details are read from the files, and the answer is None. Raises Failure if nothing is
    selected, and NoSupervisor if neither a supervisor nor files exist.
    """
    from poolctl.control.server_answers import ShowResult

    try:
        result = ask_for(ShowResult, request, pool)
    except NoSupervisor:
        if not pool.files:
            raise
        from poolctl.cli.offline import described_from_files

        return described_from_files(request.selection, pool, reveal=bool(request.options.get("reveal"))), None
    if result.exit_code:
        raise Failure(Outcome.of(result))
    return result.items, result


def notify_systemd_of_keeper_pid(pool: PoolRef, *, ready: bool) -> None:
    """Tell systemd that the service's main process is now the keeper, which runs as long as the pool.

    With `ready`, also report the service as ready. Does nothing unless this is the main process of a systemd service.
    """
    from poolctl.control import sd_notify

    if os.environ.get("NOTIFY_SOCKET") and sd_notify.is_main(os.environ):
        try:
            keeper = Client(pool.socket).ping().keeper_pid
        except ControlError:
            return  # it has already exited, which ends the service
        sd_notify.notify(os.environ, f"MAINPID={keeper}", *([sd_notify.READY] if ready else []))


DELAY_SECONDS = 0.5


class Progress:
    """Receives the supervisor's messages, and shows how many servers are done and which are pending.

    Called from the command's thread. rich's thread draws the line several times a second; both use one dictionary.
    """

    def __init__(self, verb: str, *, quiet: bool = False, verbose: bool = False) -> None:
        self.verb = verb
        self._verbose = verbose and not quiet
        self.warnings: list[str] = []
        self._states: dict[str, tuple[str, bool]] = {}
        self._waiting: dict[str, None] = {}
        self._enabled = not quiet and not verbose and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._timer: Timer | None = None
        self._status: Status | None = None

    @property
    def wanted(self) -> bool:
        """Whether to show progress; if not, the supervisor need not report every step."""
        return self._enabled or self._verbose

    def __enter__(self) -> Progress:
        if self._enabled:
            from threading import Timer

            from poolctl.platform import signals_blocked

            self._timer = Timer(DELAY_SECONDS, self._start_status_display)
            self._timer.daemon = True
            with signals_blocked():
                self._timer.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()  # the display must be complete before it can be removed
        if self._status is not None:
            self._status.stop()

    def __call__(self, line: ProgressLine) -> None:
        """Handle a message that the supervisor sends before its answer."""
        if line.warning is not None:
            self.warnings.append(line.warning)
        step = line.progress
        if step is None:
            return
        name, state, ready = step.name, step.state, step.ready
        if self._verbose and self._states.get(name) != (state, ready):
            sys.stderr.write(f"{name}: {state}{', ready' if ready else ''}\n")
        self._states[name] = (state, ready)
        if step.done:
            self._waiting.pop(name, None)
        else:
            self._waiting[name] = None

    def line(self) -> str:
        """One line: the number of finished servers, and the names of pending ones."""
        states = self._states.copy()
        waiting = [name for name in states if name in self._waiting]
        done = len(states) - len(waiting)
        line = f"{self.verb}: {done} of {len(states)}" if states else f"{self.verb} …"
        if waiting:
            line += f", waiting for {abbreviated_list(waiting, NAMES_SHOWN)}"
        return line

    def _start_status_display(self) -> None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False)
        self._status = console.status(self)
        self._status.start()

    def __rich__(self) -> str:
        return self.line()
