"""Sockets that systemd opened for this process (sd_listen_fds(3)): LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .failure import ListenError

if TYPE_CHECKING:
    from poolctl.address import Address

FIRST_DESCRIPTOR = 3

Inherited = Mapping[str, "list[int]"]


def inherited_descriptors(env: Mapping[str, str], pid: int | None = None) -> dict[str, list[int]]:
    """The passed descriptors under their numbers and their names: `{"3": [3], "web": [3, 4], "4": [4]}`.

    Empty if nothing was passed, or if it was passed to another process (`pid` is that of this one by
    default). The descriptors are made close-on-exec, as sd_listen_fds(3) does; their numbers stay valid in
    this process only.
    """
    try:
        count = int(env.get("LISTEN_FDS", "0"))
        addressee = int(env.get("LISTEN_PID", "-1"))
    except ValueError:
        return {}
    if addressee != (os.getpid() if pid is None else pid):
        return {}
    names = env.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    for at, fd in enumerate(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count)):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            continue
        found[str(fd)] = [fd]
        if at < len(names) and names[at]:
            found.setdefault(names[at], []).append(fd)
    return found


def take(address: Address, inherited: Inherited, backlog: int) -> list[socket.socket]:
    """Listening duplicates of the sockets of `fd:3` or `fd:NAME`. Raises ListenError."""
    descriptors = inherited.get(address.name)
    if not descriptors:
        have = ", ".join(f"fd:{name}" for name in inherited) or "none"
        raise ListenError(
            f"no socket fd:{address.name} was inherited (inherited: {have})",
            bind=address.key,
            hint="start it from a systemd .socket unit with that FileDescriptorName=, or bind an address",
        )
    taken: list[socket.socket] = []
    try:
        for fd in descriptors:
            taken.append(_listener(address, fd, backlog))
    except BaseException:
        for sock in taken:
            sock.close()
        raise
    return taken


def _listener(address: Address, fd: int, backlog: int) -> socket.socket:
    hint = "pass a stream socket: ListenStream= in the .socket unit, with Accept=no"
    own = os.dup(fd)
    try:
        sock = socket.socket(fileno=own)  # asks the kernel for family, type and protocol
    except OSError as error:
        os.close(own)
        raise ListenError(f"descriptor {fd} is not a socket", bind=address.key, hint=hint) from error
    if sock.type != socket.SOCK_STREAM or _is_connected(sock):
        sock.close()
        raise ListenError(f"descriptor {fd} is a socket that cannot listen", bind=address.key, hint=hint)
    sock.listen(backlog)
    return sock


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
