"""The keeper's clients: their connections, and the supervisor's process."""

from __future__ import annotations

import os
import signal
import socket
from collections import deque

from ..clock import Watchdog
from . import wire
from .reap import signal_process
from .spawn import log_failure, spawn


class Channel:
    """One client's connection. No method blocks, since a stopped or hung client must not delay reaping."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._waiting: deque[tuple[wire.Message, list[int]]] = deque()

    @property
    def blocked(self) -> bool:
        """Whether messages are queued."""
        return bool(self._waiting)

    def send(self, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Send a message in order, now or when the client has room. The caller keeps the descriptors."""
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))
        except OSError as error:
            _close(copies)
            message, copies = {"id": message.get("id"), "error": str(error)}, []
        self._waiting.append((message, copies))
        self.flush()

    def flush(self) -> None:
        """Send queued messages as far as the client has room.

        After the client's exit the queue is dropped: its successor gets new reports.
        """
        while self._waiting:
            message, fds = self._waiting[0]
            try:
                wire.send(self.sock, message, fds)
            except BlockingIOError:
                return
            except wire.WireError as error:
                _close(fds)
                self._waiting[0] = ({"id": message.get("id"), "error": str(error)}, [])
                continue
            except OSError:
                self._forget()
                return
            self._waiting.popleft()
            _close(fds)

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()
        self._forget()

    def _forget(self) -> None:
        for _, fds in self._waiting:
            _close(fds)
        self._waiting.clear()


class Donor(Channel):
    """The link to a supervisor that fills this new keeper and is not its child; `process` is its pid and start time.

    If it stops answering pings, it gets SIGCONT, then SIGKILL. All times are on one monotonic clock.
    """

    def __init__(self, sock: socket.socket, process: wire.Message, now: float) -> None:
        super().__init__(sock)
        self._pid, self._start = int(process["pid"]), int(process["start"] or 0)
        self._watch_from(now)

    def _watch_from(self, now: float) -> None:
        self._watchdog = Watchdog(now)
        # It already runs, so the long timeout for the first message of a starting process does not apply.
        self._watchdog.received(now)

    @property
    def due(self) -> float:
        """The time of the next `check`."""
        return self._watchdog.due

    def received(self, now: float) -> None:
        """Note that the donor has sent a message."""
        self._watchdog.received(now)

    def check(self, now: float, *, early: bool = False) -> None:
        """Send a ping if one is due or `early` is set, or a signal if the last ping was not answered in time."""
        if self._watchdog.is_silent(now):
            signal_process(self._pid, self._start, signal.SIGKILL)
            self._watch_from(now)
        elif self._watchdog.is_late:
            # It may have been stopped.
            signal_process(self._pid, self._start, signal.SIGCONT)
        elif self._watchdog.should_ping(now, early=early):
            self.send({"event": "ping"})


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


_BACKOFF_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_SECONDS = 60.0
_FAILURES_UNTIL_GIVEN_UP = 4
# Passed to a program that has crashed often within a minute: its automatic actions may be the cause.
CALM = "--calm"
_CALM_FROM = 5


class SupervisorProcess:
    """Starts the supervisor, and restarts it with backoff when it exits, a limited number of times.

    All times are in seconds on one monotonic clock.
    """

    def __init__(self, command: list[str], directory: str, now: float) -> None:
        self.command = command
        self.pid = 0
        self.due: float | None = now if command else None
        self._log = os.path.join(directory, "supervisor.log")
        self._failures = 0
        self._deaths: list[float] = []
        self._started = 0.0
        self._adopted = False

    def start(self, now: float) -> socket.socket | None:
        """Start the program; returns our end of its link, or None if that fails (it is then due again later)."""
        self._started, self._adopted = now, False
        ours, theirs = wire.pair()
        with theirs:
            try:
                os.makedirs(os.path.dirname(self._log), mode=0o700, exist_ok=True)
                command = [*self.command, CALM] if self.calm else self.command
                self.pid = spawn(command, None, [theirs.fileno()], self._log, session=False)
            except OSError as error:
                ours.close()
                log_failure(self._log, self.command, error)
                self.died(now)
                return None
        self.due = None
        return ours

    def begun(self, pid: int, now: float) -> None:
        """Note that the supervisor is already running as this child."""
        self.pid, self._started, self.due, self._adopted = pid, now, None, False

    def adopted(self) -> None:
        """Note that the supervisor has begun to manage the pool."""
        self._adopted = True

    def died(self, now: float) -> None:
        """Plan the restart of a supervisor that has exited: at once the first time, then after growing delays.

        If it managed the pool before, it was killed or hit a rare crash: restart at once, until `calm` applies.
        """
        self.pid = 0
        self._deaths = [*(then for then in self._deaths if now - then < _STEADY_SECONDS), now]
        self._failures = 1 if now - self._started > _STEADY_SECONDS else self._failures + 1
        pause = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS)) - 1]
        self.due = now if self._adopted and not self.calm else now + pause
        self._adopted = False

    @property
    def calm(self) -> bool:
        """Whether the supervisor has crashed often within a minute, and should take no automatic actions."""
        return len(self._deaths) >= _CALM_FROM

    @property
    def given_up(self) -> bool:
        """Whether the supervisor has failed too often in a row; a keeper without sockets and workers then exits."""
        return self._failures >= _FAILURES_UNTIL_GIVEN_UP
