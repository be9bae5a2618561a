"""The memory and processor time of workers, measured with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poolctl import platform
from poolctl.runners.process_usage import (
    USAGE_SECONDS,
    ProcessFigures,
    ProcessUsages,
    Usage,
    processor_seconds_between,
)
from tests import moments
from tests.deadline import wait_until
from tests.manual_clock import ManualClock
from tests.sandbox import run_as, run_in_namespace
from tests.virtual_loop import VirtualLoop

MIB = 1024 * 1024
GONE = 2**22 + 1
PARENT, CHILD, OTHER = (1, 10), (2, 20), (3, 30)

# Each says a line when it has filled so much memory, or used so much processor time.
HOG = "x = bytearray(b'x') * (40 << 20); print(flush=True); import time; time.sleep(60)"
BUSY = "import time\nwhile time.process_time() < 0.15: pass"


def used(own: float = 0.0, waited: float = 0.0) -> ProcessFigures:
    return ProcessFigures(own, waited)


@contextmanager
def worker(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that leads a session, as workers do, and is killed with its process group."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def measured(usages: ProcessUsages, pid: int) -> Usage:
    usages.measure_now([pid])
    return usages.of(pid)


@pytest.mark.parametrize(
    ("before", "now", "seconds"),
    [
        ({}, {PARENT: used(3, 2), CHILD: used(1)}, 6),
        ({PARENT: used(3, 2)}, {PARENT: used(4, 2)}, 1),
        ({PARENT: used(3), CHILD: used(5, 1)}, {PARENT: used(3, 6)}, 0),
        ({PARENT: used(3), CHILD: used(5, 1)}, {PARENT: used(3, 6.5)}, 0.5),
        ({PARENT: used(3), CHILD: used(5, 1)}, {PARENT: used(3)}, 0),
        ({PARENT: used(3), CHILD: used(5, 1)}, {PARENT: used(4), OTHER: used(2)}, 3),
        ({PARENT: used(3), CHILD: used(5, 1)}, {PARENT: used(3, 2)}, 0),
        ({PARENT: used(3, 1)}, {PARENT: used(3, 3)}, 2),
    ],
    ids=["all since the start", "one works", "child waited for", "and it had worked", "child not waited for",
         "another works", "child not waited for, unlike a short one", "short children that were never seen"],
)  # fmt: skip
def test_processor_time_of_ended_processes_counts_once(
    before: dict[tuple[int, int], ProcessFigures],
    now: dict[tuple[int, int], ProcessFigures],
    seconds: float,
) -> None:
    assert processor_seconds_between(before, now) == pytest.approx(seconds)


@pytest.mark.parametrize("start", ["", "setsid "], ids=["of its session", "with a session of its own"])
def test_memory_is_that_of_all_processes(start: str) -> None:
    with worker("sh", "-c", f'{start}"$0" -c "$1"; true', sys.executable, HOG) as process:
        said(process)
        memory = measured(ProcessUsages(), process.pid).memory_bytes
        assert memory is not None
        assert 40 * MIB < memory < 60 * MIB
        children = platform.processes_by_leader({process.pid})[process.pid]
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_memory_that_workers_share_is_divided_among_them() -> None:
    fork = "import os; x = bytearray(b'x') * (40 << 20); os.fork(); os.fork(); print(flush=True)"
    script = f"{fork}; import time; time.sleep(60)"
    with worker(sys.executable, "-c", script) as process:
        for _ in range(4):
            said(process)
        memory = measured(ProcessUsages(), process.pid).memory_bytes
        assert memory is not None
        assert 40 * MIB < memory < 80 * MIB


@pytest.mark.parametrize("ignored", [False, True], ids=["waited for", "ignored"])
def test_processor_time_of_children_does_not_fall_when_they_end(ignored: bool) -> None:
    script = f"""
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_{"IGN" if ignored else "DFL"})
for _ in range(3):
    child = subprocess.Popen([sys.executable, "-c", {f"{BUSY}{chr(10)}input()"!r}], stdin=subprocess.PIPE)
    input()
    child.communicate(b"x")
    print(flush=True)
