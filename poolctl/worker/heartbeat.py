"""A worker's answer to a heartbeat: the time, written where the supervisor looks. Nothing is sent, nothing ticks."""

from __future__ import annotations

import socket
import time

from .tally import BEAT_ASKED_NS, BEAT_AT_NS, BEAT_LAG_NS

# As the wire writes it, and compared as it is: parsing it would touch pages that a fork shares until then.
BEAT = b'{"order":"beat"}'


def begin(tally: memoryview | None) -> None:
    """Say that this worker knows of heartbeats."""
    if tally is not None:
        tally[BEAT_AT_NS] = time.monotonic_ns()


def answer(control: socket.socket, tally: memoryview | None) -> bool:
    """Whether the next message on the control socket was a heartbeat; it has been read and answered then."""
    try:
        if control.recv(len(BEAT) + 1, socket.MSG_PEEK) != BEAT:
            return False
        control.recv(len(BEAT))
    except OSError:
        # Whoever reads next sees the same.
        return False
    if tally is not None:
        now = time.monotonic_ns()
        tally[BEAT_LAG_NS] = max(0, now - tally[BEAT_ASKED_NS])
        tally[BEAT_AT_NS] = now
    return True
