"""Starts a program that outlives its starter and inherits only the descriptors named."""

from __future__ import annotations

import contextlib
import fcntl
import os

from ..platform import raise_descriptor_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Limits = tuple[int, int]


class Companion:
    """A program started along with another one, as its child; it gets `fd` as descriptor 3.

    `output` is the file for what it prints. With `session` it leads a session of its own. The variables
    `without` are left out of its environment.
    """

    __slots__ = ("argv", "fd", "output", "session", "without")

    def __init__(
        self, argv: list[str], output: str, *, session: bool, fd: int = -1, without: Sequence[str] = ()
    ) -> None:
        self.argv = argv
        self.output = output
        self.session = session
        self.fd = fd
        self.without = without


def in_background(argv: list[str], env: dict[str, str], fds: Sequence[int]) -> None:
    """Run `argv` in a session of its own, not as a child of ours, with only `fds` of our descriptors, at 3, 4 …"""
    _detached(env, fds, [], lambda: argv)


def in_company(
    argv: Callable[[list[int], Limits], list[str]],
    env: dict[str, str],
    fds: Sequence[int],
    companions: Sequence[Companion],
) -> None:
    """Likewise, with companions, which start before the program itself has been loaded.

    `argv` is called in the new process, with their pids, 0 for one that could not be started, and with the limits of
    open files (the soft and the hard one) from before they were raised for the program and its companions.
    """

    def command() -> list[str]:
        limits = raise_descriptor_limit()
        return argv([_start(each, place, env) for place, each in enumerate(companions, 3 + len(fds))], limits)

    _detached(env, fds, [each.fd for each in companions], command)


def _detached(
    env: dict[str, str], fds: Sequence[int], passing: Sequence[int], command: Callable[[], list[str]]
) -> None:
    """Execute the program that `command` returns; it is called when `fds` and then `passing` are at 3, 4 …"""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _keep_only([*fds, *passing])
                os.chdir("/")
                argv = command()
                for fd in range(3, 3 + len(fds)):
                    os.set_inheritable(fd, True)
                os.execve(argv[0], argv, env)
        finally:
            os._exit(1)
    os.waitpid(child, 0)


def _keep_only(fds: Sequence[int]) -> None:
    """Have these descriptors at 3, 4 …, not inheritable, and no others; 0 to 2 are /dev/null."""
    above = 3 + len(fds)
    # Above the numbers assigned below, but no higher: the limit of open files may be small.
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for place, fd in enumerate(lifted, 3):
        os.dup2(fd, place, inheritable=False)
    os.closerange(above, os.sysconf("SC_OPEN_MAX"))


def _start(companion: Companion, fd: int, env: dict[str, str]) -> int:
    # Imported in the new process: its starter needs none of it.
    from .spawn import spawn

    with contextlib.suppress(OSError):
        return spawn(
            companion.argv, env, [fd], companion.output, session=companion.session, without=companion.without
        )
    return 0
