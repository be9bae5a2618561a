"""Standard output as a descriptor."""

from __future__ import annotations

import sys


def stdout_fd() -> int:
    """Standard output as a descriptor; -1 when something else stands in for it."""
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return -1
