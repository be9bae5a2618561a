"""A supervisor that has lost its keeper waits for the next one, which may have been stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import Any

import pytest

from poolctl.keeper import wire
from poolctl.runners.process_watchdog import identity
from poolctl.supervisor.takeover import keeper_replacement
from tests.deadline import wait_until
from tests.processes import stat


@pytest.mark.parametrize("full", [False, True])
def test_a_new_keeper_that_is_stopped_while_it_is_filled_is_continued(
    monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    monkeypatch.setattr(keeper_replacement, "_LATE_SECONDS", 0.05)
    ours, theirs = wire.pair()
    with ours, theirs, subprocess.Popen(["sleep", "60"]) as process:
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: stat(process.pid).state == "T")
        ours.settimeout(0.05)
        # More than a socket takes unread, or nothing at all: then what is missing is the answer.
        entries: dict[str, Any] = {f"note {number}": ("x" * 1000, []) for number in range(1000 * full)}

        def rescued() -> None:
            keeper = identity(process.pid)
            keeper_replacement._fill(ours, keeper, entries, terminate=False)
            keeper_replacement._await(ours, "adopted", keeper)

        rescuer = threading.Thread(target=rescued)
        rescuer.start()
        wait_until(lambda: stat(process.pid).state != "T")
        # As the keeper does when it goes on.
        while (received := wire.receive(theirs, wait=True)) is not None:
            if received[0]["op"] == "whole":
                break
        # And as it does while its own supervisor starts.
        wire.send(theirs, {"event": "ping"})
        answered = wire.receive(theirs, wait=True)
        assert answered is not None
        assert answered[0]["op"] == "pong"
        wire.send(theirs, {"event": "adopted"})
        rescuer.join(60)
        assert not rescuer.is_alive()
        process.kill()