input()
"""
    clock = ManualClock()
    usages, seen = ProcessUsages(clock), [0.0]

    def spent() -> float:
        clock.advance(USAGE_SECONDS + 1)
        seen.append(measured(usages, process.pid).cpu_seconds or 0.0)
        return seen[-1]

    with worker(sys.executable, "-c", script) as process:
        assert process.stdin is not None
        for turn in range(1, 4):
            wait_until(lambda turn=turn: spent() >= 0.1 * turn)
            process.stdin.write("\n")
            process.stdin.flush()
            said(process)
            spent()
        assert seen == sorted(seen)


def test_share_of_a_core_is_first_the_average_since_the_start_and_then_since_the_last_measurement() -> None:
    clock = ManualClock()
    usages = ProcessUsages(clock)
    with worker(sys.executable, "-c", f"{BUSY}\nprint(flush=True)\ninput()") as process:
        said(process)
        first = measured(usages, process.pid)
        assert (first.cpu_percent or 0) > 1
        clock.advance(USAGE_SECONDS + 1)
        idle = measured(usages, process.pid)
        assert idle.cpu_percent == pytest.approx(0, abs=0.5)
        assert (idle.cpu_seconds or 0) >= 0.1


def test_figures_are_measured_again_when_they_are_older_than_eight_seconds() -> None:
    clock = ManualClock()
    usages = ProcessUsages(clock)
    with worker("cat") as process:
        begun = clock.monotonic()
        for pause, at in ((0.0, 0.0), (USAGE_SECONDS - 0.1, 0.0), (0.2, USAGE_SECONDS + 0.1)):
            clock.advance(pause)
            assert measured(usages, process.pid).measured_at == pytest.approx(begun + at)


def test_processor_time_alone_may_be_newer_than_memory() -> None:
    async def scenario(pid: int) -> None:
        clock = ManualClock()
        usages = ProcessUsages(clock)
        await usages.measure([pid, None], memory=False)
        assert (usages.of(pid).memory_bytes, usages.of(pid).cpu_seconds) == (None, 0.0)
        await usages.measure([pid])
        memory = usages.of(pid).memory_bytes
        assert memory
        clock.advance(1.0)
        await usages.measure([pid], memory=False, max_age_seconds=0.5)
        found = usages.of(pid)
        assert (found.memory_bytes, found.measured_at) == (memory, clock.monotonic())

    with worker("cat") as process:
        asyncio.run(scenario(process.pid))


def test_request_that_is_cancelled_does_not_cancel_those_of_others() -> None:
    async def scenario(pid: int) -> None:
        usages = ProcessUsages()
        one, other = (asyncio.ensure_future(usages.measure([pid])) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        await other
        assert one.cancelled()
        assert usages.of(pid).memory_bytes

    with worker("cat") as process:
        asyncio.run(scenario(process.pid))


def test_request_ends_with_the_known_figures_if_the_memory_of_a_process_cannot_be_read(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "hangs")

    def work() -> None:
        loop = VirtualLoop()
        usages = ProcessUsages(ManualClock())
        loop.run_until_complete(usages.measure([process.pid]))
        assert usages.of(process.pid).memory_bytes is None
        (tmp_path / "hangs").write_text("Pss: 7 kB\n")
        wait_until(lambda: usages.of(process.pid).memory_bytes == 7 * 1024)
        loop.pass_time(1)
        loop.close()

    with worker("cat") as process:
        run_in_namespace(f"mount --bind {tmp_path}/hangs /proc/{process.pid}/smaps_rollup", work)


def test_figures_of_a_worker_that_does_not_run_are_unknown() -> None:
    usages = ProcessUsages()
    assert usages.of(None) == measured(usages, GONE) == Usage()
    with worker("cat") as process:
        assert measured(usages, process.pid).memory_bytes
    usages.measure_now([GONE])
    assert usages.of(process.pid) == Usage()


def test_memory_of_many_workers_is_read_again_after_half_a_minute() -> None:
    opened: list[object] = []
    clock = ManualClock()
    usages = ProcessUsages(clock)
    with worker("cat") as process, moments.before("open", lambda path, *_: opened.append(path)):
        for _ in range(8):
            usages.measure_now([process.pid, *range(GONE, GONE + 250)])
            assert usages.of(process.pid).measured_at == clock.monotonic()
            clock.advance(USAGE_SECONDS + 1)
        assert opened.count(f"/proc/{process.pid}/smaps_rollup") == 2


def test_figures_of_processes_that_proc_hides_are_unknown() -> None:
    clock = ManualClock()
    usages = ProcessUsages(clock)

    def hidden() -> Usage:
        return run_as(65534, lambda: measured(usages, process.pid))

    with worker("cat") as process:
        assert measured(usages, process.pid).memory_bytes
        clock.advance(USAGE_SECONDS + 1)
        seen = run_in_namespace("mount -t proc -o hidepid=1,gid=4242 proc /proc", hidden)
        assert seen == Usage(measured_at=clock.monotonic())
        clock.advance(USAGE_SECONDS + 1)
        assert measured(usages, process.pid).memory_bytes
