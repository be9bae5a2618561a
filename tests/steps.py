"""How much work code does, counted in steps: the same on every machine, however busy it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import poolctl

_PACKAGE = str(Path(poolctl.__file__).parent)


def steps_of(work: Callable[[], Any]) -> int:
    """The lines of poolctl that run, and the functions written in C that these lines call."""
    count = 0

    def line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def call(frame: FrameType, event: str, argument: object) -> Any:
        return line if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def c_call(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "c_call" and frame.f_code.co_filename.startswith(_PACKAGE)

    tracing, profiling = sys.gettrace(), sys.getprofile()
    sys.settrace(call)
    sys.setprofile(c_call)
    try:
        work()
    finally:
        sys.setprofile(profiling)
        sys.settrace(tracing)
    return count
