"""Exits are reported until acknowledged; processes that are not children are known by more than their pid."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolctl.keeper.reap import Reaper, Watcher, kill_rest_of_group, signal_process
from poolctl.platform import group_members, process_start
from tests.deadline import wait_until
from tests.descriptors import descriptor_limit, no_descriptor_left
from tests.own_process import run_in_own_process
from tests.processes import is_alive

# A reaper takes every child of its process: it needs one of its own, away from the other tests' children.
PREAMBLE = """
import os, select, signal, sys, time
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
    deadline = time.monotonic() + 40
    while len(found) < count and time.monotonic() < deadline:
        found += reaper.reap()
        time.sleep(0.002)
    return found
reaper = Reaper()
"""


def in_a_process_of_its_own(code: str) -> None:
    run_in_own_process(PREAMBLE + code)


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
reaper.acknowledge(0)
assert reaper.unacknowledged == reports
reaper.acknowledge(2)
reaper.acknowledge(1)  # an earlier answer that comes late
assert [report["sequence"] for report in reaper.unacknowledged] == [3]
reaper.acknowledge(3)
reaper.acknowledge(3)
assert reaper.unacknowledged == []
""")


def test_child_that_was_reported_is_not_reported_again_without_its_status() -> None:
    in_a_process_of_its_own("""
one = child(lambda: os._exit(7))
start = process_start(one)
assert len(reaped(reaper)) == 1
assert reaper.watch(one, start) is None
assert [each["status"] for each in reaper.unacknowledged] == [7]
reaper.acknowledge(1)
assert reaper.watch(one, start)["status"] is None
""")


def test_processes_left_in_a_childs_group_end_with_it() -> None:
    in_a_process_of_its_own("""
read, write = os.pipe()
def lead():
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
child(lead)
os.close(write)
reaped(reaper)
# The end of the file says that the grandchild, which holds the other end, is gone.
signal.alarm(40)
assert os.read(read, 1) == b""
""")


LEFT = """
def lead():
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0 * os.write(write, b"asked")))
        os.write(write, b"ready")
        while True:
            time.sleep(60)
    os.read(read_go, 1)
    os._exit(7)
read, write = os.pipe()
read_go, write_go = os.pipe()
def gone(reaper):
    assert select.select([reaper.left_groups], [], [], 40)[0]
    return reaper.report_gone()
pid = child(lead)
os.close(write)
assert os.read(read, 5) == b"ready"
os.write(write_go, b"x")
signal.alarm(40)
"""


def test_processes_left_in_a_kept_group_are_asked_to_end_after_the_exit_of_their_leader() -> None:
    in_a_process_of_its_own(f"""
reaper = Reaper(lambda _: True)
{LEFT}
(exited,) = reaped(reaper)
assert (exited["pid"], exited["status"], exited["group_left"]) == (pid, 7, True)
start = process_start(pid)
assert not reaper.signal(pid, signal.SIGTERM, group=True, start=start + 1), "another one that has its pid"
assert not reaper.signal(pid, signal.SIGTERM, group=False), "the leader has exited"
assert reaper.signal(pid, signal.SIGTERM, group=True, start=start)
assert os.read(read, 5) == b"asked"
(report,) = gone(reaper)
assert (report["event"], report["pid"], report["sequence"]) == ("gone", pid, 2)
assert reaper.unacknowledged == [exited, report]
assert pid not in reaper.left_groups
assert not reaper.signal(pid, signal.SIGKILL, group=True), "it has been reaped"
""")


def test_exited_leader_keeps_its_pid_and_hides_no_other_exit_while_its_group_runs() -> None:
    in_a_process_of_its_own(f"""
reaper = Reaper(lambda child: child == pid)
{LEFT}
reaped(reaper)
others = [child(lambda: os._exit(3)) for _ in range(3)]
assert sorted(report["pid"] for report in reaped(reaper, 3)) == sorted(others)
assert process_start(pid) is not None, "not reaped"
reaper.kill_all(1.0)
assert os.read(read, 5) == b""
gone(reaper)
assert process_start(pid) is None
""")


