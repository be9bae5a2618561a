"""The supervisor's process, which the keeper restarts when it exits: with backoff, and not indefinitely."""

from __future__ import annotations

import os
import socket

from . import wire
from .spawn import spawn

_BACKOFF_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_SECONDS = 60.0
_FAILURES_UNTIL_GIVEN_UP = 4
# The argument of a program that has crashed often within a minute: its own automatic actions may be the cause.
CALM = "--calm"
_CALM_FROM = 5


class SupervisorProcess:
    """Starts the program, and decides when next. All times are those of one monotonic clock, in seconds."""

    def __init__(self, command: list[str], directory: str, now: float) -> None:
        self.command = command
        self.pid = 0
        self.due: float | None = now if command else None
        self._log = os.path.join(directory, "supervisor.log")
        self._failures = 0
        self._deaths: list[float] = []
        self._started = 0.0

    def start(self, now: float) -> socket.socket | None:
        """Start the program; returns our end of its link. None if that fails: then it is due again later."""
        self._started = now
        ours, theirs = wire.pair()
        with theirs:
            try:
                os.makedirs(os.path.dirname(self._log), mode=0o700, exist_ok=True)
                command = [*self.command, CALM] if self.calm else self.command
                self.pid = spawn(command, None, [theirs.fileno()], self._log, session=False)
            except OSError:
                ours.close()
                self.died(now)
                return None
        self.due = None
        return ours

    def begun(self, pid: int, now: float) -> None:
        """The program is already running as this child."""
        self.pid, self._started, self.due = pid, now, None

    def died(self, now: float) -> None:
        """It has exited: restart at once the first time, later the more often it exits within a minute of its start."""
        self.pid = 0
        self._deaths = [*(then for then in self._deaths if now - then < _STEADY_SECONDS), now]
        self._failures = 1 if now - self._started > _STEADY_SECONDS else self._failures + 1
        self.due = now + _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS)) - 1]

    @property
    def calm(self) -> bool:
        """It has crashed often within a minute, and is not to take automatic actions."""
        return len(self._deaths) >= _CALM_FROM

    @property
    def given_up(self) -> bool:
        """It has failed so often in a row that a keeper without sockets and workers exits instead of restarting it."""
        return self._failures >= _FAILURES_UNTIL_GIVEN_UP
