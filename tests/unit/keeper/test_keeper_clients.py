"""A donor that does not answer is continued, then killed; a supervisor that exits is restarted with backoff."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolctl.clock import PING_SECONDS, SILENT_SECONDS
from poolctl.keeper import wire
from poolctl.keeper.keeper_clients import CALM, Donor, SupervisorProcess
from poolctl.platform import process_start
from tests.deadline import wait_until
from tests.processes import stat


@pytest.fixture
def stopped() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: stat(process.pid).state == "T")
        yield process
        process.kill()


def watch(donor: Donor, until: float) -> None:
    """Look whenever it is due, as a keeper does that runs all the time."""
    while donor.due <= until:
        donor.check(donor.due)


def test_silent_donor_is_continued_and_then_killed(
    stopped: subprocess.Popen[bytes],
) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        donor = Donor(ours, {"pid": stopped.pid, "start": process_start(stopped.pid)}, 0.0)
        donor.check(0.0, early=True)
        assert wire.receive(theirs) == ({"event": "ping"}, [])
        watch(donor, SILENT_SECONDS / 10)
        assert stat(stopped.pid).state == "T"
        watch(donor, SILENT_SECONDS - 0.1)
        wait_until(lambda: stat(stopped.pid).state != "T")
        assert stopped.poll() is None
        watch(donor, SILENT_SECONDS)
        assert stopped.wait(60) == -signal.SIGKILL


def test_donor_that_answers_is_pinged_again_and_gets_no_signal(stopped: subprocess.Popen[bytes]) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        donor = Donor(ours, {"pid": stopped.pid, "start": process_start(stopped.pid)}, 0.0)
        for asked in range(10):
            watch(donor, PING_SECONDS * (asked + 1))
            assert wire.receive(theirs) == ({"event": "ping"}, [])
            donor.received(PING_SECONDS * (asked + 1))
        assert stat(stopped.pid).state == "T"


def test_pause_of_the_keeper_does_not_count_as_silence_of_the_donor(stopped: subprocess.Popen[bytes]) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        donor = Donor(ours, {"pid": stopped.pid, "start": process_start(stopped.pid)}, 0.0)
        donor.check(0.0, early=True)
        donor.check(1000.0)
        assert stat(stopped.pid).state == "T"


@pytest.mark.parametrize("start", [None, 1])
def test_process_that_is_not_known_to_be_the_donor_gets_no_signal(
    stopped: subprocess.Popen[bytes], start: int | None
) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        donor = Donor(ours, {"pid": stopped.pid, "start": start}, 0.0)
        watch(donor, 3 * SILENT_SECONDS)
        donor.check(3 * SILENT_SECONDS)
        assert stat(stopped.pid).state == "T"


def test_restart_pauses_grow_to_half_a_minute_and_start_over_after_a_steady_run(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    pauses = []
    for _ in range(9):
        process.died(0.0)
        assert process.due is not None
        pauses.append(process.due)
    assert pauses == [0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0]
    process.died(100.0)
    assert process.due == 100.0


def test_supervisor_that_managed_the_pool_is_replaced_at_once_until_it_is_to_be_calm(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    pauses = []
    for _ in range(6):
        process.begun(1, 0.0)
        process.adopted()
        process.died(0.0)
        pauses.append(process.due)
    assert pauses == [0.0, 0.0, 0.0, 0.0, 2.0, 5.0]


def test_supervisor_that_exits_before_it_manages_the_pool_is_not_replaced_at_once(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    process.adopted()
    process.died(0.0)
    process.begun(1, 0.0)
    process.died(0.0)
    assert process.due == 0.1


def test_fifth_crash_within_a_minute_makes_the_next_supervisor_calm(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    for now in (0.0, 10.0, 20.0, 30.0):
        process.died(now)
    assert not process.calm
    process.died(61.0)  # the first of them is forgotten by now
    assert not process.calm
    process.died(62.0)
    assert process.calm
    process.died(300.0)
    assert not process.calm


def test_calm_supervisor_is_started_with_the_calm_flag(tmp_path: Path) -> None:
    show = f"import sys; open({str(tmp_path / 'said')!r}, 'w').write(' '.join(sys.argv[1:]))"
    process = SupervisorProcess([sys.executable, "-c", show, "file"], str(tmp_path), 0.0)
    for now in range(5):
        process.died(float(now))
    link = process.start(5.0)
    assert link is not None
    link.close()
    os.waitpid(process.pid, 0)
    assert (tmp_path / "said").read_text() == f"file {CALM}"
