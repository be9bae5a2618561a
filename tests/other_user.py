"""An interpreter that other users can run, for tests in which poolctl or a server runs as another user than root.

The interpreter of the tests may be one below root's home (pyenv, uv). Then such a test gets that of `.venv`, or the
system's in a virtual environment of its own, which is made once and kept; `python -m tests.other_user` makes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OTHER = 54321
# `env`, because the program that setpriv executes itself is still found and opened with root's rights.
AS_OTHER_USER = f"setpriv --reuid={OTHER} --regid={OTHER} --clear-groups -- env"
SYSTEM_PYTHONS = [f"/usr/bin/python3{minor}" for minor in ("", ".14", ".13", ".12", ".11")] + [
    "/usr/local/bin/python3"
]


@contextmanager
def as_user(uid: int = OTHER) -> Iterator[None]:
    """Let this process be another user's in the block. A user other than root keeps the own uid."""
    own = os.geteuid()
    if own == 0:
        os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        if own == 0:
            os.setresuid(0, 0, 0)


def python_for_others() -> str:
    """The path of an interpreter with poolctl that every user can run; skips the test when there is none."""
    path, reason = find_python()
    if not path:
        pytest.skip(reason)
    return path


@cache
def find_python() -> tuple[str, str]:
    """That path, or "" and the reason."""
    if os.geteuid() != 0:
        return "", "only root can become another user"
    if error_as_other_user("test", "-r", str(ROOT / "poolctl" / "__init__.py")):
        return "", f"other users cannot read {ROOT}"
    for python in (sys.executable, str(ROOT / ".venv" / "bin" / "python")):
        if not error_as_other_user(python, "-c", "import poolctl, uvicorn"):
            return python, ""
    new_enough = "import sys; sys.exit(sys.version_info < (3, 11))"
    base = next((each for each in SYSTEM_PYTHONS if not error_as_other_user(each, "-c", new_enough)), "")
    if not base:
        return "", f"other users can run neither {sys.executable} nor a system's Python of 3.11 or newer"
    venv = ROOT / ".venv-others"
    made = subprocess.run(
        ["bash", ".ci/venv", venv.name],
        cwd=ROOT,
        env=os.environ | {"PYTHON": base},
        capture_output=True,
        text=True,
    )
    path = str(venv / "bin" / "python")
    error = made.stderr if made.returncode else error_as_other_user(path, "-c", "import poolctl, uvicorn")
    return ("", f"no interpreter for other users could be set up: {error}") if error else (path, "")


def error_as_other_user(*argv: str) -> str:
    """The error of this command as another user, "" when it ended with 0."""
    try:
        done = subprocess.run(
            [*AS_OTHER_USER.split(), *argv], cwd="/", capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError as missing:
        return str(missing)
    return "" if done.returncode == 0 else done.stderr or f"exit status {done.returncode}"


if __name__ == "__main__":
    if reason := find_python()[1]:
        print(f"tests as another user are skipped: {reason}")
