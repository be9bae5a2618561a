"""Processes that are not our children: known by more than their pid, and killed with what they leave."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from poolctl.keeper.reap import Reaper, Watcher, kill_rest
from poolctl.platform import process_start
from tests.deadline import wait_until
from tests.processes import is_alive

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
    assert select.select([watcher], [], [], 10)[0]
    return watcher.ended()


def test_the_end_is_seen_once(pid: int) -> None:
    watcher = Watcher()
    assert watcher.watch(pid, start_of(pid))
    assert watcher.watch(pid, start_of(pid)), "to say it again is no error"
    assert watcher.ended() == []
    assert list(watcher.starts) == [pid]
    assert watcher.signal(pid, signal.SIGTERM, group=False)
    assert ended(watcher) == [pid]
    assert watcher.ended() == []
    assert not watcher.signal(pid, signal.SIGTERM, group=False)


def test_another_process_with_the_same_pid_is_not_taken_for_it(pid: int) -> None:
    watcher = Watcher()
    assert not watcher.watch(pid, start_of(pid) - 1)
    assert watcher.starts == {}
    kill_rest(pid, start_of(pid) - 1)
    assert is_alive(pid)
    assert not watcher.signal(pid, signal.SIGKILL, group=True), "it is not watched"


def test_processes_left_in_its_group_end_with_it() -> None:
    read, write = os.pipe()
    pid = orphan("sleep 60 & exec sleep 60", write)
    os.close(write)
    watcher = Watcher()
    assert watcher.watch(pid, start_of(pid))
    os.kill(pid, signal.SIGKILL)
    assert ended(watcher) == [pid]
    assert os.read(read, 1) == b"", "nobody holds the other end any more"
    os.close(read)


def test_all_are_killed_at_once() -> None:
    pids = [orphan() for _ in range(3)]
    watcher = Watcher()
    for each in pids:
        watcher.watch(each, start_of(each))
    watcher.kill_all(10)
    assert watcher.starts == {}
    assert not any(map(is_alive, pids))


def test_unobserved_exit_is_reported_as_unknown(pid: int) -> None:
    reaper = Reaper()
    start = start_of(pid)
    assert reaper.watch(pid, start) is None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    gone = reaper.watch(os.getpid(), start)  # whose pid was another's before
    assert gone is not None
    assert (gone["pid"], gone["status"], gone["signal"]) == (os.getpid(), None, None)
    (report,) = reaper.ended()
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
