"""The files that a killed pool leaves in its runtime directory: a dead socket, a name, the desired state."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Collection

from poolctl.control.directory import SOCKET_NAME
from poolctl.core.desired import Desired
from poolctl.keeper import desired_state_file, rendezvous

from .launch import listens


def remove_stale_files(pool_directory: str) -> None:
    """Remove them, unless the pool runs or is being started. Never fails."""
    if os.path.lexists(f"{pool_directory}/{SOCKET_NAME}"):
        _unless_it_runs(pool_directory, _remove)


def forget_desired_state(pool_directory: str, names: Collection[str] | None = None) -> None:
    """Let the next start find these servers, or all, as deliberately stopped ones. Never fails."""
    left = desired_state_file.read(pool_directory)
    if not left:
        return
    if names is None:
        _unless_it_runs(pool_directory, desired_state_file.remove)
        return
    for name, wanted in left.get("servers", {}).items():
        if name in names:
            wanted["desired"] = Desired.STOPPED.value
    content = json.dumps(left).encode()
    _unless_it_runs(pool_directory, lambda directory: desired_state_file.write(directory, content))


def _unless_it_runs(pool_directory: str, act: Callable[[str], None]) -> None:
    with contextlib.suppress(OSError):
        lock = os.open(f"{pool_directory}/lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not listens(f"{pool_directory}/{SOCKET_NAME}"):
                act(pool_directory)
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
    rendezvous.sweep(pool_directory)
