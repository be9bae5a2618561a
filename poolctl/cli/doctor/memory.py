"""Memory and swap, of the machine and of this control group."""

from __future__ import annotations

from collections.abc import Iterator

from .check_resources import control_groups
from .context import Case, number, read
from .finding import Finding, ok, problem, warning

# A forked worker with a small application; nobody knows what a real one takes.
_WORKER_BYTES = 8 << 20
_OWN_BYTES = 96 << 20
_NEARLY_FULL = 0.9


def memory(case: Case) -> Iterator[Finding]:
    """What is left for the pool, if it does not run yet."""
    table = _table()
    left = table.get("MemAvailable", 0)
    where, mend = "are available", "stop something, or give the machine more"
    for directory in control_groups("memory"):
        most = number(f"{directory}/memory.max") or number(f"{directory}/memory.limit_in_bytes")
        now = number(f"{directory}/memory.current") or number(f"{directory}/memory.usage_in_bytes") or 0
        if most is not None and most - now < left:
            left, where = max(0, most - now), "are left to this control group"
            mend = "MemoryMax= of its unit, or --memory of its container"
    need = _OWN_BYTES + case.processes * _WORKER_BYTES
    said = f"{_mib(left)} {where}, the pool needs {_mib(need)} and what its applications take"
    if left and left < need and not case.items:
        yield problem("memory", said, mend)
    elif left and left < _OWN_BYTES:
        yield warning("memory", f"{_mib(left)} {where}", mend)
    else:
        yield ok("memory", said)
    if read("/proc/sys/vm/overcommit_memory") == "2":
        said = "memory is not overcommitted, and each forked worker counts with all that it shares"
        yield warning("memory", said, "sysctl -w vm.overcommit_memory=0")


def swap(case: Case) -> Iterator[Finding]:
    """Whether the machine lives on its swap."""
    table = _table()
    total, free = table.get("SwapTotal", 0), table.get("SwapFree", 0)
    if total and total - free > total * _NEARLY_FULL:
        said = f"{_mib(total - free)} of {_mib(total)} are in use: servers that were idle answer late"
        yield warning("swap", said, "stop something, or give the machine more memory")
    else:
        yield ok("swap", f"{_mib(total - free)} of {_mib(total)} in use" if total else "there is none")


def _table() -> dict[str, int]:
    found = {}
    for line in read("/proc/meminfo").splitlines():
        key, _, rest = line.partition(":")
        value = rest.split()
        if value and value[0].isdecimal():
            found[key] = int(value[0]) * 1024
    return found


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


CHECKS = (memory, swap)
