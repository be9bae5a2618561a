"""A limit for the regular expressions of a command line, which may backtrack without end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from poolctl.cli.outcome import UsageError

# Of processor time: a usual expression takes microseconds, whatever else the machine does.
LIMIT_SECONDS = 0.5


@contextmanager
def expressions_limited() -> Iterator[None]:
    """Raise UsageError when this takes too long: `re` looks for signals while it matches, in the main thread."""

    def late(number: int, frame: FrameType | None) -> NoReturn:
        raise UsageError(
            f"a regular expression takes more than {LIMIT_SECONDS:g} s",
            hint="avoid repeats within repeats, such as (a+)+, and alternatives that begin alike",
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)