def test_left_groups_are_known_after_execve() -> None:
    in_a_process_of_its_own(f"""
reaper = Reaper(lambda _: True)
{LEFT}
reaped(reaper)
after = Reaper()
after.resume([], 5, {{}}, reaper.left_groups.leaders)
assert after.unacknowledged == [] and pid in after.left_groups
os.killpg(pid, signal.SIGKILL)
assert select.select([after.left_groups], [], [], 40)[0]
last = Reaper()
last.resume([], 5, {{}}, [pid])
assert last.unacknowledged == [{{"event": "gone", "pid": pid, "sequence": 6}}], "it has ended meanwhile"
assert process_start(pid) is None
""")


def test_kept_group_without_other_processes_is_not_reported_as_left() -> None:
    in_a_process_of_its_own("""
reaper = Reaper(lambda _: True)
def lead():
    os.setsid()
    os._exit(0)
child(lead)
(report,) = reaped(reaper)
assert "group_left" not in report
assert list(reaper.left_groups.leaders) == []
""")


def test_left_group_is_gone_when_the_last_of_its_processes_has_ended() -> None:
    in_a_process_of_its_own("""
from poolctl.platform import group_members
reaper = Reaper(lambda _: True)
def lead():
    os.setsid()
    for _ in range(3):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    os._exit(0)
pid = child(lead)
reaped(reaper)
reports, deadline = [], time.monotonic() + 40
for member in list(group_members(pid)):
    assert reports == [], "processes are left"
    os.kill(member, signal.SIGKILL)
    while member in group_members(pid) and time.monotonic() < deadline:
        time.sleep(0.002)
    reports += reaper.report_gone()
assert [report["pid"] for report in reports] == [pid]
""")


def test_signal_reaches_a_child_and_its_group_and_no_other_process() -> None:
    in_a_process_of_its_own("""
def lead():
    os.setsid()
    os.write(write, b"x")
    time.sleep(60)
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
pid = child(lambda: time.sleep(60))
assert reaper.signal(pid, signal.SIGKILL, group=True)
assert [report["signal"] for report in reaped(reaper)] == [signal.SIGKILL]
""")


def test_reaping_without_children_reports_nothing() -> None:
    in_a_process_of_its_own("assert reaper.reap() == []")


PARENT = """
import subprocess, sys
words = {"start_new_session": True, "stdout": subprocess.DEVNULL, "pass_fds": [int(fd) for fd in sys.argv[2:]]}
print(subprocess.Popen(["sh", "-c", sys.argv[1]], **words).pid)
"""


def orphan(script: str = "exec sleep 60", *fds: int) -> int:
    """A process that leads a session and is nobody's child here."""
    argv = [sys.executable, "-c", PARENT, script, *map(str, fds)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True, pass_fds=fds)
    return int(done.stdout)


def start_of(pid: int) -> int:
    found = process_start(pid)
    assert found is not None
    return found


@pytest.fixture
def pid() -> Iterator[int]:
    pid = orphan()
    yield pid
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def ended(watcher: Watcher) -> list[int]:
    assert select.select([watcher], [], [], 60)[0]
    return [pid for pid, _ in watcher.unwatch_exited()]


def test_exit_of_a_watched_process_is_reported_once(pid: int) -> None:
    watcher = Watcher()
    assert watcher.watch(pid, start_of(pid))
    assert watcher.watch(pid, start_of(pid)), "to say it again is no error"
    assert watcher.unwatch_exited() == []
    assert list(watcher.starts) == [pid]
    assert watcher.signal(pid, signal.SIGTERM, group=False)
    assert ended(watcher) == [pid]
    assert watcher.unwatch_exited() == []
    assert not watcher.signal(pid, signal.SIGTERM, group=False)


