"""Why a supervisor does not answer, from the state of its process and its keeper's."""

from __future__ import annotations

import json
import os

from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT

_STOPPED = ("T", "t")  # proc(5): by a signal, by a debugger
_DEAD = ("", "Z", "X")
_LOG_BYTES = 4096


def silent(socket_path: str, seconds: float) -> ControlError:
    """The error for a supervisor that has not answered for so many seconds."""
    directory = os.path.dirname(socket_path)
    supervisor, keeper = _processes(directory)
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
            message = f"{message}, and cannot be restarted{_last_words(directory)}"
            hint = f"the keeper tries again within 30 s; see {directory}/supervisor.log"
    return ControlError(message, exit_code=CONFLICT, hint=hint)


def _processes(directory: str) -> tuple[int, int]:
    """The pids of the supervisor that answered last and of its keeper; 0 for one that is unknown."""
    try:
        with open(f"{directory}/info.json", encoding="utf-8") as file:
            info = json.load(file)
        return int(info["supervisor_pid"]), int(info["keeper_pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0


def _state(pid: int) -> str:
    """The process's state letter; empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _last_words(directory: str) -> str:
    """The last line of the supervisors' log, after a colon; empty without one."""
    try:
        with open(f"{directory}/supervisor.log", "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
