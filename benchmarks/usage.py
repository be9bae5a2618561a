"""The cost of measuring the memory and processor time of a thousand workers, each one process here.

A pass is compared with reading the stat file of each process, which is the least that tells what a process has used.
Only processor time is measured, so that other load on the machine has little effect.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from poolctl.clock import Clock
from poolctl.runners.process_usage import USAGE_SECONDS, ProcessUsages

from .report import Row

WORKERS = 1000
PASSES = 10
# The memory of an idle worker, and of a worker under load.
WORKER_BYTES = (4 * 1024 * 1024, 5 * 1024 * 1024)
_PERCENT = 100 / USAGE_SECONDS


class _PassingClock(Clock):
    """The system's clock, ahead by as much as is needed for all figures to be too old."""

    ahead_seconds = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_seconds


def run(options: Namespace) -> Iterator[Row]:
    count, passes = (20, 2) if options.quick else (WORKERS, PASSES)
    clock = _PassingClock()
    usages = ProcessUsages(clock)

    def measure() -> None:
        clock.ahead_seconds += USAGE_SECONDS
        usages.measure_now(pids)

    with _workers(count) as (pids, change):
        measure()
        unchanged, least, changed = [], [], []
        for _ in range(passes):
            unchanged.append(_PERCENT * _processor_seconds(measure))
            least.append(_PERCENT * _processor_seconds(lambda: _read_stat_files(pids)))
        for _ in range(passes):
            change()
            changed.append(_PERCENT * _processor_seconds(measure))
    what = f"memory and processor time of {count} workers every {USAGE_SECONDS:g} s"
    yield Row(what, "% of a core", unchanged, "reading stat of each", least, most=1.0, most_ratio=6.0)
    yield Row(f"{what}, all of which have changed", "% of a core", changed, most=2.0)


def _processor_seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _read_stat_files(pids: list[int]) -> None:
    for pid in pids:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            file.read(4096)


@contextmanager
def _workers(count: int) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Processes that lead sessions, and a function that returns when all of them use another amount of memory."""
    pids: list[int] = []
    read, write = os.pipe()
    # Also in the workers, so that the signal waits until they do.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

    def change() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        awaited = count
        while awaited:
            awaited -= len(os.read(read, awaited))

    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                _be_a_worker(write)
            pids.append(pid)
        change()
        yield pids, change
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(read)
        os.close(write)


def _be_a_worker(write: int) -> None:
    try:
        os.setsid()
        for size in itertools.cycle(WORKER_BYTES):
            signal.sigwait([signal.SIGUSR1])
            held = b"x" * size  # noqa: F841
            os.write(write, b"x")
    finally:
        os._exit(1)
