"""The keeper's connections: to its supervisor, and to a supervisor that has lost its keeper."""

from __future__ import annotations

import os
import signal
import socket
from collections import deque

from ..clock import HungProcessDetector
from ..platform import close_all
from . import wire
from .reap import signal_process


class Channel:
    """One client's connection. No method blocks, since a stopped or hung client must not delay reaping."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._waiting: deque[tuple[wire.Message, list[int]]] = deque()

    @property
    def blocked(self) -> bool:
        """Whether messages wait in the queue, because the client's socket has no room for them."""
        return bool(self._waiting)

    def send(self, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Send a message, or queue it until the client's socket has room. The caller still owns the descriptors."""
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))
        except OSError as error:
            close_all(copies)
            message, copies = {"id": message.get("id"), "error": str(error)}, []
        self._waiting.append((message, copies))
        self.flush()

    def flush(self) -> None:
        """Send as many queued messages as the client's socket takes.

        If the client has exited, the queue is dropped: unacknowledged reports are sent to the next client again.
        """
        while self._waiting:
            message, fds = self._waiting[0]
            try:
                wire.send(self.sock, message, fds)
            except BlockingIOError:
                return
            except wire.WireError as error:
                close_all(fds)
                self._waiting[0] = ({"id": message.get("id"), "error": str(error)}, [])
                continue
            except OSError:
                self._drop_queue()
                return
            self._waiting.popleft()
            close_all(fds)

    def close(self) -> None:
        self.sock.close()
        self._drop_queue()

    def _drop_queue(self) -> None:
        for _, fds in self._waiting:
            close_all(fds)
        self._waiting.clear()


class DonorSupervisor(Channel):
    """The link to a supervisor whose own keeper was lost: the supervisor sends its descriptors to this keeper.

    `process` is the supervisor's pid and start time. A supervisor that stops answering pings gets SIGCONT, then
    SIGKILL. All times are on one monotonic clock.
    """

    def __init__(self, sock: socket.socket, process: wire.Message, now: float) -> None:
        super().__init__(sock)
        self._pid, self._start = int(process["pid"]), int(process["start"] or 0)
        self._restart_watchdog(now)

    def _restart_watchdog(self, now: float) -> None:
        self._watchdog = HungProcessDetector(now)
        # The donor already runs: the long timeout for the first message of a starting process does not apply.
        self._watchdog.received(now)

    @property
    def due(self) -> float:
        """The time of the next `check`."""
        return self._watchdog.due

    def received(self, now: float) -> None:
        """Record that the supervisor sent a message at the time `now`."""
        self._watchdog.received(now)

    def ping_or_kill(self, now: float, *, early: bool = False) -> None:
        """Ping the supervisor if a ping is due or `early` is set; signal it if an answer is overdue."""
        if self._watchdog.check_for_hang(now):
            signal_process(self._pid, self._start, signal.SIGKILL)
            self._restart_watchdog(now)
        elif self._watchdog.may_be_stopped:
            # The supervisor may have been stopped.
            signal_process(self._pid, self._start, signal.SIGCONT)
        elif self._watchdog.mark_ping_sent_if_due(now, early=early):
            self.send({"event": "ping"})