def test_process_that_has_reused_a_pid_is_neither_watched_nor_killed(pid: int) -> None:
    with no_descriptor_left():
        watcher = Watcher()
        assert not watcher.watch(pid, start_of(pid) - 1)
        assert watcher.starts == {}
        kill_rest_of_group(pid, start_of(pid) - 1)
        assert is_alive(pid)
        assert not watcher.signal(pid, signal.SIGKILL, group=True), "it is not watched"
        assert watcher.watch(pid, start_of(pid))
        watcher.close()


def test_processes_left_in_a_watched_processes_group_end_with_it() -> None:
    read, write = os.pipe()
    pid = orphan("sleep 60 & exec sleep 60", write)
    os.close(write)
    reaper = Reaper()
    assert reaper.watch(pid, start_of(pid)) is None
    os.kill(pid, signal.SIGKILL)
    assert select.select([reaper.watcher], [], [], 60)[0]
    assert [report["pid"] for report in reaper.report_exited()] == [pid]
    assert os.read(read, 1) == b"", "nobody holds the other end any more"
    os.close(read)


def test_processes_left_in_a_kept_group_are_asked_to_end_although_their_leader_is_no_child() -> None:
    read, write = os.pipe()
    pid = orphan("sleep 60 & exec sleep 60", write)
    os.close(write)
    reaper, start = Reaper(lambda _: True), start_of(pid)
    assert reaper.watch(pid, start) is None
    wait_until(lambda: [*group_members(pid)])
    os.kill(pid, signal.SIGKILL)
    assert select.select([reaper.watcher], [], [], 60)[0]
    (exited,) = reaper.report_exited()
    assert (exited["pid"], exited["group_left"]) == (pid, True)
    assert reaper.signal(pid, signal.SIGTERM, group=True, start=start)
    assert select.select([reaper.left_groups], [], [], 60)[0]
    assert [(report["event"], report["pid"]) for report in reaper.report_gone()] == [("gone", pid)]
    assert os.read(read, 1) == b"", "nobody holds the other end any more"
    os.close(read)


COUNTING = """
import os, signal, sys
numbers = {signal.SIGRTMIN, signal.SIGRTMIN + 1}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
os.write(int(sys.argv[1]), b"ready")
while signal.sigwait(numbers) == signal.SIGRTMIN:
    os.write(int(sys.argv[1]), b"x")
"""


def test_signal_for_the_group_of_a_process_that_is_no_child_reaches_its_leader_once() -> None:
    # Real-time signals are queued, the lowest number first (signal(7)).
    read, write = os.pipe()
    pid = orphan(f"exec {sys.executable} -c '{COUNTING}' {write}", write)
    os.close(write)
    watcher, start = Watcher(), start_of(pid)
    assert watcher.watch(pid, start)
    assert os.read(read, 5) == b"ready"
    assert watcher.signal(pid, signal.SIGRTMIN, group=True)
    assert signal_process(pid, start, signal.SIGRTMIN, group=True)
    os.kill(pid, signal.SIGRTMIN + 1)
    with open(read, "rb") as written:
        assert written.read() == b"xx"
    watcher.close()


def test_all_watched_processes_are_killed_at_once() -> None:
    pids = [orphan() for _ in range(3)]
    watcher = Watcher()
    for each in pids:
        watcher.watch(each, start_of(each))
    watcher.kill_all(60)
    assert watcher.starts == {}
    assert not any(map(is_alive, pids))


