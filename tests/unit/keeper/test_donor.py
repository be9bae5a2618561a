"""A new keeper continues, then kills, a supervisor that does not answer while it fills it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from poolctl.clock import PING_SECONDS, SILENT_SECONDS
from poolctl.keeper import wire
from poolctl.keeper.clients import Donor
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


def test_a_donor_that_does_not_answer_is_continued_and_killed_when_that_does_not_help(
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
        assert stopped.wait(10) == -signal.SIGKILL


def test_a_donor_that_answers_is_asked_again_and_left_alone(stopped: subprocess.Popen[bytes]) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        donor = Donor(ours, {"pid": stopped.pid, "start": process_start(stopped.pid)}, 0.0)
        for asked in range(10):
            watch(donor, PING_SECONDS * (asked + 1))
            assert wire.receive(theirs) == ({"event": "ping"}, [])
            donor.received(PING_SECONDS * (asked + 1))
        assert stat(stopped.pid).state == "T"


def test_a_pause_of_the_keeper_is_not_held_against_the_donor(stopped: subprocess.Popen[bytes]) -> None:
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
