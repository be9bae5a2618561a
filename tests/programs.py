"""Real programs that tests run: found, or the test is skipped."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

WITHOUT_HAPROXY = "there is no HAProxy that is new enough"


def program(name: str) -> str:
    """The path of the program, of this interpreter's environment first; skips the test where there is none.

    HAProxy is the one that pools use.
    """
    if name == "haproxy":
        return _haproxy()
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name, path="/usr/local/bin:/usr/bin:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _haproxy() -> str:
    from poolctl.features.gateway.program import program_path, program_problem

    path = program_path(None)
    if program_problem(path) is not None:
        pytest.skip(WITHOUT_HAPROXY)
    return path
