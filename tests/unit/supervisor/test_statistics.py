"""The figures of processes."""

from __future__ import annotations

import os
import time

from poolctl.supervisor.observers.statistics import Usage


def test_cpu_at_the_first_look_is_the_average_since_the_process_was_started() -> None:
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    usage = Usage()
    usage.look(os.getpid(), time.monotonic())
    assert usage.cpu_percent > 0
