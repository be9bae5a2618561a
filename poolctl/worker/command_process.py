"""Runs a server's command as a child of this process, for `poolctl serve` and `poolctl run --debug`.

This process is small, and may be PID 1 of a container: it forwards signals, reaps, and when the command has exited,
ends the remaining processes. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from functools import partial
from typing import NoReturn

from ..keeper.left_children import SI_KERNEL, descendants, end_processes, left_children, reap_and_find_status
from ..keeper.reap import deliver
from ..platform import become_subreaper, close_all, name_process
from . import process_setup
from .process_setup import SPEC_FD, Spec

_FAILED = 1
_FIRST_INHERITED_FD = 3  # sd_listen_fds(3)
# Signals of the terminal's job control stop the command's parent as well, so that the shell gets the terminal back.
_JOB_CONTROL_SIGNALS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_FORWARDED = signal.valid_signals() - {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD,
    # Raised by this process's own instructions.
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS,
}  # fmt: skip
# A program that cannot open its port exits early.
_EARLY_SECONDS = 30.0
_NOT_EXECUTABLE = 126  # as in a shell; 127: the program is missing; 128 + N: killed by signal N


def run_command_in_child() -> NoReturn:
    """Run the command of the inherited specification; exit with its status, 128 + N if signal N killed it.

    The first argument is the number of listeners, which have the descriptors after SPEC_FD.
    """
    count = int(sys.argv[1])
    spec = process_setup.read_spec_after_exec(1 + count)
    listeners = list(range(SPEC_FD + 1, SPEC_FD + 1 + count))
    name_process("poolctl-serve")
    become_subreaper()
    began = time.monotonic()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD, *_FORWARDED))
    command = os.fork()
    if command == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _become_command(spec, listeners)
    close_all((SPEC_FD, *listeners))  # each duplicate of a listener keeps the port bound
    status, was_signalled = _forward_signals_until_exit(
        command, together=spec["stop_group"] == "together", stop_signal=spec["stop_signal"]
    )
    is_early = time.monotonic() - began < _EARLY_SECONDS
    if count and is_early and not was_signalled and 0 < status < _NOT_EXECUTABLE:
        print(
            f"poolctl: {spec['server']}: exited with status {status}. poolctl had opened its port, and passed it on as "
            'descriptor 3 (LISTEN_FDS); if the program opens the port itself, write socket = "program"',
            file=sys.stderr,
            flush=True,
        )
    if spec["stop_group"] != "leader":
        end_processes(lambda: left_children(()), spec["stop_signal"], spec["stop_seconds"])
    os._exit(status)


def _become_command(spec: Spec, listeners: list[int]) -> NoReturn:
    try:
        for place, fd in enumerate(listeners, _FIRST_INHERITED_FD):
            os.dup2(fd, place)
        process_setup.become_program(spec, len(listeners))
    except process_setup.SetupFailed as failure:
        print(f"error: {spec['server']}: {failure}", file=sys.stderr, flush=True)
    finally:
        os._exit(_FAILED)


def _forward_signals_until_exit(command: int, *, together: bool, stop_signal: int) -> tuple[int, bool]:
    """Forward signals to the command or, if `together`, to all processes; SIGTERM as `stop_signal`.

    Returns its status once it has ended, and whether a signal was forwarded.
    """
    was_signalled = False
    while True:
        received = signal.sigwaitinfo((signal.SIGCHLD, *_FORWARDED))
        if received.si_signo == signal.SIGCHLD:
            status = reap_and_find_status(command)
            if status is not None:
                return status, was_signalled
        elif received.si_code == SI_KERNEL:
            if received.si_signo in _JOB_CONTROL_SIGNALS:
                os.kill(os.getpid(), signal.SIGSTOP)
        elif received.si_pid != os.getpid():  # not the SIGPIPE of its own output
            was_signalled = True
            number = stop_signal if received.si_signo == signal.SIGTERM else received.si_signo
            for pid in descendants() if together else (command,):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    deliver(partial(os.kill, pid), number)
