"""Processes that a command leaves behind are asked to end, and then killed, unless they have left its session."""

from __future__ import annotations

from tests.own_process import run_in_own_process

# A process of its own: it becomes the parent of the processes that its children leave behind.
PREAMBLE = """
import os, signal, subprocess, sys, time
from poolctl.keeper import left_children as module
from poolctl.keeper.left_children import end_processes, left_children
from poolctl.platform import become_subreaper
become_subreaper()
def leave(script):
    subprocess.run(["sh", "-c", script], check=True)
    return [int(pid) for pid in open("/proc/self/task/%d/children" % os.getpid()).read().split()]
def exists(pid):
    return os.path.exists(f"/proc/{pid}")
"""


def in_a_process_of_its_own(code: str) -> None:
    run_in_own_process(PREAMBLE + code)


def test_process_that_ignores_the_signal_is_killed_after_the_timeout() -> None:
    in_a_process_of_its_own("""
(polite,) = leave("exec 1>&- 2>&-; sleep 60 &")
end_processes(lambda: left_children(()), signal.SIGTERM, 60)
assert not exists(polite)
(stubborn,) = leave("trap '' TERM; sleep 60 >/dev/null 2>&1 &")
end_processes(lambda: left_children(()), signal.SIGTERM, 0.1)
assert not exists(stubborn)
""")


def test_what_a_left_process_leaves_behind_is_asked_too() -> None:
    in_a_process_of_its_own("""
(shell,) = leave("sh -c 'sleep 60 >/dev/null 2>&1 & wait' >/dev/null 2>&1 &")
while not (found := open(f"/proc/{shell}/task/{shell}/children").read().split()):
    time.sleep(0.01)
end_processes(lambda: left_children(()), signal.SIGTERM, 60)
assert not exists(shell)
assert not exists(int(found[0]))
""")


def test_daemon_and_known_children_are_left_alone() -> None:
    in_a_process_of_its_own("""
known = subprocess.Popen(["sleep", "60"])
daemon = subprocess.Popen(["sleep", "60"], start_new_session=True)
assert left_children({known.pid}) == []
end_processes(lambda: left_children({known.pid}), signal.SIGTERM, 60)
for process in (known, daemon):
    assert process.poll() is None
    process.kill()
    process.wait()
""")
