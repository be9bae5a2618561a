"""What the loop of `run` waits for."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading

import pytest

from poolctl.cli.run_session._loop import in_thread, received_signals

MAIN = threading.main_thread().ident or 0


def test_signals_are_received_one_by_one_and_those_left_stay_pending() -> None:
    numbers = (signal.SIGUSR1, signal.SIGUSR2)

    async def receive_one() -> list[int]:
        came: asyncio.Queue[int] = asyncio.Queue()
        with received_signals(numbers, lambda info: came.put_nowait(info.si_signo)):
            for number in numbers:
                signal.pthread_kill(MAIN, number)
            found = [await came.get()]
        return found + [came.get_nowait() for _ in range(came.qsize())]

    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        assert asyncio.run(receive_one()) == [signal.SIGUSR1]
        assert signal.sigpending() == {signal.SIGUSR2}
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= {*numbers}
        signal.sigwait(numbers)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.slow
def test_signal_for_the_process_reaches_the_loop_whatever_its_threads_do() -> None:
    script = """
import asyncio, os, signal
from poolctl.cli.run_session._loop import in_thread, received_signals

async def main():
    await in_thread(os.getpid)
    came = asyncio.Event()
    with received_signals([signal.SIGCHLD], lambda info: came.set()):
        os.posix_spawn("/bin/true", ["true"], {})
        await came.wait()

asyncio.run(main())
"""
    for _ in range(5):
        assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_call_in_a_thread_that_hangs_does_not_keep_the_loop_from_ending() -> None:
    over = threading.Event()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_thread(over.wait, 60), 0.01)
        assert await in_thread(divmod, 7, 2) == (3, 1)

    asyncio.run(give_up())
    over.set()
