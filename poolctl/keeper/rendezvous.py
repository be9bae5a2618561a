"""Finds the state and the processes left behind in the pool's directory when keeper and supervisor are both killed.

The desired state of the servers is in a file; processes are found by their sockets.

Only the pool's user can enter that directory. For a worker that runs as another user, a socket is bound there before
the worker starts, and the worker listens on it once it is an orphan. The kernel says which process listens (unix(7),
SO_PEERCRED); the caller checks that process's answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import time
from collections.abc import Collection

from ..platform import machine_life, peer_credentials, replace_file
from . import wire

WORKER, LOGGER, GATEWAY = "w", "l", "g"
_SOCKET_TABLE = "/proc/net/unix"
_LISTENS = b"00010000"  # __SO_ACCEPTCON
_MOST_BYTES = 16 * 1024
_MOST_DESCRIPTORS = 64

Answer = tuple[wire.Message, list[int]]


def bind(directory: str, kind: str) -> tuple[socket.socket, str]:
    """A bound non-blocking socket, not listening yet, and its path. Raises OSError."""
    # Not longer than the control socket's path, which was checked.
    path = f"{directory}/{kind}.{os.urandom(4).hex()}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(OSError):
            os.mkdir(directory, 0o700)  # it was removed
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    return sock, path


def forget(path: str) -> None:
    """Remove a socket's file. Files left by processes that have exited are removed by the owner of the directory."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def sweep(directory: str) -> None:
    """Remove the files of sockets that no process has open, in the directory of a pool that is not running.

    A socket that is bound but not listening may belong to a worker that is still importing its application.
    """
    files = _files(directory, (WORKER, LOGGER, GATEWAY))
    states = _states() if files else {}
    for path in files:
        if states is not None and os.fsencode(path) not in states:
            forget(path)


def accept(listener: socket.socket, uids: Collection[int]) -> socket.socket | None:
    """The next connection, if its peer's user is permitted."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return None
    if peer_credentials(connection)[1] not in uids:
        connection.close()
        return None
    connection.setblocking(False)
    return connection


def find(directory: str, kind: str) -> list[str]:
    """The paths of the pool's sockets on which something listens."""
    files = _files(directory, (kind,))
    states = _states() if files else {}
    return [path for path in files if states is None or states.get(os.fsencode(path)) == _LISTENS]


def _states() -> dict[bytes, bytes] | None:
    """The flags of all sockets with a path, by path; None if the kernel's table cannot be read."""
    try:
        with open(_SOCKET_TABLE, "rb") as table:
            # Num RefCount Protocol Flags Type St Inode Path
            rows = [row.rstrip(b"\n").split(None, 7) for row in table]
    except OSError:
        return None
    # Accepted connections have their listener's path, but not this flag.
    return {row[7]: row[3] for row in sorted(rows, key=lambda row: row[3:4]) if len(row) == 8}


def ask(directory: str, kind: str, seconds: float) -> list[tuple[socket.socket, Answer | None]]:
    """Connections to all listening sockets, each with its first message; queried in parallel, within this time.

    The message is None if it did not arrive in time, and empty if it was invalid.
    """
    until = time.monotonic() + seconds
    asked = {sock.fileno(): sock for path in find(directory, kind) if (sock := connect(path)) is not None}
    found: list[tuple[socket.socket, Answer | None]] = []
    poll = select.poll()
    for fd in asked:
        poll.register(fd, select.POLLIN)
    while asked and (left := until - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            sock = asked.pop(fd)
            try:
                found.append((sock, _receive(sock)))
            except wire.WireError:
                found.append((sock, ({}, [])))
            except OSError:
                found.append((sock, None))
    return [*found, *((sock, None) for sock in asked.values())]


def connect(path: str) -> socket.socket | None:
    """A non-blocking connection to the socket of this path; None if nothing listens there or its backlog is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    return sock


def receive(sock: socket.socket) -> Answer | None:
    """Like wire.receive, but None for any error: the other end is not trusted."""
    try:
        return _receive(sock)
    except (OSError, wire.WireError):
        return None


def _receive(sock: socket.socket) -> Answer | None:
    return wire.receive(sock, most_bytes=_MOST_BYTES, most_descriptors=_MOST_DESCRIPTORS)


def _files(directory: str, kinds: tuple[str, ...]) -> list[str]:
    prefixes = tuple(f"{kind}." for kind in kinds)
    try:
        return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if name.startswith(prefixes)]
    except OSError:
        return []


DESIRED = "wanted.json"
REGISTRATIONS = "registrations.json"
KEPT_CONNECTIONS = "gateway-kept.json"  # the gateway connections that workers may have kept
CONTEXT_SECRET = "gateway-secret"  # a value derived from it authenticates the gateway to workers


def write_desired(directory: str, content: bytes, name: str = DESIRED) -> None:
    """Replace the desired state, or another state of this name, by this JSON object. Raises OSError."""
    state = b'{"life": %s, "left": %s}' % (json.dumps(machine_life()).encode(), content)
    replace_file(os.path.join(directory, name), state)


def read_desired(directory: str, name: str = DESIRED) -> wire.Message:
    """The state that a killed pool left; empty if the machine or container has been restarted since."""
    try:
        with open(os.path.join(directory, name), "rb") as file:
            found = json.loads(file.read())
        known = found["life"] == machine_life() and found["life"][0] and isinstance(found["left"], dict)
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return found["left"] if known else {}


def remove_desired(directory: str) -> None:
    """Remove these states; only a killed pool leaves them behind."""
    for name in (DESIRED, REGISTRATIONS, KEPT_CONNECTIONS, CONTEXT_SECRET):
        forget(os.path.join(directory, name))


_CONTROL = "control.sock"
_LOCK = "lock"


def lock(directory: str, *, patient: bool = True) -> int:
    """Take the directory's lock; returns its descriptor. The holder may start a pool there, or remove a pool's files.

    Raises OSError; BlockingIOError if the lock is held and not `patient`.
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
        # The pool that held it has removed the file.
        os.close(descriptor)


def remove_traces(directory: str) -> None:
    """Remove the files that only a running pool needs, its lock and empty logs, and the directory if it is then empty.

    Does nothing if the pool left state to a successor, or a pool is being started. Never fails.
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
                    forget(path)
            forget(os.path.join(directory, _LOCK))
            os.rmdir(directory)
        finally:
            os.close(descriptor)
