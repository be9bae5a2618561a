"""A process of the pool's own that hangs is found and killed; one that answers, or is another, is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from poolctl.clock import Watchdog
from poolctl.keeper import wire
from poolctl.platform import waits_for_events
from poolctl.runners.process_link import Link, Receiver
from poolctl.runners.process_watchdog import PING, ProcessWatchdog, identity, kill
from tests.deadline import wait_until


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as found:
        yield found
        found.kill()


async def asked(
    known: dict[str, Any],
    *,
    answers: int,
    most: int = 1000,
    pid: int = 0,
    until_end_of: subprocess.Popen[bytes] | None = None,
    silence_seconds: float = 0.1,
) -> int:
    """How often a process that answers so many times was asked, until that process ended or it was asked `most` times.

    Half a second is enough for a process that is not to be asked again.

    `pid` is what it says to be its own.
    """
    named = [identity(pid)] if pid else []
    ours, theirs = wire.pair()
    theirs.setblocking(False)
    count = 0

    def hear() -> None:
        nonlocal count
        received = wire.receive(theirs)
        assert received == (PING, [])
        count += 1
        if count <= answers:
            wire.send(theirs, {"t": "pong", "pid": pid})

    loop = asyncio.get_running_loop()
    loop.add_reader(theirs.fileno(), hear)

    class Answers(Receiver):
        def received(self, message: wire.Message, fds: list[int]) -> None:
            watched.received(message)

    link = Link(ours, Answers())
    found: list[dict[str, Any]] = []
    watched = ProcessWatchdog(link, known, "it", found.append, Watchdog(loop.time(), 0.02, silence_seconds))
    deadline = loop.time() + (30 if until_end_of or answers == most else 0.5)
    while loop.time() < deadline and count < most and not (until_end_of and until_end_of.poll() is not None):
        await asyncio.sleep(0.01)
    watched.close()
    loop.remove_reader(theirs.fileno())
    link.close()
    theirs.close()
    assert found == named
    return count


def test_process_that_stops_answering_is_killed(process: subprocess.Popen[bytes]) -> None:
    assert asyncio.run(asked(identity(process.pid), answers=3, until_end_of=process)) == 4
    assert process.wait(60) == -9


def test_process_that_answers_is_pinged_again(process: subprocess.Popen[bytes]) -> None:
    assert asyncio.run(asked(identity(process.pid), answers=10, most=10, silence_seconds=20)) == 10
    assert process.poll() is None


def test_process_that_another_supervisor_started_sends_its_pid(process: subprocess.Popen[bytes]) -> None:
    assert asyncio.run(asked({}, answers=2, pid=process.pid, until_end_of=process)) == 3
    assert process.wait(60) == -9


def test_process_that_does_not_know_pings_is_left_alone() -> None:
    assert asyncio.run(asked({}, answers=0)) == 1


def test_process_that_has_reused_the_pid_is_left_alone(process: subprocess.Popen[bytes]) -> None:
    known = identity(process.pid)
    kill({**known, "start": known["start"] - 1})
    kill({"pid": process.pid})
    assert process.poll() is None
    kill(known)
    assert process.wait(60) == -9
    kill(known)


def test_pause_of_the_watching_process_does_not_count_as_silence(process: subprocess.Popen[bytes]) -> None:
    async def scenario() -> int:
        # More than a busy machine lets an answer wait, less than the pause.
        asyncio.get_running_loop().call_later(0.05, time.sleep, 2.5)
        return await asked(identity(process.pid), answers=10, most=10, silence_seconds=2)

    assert asyncio.run(scenario()) == 10
    assert process.poll() is None


def test_process_that_sleeps_in_its_event_loop_is_not_pinged_again() -> None:
    argv = [sys.executable, "-c", "import select; select.epoll().poll()"]
    with subprocess.Popen(argv) as process:
        try:
            wait_until(lambda: waits_for_events(process.pid), what="it waits")
            assert asyncio.run(asked(identity(process.pid), answers=1)) == 1
            os.kill(process.pid, signal.SIGSTOP)
            wait_until(lambda: not waits_for_events(process.pid), what="it is stopped")
            assert asyncio.run(asked(identity(process.pid), answers=1, until_end_of=process)) == 2
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
