"""Process 1 of a container around `poolctl run`: reaps orphans, passes signals on, and exits in time."""

from __future__ import annotations

import os
import signal
from time import monotonic

from poolctl.keeper.left_children import SI_KERNEL, shell_status

from .signals import FORWARDED_SIGNALS

# Docker kills the container after 10 s.
STOP_SECONDS = 8.0
_WATCHED = (signal.SIGCHLD, *FORWARDED_SIGNALS)


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
        """Return the child's exit status after its exit and, if it was killed, after the end of its pool.

        Wait at most `limit_seconds` after SIGTERM, SIGINT or the child's exit; return 137 if the child still runs then.
        """
        while True:
            timeout = 3600.0 if self._due is None else self._due - monotonic()
            info = signal.sigtimedwait(_WATCHED, max(0.0, timeout))
            if self._due is not None and monotonic() >= self._due:
                return 128 + signal.SIGKILL if self._status is None else self._status
            if info is not None and info.si_signo != signal.SIGCHLD:
                # The terminal sends its signals to the child as well.
                if info.si_code != SI_KERNEL and self._status is None:
                    os.kill(self._child, info.si_signo)
                if info.si_signo in (signal.SIGTERM, signal.SIGINT):
                    self._end_soon()
            has_no_children = self._reap()
            if self._status is not None and (has_no_children or self._status <= 128):
                return self._status

    def _end_soon(self) -> None:
        if self._due is None:
            self._due = monotonic() + self._limit_seconds

    def _reap(self) -> bool:
        """Reap children; returns whether no child is left."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._child:
                    self._status = shell_status(os.waitstatus_to_exitcode(ended[1]))
                    self._end_soon()
        except ChildProcessError:
            return True
        return False
