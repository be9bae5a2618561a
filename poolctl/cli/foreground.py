"""Running the user's command: the terminal and the standard streams are its own while it runs.

It stays in our process group, as `env` or `nice` would leave it, so that pagers behind a pipe and Ctrl-Z work as
always. A Ctrl-C of the terminal therefore reaches it without us.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterable, Mapping, Sequence

from poolctl.cli.exit_codes import NOT_EXECUTABLE, NOT_FOUND
from poolctl.cli.outcome import Failure, Outcome

# Sent to us, meant for the command.
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# SI_KERNEL of sigaction(2): the terminal's own signals, which the command has got already.
_FROM_KERNEL = 0x80
# What Python ignores and a program expects at its default.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ)


def program(command: Sequence[str], env: Mapping[str, str]) -> str:
    """The path of the program. Failure with 127 when there is none, with 126 when it cannot be executed."""
    name = command[0]
    found = shutil.which(name, path=env.get("PATH", os.defpath)) if name else None
    if found:
        return found
    places = [name] if "/" in name else [f"{place}/{name}" for place in env.get("PATH", "").split(":")]
    if name and any(os.path.exists(place) for place in places):
        if os.path.isdir(name):
            raise Failure(Outcome.failed(NOT_EXECUTABLE, f"{name}: is a directory"))
        raise Failure(Outcome.failed(NOT_EXECUTABLE, f"{name}: is not executable", hint=f"chmod +x {name}"))
    raise Failure(Outcome.failed(NOT_FOUND, f"{name}: command not found", hint="is it in $PATH?"))


class Foreground:
    """One command of the user's. run() blocks until it has ended."""

    def __init__(self, path: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._path = path
        self._command = list(command)
        self._env = dict(env)

    def run(self, *, stdout: int | None = None) -> int:
        """The command's exit status, 128 + N when signal N ended it. Signals sent to us reach it meanwhile."""
        watched = (signal.SIGCHLD, *PASSED_ON)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        try:
            pid = self._spawn(before, stdout)
            while True:
                came = signal.sigwaitinfo(watched)
                if came.si_signo == signal.SIGCHLD:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        code = os.waitstatus_to_exitcode(status)
                        return code if code >= 0 else 128 - code
                elif came.si_code != _FROM_KERNEL:
                    os.kill(pid, came.si_signo)
        finally:
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
