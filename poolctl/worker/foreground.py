"""What a process is given that serves in the foreground, without a supervisor and without a fork."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable
from typing import NamedTuple

from .preload import end_imports, preload
from .process_setup import (
    SPEC_FD,
    SetupFailed,
    Spec,
    apply_spec,
    needs_exec,
    read_spec_after_exec,
    start_interpreter_again,
)

_APPLIED = "applied"


class Given(NamedTuple):
    """The specification, the server's listeners, the descriptors of its TLS files, and further sockets."""

    spec: Spec
    listeners: list[socket.socket]
    tls_fds: list[int]
    more: list[socket.socket]


def receive(part: str, *role: str, light: bool = False) -> Given:
    """Read the specification, and apply it to this process: its limits, user, environment and directory.

    Workers' modules are imported before, unless `light` leaves that to the application; a server's user always gets
    them, because it may not be allowed to read them later.

    The first argument of the process is the number of descriptors after the specification. `part` and `role` run this
    process again where its environment requires another interpreter. Exits with the reason where this machine cannot
    support the specification.
    """
    count, *applied = sys.argv[1:]
    spec = read_spec_after_exec(1 + int(count))
    if light and spec["user"] is None:
        end_imports()
    else:
        preload()
    if not applied:
        try:
            apply_spec(spec)
        except SetupFailed as failure:
            sys.exit(str(failure))
        if needs_exec(spec):
            start_interpreter_again(spec, 1 + int(count), part, *role, count, _APPLIED)
    listeners = SPEC_FD + 1
    tls = listeners + spec["listeners"]
    more = tls + spec["tls_files"]
    end = listeners + int(count)
    return Given(
        spec,
        [socket.socket(fileno=fd) for fd in range(listeners, tls)],
        list(range(tls, more)),
        [socket.socket(fileno=fd) for fd in range(more, end)],
    )


def close(listeners: Iterable[socket.socket]) -> None:
    """Close the listeners, and remove the paths of Unix sockets. May be called more than once."""
    for listener in listeners:
        if listener.fileno() < 0:
            continue
        path = listener.getsockname() if listener.family == socket.AF_UNIX else ""
        listener.close()
        if path:
            with contextlib.suppress(OSError):
                os.unlink(path)
