"""What a pool that was killed leaves in its runtime directory: a socket that nobody listens on, and its name."""

from __future__ import annotations

import contextlib
import fcntl
import os

from poolctl.control.directory import SOCKET_NAME

from .launch import listens


def remove_leftovers(pool_directory: str) -> None:
    """Remove them, unless the pool runs or is being started. Never fails."""
    if not os.path.lexists(f"{pool_directory}/{SOCKET_NAME}"):
        return
    with contextlib.suppress(OSError):
        lock = os.open(f"{pool_directory}/lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not listens(f"{pool_directory}/{SOCKET_NAME}"):
                _remove(pool_directory)
        finally:
            os.close(lock)


def _remove(pool_directory: str) -> None:
    root, key = os.path.split(pool_directory)
    names = [
        entry.path for entry in os.scandir(root) if entry.is_symlink() and os.readlink(entry.path) == key
    ]
    for path in (f"{pool_directory}/{SOCKET_NAME}", f"{pool_directory}/info.json", *names):
        if os.path.lexists(path):
            os.unlink(path)
