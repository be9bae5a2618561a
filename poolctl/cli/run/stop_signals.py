"""The signals that end a `run`, as exceptions in its main thread."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from poolctl.control import sd_notify

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
# Sent to ourselves: a signal is all that ends whatever the main thread waits for.
_OUTPUT_LOST = signal.SIGIO


class Terminated(BaseException):
    """SIGTERM, SIGHUP, or output without a reader: stop cleanly. `except Exception` must not catch it."""


class Reloadable(Protocol):
    """Has a configuration that SIGHUP reloads."""

    def reload(self) -> None:
        """Apply the changed file; returns at once."""
        ...


class StopSignals:
    """Raises in the main thread what ends a `run`: KeyboardInterrupt for SIGINT, Terminated for SIGTERM and SIGHUP.

    A second signal raises again. When the stop began because the reader of the output is gone, the first signal
    is ignored, because the stop has begun. SIGALRM, the end of the time for the stop, always raises Terminated. Under
    systemd, where no terminal hangs up, SIGHUP is the order to reload (systemd.service(5), notify-reload).
    """

    def __init__(self, session: Reloadable) -> None:
        self._session = session
        self._stopping = False
        self._unasked = False  # it stops without a signal from the user
        self._before: dict[int, Any] = {}
        self.interrupted = False  # SIGINT was granted already
        self._wakeup = self._waker = self._waker_before = -1

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in (*_STOPPING, _OUTPUT_LOST)}
        for number in _STOPPING:
            if self._before[number] is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._asked)
        signal.signal(_OUTPUT_LOST, self._output_lost)
        self._wakeup, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._waker_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        if sd_notify.enabled(os.environ):
            signal.signal(signal.SIGHUP, lambda number, frame: self._session.reload())
        return self

    def __exit__(self, *raised: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._waker_before)
        os.close(self._wakeup)
        os.close(self._waker)

    def wait_for_end(self, fd: int) -> None:
        """Return when the other end of the pipe is closed; signals raise meanwhile.

        One that comes just before poll(2) is in the wake-up pipe: poll(2) alone would go on waiting.
        """
        poll = select.poll()
        poll.register(fd, 0)  # errors are always reported
        poll.register(self._wakeup, select.POLLIN)
        while all(ready != fd for ready, _ in poll.poll()):
            os.read(self._wakeup, 512)

    @staticmethod
    def output_lost() -> None:
        """Stop, unless already stopping: the reader of the output is gone. From any thread."""
        os.kill(os.getpid(), _OUTPUT_LOST)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        unasked, self._stopping = self._unasked, True
        if unasked and number != signal.SIGALRM:
            self._unasked = False
            self.interrupted = number == signal.SIGINT
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _output_lost(self, number: int, frame: FrameType | None) -> None:
        if not self._stopping:
            self._stopping = self._unasked = True
            raise Terminated


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let what is begun here be finished: the first of the signals takes effect behind it, a second one at once."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _STOPPING}
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            _handle(before[number], number)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
    if came:
        _handle(before[came[0]], came[0])


def _handle(handler: Any, number: int) -> None:
    if callable(handler):
        handler(number, None)
