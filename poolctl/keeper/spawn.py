"""Starts a program as a direct child of the keeper, with descriptors at 3, 4, 5 …"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal

from .output_file import rotate_if_large

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container


def spawn(
    argv: list[str],
    env: dict[str, str] | None,
    fds: list[int],
    output: str,
    *,
    session: bool,
    without: Container[str] = (),
) -> int:
    """The pid of the new program. `output` is the file for its stdout and stderr (appended to, 0600).

    `env` is its environment (None: this process's), from which the variables `without` are left out. Raises OSError
    if the program cannot be executed. The keeper's own descriptors are not inherited.
    """
    with contextlib.suppress(OSError):
        rotate_if_large(output)
    # First moved to other numbers: one of them may have the number that another one needs.
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(fds)) for fd in fds]
    try:
        actions: list[tuple[object, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        actions += [(os.POSIX_SPAWN_DUP2, fd, 3 + place) for place, fd in enumerate(lifted)]
        return os.posix_spawn(
            argv[0],
            argv,
            {
                name: value
                for name, value in (os.environ if env is None else env).items()
                if name not in without
            },
            file_actions=actions,
            setsid=session,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD),
        )
    finally:
        for fd in lifted:
            os.close(fd)
