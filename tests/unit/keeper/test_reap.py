"""Children that end are reported once, with how they ended, and take their process group with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from poolctl.keeper.reap import Reaper

# A reaper takes every child of its process: it needs one of its own, away from the other tests' children.
PREAMBLE = """
import os, signal, sys, time
from poolctl.keeper.reap import Reaper
from poolctl.platform import process_start
def child(body):
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(99)
    return pid
def reaped(reaper, count=1):
    found = []
    deadline = time.monotonic() + 10
    while len(found) < count and time.monotonic() < deadline:
        found += reaper.reap()
        time.sleep(0.002)
    return found
reaper = Reaper()
"""


def in_a_process_of_its_own(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_exit_status_and_signal_are_distinguished() -> None:
    in_a_process_of_its_own("""
one = child(lambda: os._exit(7))
two = child(lambda: os.kill(os.getpid(), signal.SIGTERM))
reports = {report["pid"]: report for report in reaped(reaper, 2)}
assert (reports[one]["status"], reports[one]["signal"]) == (7, None), reports
assert (reports[two]["status"], reports[two]["signal"]) == (None, signal.SIGTERM), reports
assert sorted(report["sequence"] for report in reports.values()) == [1, 2]
""")


def test_reports_are_kept_until_they_are_acknowledged() -> None:
    in_a_process_of_its_own("""
for number in range(3):
    child(lambda: os._exit(0))
reports = reaped(reaper, 3)
assert reaper.unacknowledged == reports
reaper.acknowledge(2)
assert [report["sequence"] for report in reaper.unacknowledged] == [3]
reaper.acknowledge(3)
assert reaper.unacknowledged == []
""")


def test_processes_left_in_a_childs_group_end_with_it() -> None:
    in_a_process_of_its_own("""
read, write = os.pipe()
def lead():
    os.setsid()
    if os.fork() == 0:
        time.sleep(5)
    os._exit(0)
child(lead)
os.close(write)
reaped(reaper)
# The end of the file says that the grandchild, which holds the other end, is gone.
signal.alarm(10)
assert os.read(read, 1) == b""
""")


def test_signal_reaches_a_child_and_its_group_and_no_other_process() -> None:
    in_a_process_of_its_own("""
def lead():
    os.setsid()
    os.write(write, b"x")
    time.sleep(5)
read, write = os.pipe()
pid = child(lead)
os.read(read, 1)
start = process_start(pid)
assert not reaper.signal(pid, signal.SIGKILL, group=True, start=start + 1), "another one that has its pid"
assert not reaper.signal(-1, signal.SIGKILL, group=False)
assert reaper.signal(pid, signal.SIGKILL, group=True, start=start)
assert [report["signal"] for report in reaped(reaper)] == [signal.SIGKILL]
assert not reaper.signal(pid, signal.SIGKILL, group=True), "it has been reaped"
assert not reaper.signal(1, 0, group=False), "init is nobody's child"
assert not reaper.signal(os.getppid(), 0, group=False)
""")


def test_child_that_leads_no_group_yet_is_still_signalled() -> None:
    in_a_process_of_its_own("""
pid = child(lambda: time.sleep(5))
assert reaper.signal(pid, signal.SIGKILL, group=True)
assert [report["signal"] for report in reaped(reaper)] == [signal.SIGKILL]
""")


def test_nothing_to_reap_is_nothing(monkeypatch: Any) -> None:
    def no_children(*_: Any) -> Any:
        raise ChildProcessError

    monkeypatch.setattr(os, "waitid", no_children)
    assert Reaper().reap() == []
    assert Reaper().signal(4242, signal.SIGTERM, group=False) is False
