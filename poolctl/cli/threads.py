"""Threads beside the command's own that no signal is delivered to."""

from __future__ import annotations

import signal
from threading import Thread


def start_unsignalled(thread: Thread) -> None:
    """Start the thread with all signals blocked, for itself and for those that it starts.

    The kernel gives a signal to any thread that does not block it: one that the main thread waits for with
    sigwaitinfo(2) would be lost to a thread that draws a progress display.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
