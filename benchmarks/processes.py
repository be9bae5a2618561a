"""The cost of processes, from /proc."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path


def pss_bytes(pid: int) -> int:
    """The memory of a process, with shared pages divided among their users (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def processor_seconds(pids: Iterable[int]) -> float:
    """The processor time of all threads of the processes, in nanosecond resolution."""
    return sum(_seconds_by_process(pids).values())


def _seconds_by_process(pids: Iterable[int]) -> dict[int, float]:
    """The values of processes that have not exited."""
    found = {}
    for pid in pids:
        try:
            tasks = [each / "schedstat" for each in Path(f"/proc/{pid}/task").iterdir()]
            found[pid] = sum(int(each.read_text().split()[0]) for each in tasks) / 1e9
        except OSError:
            continue
    return found


def children(pid: int) -> list[int]:
    """The child processes of all threads of a process."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in found for child in each.read_text().split()]


def idle_percent(pids: Iterable[int], seconds: float) -> float:
    """The share of one core that the processes use together while idle, except processes that exit."""
    before, started = _seconds_by_process(pids), time.monotonic()
    time.sleep(seconds)
    after = _seconds_by_process(before)
    used = sum(each - before[pid] for pid, each in after.items())
    return 100 * used / (time.monotonic() - started)


def marked_with(mark: str) -> dict[int, list[str]]:
    """The arguments, by pid, of all other processes whose environment or arguments contain a text."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = Path(entry.path, "cmdline").read_bytes()
            if mark.encode() in arguments or mark.encode() in Path(entry.path, "environ").read_bytes():
                found[int(entry.name)] = arguments.decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue
    return found


def end(pids: Iterable[int]) -> None:
    """Kill the processes that are left."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


def available_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
