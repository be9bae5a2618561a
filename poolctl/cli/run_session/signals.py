"""The signals of `run` while the pool is launched; later they are read on the session's loop (_loop)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from types import FrameType

from poolctl.control import sd_notify
from poolctl.exit_codes import DONE, INTERRUPTED

# Passed on to the user's command.
FORWARDED_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# If SIGTERM arrives before CMD runs, `run -- CMD` exits as CMD would have.
TERMINATED = 128 + signal.SIGTERM


def stopping_signals(env: Mapping[str, str]) -> list[int]:
    """The signals that stop `run`, except signals that the caller ignores (nohup).

    Under a service manager SIGHUP is not ignored, because it means a reload.
    """
    return [
        number
        for number in _STOPPING
        if signal.getsignal(number) is not signal.SIG_IGN
        or (number == signal.SIGHUP and sd_notify.enabled(env))
    ]


def status_after(number: int, *, has_command: bool) -> int:
    """The exit status of `run` after a signal that arrived while no command of the user was running."""
    if number == signal.SIGINT:
        return INTERRUPTED
    return TERMINATED if has_command else DONE


@contextlib.contextmanager
def blocked_signals(numbers: Collection[int]) -> Iterator[None]:
    """Context manager: the signals stay pending until something reads them, and are dropped at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        while signal.sigtimedwait(numbers, 0):
            continue
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def noted_signals(numbers: Collection[int], status: Callable[[int], int]) -> Iterator[list[int]]:
    """Context manager for work that should complete, but may block: record the first signal, exit at the second.

    The signals must be blocked. `status` returns the exit status for a signal.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            os._exit(status(number))
        noted.append(number)

    before = {number: signal.signal(number, note) for number in numbers}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield noted
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number, handler in before.items():
            signal.signal(number, handler)
