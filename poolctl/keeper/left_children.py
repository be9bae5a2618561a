"""Reaps a command of the user, and ends the processes that it leaves behind. Standard library only.

A command in the terminal has no process group of its own. The process that runs it is a child subreaper instead (see
platform.become_subreaper), and so becomes the parent of the processes that are left: their pids cannot be reused before
it reaps them.

Likewise the keeper is the parent of the daemons that programs of the pool leave behind. These are only listed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from functools import partial

from ..platform import process_variable
from .reap import KILLED_SECONDS, children, deliver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable

# SI_KERNEL of sigaction(2): the signal was sent by the terminal, so a command has received it as well.
SI_KERNEL = 0x80


def reap_and_find_status(command: int, others: Collection[int] = ()) -> int | None:
    """Reap the command and processes that it has left behind, but not `others`.

    Returns the command's exit status, 128 + N if signal N killed it; None if it still runs.
    """
    exit_status = None
    for child in {command, *children()}.difference(others):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended == command:
            exit_status = shell_status(os.waitstatus_to_exitcode(status))
    return exit_status


def shell_status(code: int) -> int:
    """The exit status as a shell has it: 128 + N for the exit code -N of a process that signal N killed."""
    return code if code >= 0 else 128 - code


def left_children(except_pids: Container[int]) -> list[int]:
    """The children of this process that are not among `except_pids`, and have not left its session as a daemon does."""
    session = os.getsid(0)
    return [pid for pid in children() if pid not in except_pids and os.getsid(pid) == session]


def left_daemons(keeper: int, workers: Container[int | None]) -> list[tuple[str, int]]:
    """The server's name and the pid of each daemon that a program has left behind, in a session of its own.

    These orphans have become children of the process `keeper`. `workers` are the pids of running workers. Blocks.
    """
    daemons, orphans = [], children(keeper)
    # Set if a server of another pool has started this pool.
    inherited = process_variable(keeper, "POOLCTL_NAME")
    for pid in orphans:
        with contextlib.suppress(ProcessLookupError):
            session, name = os.getsid(pid), process_variable(pid, "POOLCTL_NAME")
            # A program that has exited still leads the session of the other processes of its group.
            is_daemon = pid not in workers and (session == pid or session not in orphans)
            if is_daemon and name not in ("", inherited):
                daemons.append((name, pid))
    return daemons


def descendants() -> list[int]:
    """The children of this process that are in its session, their children there, and so on."""
    pids, session = left_children(()), os.getsid(0)
    for pid in pids:  # the list grows
        with contextlib.suppress(OSError):
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                pids += [child for child in children(pid, thread) if os.getsid(child) == session]
    return pids


def end_processes(find: Callable[[], Iterable[int]], number: int, timeout_seconds: float) -> None:
    """Send a signal to each child that `find` returns, and SIGKILL after the timeout; return when it finds none.

    A process that a child leaves behind becomes a child too, and gets the signal then. Blocks. A process that cannot be
    killed is not waited for longer than KILLED_SECONDS.
    """
    until = time.monotonic() + timeout_seconds
    sent: dict[int, int] = {}
    while pids := [pid for pid in find() if os.waitpid(pid, os.WNOHANG)[0] != pid]:
        overtime = time.monotonic() - until
        if overtime >= KILLED_SECONDS:
            return
        current = signal.SIGKILL if overtime >= 0 else number
        for pid in pids:
            if sent.get(pid) != current:
                sent[pid] = current
                with contextlib.suppress(PermissionError):
                    deliver(partial(os.kill, pid), current)
        _await_any_exit(pids, -overtime if overtime < 0 else KILLED_SECONDS - overtime)


def _await_any_exit(pids: list[int], timeout_seconds: float) -> None:
    with contextlib.ExitStack() as closing:
        poll = select.poll()
        for pid in pids:
            process = os.pidfd_open(pid)
            closing.callback(os.close, process)
            poll.register(process, select.POLLIN)
        poll.poll(timeout_seconds * 1000)
