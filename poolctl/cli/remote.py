"""Requests to a running supervisor, which is launched where a command may do so."""

from __future__ import annotations

import os

from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import PoolRef, others_named_alike
from poolctl.cli.progress import Progress
from poolctl.control.answers import Result
from poolctl.control.client import Client, NoSupervisor, SupervisorEnded
from poolctl.control.pool_exit import await_end
from poolctl.errors import ControlError
from poolctl.exit_codes import INTERRUPTED, INVALID_CONFIGURATION, NOTHING_MATCHED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeVar

    from poolctl.cli.command_request import CommandRequest
    from poolctl.cli.pool_ref import PoolRef

    Answer = TypeVar("Answer", bound=Result)

# Commands that the pool completes even if the caller stops waiting.
_ORDERS = ("start", "stop", "restart", "reload", "scale", "enable", "disable", "add", "remove")
# Reported by status and doctor while the supervisor replaces nothing.
CRASH_LOOP = (
    "the supervisor crashed five times within a minute: for five minutes it serves commands only and replaces no "
    "process that exits (see supervisor.log next to its socket)"
)
_LAUNCHES = 4  # so often at most is a pool launched that other commands stop at once


def ask(
    request: CommandRequest, pool: PoolRef, verb: str = "", more: Mapping[str, object] | None = None
) -> Result:
    """The supervisor's answer; `more` goes to its options. Raises NoSupervisor, UsageError for a bad selector."""
    return ask_for(Result, request, pool, verb, more)


def ask_for(
    kind: type[Answer],
    request: CommandRequest,
    pool: PoolRef,
    verb: str = "",
    more: Mapping[str, object] | None = None,
) -> Answer:
    """As `ask`, for a verb whose answer is of this class."""
    options = {**request.options(), **(more or {})}
    with Progress(request.verb, quiet=request.quiet, verbose=request.verbose) as progress:
        body = {
            "selector": request.selector().to_dict(),
            "options": {**options, "progress": progress.wanted},
        }
        try:
            result = _call(kind, pool, verb or request.verb, body, progress, options["timeout"])
        except KeyboardInterrupt:
            if request.verb not in _ORDERS:
                raise
            hint = f"the {request.verb} continues in the background: poolctl status"
            raise Failure(Outcome.failed(INTERRUPTED, "interrupted", hint)) from None
    await_pool_end(result)  # so that the next command meets nothing of this pool
    if progress.warnings:
        result = result.but(warnings=tuple(dict.fromkeys([*progress.warnings, *result.warnings])))
    return result


def await_pool_end(result: Result) -> None:
    """Return when the last process of the pool has exited, if the pool ends with this answer."""
    if result.ended:
        await_end(result.keeper_pid or 0)


def _call(
    kind: type[Answer],
    pool: PoolRef,
    verb: str,
    body: Mapping[str, object],
    progress: Progress,
    timeout: float | None,
) -> Answer:
    """The answer of the supervisor that is there, or of its successor if it was about to end."""
    while True:
        before = _mark(pool.socket)
        try:
            return Client(pool.socket).ask(kind, verb, body, progress, timeout)
        except SupervisorEnded:
            # One that ends as it should takes its socket away before it hangs up; one that was killed does not.
            if _mark(pool.socket) == before:
                raise


def _mark(path: str) -> tuple[int, int] | None:
    """The identity of the socket at that path."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def ask_or_launch(request: CommandRequest, pool: PoolRef, verb: str = "") -> Result:
    """Like ask(), but a pool without a supervisor gets one. The supervisor itself judges the files."""
    try:
        return ask(request, pool, verb)
    except (NoSupervisor, SupervisorEnded):  # the one that was there may have been about to end
        if not pool.files or request.get("pool"):
            raise
    # what is wrong with the command is said before anything is launched
    request.options()
    request.selector()
    try:
        result = _launch_and_ask(request, pool)
    except SupervisorEnded as ended:
        raise _with_last_words(ended, pool) from None
    if result.exit_code == NOTHING_MATCHED:
        # Nothing was done, and nothing is left behind.
        return result.but(ended=_end_idle(pool))
    if not result.items and not result.exit_code and not request.get("allow_empty"):
        raise Failure(_without_servers(pool))
    if warning := others_named_alike(pool):
        return result.but(warnings=(*result.warnings, warning))
    return result


def _launch_and_ask(request: CommandRequest, pool: PoolRef) -> Result:
    for _ in range(_LAUNCHES - 1):
        launch(pool)
        try:
            return ask(request, pool, "start")
        except NoSupervisor:  # another command has stopped it before it came to ours
            continue
    launch(pool)
    return ask(request, pool, "start")


def _with_last_words(ended: SupervisorEnded, pool: PoolRef) -> ControlError:
    """The same error with the last line of the supervisor's log: why it could not even start."""
    try:
        with open(f"{pool.directory}/supervisor.log", encoding="utf-8", errors="replace") as log:
            lines = log.read().split("\n")
    except OSError:
        lines = []
    last = next((line for line in reversed(lines) if line.strip()), "")
    message = f"the supervisor could not start: {last}" if last else ended.message
    return ControlError(message, exit_code=ended.exit_code, hint=ended.hint)


def _without_servers(pool: PoolRef) -> Outcome:
    """The outcome of files that hold no server; the supervisor that found nothing to do is ended."""
    from poolctl.cli.offline import no_server

    _end_idle(pool)
    return Outcome(errors=[no_server(pool)], exit_code=INVALID_CONFIGURATION)


def _end_idle(pool: PoolRef) -> bool:
    """End the supervisor that was launched for nothing, unless it has got something to do; whether it has ended."""
    try:
        result = Client(pool.socket).ask(Result, "stop", {"options": {"idle": True}})
    except ControlError:
        return False  # another command has stopped it
    await_pool_end(result)
    return bool(result.ended)


def launch(pool: PoolRef) -> None:
    """A supervisor in the background for this pool; it listens from now on, and answers when it is up."""
    from poolctl.supervisor.launch import launch as launch_supervisor

    launch_supervisor(pool.files, os.environ)


def selected(request: CommandRequest, pool: PoolRef) -> Result:
    """The servers as they are now. Failure for a selection that matches nothing and for invalid files."""
    try:
        result = ask(request, pool, "list")
    except NoSupervisor:
        if not pool.files:
            raise
        from poolctl.cli.offline import select_from_files

        return Result(items=tuple(select_from_files(request, pool)))
    if result.exit_code:
        raise Failure(Outcome.of(result))
    return result
