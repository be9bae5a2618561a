"""`poolctl exec NAME -- CMD…`: runs CMD in the place of a server, on a terminal of its own or in this process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import shlex
import signal
import sys
import termios
import tty
from collections.abc import Collection, Iterator
from functools import partial
from typing import Annotated, Any, NoReturn

import typer

from poolctl.cli import completion
from poolctl.cli.foreground_server import single_server
from poolctl.cli.group import TakesProgram
from poolctl.cli.options import Selection, examples, with_options
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.run_session.signals import FORWARDED_SIGNALS
from poolctl.cli.supervisor_requests import Request, ask_for, refuse_without_linux
from poolctl.config.values.path_variables import with_absolute_paths
from poolctl.control.client import NoSupervisor
from poolctl.control.server_answers import ExecResult
from poolctl.exit_codes import FAILED
from poolctl.keeper.left_children import shell_status
from poolctl.keeper.reap import deliver
from poolctl.platform import signal_descriptor
from poolctl.runners.worker_spec import Spec, exec_spec
from poolctl.worker.process_setup import SetupFailed, become_program

_STANDARD = (0, 1, 2)
# CMD gets a terminal with the capabilities of the caller's.
_TERMINAL_VARIABLES = ("TERM", "COLORTERM")
_TERMINAL_BYTES = 64 * 1024  # about the size of a pty's buffer in Linux

app = typer.Typer(add_completion=False)


@app.command(
    cls=TakesProgram,
    epilog=examples(
        "poolctl exec web -- python manage.py migrate",
        "poolctl exec web -- bash                     a shell where the server runs",
        "poolctl exec web -- psql < dump.sql",
    ),
)
@with_options
def execute(
    ctx: typer.Context,
    place: Place,
    name: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="The server, by its name or address.", autocompletion=completion.targets
        ),
    ] = None,
) -> None:
    """Run a command in a server's environment and directory, as its user.

    CMD has the server's variables, directory, umask, limits, user and groups, and finds the programs of its Python
    environment: as the running pool has them or, if none runs, as its files say. The server need not run. The exit code
    is CMD's, 127 if it is not found, 126 if it cannot be executed, 128 + N if signal N ended it.
    """
    names, command = name or [], ctx.args
    if len(names) != 1 or not command:
        words = (
            [*names[:1], "--", *(names[1:] or ["CMD"])] if names else ["NAME", "--", *(command or ["CMD"])]
        )
        message = "exec runs CMD in the place of one server; the command goes after --"
        raise UsageError(message, hint=f"poolctl exec {shlex.join(words)}")
    refuse_without_linux()
    has_terminal = os.isatty(0) and os.isatty(1)
    spec = _spec(place, Selection(targets=names), find_pool(place))
    spec["argv"] = command
    if has_terminal:
        of_caller = {name: os.environ[name] for name in _TERMINAL_VARIABLES if name in os.environ}
        spec["env"] = of_caller | spec["env"]
    sys.stdout.flush()
    sys.stderr.flush()
    if has_terminal:
        raise typer.Exit(_run_on_own_terminal(spec))
    _exec_command(spec)


def _spec(place: Place, selection: Selection, pool: PoolRef) -> Spec:
    """The specification of CMD's process in the running pool or, if none runs, by its files."""
    try:
        result = ask_for(ExecResult, Request("exec", place, selection), pool)
    except NoSupervisor:
        if not pool.files:
            raise
        server = single_server(selection, pool, "poolctl exec")
        base = with_absolute_paths(os.environ)
        return exec_spec(server, open_files=resource.getrlimit(resource.RLIMIT_NOFILE), env_base=base)
    if result.exit_code:
        raise Failure(Outcome.of(result))
    spec = result.spec
    if spec is None:
        raise UsageError(
            f"exec runs CMD for one server, and {len(result.items)} are selected",
            hint="poolctl exec NAME -- CMD",
        )
    if tuple(spec["user"]) == (os.geteuid(), os.getegid()):
        spec["user"] = None  # this process has that user's rights already
    return spec


