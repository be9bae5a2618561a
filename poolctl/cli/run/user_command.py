"""Running the user's command: the terminal and the standard streams are its own while it runs.

It stays in our process group, as `env` or `nice` would leave it, so that pagers behind a pipe and Ctrl-Z work as
always. A Ctrl-C of the terminal therefore reaches it without us.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence

from poolctl.cli.outcome import Failure, Outcome
from poolctl.exit_codes import NOT_EXECUTABLE, NOT_FOUND

# Sent to us, meant for the command.
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# SI_KERNEL of sigaction(2): the terminal's own signals, which the command has got already.
FROM_KERNEL = 0x80
# Signals that Python ignores, and a program expects at their default.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ)


def program(command: Sequence[str], env: Mapping[str, str]) -> str:
    """The path of the program. Failure with 127 when there is none, with 126 when it cannot be executed."""
    name = command[0]
    found = shutil.which(name, path=env.get("PATH", os.defpath)) if name else None
    if found:
        return found
    paths = [name] if "/" in name else [f"{directory}/{name}" for directory in env.get("PATH", "").split(":")]
    if name and any(os.path.exists(path) for path in paths):
        if os.path.isdir(name):
            raise Failure(Outcome.failed(NOT_EXECUTABLE, f"{name}: is a directory"))
        raise Failure(Outcome.failed(NOT_EXECUTABLE, f"{name}: is not executable", hint=f"chmod +x {name}"))
    raise Failure(Outcome.failed(NOT_FOUND, f"{name}: command not found", hint="is it in $PATH?"))


class UserCommand:
    """One command of the user's. run() blocks until it has ended."""

    def __init__(self, path: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._path = path
        self._command = list(command)
        self._env = dict(env)

    def run(
        self, *, stdout: int | None = None, lifeline: int = -1, unwanted: Callable[[], bool] = lambda: False
    ) -> int:
        """The command's exit status, 128 + N when signal N ended it. Signals sent to us reach it meanwhile.

        When the other end of `lifeline` is closed and the command is `unwanted` then, it is asked to end.
        """
        watched = (signal.SIGCHLD, signal.SIGIO, *PASSED_ON)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        try:
            pid = self._spawn(before, stdout)
            if lifeline >= 0 and _ended(lifeline) and unwanted():
                os.kill(pid, signal.SIGTERM)
            while True:
                came = signal.sigwaitinfo(watched)
                if came.si_signo == signal.SIGCHLD:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        code = os.waitstatus_to_exitcode(status)
                        return code if code >= 0 else 128 - code
                elif came.si_signo == signal.SIGIO:
                    if unwanted():
                        os.kill(pid, signal.SIGTERM)
                elif came.si_code != FROM_KERNEL:
                    os.kill(pid, came.si_signo)
        finally:
            if lifeline >= 0:
                _stop_sigio(lifeline)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _spawn(self, mask: Iterable[int], stdout: int | None) -> int:
        actions = [] if stdout is None else [(os.POSIX_SPAWN_DUP2, stdout, 1)]
        try:
            return os.posix_spawn(
                self._path, self._command, self._env, file_actions=actions, setsigmask=mask, setsigdef=_RESET
            )
        except OSError as error:
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            raise Failure(Outcome.failed(code, f"{self._command[0]}: {error.strerror}")) from None


def _ended(lifeline: int) -> bool:
    """Whether the other end of the pipe is closed; if not, SIGIO says it later (fcntl(2), O_ASYNC)."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)  # errors are always reported
    return bool(poll.poll(0))


def _stop_sigio(lifeline: int) -> None:
    """Stop SIGIO, which would kill this process when it no longer waits for it."""
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) & ~os.O_ASYNC)
    while signal.sigtimedwait((signal.SIGIO,), 0):
        continue
