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

# One each for the servers' output, --watch, the session's current call, and a cancelled call that still blocks.
_THREADS = 4


@contextlib.contextmanager
def received_signals(
    numbers: Collection[int], receive: Callable[[signal.struct_siginfo], object]
) -> Iterator[None]:
    """Context manager: block the signals, and call `receive` with each.

    They are read one at a time: if the first signal ends the block, the next stays pending. loop.add_signal_handler()
    has no siginfo, which tells whether the terminal sent a signal, and therefore also to the user's command.
    """
    loop = asyncio.get_running_loop()

    def receive_one() -> None:
        if (info := signal.sigtimedwait(numbers, 0)) is not None:
            receive(info)

    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    descriptor = signal_descriptor(numbers)
    loop.add_reader(descriptor, receive_one)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


async def in_thread(call: Callable[..., T], *args: Any) -> T:
    """Run a call that may block, such as access to files, waiting for a process, or writing output.

    Output is written in threads, because O_NONBLOCK would belong to the open file description (fcntl(2)), which the
    user's command and other programs share: their writes would fail. Files are always reported as ready.

    The threads are daemons, so a hung call does not delay the exit. If the wait is cancelled, the call continues.
    """
    return await asyncio.get_running_loop().run_in_executor(_threads(), call, *args)


@functools.cache
def _threads() -> DaemonThreads:
    with signals_blocked():
        return DaemonThreads(_THREADS)
