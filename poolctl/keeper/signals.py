"""The signals of the keeper's process: children that have ended, and requests to end the pool."""

from __future__ import annotations

import signal
import socket

# Each of these requests the end of the pool.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Readable when a signal has been received: no work is done in a handler."""

    def __init__(self) -> None:
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *ENDING):
            signal.signal(number, lambda *_: None)
        # Blocked while one version replaced another.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def fileno(self) -> int:
        """Readable when `taken` has something to report."""
        return self._wake.fileno()

    def taken(self) -> bool:
        """Whether one of the received signals requests the end."""
        return any(number in ENDING for number in self._wake.recv(4096))
