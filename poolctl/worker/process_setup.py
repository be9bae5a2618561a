"""Turns a fresh fork into a process of its own: descriptors, signals, limits, rights, environment.

None of the user's code runs before the rights of its server are in force.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import pwd
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from ..bootstrap import command
from ..platform import name_process, prefer_for_oom_kill, read_file
from .kept_fds import FIRST_FD, close_others

SPEC_FD = FIRST_FD
CONTROL_FD = FIRST_FD + 1
FIRST_LISTENER_FD = FIRST_FD + 2
# The first order, as the wire writes it.
GO = b'{"order":"go"}'
_FIRST_INHERITED_FD = 3  # sd_listen_fds(3)
# An interpreter reads these once, at its start: a fork cannot honour them.
START_VARIABLES = ("PYTHON", "LD_", "MALLOC_")

# What systemd, or a program like it, said to the pool and to nobody else (sd_listen_fds(3), sd_notify(3)).
_OF_THE_POOL = (
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)

Spec = dict[str, Any]


class Refused(Exception):
    """The machine does not give the worker what its specification says."""


def become(fds: list[int], live: Callable[[Spec], int], *, preloaded: bool = False) -> NoReturn:
    """Turn this process into the worker that `fds` describe: its specification, control socket, output, listeners.

    `live` is its life from there on, and gives its exit status. With `preloaded` this is a fork of a process that has
    taken on the server's rights, and imported its application.
    """
    to_the_end(lambda: _become(fds, live, preloaded))


def _become(fds: list[int], live: Callable[[Spec], int], preloaded: bool) -> int:
    # Signals stay as they are: a preloaded application may have set handlers.
    spec_fd, control, output, *rest = fds
    spec = read_spec(spec_fd)
    name_process(spec["server"])
    wait_for_go(control)
    if spec["kind"] == "command":
        _run_command(spec, output, rest)
    place([spec_fd, control, *rest], output)
    close_others()
    if not preloaded:
        take_on(spec)
        if needs_exec(spec):
            start_anew(spec, 2 + len(rest), "serve", str(len(rest)))
    return live(spec)


def to_the_end(life: Callable[[], int]) -> NoReturn:
    """Live, and end with the exit status that it gives; what goes wrong is printed."""
    status = 70
    try:
        status = life()
    except Refused as refused:
        print(refused, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def reset_signals() -> None:
    """Forget what this process's parents made of signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGPIPE else signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def needs_exec(spec: Spec) -> bool:
    """Whether the environment holds what an interpreter reads at its start only."""
    return any(name.startswith(START_VARIABLES) for name in spec["env"]) or spec["env_base"] is not None


def start_anew(spec: Spec, descriptors: int, *arguments: str) -> NoReturn:
    """Go on in a fresh interpreter as `worker ARGUMENTS`, which gets the `descriptors` from the specification's on."""
    for fd in range(SPEC_FD, SPEC_FD + descriptors):
        os.set_inheritable(fd, True)
    argv = command(spec["python"], "worker", *arguments)
    os.execve(argv[0], argv, dict(os.environ))


def resume(live: Callable[[Spec], int]) -> NoReturn:
    """Go on as a worker after the exec that its environment asked for."""
    from .preload import preload, settle

    spec = resumed(2 + int(sys.argv[1]))
    preload()
    settle()
    os._exit(live(spec))


def resumed(descriptors: int) -> Spec:
    """The specification, after `start_anew` with so many descriptors."""
    for fd in range(SPEC_FD, SPEC_FD + descriptors):
        os.set_inheritable(fd, False)
    return read_spec(SPEC_FD)


def read_spec(fd: int) -> Spec:
    """The specification that the runner wrote into the file behind the descriptor."""
    spec: Spec = marshal.loads(read_file(fd))
    return spec


def wait_for_go(control: int) -> None:
    """Begin when the supervisor has noted this worker, and not at all if it died before: nobody would know of it."""
    # Byte for byte: a fork pays for every page that it touches.
    if os.read(control, len(GO) + 1) != GO:
        os._exit(0)


def _run_command(spec: Spec, output: int, listeners: list[int]) -> NoReturn:
    place(listeners, output, _FIRST_INHERITED_FD)
    for fd in range(_FIRST_INHERITED_FD, _FIRST_INHERITED_FD + len(listeners)):
        os.set_inheritable(fd, True)
    become_program(spec, len(listeners))


def become_program(spec: Spec, sockets: int) -> NoReturn:
    """Be the server's program, for which so many listening sockets stand at 3, 4 …"""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    take_on(spec)
    if sockets:
        os.environ["LISTEN_FDS"] = str(sockets)
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDNAMES"] = ":".join([spec["server"].replace(":", "_")] * sockets)
    argv = spec["argv"]
    try:
        os.execvpe(argv[0], argv, os.environ)
    except OSError as error:
        print(f"cannot run {argv[0]!r}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def place(fds: list[int], output: int, first: int = FIRST_FD) -> None:
    """Move `fds` to `first` and the numbers that follow, `output` to 1 and 2, and close everything above."""
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first + len(fds)) for fd in fds]
    os.dup2(output, 1)
    os.dup2(output, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for place, fd in enumerate(lifted, first):
        os.dup2(fd, place, inheritable=False)
    os.closerange(first + len(lifted), os.sysconf("SC_OPEN_MAX"))


def forget_what_the_pool_was_told() -> None:
    """Take out of the environment what was meant for the pool and nobody else."""
    for name in _OF_THE_POOL:
        os.environ.pop(name, None)


def take_on(spec: Spec) -> None:
    """Limits first, then the rights of the server's user, then its environment and directory."""
    soft, hard = spec["open_files"]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (OSError, ValueError) as error:
        raise _refused(
            f"cannot have {soft} open files: more than this machine allows; lower `limits.open_files`", error
        ) from error
    prefer_for_oom_kill()
    if spec["env_base"] is not None:
        os.environ.clear()
        os.environ.update(spec["env_base"])
        forget_what_the_pool_was_told()
    if spec["user"] is not None:
        try:
            drop_rights(*spec["user"])
        except OSError as error:
            raise _refused(
                f"cannot become user {spec['user'][0]} of group {spec['user'][1]}", error
            ) from error
    if spec["env"]:
        os.environ.update(spec["env"])
    try:
        os.chdir(spec["cwd"])
    except OSError as error:
        raise _refused(f"cannot enter {spec['cwd']}", error) from error


def _refused(message: str, error: Exception) -> Refused:
    return Refused(f"{message}: {error.strerror}" if isinstance(error, OSError) else message)


def drop_rights(uid: int, gid: int) -> None:
    """Switch to the user: its groups, HOME, USER and LOGNAME. Raises OSError."""
    # A zygote that runs as the server's user has done so already.
    done = os.getresuid() == (uid, uid, uid) and os.getresgid() == (gid, gid, gid)
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        if not done:
            os.setgroups([gid])
    else:
        if not done:
            os.initgroups(account.pw_name, gid)
        os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    if not done:
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def set_app_environment(spec: Spec) -> None:
    """Set sys.argv and the import path for the application. Repeated after a preload, it changes nothing."""
    sys.argv = [spec["app"] or spec["server"]]
    if sys.path[0] != spec["app_dir"]:
        sys.path.insert(0, spec["app_dir"])


def exit_status(code: object) -> int:
    """What sys.exit(code) means (its documentation): an integer is the status, None is 0, a text is printed."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1
