"""Standard output as a descriptor: for whoever waits, and has to know whether somebody still reads."""

from __future__ import annotations

import sys


def stdout_fd() -> int:
    """Its descriptor; -1 when something else stands in for it."""
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return -1
