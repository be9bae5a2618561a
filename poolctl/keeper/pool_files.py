"""The files in a pool's directory: its lock, and the desired state that a killed pool leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os

from ..platform import boot_identity, replace_file
from . import wire

GATEWAY = "g."  # the names of the runtime sockets of HAProxy begin with this
_SOCKET_TABLE = "/proc/net/unix"

DESIRED = "wanted.json"
REGISTRATIONS = "registrations.json"
PROCESSES = "processes"  # see runners.left_overs
CONTEXT_SECRET = "gateway-secret"  # the gateway authenticates to workers by a value derived from this secret
_CONTROL = "control.sock"
_LOCK = "lock"


def unlink_quietly(path: str) -> None:
    """Remove a file, or do nothing if that fails: the directory's owner removes files of exited processes later."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def remove_stale_sockets(directory: str) -> None:
    """Remove the files of sockets that no process has open. The pool of this directory must not be running."""
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(directory) if name.startswith(GATEWAY)]
        if names:
            with open(_SOCKET_TABLE, "rb") as table:
                # Num RefCount Protocol Flags Type St Inode Path
                used = {row.rstrip(b"\n").split(None, 7)[-1] for row in table}
            for path in (f"{directory}/{name}" for name in names):
                if os.fsencode(path) not in used:
                    unlink_quietly(path)


def write_left_state(directory: str, content: bytes, name: str = DESIRED) -> None:
    """Write a state, by default the desired one, to the file `name`. `content` is a JSON object. Raises OSError."""
    state = b'{"life": %s, "left": %s}' % (json.dumps(boot_identity()).encode(), content)
    replace_file(os.path.join(directory, name), state)


def read_left_state(directory: str, name: str = DESIRED) -> wire.Message:
    """The state that a killed pool left in the file `name`.

    Empty if there is no valid file, or if the machine or container has been restarted since.
    """
    try:
        with open(os.path.join(directory, name), "rb") as file:
            state = json.loads(file.read())
        is_current = state["life"] == boot_identity() and state["life"][0] and isinstance(state["left"], dict)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return state["left"] if is_current else {}


def remove_left_states(directory: str) -> None:
    """Remove the desired state and the other states that a killed pool leaves behind."""
    for name in (DESIRED, REGISTRATIONS, CONTEXT_SECRET):
        unlink_quietly(os.path.join(directory, name))


def lock(directory: str, *, patient: bool = True) -> int:
    """Lock the directory; returns the lock's descriptor. The holder may start a pool there, or remove a pool's files.

    Waits for another holder if `patient`, else raises BlockingIOError. Raises OSError.
    """
    path = os.path.join(directory, _LOCK)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        # The previous holder has removed the file.
        os.close(descriptor)


def clean_up_pool_directory(directory: str) -> None:
    """Remove the lock file and empty logs of a pool that has ended, and the directory if nothing else is in it.

    Does nothing if the pool left state for a successor, or if a pool is being started. Never raises.
    """
    with contextlib.suppress(OSError):
        descriptor = lock(directory, patient=False)
        try:
            names = os.listdir(directory)
            if _CONTROL in names or DESIRED in names:
                return
            for name in names:
                path = os.path.join(directory, name)
                if ".log" in name and os.stat(path).st_size == 0:
                    unlink_quietly(path)
            unlink_quietly(os.path.join(directory, _LOCK))
            os.rmdir(directory)
        finally:
            os.close(descriptor)
