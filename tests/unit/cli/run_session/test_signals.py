"""The signals of `run` while the pool is launched."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from poolctl.cli.run_session.signals import status_after, stopping_signals


def test_ignored_signals_stop_nothing_but_a_hangup_is_a_reload_under_a_service_manager() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert stopping_signals({}) == [signal.SIGINT, signal.SIGTERM]
        assert stopping_signals({"NOTIFY_SOCKET": "/x"}) == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stopping_signals({}) == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize(
    ("number", "has_command", "status"),
    [
        (signal.SIGINT, False, 130),
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, False, 0),
        (signal.SIGHUP, True, 143),
    ],
)
def test_status_after_a_signal(number: int, has_command: bool, status: int) -> None:
    assert status_after(number, has_command=has_command) == status


NOTING = """
import os, signal, sys
from poolctl.cli.run_session.signals import blocked_signals, noted_signals
numbers = [signal.SIGINT, signal.SIGTERM]
with blocked_signals(numbers):
    with noted_signals(numbers, lambda number: 50 + number) as noted:
        for number in map(int, sys.argv[1:]):
            os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)
    pending = signal.sigpending()
print(noted == [signal.SIGINT], pending == {signal.SIGTERM}, signal.sigpending() == set())
"""


def test_first_signal_is_noted_a_second_one_ends_the_process_and_later_ones_are_dropped_at_the_end() -> None:
    def run(*numbers: int) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", NOTING, *map(str, map(int, numbers))], capture_output=True, text=True
        )
        return done.returncode, done.stdout

    assert run(signal.SIGINT) == (0, "True True True\n")
    assert run(signal.SIGINT, signal.SIGTERM) == (50 + signal.SIGTERM, "")
