"""Waits on the session's loop: for signals, and calls that may block."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from poolctl.daemon_threads import DaemonThreads
from poolctl.platform import signal_descriptor, signals_blocked

T = TypeVar("T")

# One each for the servers' output, --watch, the session's current call, and an earlier call that still blocks although
# its wait was cancelled.
_THREADS = 4


@contextlib.contextmanager
def received_signals(
    numbers: Collection[int], receive: Callable[[signal.struct_siginfo], object]
) -> Iterator[None]:
    """Context manager: the signals are blocked, and `receive` is called with each of them.

    They are read one at a time: if the first one ends the block, the next one stays pending for the next block. Not
    loop.add_signal_handler(): only siginfo says whether the terminal has sent a signal, and so to the user's command
    as well.
    """
    loop = asyncio.get_running_loop()

    def receive_one() -> None:
        if (came := signal.sigtimedwait(numbers, 0)) is not None:
            receive(came)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    descriptor = signal_descriptor(numbers)
    loop.add_reader(descriptor, receive_one)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def in_thread(call: Callable[..., T], *args: Any) -> T:
    """The result of a call that may block: it looks at files, waits for a process, or writes output.

    Output is written in threads, too. The loop could write to a terminal or a pipe that does not block. But O_NONBLOCK
    belongs to the open file description (fcntl(2)), which the user's command and other programs share: their own writes
    would fail. Files are never reported as not ready.

    The threads are daemons: a call that hangs keeps no process from exiting. If the wait is cancelled, the call
    continues.
    """
    return await asyncio.get_running_loop().run_in_executor(_threads(), call, *args)


@functools.cache
def _threads() -> DaemonThreads:
    with signals_blocked():
        return DaemonThreads(_THREADS)
