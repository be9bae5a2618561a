"""The duties of a container's first process: to pass signals on, to reap strangers, and to end in time.

They are those of a process of their own, so that it reaps nothing for which the command itself waits.
"""

from __future__ import annotations

import os
import signal
import time

from poolctl.cli.run.user_command import FROM_KERNEL, PASSED_ON

# Docker kills what has not ended after ten.
STOP_SECONDS = 8.0
_KILLED = 128 + signal.SIGKILL
_ENDING = (signal.SIGTERM, signal.SIGINT)
_WATCHED = (signal.SIGCHLD, *PASSED_ON)


def is_first() -> bool:
    """Whether this process is the first one of a container."""
    return os.getpid() == 1


def stand_apart(limit_seconds: float) -> None:
    """Return in a child, which goes on. This process never returns: it ends with the child's exit status.

    `limit_seconds` after a signal that ends the pool it ends in any case, and the kernel everything else with it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = os.fork()
    if child:
        os._exit(_Init(child, limit_seconds).run())
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Init:
    def __init__(self, child: int, limit_seconds: float) -> None:
        self._child = child
        self._limit_seconds = limit_seconds
        self._due: float | None = None
        self._status: int | None = None

    def run(self) -> int:
        """Until the child has ended; if it was killed, until its pool has ended too, which it does by itself."""
        while True:
            patience = 3600.0 if self._due is None else self._due - time.monotonic()
            came = signal.sigtimedwait(_WATCHED, max(0.0, patience))
            if self._due is not None and time.monotonic() >= self._due:
                return _KILLED if self._status is None else self._status
            if came is not None and came.si_signo != signal.SIGCHLD:
                self._pass_on(came)
            alone = self._reap()
            if self._status is not None and (alone or self._status <= 128):
                return self._status

    def _pass_on(self, came: signal.struct_siginfo) -> None:
        # The terminal's own signals have reached the child as well.
        if came.si_code != FROM_KERNEL and self._status is None:
            os.kill(self._child, came.si_signo)
        if came.si_signo in _ENDING:
            self._end_soon()

    def _end_soon(self) -> None:
        if self._due is None:
            self._due = time.monotonic() + self._limit_seconds

    def _reap(self) -> bool:
        """Whether nothing is left to reap."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._child:
                    code = os.waitstatus_to_exitcode(ended[1])
                    self._status = code if code >= 0 else 128 - code
                    self._end_soon()
        except ChildProcessError:
            return True
        return False