def test_watched_process_is_signalled_without_a_free_descriptor(pid: int) -> None:
    watcher = Watcher()
    assert watcher.watch(pid, start_of(pid))
    with descriptor_limit(0):
        assert watcher.signal(pid, signal.SIGKILL, group=True)
    assert ended(watcher) == [pid]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_process_that_has_become_another_users_gets_no_signal_and_is_left_behind(tmp_path: Path) -> None:
    """As a child that executes a program with the set-user-ID bit does, before root takes it over (sudo, su)."""
    noted = tmp_path / "pid"
    try:
        in_a_process_of_its_own(f"""
import subprocess
from pathlib import Path
from poolctl.keeper import reap
pid = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
Path({str(noted)!r}).write_text(str(pid))
os.setresuid(54321, 54321, 54321)
start = process_start(pid)
assert not reaper.signal(pid, signal.SIGTERM, group=False)
assert not reaper.signal(pid, signal.SIGKILL, group=True)
assert not reap.signal_process(pid, start, signal.SIGKILL, group=True)
assert reaper.watcher.watch(pid, start)
reaper.watcher.kill_all(0.01)
reap.KILLED_SECONDS = 0.01
reap.wait_or_kill_children(0.0)
assert process_start(pid) == start
""")
    finally:
        os.kill(int(noted.read_text()), signal.SIGKILL)


def test_process_that_is_not_watched_gets_no_signal(pid: int) -> None:
    watcher = Watcher()
    assert not watcher.signal(pid, signal.SIGKILL, group=True)
    assert is_alive(pid)
    watcher.close()


def test_unobserved_exit_is_reported_as_unknown(pid: int) -> None:
    reaper = Reaper()
    start = start_of(pid)
    assert reaper.watch(pid, start) is None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    gone = reaper.watch(os.getpid(), start)  # whose pid was another's before
    assert gone is not None
    assert (gone["pid"], gone["status"], gone["signal"]) == (os.getpid(), None, None)
    (report,) = reaper.report_exited()
    assert (report["pid"], report["status"], report["signal"]) == (pid, None, None)
    assert reaper.unacknowledged == [gone, report]


def test_thread_id_is_not_taken_for_a_process() -> None:
    reaper, let_go = Reaper(), threading.Event()
    thread = threading.Thread(target=let_go.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        gone = reaper.watch(thread.native_id, start_of(os.getpid()))
        assert gone is not None
        assert gone["status"] is None
    finally:
        let_go.set()
        thread.join()


def test_process_that_cannot_be_looked_at_is_not_said_to_have_ended() -> None:
    watcher = Watcher()
    with subprocess.Popen(["sleep", "60"]) as process:
        start = process_start(process.pid)
        assert start is not None
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        # Room for the pidfd, and for nothing else.
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                watcher.watch(process.pid, start)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert watcher.watch(process.pid, start)
        process.kill()
    watcher.close()


def test_remaining_children_get_their_time_and_are_then_killed_and_reaped() -> None:
    in_a_process_of_its_own("""
from poolctl.keeper.reap import children, wait_or_kill_children
def never():
    while True:
        signal.pause()
quick, slow = child(lambda: os._exit(0)), child(never)
leader = child(lambda: (os.setsid(), os.fork(), never()))
while os.getsid(leader) != leader:
    time.sleep(0.002)
assert set(children()) >= {slow, leader}
assert children(leader) is not None
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
began = time.monotonic()
wait_or_kill_children(0.3)
assert time.monotonic() - began >= 0.3
assert children() == []
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
child(lambda: os._exit(0))
began = time.monotonic()
wait_or_kill_children(60.0)
assert time.monotonic() - began < 30
wait_or_kill_children(0.0)
""")


def test_process_is_signalled_only_if_it_is_the_one_that_was_meant(pid: int) -> None:
    start = process_start(pid)
    assert start is not None
    with no_descriptor_left():
        assert not signal_process(pid, start + 1, signal.SIGKILL)
        assert is_alive(pid)
        assert signal_process(pid, start, signal.SIGKILL, group=True)
        wait_until(lambda: process_start(pid) is None)
        assert not signal_process(pid, start, signal.SIGKILL)


def test_group_of_a_process_is_signalled_before_it() -> None:
    script = "sleep 600 & echo $!; wait"
    with subprocess.Popen(
        ["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        other = int(process.stdout.readline())
        start = process_start(process.pid) or 0
        assert signal_process(process.pid, start, signal.SIGTERM, group=True)
        wait_until(lambda: not is_alive(other))
