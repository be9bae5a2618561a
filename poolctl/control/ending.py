"""Waiting until a stopped pool's last process is gone, so that the next command meets nothing of it."""

from __future__ import annotations

import os
import select

LIMIT_SECONDS = 10.0


def await_end(pid: int, limit_seconds: float = LIMIT_SECONDS) -> bool:
    """Whether the process has ended within the limit. One that is not there has; 0 is none."""
    if not pid:
        return True
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # a kernel or a sandbox without pidfd_open(2)
        return not os.path.exists(f"/proc/{pid}")
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(limit_seconds * 1000))
    finally:
        os.close(process)
