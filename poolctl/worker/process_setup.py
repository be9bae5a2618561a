"""Sets up a freshly forked process: descriptors, signals, limits, user, environment.

The user's code runs only after the process has switched to its server's user.
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
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ..bootstrap import command
from ..file_access import why_execution_failed, why_not_entered
from ..platform import close_all, end_with_parent, prefer_for_oom_kill, read_file

# The first of the descriptors that are passed to a process of the pool.
FIRST_FD = 16
SPEC_FD = FIRST_FD
CONTROL_FD = FIRST_FD + 1
FIRST_LISTENER_FD = FIRST_FD + 2
# The first order and a heartbeat, as `wire` encodes them. Compared as bytes, because parsing would modify pages that a
# fork shares until then.
GO, BEAT = b'{"order":"go"}', b'{"order":"beat"}'
_FIRST_INHERITED_FD = 3  # sd_listen_fds(3)
_LAST_STANDARD_FD = 2
# An interpreter reads variables with these prefixes only at its start, so they have no effect on a fork.
START_VARIABLES = ("PYTHON", "LD_", "MALLOC_")

# Variables that systemd, or a similar program, sets only for the pool (sd_listen_fds(3), sd_notify(3)).
_POOL_VARIABLES = (
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)

Spec = dict[str, Any]


class SetupFailed(Exception):
    """This machine cannot fulfil the worker's specification."""


