"""A keeper that does not answer is noticed and continued, or replaced; a pause of all processes replaces none."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from typing import Any

import pytest

from poolctl.clock import PING_SECONDS, SILENT_SECONDS
from tests.http_get import get
from tests.integration.processes.test_keeper_killed import whole_again
from tests.integration.processes.test_successors import supervisor_of
from tests.processes import freeze, is_alive, is_frozen, stat
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

PTRACE_ATTACH = 16
WALL = 0x40000000  # __WALL: any child, and what is traced


def hold(pid: int) -> None:
    """Stop the process as a debugger does, so that SIGCONT does not continue it."""
    if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_ATTACH, pid, None, None):
        pytest.skip(f"no process can be traced here: {os.strerror(ctypes.get_errno())}")
    os.waitpid(pid, WALL)


@pytest.mark.heavy
def test_stop_with_a_stopped_keeper_continues_it_and_ends(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    (worker,) = pool.items()["web"]["pids"]
    keeper = pool.info()["keeper_pid"]
    freeze(keeper)
    os.kill(worker, signal.SIGKILL)
    assert pool.run("status").code == 0  # it does not wait for the keeper
    until(lambda: pool.items()["web"]["pids"] not in ([], [worker]))
    assert get(port).status == 200
    until(lambda: "keeper silent" in pool.ok("events", "--kind", "pool").stdout)
    freeze(keeper)
    began = time.monotonic()
    pool.ok("stop")
    assert time.monotonic() - began < 2 * SILENT_SECONDS + 25
    assert pool.processes() == {}


@pytest.mark.heavy
def test_a_keeper_that_cannot_be_continued_is_replaced_and_every_server_serves(
    pool: RealPool, until: Any
) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    before = pool.items()
    keeper = pool.info()["keeper_pid"]
    hold(keeper)
    assert get(port).status == 200
    until(lambda: not is_alive(keeper))
    os.waitpid(keeper, WALL)  # by whom it is traced it is reaped
    until(lambda: (now := pool.info()["keeper_pid"]) != keeper and supervisor_of(now))
    assert pool.items()["web"]["pids"] == before["web"]["pids"]
    os.kill(before["web"]["pids"][0], signal.SIGKILL)
    until(lambda: pool.items()["web"]["pids"] not in ([], before["web"]["pids"]))


@pytest.mark.heavy
def test_a_pause_of_all_processes_replaces_none(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    before = pool.info()
    # Without the one that reads files for a while.
    processes = pool.processes()
    pool.ok("status")
    # The first one is stopped for so long that the others ping it; the first to continue finds the others silent.
    first, second = before["supervisor_pid"], before["keeper_pid"]
    freeze(first)
    time.sleep(PING_SECONDS + 0.5)
    for pid in processes:
        freeze(pid)
    until(lambda: all(stat(pid).state == "T" for pid in processes))
    time.sleep(SILENT_SECONDS)
    for pid in (second, first):
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.3)
    for pid in processes:
        os.kill(pid, signal.SIGCONT)
    assert get(port).status == 200
    time.sleep(1.5)
    after = pool.info()
    assert [after[key] for key in ("keeper_pid", "supervisor_pid")] == [
        before[key] for key in ("keeper_pid", "supervisor_pid")
    ]
    assert pool.processes().keys() >= processes.keys()
    assert "silent" not in pool.ok("events", "--kind", "pool").stdout


def kill_keeper_and_stop_its_supervisor(pool: RealPool, until: Any, info: dict[str, Any]) -> bool:
    """Whether the supervisor is stopped while it gives what it holds to another keeper: it ends after that."""
    keeper, supervisor = info["keeper_pid"], info["supervisor_pid"]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not is_alive(supervisor) or any('"donor"' in line for line in pool.processes().values()))
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor, signal.SIGSTOP)
        until(lambda: not is_alive(supervisor) or is_frozen(supervisor))
    return is_alive(supervisor)


@pytest.mark.heavy
def test_a_supervisor_that_is_stopped_while_it_fills_a_new_keeper_is_continued(
    pool: RealPool, until: Any
) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    before = pool.items()["web"]["pids"]
    # The program of the new keeper takes longer to load than this, though not always on a busy machine.
    for _ in range(5):
        info = pool.info()
        if kill_keeper_and_stop_its_supervisor(pool, until, info):
            break
        whole_again(pool, until, info["keeper_pid"])
    else:
        pytest.fail("each supervisor had ended before it was stopped")
    until(lambda: not is_alive(info["supervisor_pid"]))
    assert pool.items()["web"]["pids"] == before
    assert get(port).status == 200
    pool.ok("stop")
    assert pool.processes() == {}
