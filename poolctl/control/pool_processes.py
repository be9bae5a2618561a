"""The processes of a pool, seen from outside: their exit, its reason, and why the supervisor does not answer."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from poolctl.control.pool_paths import read_info, read_table
from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT
from poolctl.json_form import from_json, to_json

STATUS = "status.json"
# Far more than a pool needs to exit after it has stopped its servers, even on a busy machine.
LIMIT_SECONDS = 30.0

_STOPPED = ("T", "t")  # proc(5): by a signal, by a debugger
_DEAD = ("", "Z", "X")
_LOG_BYTES = 4096
_FATAL = "Fatal Python error: "  # from an interpreter that cannot run; followed by at most this many lines of details
_DETAILS = 12


def await_end(pid: int, limit_seconds: float = LIMIT_SECONDS) -> bool:
    """Whether the process exits within the limit; True for one that does not exist, and for pid 0."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # pid 0; a kernel or a sandbox without pidfd_open(2)
        return not os.path.exists(f"/proc/{pid}")
    import select  # not for the many commands that wait for no process

    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(limit_seconds * 1000))
    finally:
        os.close(process)


def silent(socket_path: str, seconds: float) -> ControlError:
    """The error for a supervisor that has not answered for this number of seconds."""
    directory = os.path.dirname(socket_path)
    info = read_info(directory)
    supervisor, keeper = info.get("supervisor_pid", 0), info.get("keeper_pid", 0)
    message = f"the supervisor has not answered for {seconds:g} s"
    hint = f"the servers keep serving; check the process that listens on {socket_path}"
    if supervisor and _state(supervisor) in _STOPPED:
        message = f"{message}: its process (pid {supervisor}) is stopped"
        hint = f"kill -CONT {supervisor}"
    elif supervisor and _state(supervisor) in _DEAD:
        message = f"{message}: it has ended"
        if _state(keeper) in _STOPPED:
            message = f"{message}, and the keeper (pid {keeper}), which would restart it, is stopped"
            hint = f"kill -CONT {keeper}"
        elif _state(keeper) not in _DEAD:
            why = last_words(f"{directory}/supervisor.log")
            message = f"{message}, and cannot be restarted{f': {why}' if why else ''}"
            hint = f"the keeper tries again within 30 s; see {directory}/supervisor.log"
    return ControlError(message, exit_code=CONFLICT, hint=hint)


def _state(pid: int) -> str:
    """The process's state letter; empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def last_words(log: str, start: int = 0) -> str:
    """The reason why a program has ended, from its log after this position; "" if it has written nothing.

    If an interpreter could not run, its fatal error with the exception; else the last line.
    """
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            # A log that is shorter than before was emptied because it had become too large.
            file.seek(max(0 if start > size else start, size - _LOG_BYTES))
            lines = [
                line.strip() for line in file.read().decode(errors="replace").split("\n") if line.strip()
            ]
    except OSError:
        return ""
    end = lines[-_DETAILS:]
    fatal = max((at for at, line in enumerate(end) if line.startswith(_FATAL)), default=-1)
    if fatal < 0:
        return lines[-1] if lines else ""
    reasons = [line for line in end[fatal + 1 :] if line.partition(":")[0].endswith("Error")]
    return ": ".join([end[fatal], *reasons[:1]])


# Read by a `poolctl run` whose pool ends without a command.


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolExit:
    """Why a pool has ended without a command, its exit status, and the process that exits last."""

    status: int
    reason: str
    keeper_pid: int


def write_exit(directory: str, end: PoolExit) -> None:
    """Record why the pool ends without a command."""
    try:
        with open(f"{directory}/{STATUS}", "w", encoding="utf-8") as file:
            file.write(json.dumps(to_json(end)))
    except OSError:
        pass  # the log has it


def read_exit(directory: str) -> PoolExit | None:
    """The exit of a pool that ended without a command; None when a command ended it, or it still runs."""
    table = read_table(f"{directory}/{STATUS}")
    return from_json(PoolExit, table) if table else None


def clear_exit(directory: str) -> None:
    """Remove the record that an earlier pool left, before a new pool starts."""
    try:
        os.unlink(f"{directory}/{STATUS}")
    except OSError:
        pass
