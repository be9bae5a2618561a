"""Kills a supervisor, or its keeper, after its N-th message: found in PYTHONPATH, and awake in supervisors only.

The file that POOLCTL_FAULT names arms it: `self N` or `parent N`. It fires once, and takes the file away before.
"""

import os
import signal
import socket
import sys

_FILE = os.environ.get("POOLCTL_FAULT", "")


def _install() -> None:
    send = socket.send_fds
    left: list[int] = []

    def counted(*args, **options):  # type: ignore[no-untyped-def]
        sent = send(*args, **options)
        try:
            with open(_FILE) as file:
                whom, number = file.read().split()
        except (OSError, ValueError):
            left.clear()
            return sent
        left[:] = [(left[0] if left else int(number)) - 1]
        if left[0] <= 0:
            os.unlink(_FILE)
            os.kill(os.getpid() if whom == "self" else os.getppid(), signal.SIGKILL)
        return sent

    socket.send_fds = counted


if _FILE and "supervisor" in sys.orig_argv:
    _install()
