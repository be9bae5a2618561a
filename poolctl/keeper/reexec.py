"""The keeper executes another version of itself: the same process, the same children, the same descriptors.

execve(2) keeps the pid, the children with their exit statuses, the subreaper flag, and every inheritable descriptor;
this process's state goes into a file in memory for the next program.
"""

from __future__ import annotations

import json
import os
import signal

from ..platform import read_file
from . import store_keys
from .reap import Reaper
from .shutdown import ENDING
from .store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 1


class Reexec:
    """`argv` is the keeper's next program, without its last argument, `supervisor` the next supervisor's."""

    def __init__(self, argv: list[str], supervisor: list[str]) -> None:
        self._argv = argv
        self._supervisor = supervisor

    def execute(self, store: Store, reaper: Reaper, open_files: tuple[int, int]) -> None:
        """Execute that program. Returns only if it cannot be executed: then nothing has changed."""
        # The next supervisor makes new ones.
        store.clear(*store_keys.OF_THE_VERSION)
        state = {
            "format": FORMAT,
            "entries": (rows := store.rows()),
            "unheard": reaper.unacknowledged,
            "sequence": reaper.sequence,
            "watched": reaper.watcher.starts,
            "open_files": open_files,
        }
        file = os.memfd_create("poolctl-keeper", 0)
        os.write(file, json.dumps(state).encode())
        kept = [fd for _, _, fds in rows for fd in fds]
        plan = json.dumps({"supervisor": self._supervisor, "restored": file})
        # Signals that arrive in between are pending for the next program.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            for fd in kept:
                os.set_inheritable(fd, True)
            os.execv(self._argv[0], [*self._argv, plan])
        except OSError:
            for fd in kept:
                os.set_inheritable(fd, False)
            os.close(file)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def restore(file: int, store: Store, reaper: Reaper) -> tuple[int, int]:
    """Restore the previous program's state; returns the limits of open files for workers."""
    state: dict[str, Any] = json.loads(read_file(file))
    os.close(file)
    for name, meta, fds in state["entries"]:
        for fd in fds:
            os.set_inheritable(fd, False)
        store.put(name, meta, fds)
    reaper.resume(
        state["unheard"], state["sequence"], {int(pid): start for pid, start in state["watched"].items()}
    )
    soft, hard = state["open_files"]
    return soft, hard
