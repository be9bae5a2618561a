"""The machine refuses further processes and threads for a while (RLIMIT_NPROC, pids.max)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.http_get import get
from tests.processes import is_alive
from tests.real_pool import RealPool

Until = Callable[..., Any]

# A user of its own: the processes of other tests' users count, too.
_UID = 54325
AS_THIS_USER = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups", "--", "env"]
RESTART = 'restart = { policy = "always", limit = 1000, backoff = { max = "300ms" } }'


@pytest.fixture
def theirs(pool: RealPool) -> RealPool:
    """A pool of another user, since the limit does not apply to root."""
    pool.open_to_all()
    real = pool.command()
    pool.warm = False
    pool.command = lambda: [*AS_THIS_USER, *real]  # type: ignore[method-assign]
    for path in (pool.directory, pool.runtime):
        os.chown(path, _UID, _UID)
    return pool


@contextlib.contextmanager
def no_more_processes(pool: RealPool) -> Iterator[None]:
    """The processes that the pool has now can start neither a process nor a thread."""
    set_limit(pool, "1")
    try:
        yield
    finally:
        set_limit(pool, "1000")


def set_limit(pool: RealPool, soft: str) -> None:
    for pid in pool.processes():
        limit = [*AS_THIS_USER, "prlimit", f"--pid={pid}", f"--nproc={soft}:"]
        assert subprocess.run(limit).returncode == 0 or not is_alive(pid)


def test_workers_that_die_at_the_limit_of_processes_are_replaced_when_there_is_room(
    theirs: RealPool, until: Until
) -> None:
    theirs.write_hello("web", extra=f"workers = 3\n{RESTART}")
    theirs.ok("start")
    before = theirs.items()["web"]["pids"]
    with no_more_processes(theirs):
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not theirs.items()["web"]["pids"])
        until(lambda: "cannot fork: Resource temporarily unavailable" in theirs.run("status").stderr)
    pids = until(lambda: len(found := theirs.items()["web"]["pids"]) == 3 and found)
    assert all(map(is_alive, pids))
    assert get(theirs.ports["web"]).status == 200
    with no_more_processes(theirs):
        os.kill(pids[0], signal.SIGKILL)
        theirs.ok("stop")
    assert theirs.processes() == {}
