"""Kills a supervisor or its keeper after its N-th message or file. Loaded from PYTHONPATH, active in supervisors only.

The file named by POOLCTL_FAULT arms it: `self N`, `parent N`, or `self N TIMES` for several supervisors in a row.
Before the last one it removes the file.

With `busy N` the supervisor hangs in a loop instead, with `blocked N` in a system call, and with `stopped N` it
gets SIGSTOP. With `orphan` it is stopped between its keeper's death and the start of the next keeper.
"""

import contextlib
import os
import signal
import socket
import sys
import time

_FILE = os.environ.get("POOLCTL_FAULT", "")


def _perform(deed: str) -> None:
    if deed == "busy":
        while True:
            pass
    if deed == "blocked":
        os.read(os.pipe()[0], 1)
    if deed == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        os.kill(os.getpid() if deed == "self" else os.getppid(), signal.SIGKILL)


def _install_and_list_changed_files() -> None:
    send, replace, spawn = socket.socket.sendmsg, os.replace, os.posix_spawn
    left: list[int] = []
    keeper = os.getppid()

    def count() -> None:
        try:
            with open(_FILE) as file:
                deed, number, *more = file.read().split()
        except (OSError, ValueError):
            left.clear()
            return
        left[:] = [(left[0] if left else int(number)) - 1]
        if left[0] > 0:
            return
        times = int(more[0]) - 1 if more else 0
        if times:
            with open(f"{_FILE}.new", "w") as file:
                file.write(f"{deed} {number} {times}")
            replace(f"{_FILE}.new", _FILE)
        else:
            os.unlink(_FILE)
        _perform(deed)

    def counted_send(sock, *args):  # type: ignore[no-untyped-def]
        sent = send(sock, *args)
        if sock.type == socket.SOCK_SEQPACKET:  # see poolctl.keeper.wire
            count()
        return sent

    def counted_replace(*args, **options):  # type: ignore[no-untyped-def]
        replace(*args, **options)
        count()

    def late_spawn(*args, **options):  # type: ignore[no-untyped-def]
        stopped = False
        with contextlib.suppress(FileNotFoundError), open(_FILE) as file:
            stopped = file.read() == "orphan"
        if stopped:
            # Its files are closed before its children notice its exit.
            while os.getppid() == keeper:
                time.sleep(0.001)
            os.unlink(_FILE)
            os.kill(os.getpid(), signal.SIGSTOP)
        return spawn(*args, **options)

    socket.socket.sendmsg, os.replace, os.posix_spawn = counted_send, counted_replace, late_spawn


if _FILE and "supervisor" in sys.orig_argv:
    _install_and_list_changed_files()
