"""What processes cost, from /proc."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

GONE_SECONDS = 10.0


def pss_bytes(pid: int) -> int:
    """The proportional share of memory of one process; what it shares with others counts by parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def processor_seconds(pids: Iterable[int]) -> float:
    """How long all threads of the processes have run on a processor, to the nanosecond."""
    return sum(_seconds_by_process(pids).values())


def _seconds_by_process(pids: Iterable[int]) -> dict[int, float]:
    """Of those that have not ended."""
    found = {}
    for pid in pids:
        try:
            tasks = [each / "schedstat" for each in Path(f"/proc/{pid}/task").iterdir()]
            found[pid] = sum(int(each.read_text().split()[0]) for each in tasks) / 1e9
        except OSError:
            continue
    return found


def idle_percent(pids: Iterable[int], seconds: float) -> float:
    """Which part of one core the processes use together while nothing is asked of them; without any that end."""
    before, started = _seconds_by_process(pids), time.monotonic()
    time.sleep(seconds)
    after = _seconds_by_process(before)
    used = sum(each - before[pid] for pid, each in after.items())
    return 100 * used / (time.monotonic() - started)


def marked_with(mark: str) -> dict[int, list[str]]:
    """The arguments, by pid, of every other process whose environment or arguments hold a text."""
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
    """Kill what is left of these processes."""
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
