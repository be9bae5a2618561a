"""Failures of servers: their messages and hints, and the cause found in the output of a program."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from poolctl.config import ServerConfig
from poolctl.errors import PoolError, PoolStartError, ServerError
from poolctl.runners.runner_protocol import Runner, WorkerFailed
from poolctl.units import format_duration

from .decide import restarts_within
from .server_entry import Entry

_MORE_FILES = "raise the limit of open files where the pool is started: ulimit -n"
_FIXES = {
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: "raise the machine's limit of open files: fs.file-max",
    errno.ENOSPC: "free some space",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit of processes: ulimit -u, or the container's",
}

# The output of one start: most of a traceback says nothing to an operator.
LINES_READ = 500
LAST_LINES = 5  # maximum number of explanatory lines shown
_LONGEST_CHARACTERS = 300
_IN_TRACEBACK = ("During handling of the above exception", "The above exception was the direct cause")
# Compiled when they are used: a supervisor whose servers start needs none of them.
_FRAME = r'\s+File ".+", line [0-9]'
_LIBRARY = r'File "(<frozen |.*/(site-packages|dist-packages|lib/python3[.0-9]*)/)'
# The margin of an exception group: "  | " of a line, "  +-+-" between two.
_GROUP_MARGIN = r"^ +(\| ?|\+ |\+-\+(?=-)|\+(?=-))"
# Messages of uvicorn about the course of a worker.
_COURSE = (
    r"INFO:\s+(Started server process|Finished server process|Waiting for application|Shutting down"
    r"|Application (startup|shutdown) complete)|ERROR:\s+Application startup failed\. Exiting\."
)
# Lines that node prints around an error: where it was thrown, its stack, its properties, the version.
_NODE = (
    r"node:\S+:[0-9]+$|\s+throw \w+;|\s+\^+$|\s+at .*[0-9]\)?( \{)?$|Emitted 'error' event on|\}$|Node\.js v[0-9]"
    r"|\s+(code|errno|syscall|address|port|path|dest|requireStack): |Require stack:$"
)
# "ValueError: …", "shop.errors.Refused: …", "Error [ERR_X]: …", "panic: …", "error: …".
_ERROR = (
    r"(Uncaught )?([\w.$]*(Error|Exception|Exit|Interrupt)\b|[\w.]+\.[A-Z]\w+|(?i:panic|fatal|error))"
    r"( \[\w+\])?: ?\S"
)
_TAKEN = r"EADDRINUSE|AddrInUse|address (is )?already in use|port [0-9]+ (is|was) (already )?in use"
# After a colon, "port" or the host of a tuple of Python.
_PORT = r"(?:[:\]]|\bport[ =:]+|', )([0-9]{2,5})\b"
_SECONDS = 60  # numbers below 60 may belong to a time of day
# Maximum time that commands and failure reports wait for the output of a server.
LOGS_SECONDS = 5.0

logger = logging.getLogger("poolctl.supervisor")


def note_failure(entry: Entry, failure: ServerError) -> None:
    """Note that an attempt to start or stop the server has failed."""
    entry.observed.failures += 1
    entry.observed.failure = failure


def failure_of(
    entry: Entry,
    message: str,
    hint: str | None = None,
    kind: type[PoolError] = PoolStartError,
    *,
    cause: Exception | None = None,
) -> ServerError:
    """The failure of a server as an error, with the error code of the attempt.

    The server's output is the hint unless another hint is given.
    """
    if hint is None:
        hint = f"poolctl logs {entry.name}"
    failure = ServerError(
        message, name=entry.name, bind=entry.config.bind, hint=hint, code=kind.code, error=kind.error
    )
    # A runner's own ServerError is only reworded. Without the frames, which would live as long as the failure.
    original = cause.__cause__ if isinstance(cause, ServerError) else cause
    failure.__cause__ = None if original is None else original.with_traceback(None)
    return failure


def explained(error: Exception) -> tuple[str, str]:
    """The message and the hint for an exception of a runner.

    An unexpected exception is logged: the server has failed in any case, and no exception may be lost.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return f"the machine refuses a worker: {os.strerror(error.errno)}", _FIXES.get(error.errno, "")
    if not isinstance(error, (ServerError, WorkerFailed, OSError)):
        logger.error("not expected of a runner", exc_info=error)
    return getattr(error, "message", str(error)), getattr(error, "hint", "")


