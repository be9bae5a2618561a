"""A run of the tests leaves nothing on the machine: what is left is named at its end, and fails it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from poolctl.control.pool_lock import user_locks

# What another run has made is gone by then.
SETTLE_SECONDS = 20.0
MOUNTS = "/run/mount"  # where mount(8) keeps a table of its own, and makes the directory for it


class Leftovers:
    """A plugin that gives the run a temporary directory, and compares `places` before and after.

    The directory has a short path, for Unix sockets, every user may write into it, and it is removed with what is left
    in it. pytest's own directories, which it keeps for a while, stay where they would be.
    """

    def __init__(self, places: Sequence[str], settle_seconds: float = SETTLE_SECONDS) -> None:
        self._places = places
        self._settle_seconds = settle_seconds
        self._before = {*self._paths(), *_locks()}
        self._left: list[str] = []
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        self._directory = tempfile.mkdtemp(prefix="pc-", dir="/tmp")
        os.chmod(self._directory, 0o1777)
        os.environ["TMPDIR"] = tempfile.tempdir = self._directory

    @pytest.hookimpl(trylast=True)  # after the processes of pytest-xdist have ended
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for lock in {*_locks()} - self._before:
            _remove_if_unused(lock)
        deadline = time.monotonic() + self._settle_seconds
        while (left := {*self._paths()} - self._before) and time.monotonic() < deadline:
            time.sleep(0.2)
        self._left = sorted(left)
        shutil.rmtree(self._directory)
        if self._left and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for path in self._left:
            terminalreporter.write_line(f"LEFT BEHIND by the tests: {path}", red=True)

    def _paths(self) -> Iterator[str]:
        """What belongs to this user in the places; without locks, and directories that hold nothing else."""
        for place in self._places:
            directory, _, prefix = place.rpartition("/")
            for path in Path(directory).glob(f"{prefix}*"):
                with contextlib.suppress(OSError):
                    if path.lstat().st_uid == os.geteuid() and str(path) != MOUNTS:
                        of_pools = path.name.startswith("poolctl") and path.is_dir()
                        names = os.listdir(path) if of_pools else []
                        yield from (f"{path}/{name}" for name in names if name != "lock")
                        if not names:
                            yield str(path)


def default_places() -> list[str]:
    """Where pools are that run without variables, and those of examples; each with the beginning of names."""
    uid = os.geteuid()
    return ["/run/", f"/tmp/poolctl-{uid}", f"/run/user/{uid}/poolctl", *user_locks().directories]


def _locks() -> Iterator[str]:
    """The files with the locks of this user's pools, which no variable moves."""
    paths = (f"{directory}/lock" for directory in user_locks().directories)
    return (path for path in paths if os.access(path, os.W_OK))


def _remove_if_unused(lock: str) -> None:
    with contextlib.suppress(OSError), open(lock, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(lock)
        os.rmdir(os.path.dirname(lock))
