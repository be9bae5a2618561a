"""What the kernel says about processes: parents, sessions, descriptors, limits."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import NamedTuple

from tests.deadline import wait_until


class Stat(NamedTuple):
    pid: int
    state: str
    parent: int
    group: int
    session: int
    threads: int


def stat(pid: int) -> Stat:
    """From proc(5); raises FileNotFoundError for a process that is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Stat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[17]))


def processor_seconds(pid: int) -> float:
    """The time for which its threads have computed; raises FileNotFoundError for a process that is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    """Whether it exists and one of its threads runs: those of a killed process end one by one, the first one first."""
    try:
        found = stat(pid)
        return found.state != "Z" or found.threads > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def freeze(pid: int) -> None:
    """Stop the process with SIGSTOP; returns when each of its threads has stopped, which kill(2) does not wait for."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_frozen(pid), what=f"process {pid} stops")


def is_frozen(pid: int) -> bool:
    """Whether each of its threads is stopped; False for a process that is gone."""
    try:
        threads = [each / "stat" for each in Path(f"/proc/{pid}/task").iterdir()]
        return all(each.read_text().rpartition(")")[2].split()[0] == "T" for each in threads)
    except (FileNotFoundError, ProcessLookupError):  # a thread has ended
        return False


def children(pid: int) -> list[int]:
    """The pids of its children, zombies too."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if stat(int(entry.name)).parent == pid:
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return sorted(found)


def process_name(pid: int) -> str:
    """Its name in ps and top; "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descriptors(pid: int) -> dict[int, str]:
    """What each open descriptor of the process points to; {} for one that has ended, or is ending."""
    found = {}
    with contextlib.suppress(FileNotFoundError, PermissionError):  # only root may list those of an ending one
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def command_line(pid: int) -> str:
    """Its words; "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def watched_descriptors(pid: int) -> set[int]:
    """The numbers of the descriptors in the epoll(7) sets of a process, also closed ones that have stayed there."""
    found = [number for number, what in descriptors(pid).items() if "eventpoll" in what]
    lines = [line for each in found for line in Path(f"/proc/{pid}/fdinfo/{each}").read_text().splitlines()]
    return {int(line.split()[1]) for line in lines if line.startswith("tfd:")}
