"""The signals that end a `run`, as exceptions in its main thread."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from poolctl.control import systemd

_STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class Terminated(BaseException):
    """SIGTERM or SIGHUP: stop cleanly. No Exception, so that nothing on the way takes it for an error."""


@contextmanager
def stop_signals(reload: Callable[[], None]) -> Iterator[None]:
    """SIGTERM, SIGHUP and SIGALRM raise Terminated here; SIGINT raises KeyboardInterrupt, as always.

    Under systemd, where no terminal hangs up, SIGHUP is the order to reload (systemd.service(5), notify-reload).
    """

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(number, terminate)
    if systemd.listens(os.environ):
        signal.signal(signal.SIGHUP, lambda number, frame: reload())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let what is begun here be finished: the first of the signals takes effect behind it, a second one at once."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, *_STOPPING)}
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
