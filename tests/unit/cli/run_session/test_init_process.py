"""Process 1 of a container: what it passes on, reaps, and waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

INIT = """
import os, signal, sys, time
from poolctl.cli.run_session.init_process import continue_in_child
continue_in_child({limit})
{child}
"""


def as_first_process(child: str, *, limit: float = 30.0) -> subprocess.Popen[str]:
    """A process that behaves as PID 1 of a container does, around this child."""
    script = INIT.format(limit=limit, child=child)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("child", "code"), [("sys.exit(0)", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)]
)
def test_first_process_of_a_container_exits_as_its_child_does(child: str, code: int) -> None:
    with as_first_process(child) as first:
        assert first.wait(60) == code


@pytest.mark.slow
def test_first_process_passes_on_what_it_is_sent_and_reaps_meanwhile() -> None:
    child = """
def came(number, frame):
    os.write(1, f"{signal.Signals(number).name}\\n".encode())
    if number == signal.SIGTERM:
        sys.exit(9)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, came)
if not os.fork():
    os._exit(0)
os.wait()
print("up", flush=True)
while True:
    time.sleep(0.01)
"""
    with as_first_process(child) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "up\n"
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
            first.send_signal(number)
            assert first.stdout.readline() == f"{number.name}\n"
        assert first.wait(60) == 9


@pytest.mark.slow
def test_first_process_leaves_a_child_that_does_not_end_after_the_limit() -> None:
    child = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(60)"
    with as_first_process(child, limit=0.2) as first:
        assert first.stdout is not None
        pid = int(first.stdout.readline())
        begun = time.monotonic()
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 137
        assert time.monotonic() - begun < 30
        os.kill(pid, signal.SIGKILL)
