"""The signals of `run`: signals that end it, signals passed to its command, and the duties of a container's PID 1."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from poolctl.cli.outcome import Failure, Outcome
from poolctl.exit_codes import NOT_EXECUTABLE, NOT_FOUND

Handler = Callable[[int, FrameType | None], object] | int | None

# Passed on to the command.
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# SI_KERNEL of sigaction(2): sent by the terminal, so the command has received it as well.
FROM_KERNEL = 0x80
# Signals ignored by Python, which programs expect at their default.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ)
# Docker kills the container after ten.
STOP_SECONDS = 8.0
_KILLED = 128 + signal.SIGKILL
_ENDING = (signal.SIGTERM, signal.SIGINT)
_WATCHED = (signal.SIGCHLD, *PASSED_ON)


def program(command: Sequence[str], env: Mapping[str, str]) -> str:
    """The path of the program. Failure with 127 if it does not exist, with 126 if it cannot be executed."""
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
    """The user's command. run() blocks until it has exited."""

    def __init__(self, path: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._path = path
        self._command = list(command)
        self._env = dict(env)

    def run(
        self, *, stdout: int | None = None, lifeline: int = -1, unwanted: Callable[[], bool] = lambda: False
    ) -> int:
        """Run the command; returns its exit status, 128 + N if signal N killed it. Passes signals on to it.

        If the other end of `lifeline` is closed and the command is then `unwanted`, it gets SIGTERM.
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
    """Whether the other end of the pipe is closed; if not, SIGIO will report it (fcntl(2), O_ASYNC)."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)  # errors are always reported
    return bool(poll.poll(0))


def _stop_sigio(lifeline: int) -> None:
    """Disable SIGIO, which would kill this process once it no longer waits for the signal."""
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) & ~os.O_ASYNC)
    while signal.sigtimedwait((signal.SIGIO,), 0):
        continue


def is_first_process() -> bool:
    """Whether this process is the first one of a container."""
    return os.getpid() == 1


def continue_in_child(limit_seconds: float) -> None:
    """Return in a child. This process passes signals on, reaps, and exits with the child's status.

    It exits at the latest `limit_seconds` after a signal that ends the pool; the kernel then kills everything else.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = os.fork()
    if child:
        os._exit(_Init(child, limit_seconds).run())
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Init:
    def __init__(self, child: int, limit_seconds: float) -> None:
        self._child = child
        self._limit_seconds = limit_seconds
        self._due: float | None = None
        self._status: int | None = None

    def run(self) -> int:
        """Wait until the child has exited, and if it was killed, until its pool has ended as well."""
        while True:
            patience = 3600.0 if self._due is None else self._due - time.monotonic()
            came = signal.sigtimedwait(_WATCHED, max(0.0, patience))
            if self._due is not None and time.monotonic() >= self._due:
                return _KILLED if self._status is None else self._status
            if came is not None and came.si_signo != signal.SIGCHLD:
                self._pass_on(came)
            alone = self._reap()
            if self._status is not None and (alone or self._status <= 128):
                return self._status

    def _pass_on(self, came: signal.struct_siginfo) -> None:
        # The terminal sends its signals to the child as well.
        if came.si_code != FROM_KERNEL and self._status is None:
            os.kill(self._child, came.si_signo)
        if came.si_signo in _ENDING:
            self._end_soon()

    def _end_soon(self) -> None:
        if self._due is None:
            self._due = time.monotonic() + self._limit_seconds

    def _reap(self) -> bool:
        """Reap children; returns whether no child is left."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._child:
                    code = os.waitstatus_to_exitcode(ended[1])
                    self._status = code if code >= 0 else 128 - code
                    self._end_soon()
        except ChildProcessError:
            return True
        return False


_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
# Sent to this process: only a signal interrupts every kind of wait in the main thread.
_OUTPUT_LOST = signal.SIGIO


class Terminated(BaseException):
    """SIGTERM, SIGHUP, or output without a reader: stop cleanly. Not caught by `except Exception`."""


class StopSignals:
    """Raises in the main thread on a signal that ends `run`: KeyboardInterrupt for SIGINT, else Terminated.

    A second signal raises again. If the stop began because the reader of the output is gone, the first signal is
    ignored. SIGALRM, sent at the end of the time for the stop, always raises Terminated.
    """

    def __init__(self) -> None:
        self._stopping = False
        self._unasked = False  # it stops without a signal from the user
        self._before: dict[int, Handler] = {}
        self.interrupted = False  # SIGINT has already raised
        self.wakeup = -1  # readable when a signal has arrived
        self._waker = self._waker_before = -1

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in (*_STOPPING, _OUTPUT_LOST)}
        for number in _STOPPING:
            if self._before[number] is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._raise_for_signal)
        signal.signal(_OUTPUT_LOST, self._output_lost)
        self.wakeup, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._waker_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        return self

    def __exit__(self, *raised: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._waker_before)
        os.close(self.wakeup)
        os.close(self._waker)

    def wait_for_end(self, fd: int) -> None:
        """Return when the other end of the pipe is closed; signals raise in the meantime.

        A signal just before poll(2) is in the wake-up pipe; otherwise poll(2) would keep waiting.
        """
        poll = select.poll()
        poll.register(fd, 0)  # errors are always reported
        poll.register(self.wakeup, select.POLLIN)
        while all(ready != fd for ready, _ in poll.poll()):
            os.read(self.wakeup, 512)

    @staticmethod
    def output_lost() -> None:
        """Stop, unless already stopping, because the reader of the output is gone. Callable from any thread."""
        os.kill(os.getpid(), _OUTPUT_LOST)

    def _raise_for_signal(self, number: int, frame: FrameType | None) -> None:
        unasked, self._stopping = self._unasked, True
        if unasked and number != signal.SIGALRM:
            self._unasked = False
            self.interrupted = number == signal.SIGINT
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _output_lost(self, number: int, frame: FrameType | None) -> None:
        if not self._stopping:
            self._stopping = self._unasked = True
            raise Terminated


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let this block complete: a first signal takes effect after it, a second one at once."""
    before: dict[int, Handler] = {number: signal.getsignal(number) for number in _STOPPING}
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            _handle(before[number], number)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
    if came:
        _handle(before[came[0]], came[0])


def _handle(handler: Handler, number: int) -> None:
    if callable(handler):
        handler(number, None)
