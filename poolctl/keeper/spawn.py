"""Starts programs as children of the keeper or in the background, with descriptors at 3, 4, 5 …; bounds their logs."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import stat
import sys

from ..platform import close_all, raise_descriptor_limit, replace_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence


def spawn(
    argv: list[str],
    env: dict[str, str] | None,
    fds: list[int],
    output: str | int,
    *,
    session: bool,
    without: Container[str] = (),
) -> int:
    """Start a program as a child, with `fds` as its descriptors 3, 4 …; returns its pid.

    Its stdout and stderr are `output`: a file to which they are appended (created with mode 0600), or a descriptor.
    `env` is its environment (None: this process's), without the variables in `without`. With `session` it leads a new
    session. It inherits no other descriptor of this process. Raises OSError if the program cannot be executed.
    """
    import signal  # imported late: a process that only calls start_with_companions does not need it

    actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    if isinstance(output, int):
        actions.append((os.POSIX_SPAWN_DUP2, output, 1))
    else:
        with contextlib.suppress(OSError):
            copytruncate_if_large(output)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        actions.append((os.POSIX_SPAWN_OPEN, 1, output, flags, 0o600))
    # Moved to high numbers first: one descriptor may occupy the number that another needs.
    high_fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(fds)) for fd in fds]
    try:
        actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
        actions += [(os.POSIX_SPAWN_DUP2, fd, 3 + place) for place, fd in enumerate(high_fds)]
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
            setsigdef=signal.valid_signals(),
        )
    finally:
        close_all(high_fds)


class CompanionSpec:
    """A program to be started as a child of another program, with `fds` as its descriptors 3, 4 …

    `output` is the file for its stdout and stderr. With `session` it leads its own session. The variables in
    `without` are removed from its environment.
    """

    __slots__ = ("argv", "fds", "output", "session", "without")

    def __init__(
        self,
        argv: list[str],
        output: str,
        *,
        session: bool,
        fds: Sequence[int] = (),
        without: Sequence[str] = (),
    ) -> None:
        self.argv = argv
        self.output = output
        self.session = session
        self.fds = list(fds)
        self.without = without


_DETACH = """
import os, sys
os.closerange(int(sys.argv[1]), os.sysconf("SC_OPEN_MAX"))
os.chdir("/")
os.fork() or os.execv(sys.argv[2], sys.argv[2:])
"""


def start_detached(argv: list[str], env: dict[str, str], fds: list[int]) -> None:
    """Run `argv` in a new session, not as a child of this process, with `fds` at 3, 4 … as its only descriptors.

    Its stdout and stderr are /dev/null. Blocks while an interpreter starts, which forks in place of this process: the
    child of a process with threads may wait forever for a lock that one of them held.
    """
    detach = [sys.executable, "-I", "-S", "-c", _DETACH, str(3 + len(fds)), *argv]
    pid = spawn(detach, env, fds, os.devnull, session=True)
    with contextlib.suppress(ChildProcessError):  # an application may have its children reaped by the kernel
        os.waitpid(pid, 0)


def start_with_companions(
    argv: list[str], env: dict[str, str], fds: Sequence[int], companions: Sequence[CompanionSpec]
) -> int:
    """Run `argv` as `start_detached` does, after the new process has started `companions` as its children.

    Returns the new process's pid, or 0 if no process could be created. This process must have no threads.

    The new process raises its limits of open files, writes stderr to the first companion's output file, and adds an
    argument to `argv`, a JSON object: `pids` are the pids of the companions, 0 for one that could not be started;
    `open_files` are the soft and hard limits before they were raised.
    """
    reads, writes = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(reads)
        os.close(writes)
        raise
    if child == 0:
        try:
            os.setsid()
            if pid := os.fork():
                os.write(writes, b"%d" % pid)
            else:
                _renumber_and_close_others([*fds, *(fd for companion in companions for fd in companion.fds)])
                os.chdir("/")
                limits = raise_descriptor_limit()
                numbers = itertools.count(3 + len(fds))
                pids = [
                    _try_start(companion, [next(numbers) for _ in companion.fds], env)
                    for companion in companions
                ]
                argv = [*argv, json.dumps({"pids": pids, "open_files": limits})]
                for fd in range(3, 3 + len(fds)):
                    os.set_inheritable(fd, True)
                with contextlib.suppress(OSError):
                    # Needed until the program runs: an interpreter that cannot start writes the reason there.
                    os.dup2(_open_log(companions[0].output, os.O_WRONLY), 2)
                try:
                    os.execve(argv[0], argv, env)
                except OSError as error:
                    for companion in companions:
                        log_failure(companion.output, argv, error)
        finally:
            os._exit(1)
    os.close(writes)
    os.waitpid(child, 0)
    with open(reads, "rb") as pipe:
        return int(pipe.read() or 0)


def _renumber_and_close_others(fds: Sequence[int]) -> None:
    """Renumber `fds` to 3, 4 …, not inheritable. Open descriptors 0, 1 and 2 on /dev/null, and close all others."""
    above = 3 + len(fds)
    # Just above the numbers assigned below: the limit of open files may be small.
    high_fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for place, fd in enumerate(high_fds, 3):
        os.dup2(fd, place, inheritable=False)
    os.closerange(above, os.sysconf("SC_OPEN_MAX"))


def _try_start(companion: CompanionSpec, fds: list[int], env: dict[str, str]) -> int:
    argv, output = companion.argv, companion.output
    try:
        return spawn(argv, env, fds, output, session=companion.session, without=companion.without)
    except OSError as error:
        log_failure(output, argv, error)
        return 0


def log_failure(output: str, argv: Sequence[str], error: OSError) -> None:
    """Append the reason why the program `argv` could not be executed to its own log, the file `output`."""
    with contextlib.suppress(OSError), open(output, "a", opener=_open_log) as log:
        log.write(f"{argv[0]}: {error.strerror or error}\n")


def _open_log(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


# Several of the pool's own processes append to one log file, which must not fill the disk.
MAX_SIZE_BYTES = 1024 * 1024


def copytruncate_if_large(path: str) -> None:
    """Move the last MAX_SIZE_BYTES of a larger file to `path.1`, and empty the file; do nothing for a smaller file.

    The file is truncated, not replaced: other processes keep it open (O_APPEND). On a full disk the content is dropped.
    Raises OSError, including FileNotFoundError.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size <= MAX_SIZE_BYTES:
        return
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            _copy_tail_to(fd, f"{path}.1")
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _copy_tail_to(fd: int, path: str) -> None:
    left_out = os.fstat(fd).st_size - MAX_SIZE_BYTES
    kept = os.pread(fd, MAX_SIZE_BYTES, left_out)
    kept = kept[kept.find(b"\n") + 1 :]
    replace_file(path, b"(%d bytes before this were left out)\n%s" % (left_out, kept))