def run_and_exit(run: Callable[[], int]) -> NoReturn:
    """Run the function and exit with the status that it returns, or with 70 after an error, which is printed."""
    status = 70
    try:
        status = run()
    except SetupFailed as failure:
        print(failure, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        flush_output()
        os._exit(status)


def fill_standard_descriptors() -> None:
    """Open /dev/null at each of the descriptors 0 to 2 that is closed.

    Otherwise a connection could get such a number: log lines would go to its client, and libuv aborts on closing it.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD_FD:
        os.set_inheritable(null, True)
    os.close(null)


def flush_output() -> None:
    """Flush stdout and stderr, as far as the application has left them usable."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def print_message(text: object, end: str = "\n") -> None:
    """Print to stderr and flush it, if the application has left it usable."""
    with contextlib.suppress(Exception):
        print(text, file=sys.stderr, end=end, flush=True)


def reset_signals() -> None:
    """Reset the signal handlers, the signal mask and the wakeup descriptor that were inherited; ignore SIGPIPE."""
    # A shell's background job has SIGINT and SIGQUIT ignored.
    for number in (
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGPIPE,
        signal.SIGCHLD,
    ):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGPIPE else signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def needs_exec(spec: Spec) -> bool:
    """Whether a new interpreter is needed: to replace the environment, or to set variables read at start (LD_…)."""
    return any(name.startswith(START_VARIABLES) for name in spec["env"]) or spec["env_base"] is not None


def start_interpreter_again(spec: Spec, descriptors: int, part: str, *arguments: str) -> NoReturn:
    """Replace this process with a new interpreter that runs the poolctl package `part` with the given arguments.

    The new interpreter inherits the descriptors SPEC_FD, SPEC_FD + 1 and so on, `descriptors` in total.
    """
    for fd in range(SPEC_FD, SPEC_FD + descriptors):
        os.set_inheritable(fd, True)
    argv = command(spec["python"], part, *arguments)
    os.execve(argv[0], argv, dict(os.environ))


def read_spec_after_exec(descriptor_count: int) -> Spec:
    """Read the specification after exec; make the `descriptor_count` inherited descriptors close-on-exec."""
    for fd in range(SPEC_FD, SPEC_FD + descriptor_count):
        os.set_inheritable(fd, False)
    return read_spec(SPEC_FD)


def read_spec(fd: int) -> Spec:
    """Read the specification, in marshal format, from the open file `fd`."""
    spec: Spec = marshal.loads(read_file(fd))
    return spec


def wait_start_or_exit(control: int) -> None:
    """Wait until the supervisor has recorded this process; exit if the supervisor ends before that."""
    if os.read(control, len(GO) + 1) != GO:
        os._exit(0)


def run_command(spec: Spec, output: int, listeners: list[int]) -> NoReturn:
    move_descriptors_and_close_others(listeners, output, _FIRST_INHERITED_FD)
    for fd in range(_FIRST_INHERITED_FD, _FIRST_INHERITED_FD + len(listeners)):
        os.set_inheritable(fd, True)
    become_program(spec, len(listeners))


def become_program(spec: Spec, sockets: int) -> NoReturn:
    """Replace this process by the server's program; exits with 126 or 127 if the program cannot be executed.

    The program gets its listening sockets, `sockets` in number, at the descriptors 3, 4 … (sd_listen_fds(3)).
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    apply_spec(spec)
    if spec.get("stdin") == "open":
        _open_endless_input()
    if spec.get("ends_with_parent"):
        end_with_parent()  # only now: switching the user resets PR_SET_PDEATHSIG
    if "index" in spec:
        os.environ["POOLCTL_NAME"] = spec["server"]  # identifies its processes (see left_daemons)
    if sockets:
        os.environ["LISTEN_FDS"] = str(sockets)
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDNAMES"] = ":".join([spec["server"].replace(":", "_")] * sockets)
    argv = [_encoded(word) for word in spec["argv"]]
    try:
        os.execvpe(argv[0], argv, os.environ)
    except OSError as error:
        reason = why_execution_failed(spec["argv"][0], os.environ.get("PATH", os.defpath), error)
        print(f"cannot run {spec['argv'][0]!r}: {reason}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _open_endless_input() -> None:
    """Make descriptor 0 a pipe without data and without an end. Raises SetupFailed.

    The descriptor is open for reading and writing (fifo(7)), so the pipe has a writer as long as it has a reader. Each
    server has its own pipe, because a server of another user could write to a shared one.
    """
    read, write = os.pipe()
    try:
        both = os.open(f"/proc/self/fd/{read}", os.O_RDWR)
    except OSError as error:
        raise _failed("cannot open a pipe as its standard input", error) from error
    os.dup2(both, 0)
    close_all((read, write, both))


def move_descriptors_and_close_others(fds: list[int], output: int, first: int = FIRST_FD) -> None:
    """Move `fds` to the numbers from `first` on, and `output` to 1 and 2; close all other descriptors.

    Descriptor 0 then reads /dev/null.
    """
    duplicates = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first + len(fds)) for fd in fds]
    os.dup2(output, 1)
    os.dup2(output, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for place, fd in enumerate(duplicates, first):
        os.dup2(fd, place, inheritable=False)
    os.closerange(3, first)
    os.closerange(first + len(duplicates), os.sysconf("SC_OPEN_MAX"))


def discard_output() -> None:
    """Redirect further output to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def clear_systemd_variables() -> None:
    """Remove LISTEN_FDS, NOTIFY_SOCKET and other variables that systemd has set for the pool, not for its workers."""
    for name in _POOL_VARIABLES:
        os.environ.pop(name, None)


def apply_spec(spec: Spec) -> None:
    """Apply the server's limits, user, environment, umask and working directory to this process. Raises SetupFailed."""
    soft, hard = spec["open_files"]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (OSError, ValueError) as error:
        raise _failed(
            f"cannot have {soft} open files: more than this machine allows; lower `limits.open_files`", error
        ) from error
    prefer_for_oom_kill()
    if spec["env_base"] is not None:
        os.environ.clear()
        _set_variables(spec["env_base"])
        clear_systemd_variables()
    if spec["user"] is not None:
        try:
            switch_to_user(*spec["user"])
        except OSError as error:
            raise _failed(
                f"cannot become user {spec['user'][0]} of group {spec['user'][1]}", error
            ) from error
    if spec["env"]:
        _set_variables(spec["env"])
    set_index_variable(spec)
    if "umask" in spec:
        os.umask(spec["umask"])
    try:
        os.chdir(_encoded(spec["cwd"]))
    except OSError as error:
        raise SetupFailed(f"cannot enter {spec['cwd']}: {why_not_entered(spec['cwd'], error)}") from error


def set_index_variable(spec: Spec) -> None:
    """Set $POOLCTL_INDEX to the index in the worker's specification; no effect if the specification has none."""
    if "index" in spec:
        os.environ["POOLCTL_INDEX"] = str(spec["index"])


def _set_variables(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        os.environb[_encoded(name)] = _encoded(value)


def _encoded(text: str) -> bytes:
    """The text in UTF-8, regardless of the locale."""
    return text.encode(errors="surrogateescape")


def _failed(message: str, error: Exception) -> SetupFailed:
    return SetupFailed(f"{message}: {error.strerror}" if isinstance(error, OSError) else message)


def switch_to_user(uid: int, gid: int) -> None:
    """Switch to this user and group. Raises OSError.

    If the user has an account, also set the account's further groups, and HOME, USER and LOGNAME.
    """
    # A zygote that runs as the server's user already has its rights.
    has_rights = os.getresuid() == (uid, uid, uid) and os.getresgid() == (gid, gid, gid)
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        if not has_rights:
            os.setgroups([gid])
    else:
        if not has_rights:
            os.initgroups(account.pw_name, gid)
        os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    if not has_rights:
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
