"""The cost of measuring the memory and processor time of a thousand workers, each one process here.

A pass is compared with reading the stat file of each process, which is the least that tells what a process has used.
Only processor time is measured, so that other load on the machine has little effect.
"""

from __future__ import annotations

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
ROUNDS = 5
WORKER_BYTES = 4 * 1024 * 1024
# In one of the passes of a round memory is read, too.
_PASSES = 4
_PERCENT = 100 / (_PASSES * USAGE_SECONDS)


class _PassingClock(Clock):
    """The system's clock, ahead by as much as is needed for all figures to be too old."""

    ahead_seconds = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_seconds


def run(options: Namespace) -> Iterator[Row]:
    count, rounds = (20, 1) if options.quick else (WORKERS, ROUNDS)
    clock = _PassingClock()
    usages = ProcessUsages(clock)

    def measure() -> None:
        for _ in range(_PASSES):
            clock.ahead_seconds += USAGE_SECONDS
            usages.measure_now(pids)

    with _workers(count) as pids:
        measure()
        taken, least = [], []
        for _ in range(rounds):
            taken.append(_PERCENT * _processor_seconds(measure))
            least.append(_PERCENT * _PASSES * _processor_seconds(lambda: _read_stat_files(pids)))
    what = f"processor time of {count} workers every {USAGE_SECONDS:g} s, memory every {_PASSES * USAGE_SECONDS:g} s"
    yield Row(what, "% of a core", taken, "reading stat of each as often", least, most=1.5)


def _processor_seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _read_stat_files(pids: list[int]) -> None:
    for pid in pids:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            file.read(4096)


@contextmanager
def _workers(count: int) -> Iterator[list[int]]:
    """Processes that lead sessions and hold as much memory as an idle worker."""
    pids: list[int] = []
    read, write = os.pipe()
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                _be_a_worker(write)
            pids.append(pid)
        awaited = count
        while awaited:
            awaited -= len(os.read(read, awaited))
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        os.close(read)
        os.close(write)


def _be_a_worker(write: int) -> None:
    try:
        os.setsid()
        held = b"x" * WORKER_BYTES  # noqa: F841
        os.write(write, b"x")
        signal.pause()
    finally:
        os._exit(1)
