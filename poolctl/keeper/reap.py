"""Children that have exited: their process group is killed, they are reaped, and reported until acknowledged."""

from __future__ import annotations

import contextlib
import os
import signal

from ..platform import process_start
from .pidfd_watch import Watcher, kill_rest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Reaper:
    """Exit reports in order, kept until they are acknowledged.

    Watched processes, which are not children, have no known status: both keys are None.
    """

    def __init__(self) -> None:
        self.unacknowledged: list[dict[str, Any]] = []
        self.watcher = Watcher()
        self.sequence = 0

    def resume(self, unacknowledged: list[dict[str, Any]], sequence: int, watched: dict[int, int]) -> None:
        """Continue where this process's reaper before execve(2) stopped; `watched` are start times by pid."""
        self.unacknowledged, self.sequence = unacknowledged, sequence
        for pid, start in watched.items():
            with contextlib.suppress(
                OSError
            ):  # the exit of one that cannot be watched shows at its control socket
                self.watch(pid, start)

    def reap(self) -> list[dict[str, Any]]:
        """Reap all children that have exited; returns the new reports, which are also appended to `unacknowledged`."""
        fresh = []
        while (child := _ended_child()) is not None:
            # The rest of the worker's process group is killed before its pid can be reused.
            _kill_group(child)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            fresh.append(self._report(child, code if code >= 0 else None, -code if code < 0 else None))
        return fresh

    def ended(self) -> list[dict[str, Any]]:
        """Likewise for the watched processes."""
        return [self._report(pid, None, None) for pid in self.watcher.ended()]

    def watch(self, pid: int, start: int) -> dict[str, Any] | None:
        """Watch a process that is not a child; returns its exit report if it has exited already."""
        if is_child(pid) or self.watcher.watch(pid, start):
            return None
        kill_rest(pid, start)
        return self._report(pid, None, None)

    def acknowledge(self, sequence: int) -> None:
        """Drop the reports up to `sequence`."""
        self.unacknowledged = [report for report in self.unacknowledged if report["sequence"] > sequence]

    def signal(self, pid: int, number: int, *, group: bool, start: int | None = None) -> bool:
        """Send a signal to a child that has not been reaped, or to a watched process, or its group.

        False if it is neither, or has another start time. Only the parent, or the holder of a pidfd, can do this
        without the risk of hitting another process that has reused the pid.
        """
        if pid <= 1 or (start is not None and process_start(pid) not in (start, None)):
            return False
        if not is_child(pid):
            return self.watcher.signal(pid, number, group=group)
        # A new fork leads no group until it has called setsid(): before that the process alone is signalled.
        for send in (os.killpg, os.kill) if group else (os.kill,):
            try:
                send(pid, number)
            except ProcessLookupError:
                continue
            return True
        return False

    def _report(self, pid: int, status: int | None, number: int | None) -> dict[str, Any]:
        self.sequence += 1
        report = {"event": "exit", "sequence": self.sequence, "pid": pid, "status": status, "signal": number}
        self.unacknowledged.append(report)
        return report


def is_child(pid: int) -> bool:
    """Whether the process is a child that has not been reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


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
