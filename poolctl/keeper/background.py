"""Starting a program that outlives its starter and holds nothing of it."""

from __future__ import annotations

import fcntl
import os


def in_background(argv: list[str], env: dict[str, str], fds: list[int]) -> None:
    """Run `argv` in a session of its own, not as our child, with nothing of ours but `fds` at 3, 4 …"""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                # Above all places that are taken below, and as low as that: the limit of open files may be small.
                lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(fds)) for fd in fds]
                null = os.open(os.devnull, os.O_RDWR)
                for standard in (0, 1, 2):
                    os.dup2(null, standard)
                for place, fd in enumerate(lifted, 3):
                    os.dup2(fd, place)
                os.closerange(3 + len(fds), os.sysconf("SC_OPEN_MAX"))
                os.chdir("/")
                os.execve(argv[0], argv, env)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
