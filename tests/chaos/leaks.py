"""Checks the resources of a pool's processes (descriptors, threads, memory), and leftovers after their exit."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.deadline import wait_until
from tests.processes import descriptors

from .stage import Fault, Stage

# An event loop's executor creates its threads on first use, and keeps them.
MAX_THREADS = 1 + min(32, (os.cpu_count() or 1) + 4)
MIB = 1024 * 1024
OWN = ("keeper", "supervisor", "logger", "zygote")
# A supervisor imports modules for a reload on first use. `endless` is stricter.
MAX_GROWTH_BYTES = 12 * MIB
QUIET_SECONDS = 18.0


@dataclass(frozen=True)
class Holdings:
    """The resources of a process: descriptors by kind, threads, private memory."""

    kinds: dict[str, int]
    threads: int
    private_bytes: int


def holdings(pid: int) -> Holdings:
    kinds = Counter(
        re.sub(r":\[\d+\]|\d+", "", target)
        for target in descriptors(pid).values()
        if not target.endswith("/keeper.lock")  # every keeper except the first one has it
    )
    threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    return Holdings(dict(kinds), threads, private_bytes(pid))


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(
        int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))
    )


def take(stage: Stage) -> dict[str, Holdings]:
    """The resources by role; a missing or duplicate role is a fault."""
    found = {}
    for role, pids in stage.roles().items():
        if role in OWN:
            if len(pids) != 1:
                raise Fault(f"{len(pids)} processes are the {role}: {pids}")
            found[role] = holdings(pids[0])
    return found


def same(stage: Stage, before: dict[str, Holdings], *, within_seconds: float = QUIET_SECONDS) -> None:
    """Raise Fault unless every process, once idle, holds the same resources as at a quiet start."""
    found: list[str] = []

    def compared() -> bool:
        found[:] = differences(take(stage), before)
        found.extend(f"zombie {pid}" for pid in stage.zombies())
        return not found

    try:
        wait_until(compared, timeout_seconds=within_seconds)
    except AssertionError:
        raise Fault(f"leaked: {'; '.join(found)}\n{_detail(stage, found)}") from None


def differences(
    now: dict[str, Holdings],
    before: dict[str, Holdings],
    *,
    most_growth_bytes: int = MAX_GROWTH_BYTES,
) -> list[str]:
    """A description of the additional resources of a process."""
    found = []
    for role, holds in now.items():
        earlier = before[role]
        for kind in sorted(holds.kinds | earlier.kinds):
            has, had = holds.kinds.get(kind, 0), earlier.kinds.get(kind, 0)
            if has > had:
                found.append(f"{role} holds {has} × {kind}, not {had}")
        if holds.threads > max(earlier.threads, MAX_THREADS):
            found.append(f"{role} has {holds.threads} threads, not {earlier.threads}")
        grown = holds.private_bytes - earlier.private_bytes
        if grown > most_growth_bytes:
            found.append(f"{role} has grown by {grown / MIB:.1f} MiB")
    return found


def _detail(stage: Stage, found: list[str]) -> str:
    roles = {text.split()[0] for text in found}
    return "\n".join(
        f"{role} {pid}: {descriptors(pid)}"
        for role, pids in stage.roles().items() if role in roles for pid in pids
    )  # fmt: skip


def nothing_left(stage: Stage, *, within_seconds: float = QUIET_SECONDS) -> None:
    """Raise Fault unless a stopped pool has left no process, no socket file and no name."""
    try:
        wait_until(lambda: not stage.pool.processes(), timeout_seconds=within_seconds)
    except AssertionError:
        raise Fault(f"orphans: {stage.pool.processes()}") from None
    left = [
        path for place in (stage.runtime, stage.directory) for path in place.rglob("*")
        if path.is_socket() or path.is_symlink() or path.name == "info.json"
    ]  # fmt: skip
    if left:
        raise Fault(f"left: {', '.join(map(str, left))}")
