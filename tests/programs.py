"""Real programs that tests run: found, or the test is skipped."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from poolctl.feature import FEATURES

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


def skip_if_haproxy_is_missed(said: str) -> None:
    """Skip the test if this is what a command says where there is no HAProxy."""
    if "gateway" not in FEATURES:
        return
    from poolctl.features.gateway.program import program_path, program_problem

    if (problem := program_problem(program_path(None))) is not None and problem[0] in said:
        pytest.skip(WITHOUT_HAPROXY)


def pretended_haproxy(path: Path, version: str = "2.8.0") -> str:
    """A program that prints what HAProxy of this version prints."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'HAProxy version {version} 2026/10/17 - https://haproxy.org/'\n")
    path.chmod(0o755)
    return str(path)
