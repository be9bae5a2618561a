"""Ends the processes that a command of the user leaves behind when its first process ends. Standard library only.

A command in the terminal has no process group of its own. The process that runs it is a child subreaper instead (see
platform.become_subreaper), and so becomes the parent of what is left, whose pids cannot be reused before it reaps them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from .reap import KILLED_SECONDS, children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable


def left_children(known: Container[int]) -> list[int]:
    """The children of this process that are not `known`, and have not left its session as a daemon does."""
    session = os.getsid(0)
    return [pid for pid in children() if pid not in known and os.getsid(pid) == session]


def descendants() -> list[int]:
    """The children of this process and theirs, as far as they have not left its session."""
    found, session = left_children(()), os.getsid(0)
    for pid in found:  # which grows
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    found += [child for child in map(int, file.read().split()) if os.getsid(child) == session]
    return found


def end_processes(find: Callable[[], Iterable[int]], number: int, timeout_seconds: float) -> None:
    """Send a signal to each child that `find` returns, and SIGKILL after the timeout; return when it finds none.

    What a child leaves behind becomes a child too, and gets the signal then. Blocks. A process that cannot be killed is
    not waited for longer than KILLED_SECONDS.
    """
    until = time.monotonic() + timeout_seconds
    sent: dict[int, int] = {}
    while pids := [pid for pid in find() if not _reap_if_exited(pid)]:
        late = time.monotonic() - until
        if late >= KILLED_SECONDS:
            return
        due = signal.SIGKILL if late >= 0 else number
        for pid in pids:
            if sent.get(pid) != due:
                sent[pid] = due
                with contextlib.suppress(PermissionError):
                    os.kill(pid, due)
        _await_any_exit(pids, -late if late < 0 else KILLED_SECONDS - late)


def _reap_if_exited(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def _await_any_exit(pids: list[int], timeout_seconds: float) -> None:
    with contextlib.ExitStack() as closing:
        poll = select.poll()
        for pid in pids:
            process = os.pidfd_open(pid)
            closing.callback(os.close, process)
            poll.register(process, select.POLLIN)
        poll.poll(timeout_seconds * 1000)