def _exec_command(spec: Spec) -> NoReturn:
    """Replace this process by CMD, which gets the standard descriptors and no others. Raises Failure."""
    # Python ignores SIGXFSZ, and handles SIGINT; CMD gets the defaults.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.closerange(_STANDARD[-1] + 1, os.sysconf("SC_OPEN_MAX"))
    try:
        become_program(spec, 0)
    except SetupFailed as failure:
        raise Failure(Outcome.failed(FAILED, str(failure))) from None


def _run_on_own_terminal(spec: Spec) -> int:
    """Run CMD in a session and on a terminal of its own; returns its exit status, 128 + N if signal N ended it.

    So keys such as Ctrl-C are signals for CMD alone, and a server's user cannot type into the caller's terminal.
    """
    master, slave = os.openpty()
    modes = termios.tcgetattr(0)
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    _copy_size(slave)
    if spec["user"] is not None:
        os.fchown(slave, spec["user"][0], -1)
    signals = {signal.SIGCHLD, signal.SIGCONT, signal.SIGWINCH, *FORWARDED_SIGNALS}
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    if (pid := os.fork()) == 0:
        try:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for fd in filter(os.isatty, _STANDARD):
                os.dup2(slave, fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            _exec_command(spec)
        except Failure as failure:
            print(f"error: {failure}", file=sys.stderr, flush=True)
        finally:
            os._exit(FAILED)
    # Keep the slave open, so that the master does not reach end of file before CMD exits.
    with _raw_mode(modes):
        return _relay(pid, master, signals)


@contextlib.contextmanager
def _raw_mode(modes: list[Any]) -> Iterator[None]:
    """Context manager: the caller's terminal, which has these modes, passes each key on meanwhile."""
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, modes)


def _relay(pid: int, terminal: int, signals: Collection[int]) -> int:
    """Pass keys, output and signals on until the process `pid` has ended; returns its exit status."""
    signal_fd = signal_descriptor(signals)
    os.set_blocking(terminal, False)
    keys, is_hung_up = b"", False
    while True:
        poll = select.poll()
        poll.register(signal_fd, select.POLLIN)
        poll.register(terminal, select.POLLIN | (select.POLLOUT if keys else 0))
        if not (keys or is_hung_up):
            poll.register(0, select.POLLIN)
        ready = dict(poll.poll())
        if ready.get(terminal, 0) & select.POLLIN:
            _copy_output(terminal)
        if ready.get(terminal, 0) & select.POLLOUT:
            with contextlib.suppress(BlockingIOError):
                keys = keys[os.write(terminal, keys) :]
        if 0 in ready:
            keys = _read(0)
            if is_hung_up := bool(ready[0] & (select.POLLHUP | select.POLLERR)):
                _send(pid, signal.SIGHUP)
        if signal_fd in ready and (info := signal.sigtimedwait(signals, 0)) is not None:
            if info.si_signo == signal.SIGCHLD:
                ended, wait_status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    break
            elif info.si_signo == signal.SIGCONT:
                tty.setraw(0, termios.TCSADRAIN)  # the shell reset it while this process was stopped
            elif info.si_signo == signal.SIGWINCH:
                _copy_size(terminal)
            else:
                _send(pid, info.si_signo)
    # More than the terminal can buffer; background processes may keep writing.
    remaining_bytes = 2 * _TERMINAL_BYTES
    while remaining_bytes > 0 and (copied := _copy_output(terminal)):
        remaining_bytes -= copied
    return shell_status(os.waitstatus_to_exitcode(wait_status))


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(PermissionError):  # CMD may be set-user-ID, such as sudo(8)
        deliver(partial(os.kill, pid), number)


def _copy_output(terminal: int) -> int:
    """Read once from the terminal of CMD and print the data; returns the number of bytes."""
    data = _read(terminal)
    rest = data
    with contextlib.suppress(OSError):  # the caller's terminal is gone
        while rest:
            try:
                rest = rest[os.write(1, rest) :]
            except BlockingIOError:  # another program has set O_NONBLOCK on the shared description
                select.select([], [1], [])
    return len(data)


def _read(fd: int) -> bytes:
    """Read available data; b"" if there is none."""
    try:
        return os.read(fd, _TERMINAL_BYTES)
    except OSError:
        return b""


def _copy_size(terminal: int) -> None:
    size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