def restarting(delay_seconds: float, count: int) -> str:
    """A sentence about the restart after an exit: its delay, and its number within the window."""
    # Random parts of a pause are of no interest.
    pause = format_duration(round(delay_seconds, 2 if delay_seconds < 1 else 1))
    when = f"restarting in {pause}" if delay_seconds > 0 else "restarting"
    return f"{when} ({_ordinal(count)} time)" if count > 1 else when


def given_up(entry: Entry, restarts: int = 0) -> str:
    """A sentence about a final exit: the number of restarts before it, and where to find the output."""
    after = (
        f"given up after {restarts_within(restarts, entry.config.restart)}" if restarts else "not restarted"
    )
    return f"{after}: poolctl logs {entry.name}"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number // 10 % 10 != 1 else "th"
    return f"{number}{ending}"


async def last_lines(runner: Runner, name: str, lines: int, since: float) -> list[str]:
    """The last lines that the server wrote since a time (epoch); empty if its runner keeps no output or is slow."""
    logs = runner.capabilities.logs
    if logs is None:
        return []
    try:
        async with asyncio.timeout(LOGS_SECONDS):
            return await logs.logs(name, lines, since)
    except (TimeoutError, OSError):
        return []


class Cause(NamedTuple):
    """The output line that gives the reason for an exit ("" if none), and whether its own address was in use."""

    text: str = ""
    own_address: bool = False


def cause_of(lines: Iterable[str], server: ServerConfig, *, refused: bool = True) -> Cause:
    """The reason that a server's program gave in its output before it ended.

    An error about its own address takes precedence, then the last error, then the last line if the program `refused` to
    continue.
    """
    found = [line.strip() for line in explaining(lines)]
    taken = [line for line in found if re.search(_TAKEN, line, re.IGNORECASE)]
    if any(server.address.port in _ports_in(line) for line in taken):
        by_whom = "" if server.binds_itself else " (by this pool)"
        return Cause(f"address {server.key} is in use{by_whom}", own_address=True)
    last = next((line for line in reversed(found) if line in taken or re.match(_ERROR, line)), "")
    text = last or (found[-1] if found and refused else "")
    return Cause(text[:_LONGEST_CHARACTERS], own_address=last in taken and not _ports_in(last))


def is_quoted(line: str, message: str) -> bool:
    """Whether the failure's message already contains the line or names the same error."""
    _, error, text = line.rpartition("Error: ")
    return text in message if error else message.endswith(text)


def _ports_in(line: str) -> set[int]:
    """The port numbers that occur in the line."""
    found = {int(port) for port in re.findall(_PORT, line, re.IGNORECASE)}
    return {port for port in found if port >= _SECONDS}


def explaining(lines: Iterable[str]) -> list[str]:
    """The lines that may explain a failure; for a traceback, the error and its place in the application.

    Omits uvicorn's reports of a worker's course and node's stacks.
    """
    found = []
    place = ""
    in_traceback = True  # the lines may begin within one
    of_node = False
    for line in lines:
        text = re.sub(_GROUP_MARGIN, "", line) if in_traceback else line
        if re.match(r"Node\.js v[0-9]|node:\S+:[0-9]+$", line):
            of_node = True
        if "Traceback (most recent call last):" in line:
            in_traceback, place = True, ""
        elif in_traceback and text[:1].isspace():
            if re.match(_FRAME, text) and (not place or not re.search(_LIBRARY, text)):
                place = text.strip()
        elif not (in_traceback and text.startswith("--")):
            in_traceback = text != line  # the rest of an exception group
            if text.strip() and not text.startswith(_IN_TRACEBACK) and not re.match(_COURSE, text):
                found += [place, text] if place else [text]
                place = ""
    return [line for line in found if not re.match(_NODE, line)] if of_node else found
