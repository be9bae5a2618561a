"""The end of a pool is bounded: by what its supervisor says that it may take, and by a limit of the keeper's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.keeper import pool_files
from poolctl.keeper.fd_store import Store
from poolctl.keeper.keeper_exit import ALONE_SECONDS, ANSWER_SECONDS, ENDING, STOP_SECONDS, Shutdown, restore
from poolctl.keeper.reap import Reaper
from poolctl.platform import process_start

NOBODY = 2**22 + 1  # no pid is as high


def shutdown(directory: Path) -> Shutdown:
    store = Store()
    store.put("worker:web.1.0", {"pid": NOBODY}, [])
    return Shutdown(store, Reaper(), str(directory))


def test_supervisor_that_does_not_confirm_a_shutdown_is_not_waited_for(tmp_path: Path) -> None:
    end = shutdown(tmp_path)
    assert not end.check(1e9, 0)
    end.begin(100.0)
    assert not end.check(100.0 + ANSWER_SECONDS - 1, 0)
    assert not end.alone
    assert not end.check(100.0 + ANSWER_SECONDS, 0)
    assert end.alone
    assert end.due == 100.0 + ANSWER_SECONDS + ALONE_SECONDS
    assert end.check(100.0 + ANSWER_SECONDS, 0), "nobody is there"


def test_supervisor_that_confirms_a_shutdown_gets_the_time_of_its_servers(tmp_path: Path) -> None:
    for said, limit in ((0.0, STOP_SECONDS), (1.0, STOP_SECONDS), (90.0, 90.0)):
        end = shutdown(tmp_path)
        end.begin(100.0)
        end.answered(said)
        assert not end.check(100.0 + ANSWER_SECONDS + limit - 1, 0)
        assert not end.alone
        end.answered(said)  # a successor of the first, which has died at it
        end.check(100.0 + ANSWER_SECONDS + limit, 0)
        assert end.alone


def test_keeper_that_stops_the_pool_alone_asks_each_worker_with_its_own_signal(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as worker, subprocess.Popen(["sleep", "60"]) as supervisor:
        try:
            store = Store()
            started = process_start(worker.pid)
            store.put(
                "worker:web.1.0", {"pid": worker.pid, "start": started, "stop_signal": signal.SIGQUIT}, []
            )
            end = Shutdown(store, Reaper(), str(tmp_path))
            end.begin(100.0)
            assert not end.check(100.0 + ANSWER_SECONDS, supervisor.pid)
            assert worker.wait(60) == -signal.SIGQUIT
            assert supervisor.wait(60) == -signal.SIGKILL
        finally:
            worker.kill()
            supervisor.kill()


def test_shutdown_of_a_pool_without_workers_needs_no_second_limit(tmp_path: Path) -> None:
    end = Shutdown(Store(), Reaper(), str(tmp_path))
    end.begin(100.0)
    end.begin(200.0)
    assert end.due == 100.0 + ANSWER_SECONDS
    assert end.check(100.0 + ANSWER_SECONDS, 0)
    assert not end.alone


def test_confirmation_of_a_shutdown_that_nobody_requested_is_ignored(tmp_path: Path) -> None:
    end = shutdown(tmp_path)
    end.answered(90.0)
    assert not end.begun
    assert end.due is None
    end.alone = True
    end.begin(100.0)
    end.answered(90.0)
    assert end.due == 100.0 + ANSWER_SECONDS, "too late"


@pytest.mark.parametrize(
    ("begun", "last", "kept"), [(False, False, True), (True, False, False), (True, True, True)]
)
def test_desired_state_is_removed_with_a_pool_that_was_ended(
    tmp_path: Path, begun: bool, last: bool, kept: bool
) -> None:
    end = shutdown(tmp_path)
    (tmp_path / pool_files.DESIRED).write_text("{}")
    if begun:
        end.begin(100.0)
    end.last = last
    end.finish()
    assert (tmp_path / pool_files.DESIRED).exists() is kept


SIGNALS = """
import os, select, signal, sys
from poolctl.keeper.keeper_exit import Signals
signals = Signals()
seen = []
for number in (signal.SIGCHLD, *map(int, sys.argv[1:])):
    os.kill(os.getpid(), number)
    assert select.select([signals.fileno()], [], [], 30)[0]
    seen.append(signals.taken())
print(seen)
"""


def test_signals_that_end_the_pool_are_told_from_the_exit_of_a_child() -> None:
    numbers = [str(int(number)) for number in ENDING]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, *numbers], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[False, True, True, True]", done.stderr


def test_next_program_has_the_state_of_the_one_before() -> None:
    store, reaper = Store(), Reaper()
    read, write = os.pipe()
    os.set_inheritable(read, True)
    file = os.memfd_create("state")
    entries = f'[["listener:web", {{"key": "tcp"}}, [{read}]]]'
    os.write(
        file,
        f'{{"entries": {entries}, "unheard": [], "sequence": 7, "watched": {{}}, "open_files": [64, 4096]}}'.encode(),
    )
    try:
        assert restore(file, store, reaper) == (64, 4096)
        assert store.rows() == [("listener:web", {"key": "tcp"}, [read])]
        assert not os.get_inheritable(read)
        assert reaper.sequence == 7
    finally:
        store.clear()
        os.close(write)
