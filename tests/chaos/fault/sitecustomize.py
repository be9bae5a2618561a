"""Kills a supervisor, or its keeper, after its N-th message or file: found in PYTHONPATH, awake in supervisors only.

The file that POOLCTL_FAULT names arms it: `self N`, `parent N`, or `self N TIMES` for as many supervisors in a row. The
last time it takes the file away before.
"""

import os
import signal
import socket
import sys

_FILE = os.environ.get("POOLCTL_FAULT", "")


def _install() -> None:
    send, replace = socket.socket.sendmsg, os.replace
    left: list[int] = []

    def count() -> None:
        try:
            with open(_FILE) as file:
                whom, number, *more = file.read().split()
        except (OSError, ValueError):
            left.clear()
            return
        left[:] = [(left[0] if left else int(number)) - 1]
        if left[0] > 0:
            return
        times = int(more[0]) - 1 if more else 0
        if times:
            with open(f"{_FILE}.new", "w") as file:
                file.write(f"{whom} {number} {times}")
            replace(f"{_FILE}.new", _FILE)
        else:
            os.unlink(_FILE)
        os.kill(os.getpid() if whom == "self" else os.getppid(), signal.SIGKILL)

    def counted_send(sock, *args):  # type: ignore[no-untyped-def]
        sent = send(sock, *args)
        if sock.type == socket.SOCK_SEQPACKET:  # see poolctl.keeper.wire
            count()
        return sent

    def counted_replace(*args, **options):  # type: ignore[no-untyped-def]
        replace(*args, **options)
        count()

    socket.socket.sendmsg, os.replace = counted_send, counted_replace


if _FILE and "supervisor" in sys.orig_argv:
    _install()
