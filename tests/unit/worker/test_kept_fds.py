"""What libuv keeps open for good stays where it is over forks of forks, and nobody loses a descriptor for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("uvloop")

SCRIPT = """
import asyncio, os, stat, sys, uvloop
from poolctl.worker import process_setup as kept_fds

async def nothing(): pass

async def child_says():
    process = await asyncio.create_subprocess_exec("echo", "heard", stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0]

before = kept_fds.descriptors()
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(nothing())
kept = kept_fds.descriptors() - before
assert len(kept) == 2, kept
if sys.argv[1] == "hold":
    kept_fds.keep_fds(kept)
mine = {}
if (middle := os.fork()) == 0:
    if (last := os.fork()) == 0:
        assert all(stat.S_ISFIFO(os.fstat(number).st_mode) for number in kept), "they have moved"
        kept_fds.close_others()
        for number in range(12, 40):  # as busy a process as a worker
            if number not in kept_fds._kept:
                os.dup2(os.memfd_create(f"mine {number}"), number)
        mine = {number: os.fstat(number).st_ino for number in range(12, 40)}
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(child_says()) == b"heard\\n"
        assert {number: os.fstat(number).st_ino for number in range(12, 40)} == mine
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]) & 0xFF)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(middle, 0)[1]))
"""


def run(how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=30)


def test_fork_of_a_fork_runs_subprocesses_and_loses_no_descriptor() -> None:
    done = run("hold")
    assert done.returncode == 0, done.stderr


def test_descriptors_that_are_not_kept_move_at_the_first_fork() -> None:
    assert run("let go").returncode != 0
