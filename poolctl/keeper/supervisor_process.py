"""Starts the supervisor, and starts it again when it dies or does not answer."""

from __future__ import annotations

import contextlib
import os
import socket

from ..private_directory import recreate_pool_directory
from . import fd_store, wire
from .spawn import log_failure, spawn

_BACKOFF_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_SECONDS = 60.0
_FAILURES_UNTIL_GIVEN_UP = 4
_CRASHES_UNTIL_CALM = 5


class SupervisorProcess:
    """Starts the supervisor, and restarts it with backoff when it exits.

    `candidate` is the next version's supervisor during an upgrade, else empty: it is started instead of `command`, and
    replaces `command` once it has adopted the pool (`has_adopted`). All times are in seconds on one monotonic clock.
    """

    def __init__(self, command: list[str], directory: str, now: float) -> None:
        self.command = command
        self.candidate: list[str] = []
        self.pid = 0
        self.due: float | None = now if command else None
        self._log = os.path.join(directory, "supervisor.log")
        self._failures = 0
        self._exit_times: list[float] = []
        self._started = 0.0
        self.has_adopted = False
        self._running = command  # started last

    def start(self, now: float) -> socket.socket | None:
        """Start the supervisor; return the keeper's end of the link. On failure, schedule a retry and return None."""
        self._started, self.has_adopted = now, False
        self._running = self.candidate or self.command
        with contextlib.ExitStack() as if_failed:
            try:
                ours, theirs = wire.pair()
                if_failed.enter_context(ours)
                with theirs:
                    recreate_pool_directory(os.path.dirname(self._log))
                    calm = [fd_store.CALM] if self.calm else []
                    self.pid = spawn(
                        [*self._running, *calm], None, [theirs.fileno()], self._log, session=False
                    )
            except OSError as error:
                log_failure(self._log, self._running, error)
                self.schedule_restart(now)
                return None
            if_failed.pop_all()
        self.due = None
        return ours

    def record_start(self, pid: int, now: float) -> None:
        """Record that the process `pid`, a running child of the keeper, is the supervisor."""
        self.pid, self._started, self.due, self.has_adopted = pid, now, None, False

    def record_adoption(self) -> bool:
        """Record that the supervisor now manages the pool; return whether it is the candidate."""
        is_candidate = bool(self.candidate) and self._running == self.candidate
        self.has_adopted, self.command, self.candidate = True, self._running, []
        return is_candidate

    def try_candidate(self, command: list[str], now: float) -> None:
        """Start the supervisor of another version, at once or after the exit of the running supervisor."""
        self.candidate, self._failures, self._exit_times = command, 0, []
        if not self.pid:
            self.due = now

    def give_up_candidate(self) -> bool:
        """Return to the earlier command if the candidate has exited and the earlier program still exists.

        Returns whether it did. With equal commands (both versions in one environment) there is nothing to return to.
        """
        has_failed = bool(self.candidate) and self._running == self.candidate != self.command
        # The interpreter and bootstrap.py: the words before and after the option (see bootstrap.command).
        if not has_failed or not all(map(os.path.exists, self.command[:3:2])):
            return False
        self.candidate = []
        return True

    def schedule_restart(self, now: float) -> None:
        """Schedule the restart of a supervisor that has exited.

        There is no delay after `record_adoption`, unless the supervisor has crashed repeatedly (see `calm`). Otherwise
        the delay grows with each exit, from 0 to 30 seconds, and begins at 0 again after a run of more than a minute.
        """
        self.pid = 0
        self._exit_times = [*(time for time in self._exit_times if now - time < _STEADY_SECONDS), now]
        self._failures = 1 if now - self._started > _STEADY_SECONDS else self._failures + 1
        pause = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS)) - 1]
        self.due = now if self.has_adopted and not self.calm else now + pause
        self.has_adopted = False

    @property
    def calm(self) -> bool:
        """Whether the next supervisor should take no automatic actions, after repeated crashes within a minute."""
        return len(self._exit_times) >= _CRASHES_UNTIL_CALM

    @property
    def given_up(self) -> bool:
        """Whether the supervisor has failed too often in a row; a keeper without sockets and workers then exits."""
        return self._failures >= _FAILURES_UNTIL_GIVEN_UP
