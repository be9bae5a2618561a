"""Ownership of descriptors: each is closed once, by its owner, however many users it has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Protocol


class HasDescriptor(Protocol):
    """A socket, or anything else that owns a descriptor; `fileno()` is -1 once it is closed."""

    def fileno(self) -> int:
        """The descriptor."""


class Descriptor:
    """The owner of a descriptor that belongs to no socket object."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """See HasDescriptor."""
        return self._fd

    def close(self) -> None:
        """Close it; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Duplicate(Descriptor):
    """A duplicate that its holder closes too: only the number of the original was known."""


def owners_of(fds: Iterable[int | HasDescriptor]) -> list[HasDescriptor]:
    """The owners as they are, and duplicates of what was given by number. Raises OSError."""
    return [Duplicate(os.dup(fd)) if isinstance(fd, int) else fd for fd in fds]


def close_duplicates(owners: Iterable[HasDescriptor]) -> None:
    """Close the duplicates; the other owners belong to the caller."""
    for owner in owners:
        if isinstance(owner, Duplicate):
            owner.close()


def give_up(fds: Iterable[int]) -> None:
    """Let go of what these numbers stand for, in a forked child, and keep the numbers in use.

    They are not closed: the objects that own the numbers live on, and would later close another file.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        with contextlib.suppress(OSError):
            os.dup2(null, fd, inheritable=False)
    os.close(null)
