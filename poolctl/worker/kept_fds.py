"""Descriptors that a library has opened for good, and how forks live with them.

libuv opens a pipe with the first loop of a process, keeps it when the loop is gone, and at every later fork closes it
in the child *by number* and opens another on the lowest free numbers. A child that has put something else there loses
it, and aborts at its own first fork. So the numbers are made to stay the same over forks: nothing below is ever free.
"""

from __future__ import annotations

import os

# What a process of ours is given stands from here on.
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
    """Leave these alone from now on, here and in forks; no others may be open above them. Occupies the others below."""
    _kept[:] = sorted(fds)
    assert all(fd < FIRST_FD for fd in _kept), f"{_kept} are not low enough"
    occupy_others()


def occupy_others() -> None:
    """Occupy every number below those that are held: before the first fork of a process, and after it closed some."""
    while _kept:
        fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if fd > _kept[-1]:
            os.close(fd)
            return


def close_others() -> None:
    """Close what stands below FIRST_FD and is not held. A process that forks for us occupies it again then."""
    first = 3
    # Not one by one: an error for each that is closed already is a few pages more that are not shared.
    for fd in (*_kept, FIRST_FD):
        os.closerange(first, fd)
        first = fd + 1
