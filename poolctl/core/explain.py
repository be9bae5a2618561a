"""Explains failures of servers: message, hint, and the cause found in a program's output."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from poolctl.config import ServerConfig, masked_text
from poolctl.errors import PoolError, PoolStartError, ServerError
from poolctl.json_form import Table, to_json
from poolctl.logs.line_filter import without_control
from poolctl.runners.runner_protocol import Runner, WorkerFailed
from poolctl.units import format_duration

from . import decide
from .server_entry import Entry
from .worker import Worker
from .workqueue import Recorder

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
# Used with re.match only: searching for `.*/` would take time quadratic in the length of a program's line.
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
_CODE_ERROR = r"\b((Syntax|Indentation|Tab|Import|ModuleNotFound|Name)Error: |Cannot find (module|package) )"
_ADDRESS_IN_USE = r"EADDRINUSE|AddrInUse|address (is )?already in use|port [0-9]+ (is|was) (already )?in use"
# The number after a colon, after "port", or after the host in a Python tuple.
_PORT = r"(?:[:\]]|\bport[ =:]+|', )([0-9]{2,5})\b"
_MIN_PORT = 60  # numbers below 60 may belong to a time of day
# Maximum time that commands and failure reports wait for the output of a server.
LOGS_SECONDS = 5.0
# The end of a worker is delayed at most this long for its stacks; an answer takes a few milliseconds.
_STACKS_SECONDS = 1.0
_ANSWER_SHARE = 0.9  # the runner's share of that time
# These limits keep an event, and the state given to a successor, below about 50 KB.
_MAX_STACKS, _MAX_FRAMES = 20, 20


def note_failure(entry: Entry, failure: ServerError) -> None:
    """Note that an attempt to start or stop the server has failed."""
    entry.observed.failures += 1
    entry.observed.failure = failure


def warn_once(entry: Entry, message: str) -> None:
    """Add a warning about the server to the command in progress, unless another worker has caused the same one."""
    warning = f"{entry.name}: {message}"
    if warning not in entry.observed.warnings:
        entry.observed.warnings.append(warning)


def record_warning(recorder: Recorder, entry: Entry, event: str, message: str, **detail: str) -> None:
    """Report a problem: as a warning of the current command, in the log, and as an event."""
    entry.observed.warnings.append(f"{entry.name}: {message}")
    logger.warning("%s: %s", entry.name, message)
    recorder.record("lifecycle", event, server=entry.name, bind=entry.config.key, message=message, **detail)


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
    # The new error replaces a ServerError of the runner. Tracebacks are dropped: their frames would live as long as
    # the failure.
    original = cause.__cause__ if isinstance(cause, ServerError) else cause
    failure.__cause__ = None if original is None else original.with_traceback(None)
    return failure


def message_and_hint(error: Exception) -> tuple[str, str]:
    """The message and the hint for an exception of a runner.

    An unexpected exception is logged: the server has failed in any case, and no exception may be lost.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot start a worker: {os.strerror(error.errno)}", _FIXES.get(error.errno, "")
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
    """The server's last output lines since a time (epoch); empty if its runner is slow or does not keep output.

    For `worker`, which has just exited, see `Runner.logs`.
    """
    with logged_exceptions(f"{name}: its output cannot be read"), contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(LOGS_SECONDS):
            return await runner.logs(name, lines, since, worker)
    return []


async def explain_last_lines(
    runner: Runner, name: str, since: float, explain: Callable[[list[str]], T], worker: str = ""
) -> T:
    """Return what `explain` makes of the last output lines since a time (epoch), of the server or only of `worker`.

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
    line if `refused` (the program failed before it was ready), else "".
    """
    explanations = [line.strip() for line in explanatory_lines(lines)]
    conflicts = [line for line in explanations if reports_address_in_use(line)]
    if any(server.address.port in _ports_in(line) for line in conflicts):
        by_whom = "" if server.binds_itself else " (by this pool)"
        return OutputCause(f"address {server.key} is in use{by_whom}", own_address=True)
    error_line = next(
        (line for line in reversed(explanations) if line in conflicts or re.match(_ERROR_LINE, line)), ""
    )
    text = error_line or (explanations[-1] if explanations and refused else "")
    return OutputCause(
        text[:_MAX_CHARACTERS], own_address=error_line in conflicts and not _ports_in(error_line)
    )


def final_line(lines: Sequence[str]) -> str:
    """The last line that is not blank, as plain text of at most 200 characters with masked passwords, or ""."""
    for line in reversed(lines):
        shown = without_control(line).rstrip().rpartition("\r")[2]  # the last state of a progress bar
        if text := "".join(c if c.isprintable() else " " for c in shown).strip():
            return masked_text(text)[:_FINAL_LINE_CHARACTERS]
    return ""


def is_quoted(line: str, message: str) -> bool:
    """Whether the failure's message already contains the line or names the same error."""
    _, error, text = line.rpartition("Error: ")
    return text in message if error else message.endswith(text)


def reports_address_in_use(text: str) -> bool:
    """Whether the text says that an address is in use, in the words of one of many programs."""
    return re.search(_ADDRESS_IN_USE, text, re.IGNORECASE) is not None


def reports_error_in_code(text: str) -> bool:
    """Whether the text names an error of the program's own code, which occurs whatever other processes run."""
    return re.search(_CODE_ERROR, text) is not None


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
    is_node = False
    for line in lines:
        text = re.sub(_GROUP_MARGIN, "", line) if in_traceback else line
        if re.match(r"Node\.js v[0-9]|node:\S+:[0-9]+$", line):
            is_node = True
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
    return [line for line in explanations if not re.match(_NODE_LINE, line)] if is_node else explanations


async def record_stacks(runner: Runner, entry: Entry, worker: Worker) -> WorkerStacks | None:
    """The worker's stacks, or None if they are unknown. Takes at most a second, and never raises."""
    if worker.placement is None:
        return None
    try:
        async with asyncio.timeout(_STACKS_SECONDS):
            stacks = await runner.stacks(worker.placement.id, _STACKS_SECONDS * _ANSWER_SHARE)
    except TimeoutError:
        return None
    except Exception:
        logger.exception("the stacks of worker %s cannot be taken", worker.id)
        return None
    if stacks is not None:
        entry.observed.stacks = stacks = stacks.shortened(_MAX_STACKS, _MAX_FRAMES)
    return stacks


async def describe_hang(
    runner: Runner, recorder: Recorder, entry: Entry, worker: Worker, message: str
) -> str:
    """Record the stacks of a worker not ready in time; returns `message`, and the place where it hangs if known."""
    stacks = await record_stacks(runner, entry, worker)
    if stacks is None:
        return message
    if stacks.place:
        message += f", in {stacks.place}"
    process: Table = {} if stacks.pid is None else {"pid": stacks.pid}
    recorder.record(
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


def explain_blocker(blocker: Entry) -> tuple[str, str]:
    """Why a server that depends on `blocker` cannot start, as a clause such as "is disabled", and the hint."""
    if blocker.is_disabled:
        return "is disabled", f"poolctl enable {blocker.name}"
    if blocker.completed:
        return "has ended", f"poolctl start {blocker.name}"
    if blocker.wants_no_worker and not blocker.failed:
        return "is stopped", f"poolctl start {blocker.name}"
    return "did not become ready", f"poolctl logs {blocker.name}"
