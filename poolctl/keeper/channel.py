"""The keeper's end of the socket to its client, with a queue for what the client does not receive yet."""

from __future__ import annotations

import os
import signal
import socket
from collections import deque

from . import wire
from .pidfd_watch import signal_process
from .watchdog import Watchdog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Channel:
    """One client's connection. Nothing here blocks: a stopped or hung client must not delay reaping."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._waiting: deque[tuple[wire.Message, list[int]]] = deque()

    @property
    def blocked(self) -> bool:
        """Whether messages are queued."""
        return bool(self._waiting)

    def send(self, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Send in order, now or when the client receives; the descriptors stay the caller's."""
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
        """Send what the client receives. After its exit the queue is dropped: its successor gets new reports."""
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

    If it does not answer pings meanwhile, it gets SIGCONT, then SIGKILL.

    Without `process` it is not watched: a supervisor of an older version sends none, and answers no pings.
    All times are those of one monotonic clock.
    """

    def __init__(self, sock: socket.socket, process: dict[str, Any] | None, now: float) -> None:
        super().__init__(sock)
        self._process = process if process and process["start"] is not None else None
        self._watch_from(now)

    def _watch_from(self, now: float) -> None:
        self._watchdog = Watchdog(now)
        # It already runs, so it does not get the long time that a starting process has for its first message.
        self._watchdog.received(now)

    @property
    def due(self) -> float | None:
        """When to `check` again."""
        return self._watchdog.due if self._process else None

    def received(self, now: float) -> None:
        """A message of it was received."""
        self._watchdog.received(now)

    def check(self, now: float, *, early: bool = False) -> None:
        """Send a ping when due, or at once with `early`; send a signal if the last ping was not answered in time."""
        if self._process is None:
            return
        if self._watchdog.is_silent(now):
            self._signal(signal.SIGKILL)
            self._watch_from(now)
        elif self._watchdog.is_late:
            # It may have been stopped.
            self._signal(signal.SIGCONT)
        elif self._watchdog.should_ping(now, early=early):
            self.send({"event": "ping"})

    def _signal(self, number: int) -> None:
        assert self._process is not None
        signal_process(self._process["pid"], self._process["start"], number)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
