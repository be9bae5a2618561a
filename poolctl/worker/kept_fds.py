"""Descriptors that a library keeps open for ever, and their numbers in forks.

libuv opens a pipe with the first loop of a process and keeps it when the loop is closed. After every later fork the
child closes it *by number* and opens another on the lowest free numbers. A child that has put another descriptor there
loses it, and aborts at its own first fork. So no lower number is ever free: then the pipe keeps its numbers over forks.
"""

from __future__ import annotations

import os

# The descriptors that a process of the pool is given begin here.
FIRST_FD = 16

_kept: list[int] = []


def descriptors() -> set[int]:
    """The descriptors of this process that are open now."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # the listing's own
        found.add(int(name))
    return found


def keep_fds(fds: set[int]) -> None:
    """Keep these open from now on, here and in forks; no others may be open above them. Occupies all others below."""
    _kept[:] = sorted(fds)
    assert all(fd < FIRST_FD for fd in _kept), f"{_kept} are not low enough"
    occupy_others()


def occupy_others() -> None:
    """Occupy every number below the kept ones: before the first fork of a process, and after it closed some."""
    while _kept:
        fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if fd > _kept[-1]:
            os.close(fd)
            return


def close_others() -> None:
    """Close every descriptor below FIRST_FD that is not kept. A process that forks for the pool occupies them again."""
    first = 3
    # By ranges: an error for each one that is closed already would make a few more pages private.
    for fd in (*_kept, FIRST_FD):
        os.closerange(first, fd)
        first = fd + 1
