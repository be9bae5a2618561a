"""Running the user's command as a shell would: in its own process group, owner of the terminal while it runs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from poolctl.cli.exit_codes import NOT_EXECUTABLE, NOT_FOUND
from poolctl.cli.outcome import Failure, Outcome

# Asked of us, meant for the command. A terminal's own Ctrl-C reaches it without us: it is in the foreground.
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
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
        self._terminal = _own_terminal()
        self._pid = 0
        self._early: list[int] = []

    def run(self, *, stdout: int | None = None) -> int:
        """The command's exit status, 128 + N when signal N ended it. Signals sent to us reach it meanwhile."""
        handlers = {number: signal.getsignal(number) for number in PASSED_ON}
        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._pass_on)
        try:
            self._pid = self._spawn(stdout)
            self._give_terminal(self._pid)
            for early in self._early:
                self._send(early)
            return self._await()
        finally:
            self._give_terminal(os.getpgrp())
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _spawn(self, stdout: int | None) -> int:
        actions = [] if stdout is None else [(os.POSIX_SPAWN_DUP2, stdout, 1)]
        try:
            return os.posix_spawn(
                self._path, self._command, self._env, file_actions=actions, setpgroup=0, setsigdef=_RESET
            )
        except OSError as error:
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            raise Failure(Outcome.failed(code, f"{self._command[0]}: {error.strerror}")) from None

    def _await(self) -> int:
        while True:
            _, status = os.waitpid(self._pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                return (
                    os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                )
            if self._terminal is not None:
                self._rest_together(os.WSTOPSIG(status))

    def _rest_together(self, number: int) -> None:
        """Ctrl-Z stops the command; stop with it, and go on with it when the shell says so."""
        if number in (signal.SIGTTIN, signal.SIGTTOU):  # it was quicker than we with the terminal
            self._give_terminal(self._pid)
        else:
            self._give_terminal(os.getpgrp())
            os.kill(os.getpid(), signal.SIGSTOP)
            self._give_terminal(self._pid)
        self._send(signal.SIGCONT)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._pid:
            self._send(number)
        else:
            self._early.append(number)

    def _send(self, number: int) -> None:
        try:
            os.killpg(self._pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def _give_terminal(self, group: int) -> None:
        if self._terminal is None or not group:
            return
        # A background process that changes the foreground group is stopped, unless it blocks this signal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            os.tcsetpgrp(self._terminal, group)
        except OSError:
            pass  # the terminal has gone, or the command with it
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _own_terminal() -> int | None:
    """The descriptor of the terminal in whose foreground we run, None if there is none."""
    try:
        fd = sys.stdin.fileno()
        return fd if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp() else None
    except (OSError, ValueError, AttributeError):
        return None
