"""Children that ended: looked at, their process group killed, reaped, and reported until somebody has heard it."""

from __future__ import annotations

import os
import signal
from typing import Any


class Reaper:
    """Exit statuses in the order of the deaths, kept until they are acknowledged."""

    def __init__(self) -> None:
        self.unheard: list[dict[str, Any]] = []
        self._sequence = 0

    def reap(self) -> list[dict[str, Any]]:
        """Reap everything that has ended; the new reports, which are also appended to `unheard`."""
        fresh = []
        while (child := _ended_child()) is not None:
            # Whatever the worker left behind in its session dies before its pid can be used again.
            _kill_group(child)
            _, status = os.waitpid(child, 0)
            self._sequence += 1
            code = os.waitstatus_to_exitcode(status)
            fresh.append(
                {
                    "event": "exit",
                    "sequence": self._sequence,
                    "pid": child,
                    "status": code if code >= 0 else None,
                    "signal": -code if code < 0 else None,
                }
            )
        self.unheard += fresh
        return fresh

    def heard(self, sequence: int) -> None:
        """Forget the reports up to `sequence`."""
        self.unheard = [report for report in self.unheard if report["sequence"] > sequence]


def signal_child(pid: int, number: int, *, group: bool) -> bool:
    """Send a signal to a child that has not been reaped, or to its group; False when there is no such child.

    Only the parent can do this without hitting another process that was given the same pid.
    """
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    # A fresh fork leads no group until it has come to its setsid(): then the process alone is meant.
    for send in (os.killpg, os.kill) if group else (os.kill,):
        try:
            send(pid, number)
        except ProcessLookupError:
            continue
        return True
    return False


def _ended_child() -> int | None:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
