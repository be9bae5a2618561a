"""Ctrl-C at any moment of a command: it exits with 130 and never prints a traceback; threads take no signals.

Loaded before everything else of the command, hence without `signal`, which imports for two milliseconds.
"""

from __future__ import annotations

import os
import sys
from _signal import SIGINT, signal  # type: ignore[import-not-found,unused-ignore]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Thread
    from types import FrameType

INTERRUPTED = 130
_raises = False


def install() -> None:
    """Take Ctrl-C over, which must not be ignored (nohup, `&` of a shell without job control)."""
    signal(SIGINT, _interrupted)
    sys.unraisablehook = _unraisable


def begin() -> None:
    """From now on the first Ctrl-C raises KeyboardInterrupt, so that the command can clean up."""
    global _raises
    _raises = True


def end() -> None:
    """Nothing is left to clean up."""
    global _raises
    _raises = False


def _interrupted(number: int, frame: FrameType | None) -> None:
    global _raises
    if not _raises or _is_importing(frame):
        os._exit(INTERRUPTED)
    _raises = False  # a second one exits at once
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: modules in C and Rust take an exception there for a failure of their own."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """A KeyboardInterrupt that was raised where Python can only report it, such as in a weak reference's callback."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(unraisable)


def start_unsignalled(thread: Thread) -> None:
    """Start the thread with all signals blocked, for itself and for those that it starts.

    The kernel gives a signal to any thread that does not block it: one that the main thread waits for with
    sigwaitinfo(2) would be lost to a thread that draws a progress display.
    """
    import signal as signals

    before = signals.pthread_sigmask(signals.SIG_BLOCK, signals.valid_signals())
    try:
        thread.start()
    finally:
        signals.pthread_sigmask(signals.SIG_SETMASK, before)
