"""Separates processes forked by the application from their worker: descriptors, and the event loop's signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


class ForkedChildren:
    """Separates each child that the application forks from its worker; `close_descriptors` is called in it.

    The loop learns of a signal by a byte in a socket pair, which a forked child shares: a SIGTERM to the child, as
    multiprocessing sends it, would stop the worker and leave the child running.
    """

    def __init__(self, close_descriptors: Callable[[], None]) -> None:
        self._close_descriptors = close_descriptors
        self._loop_handlers: list[object] = []
        self._masks: dict[int, set[signal.Signals | int]] = {}  # by thread: several may fork at once
        self._separate = False
        os.register_at_fork(
            before=self._hold_signals, after_in_parent=self._release_signals, after_in_child=self._in_child
        )

    def loop_handles(self, number: int) -> None:
        """Note that the event loop handles this signal: its handler is the one that the loop uses for every signal."""
        self._loop_handlers.append(signal.getsignal(number))

    def _hold_signals(self) -> None:
        # Until the child has its own handlers, a signal to it would go to the worker's loop.
        self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def _release_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.pop(threading.get_ident()))

    def _in_child(self) -> None:
        if not self._separate:  # a grandchild's descriptors of these numbers are its own
            self._separate = True
            self._reset_signals()
            self._close_descriptors()
        self._release_signals()

    def _reset_signals(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            # The loop's own, whichever signals the application lets it handle; other handlers are the application's.
            if signal.getsignal(number) in self._loop_handlers:
                signal.signal(number, signal.SIG_DFL)
