"""Signals to a process that is known by its pid and its start time, and to no other that has the pid by now."""

from __future__ import annotations

import errno
import os
import signal

from ..platform import process_start


def signal_process(pid: int, start: int, number: int, *, group: bool = False) -> bool:
    """Send a signal to the process of that start time, or first to its group; False when it has ended.

    It goes by pidfd where there is one (not in every sandbox): another process that has the pid by now gets nothing.
    """
    process = -1
    try:
        try:
            process = os.pidfd_open(pid)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS):
                return False
        if process_start(pid) != start:
            return False
        if group:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                pass  # it leads none
        if process < 0:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        return False
    finally:
        if process >= 0:
            os.close(process)
    return True
