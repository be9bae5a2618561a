"""The clock: set while the pool ran, or behind its own files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

from poolctl.platform import process_start

from .context import Case, read
from .finding import Finding, ok, problem, warning

_ISSUED = 1_735_689_600  # 2025: no clock that is right says less
_JUMP_SECONDS = 5.0
_START_SECONDS = 60.0
_MEND = "set the clock, and let it be kept: timedatectl set-ntp true"


def clock(case: Case) -> Iterator[Finding]:
    """Whether it can be right."""
    now = time.time()
    if now < _ISSUED:
        yield problem("clock", f"it says {time.strftime('%Y-%m-%d', time.gmtime(now))}", _MEND)
        return
    ahead = [
        file for file in (case.place.files if case.place else []) if _written(file) > now + _JUMP_SECONDS
    ]
    if ahead:
        said = f"{ahead[0]} was written in the future: the clock is behind, or was when that was written"
        yield warning("clock", said, f"{_MEND}; then touch {ahead[0]}")
    elif abs(jump := _jump(case)) > _JUMP_SECONDS:
        said = f"the clock was set by {jump:+.0f} s since the supervisor was started: times in its logs do not compare"
        yield warning("clock", said, _MEND)
    else:
        yield ok("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _written(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return 0.0


def _jump(case: Case) -> float:
    """By how much the realtime clock has gone other than the monotonic one since the supervisor's start."""
    pid = case.about.get("supervisor_pid")
    start = process_start(int(pid)) if pid else None
    if start is None or case.place is None:
        return 0.0
    try:
        noted = float(json.loads(read(f"{case.place.directory}/info.json"))["started"])
    except (ValueError, KeyError, TypeError):
        return 0.0
    lived = time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")
    late = (time.time() - lived) - noted
    # It notes the time a while after its start, which on a busy machine may be long.
    return late if late > 0 else min(0.0, late + _START_SECONDS)


CHECKS = (clock,)
