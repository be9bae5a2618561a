"""The shutdown of a pool by its keeper: requested, carried out by a supervisor or without one, bounded in any case."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

from . import desired_state_file, store_keys
from .reap import Reaper, is_child
from .store import Store

# Each of these requests the end of the pool.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

STOP_SECONDS = 30.0
# The time for a supervisor to confirm that it stops the pool; then the keeper stops the workers, and then kills them.
ANSWER_SECONDS = 5.0
ALONE_SECONDS = 3.0
LAST_OUTPUT_SECONDS = 1.0
_KILLED_SECONDS = 5.0


class Signals:
    """The signals of this process: children that have exited, and requests to end the pool.

    Readable when one has been received: no work is done in a handler.
    """

    def __init__(self) -> None:
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *ENDING):
            signal.signal(number, lambda *_: None)
        # Blocked while one version replaced another.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def fileno(self) -> int:
        """Readable when `taken` has something to report."""
        return self._wake.fileno()

    def taken(self) -> bool:
        """Whether one of the received signals requests the end."""
        return any(number in ENDING for number in self._wake.recv(4096))


class Shutdown:
    """`over`: there is nothing left to wait for. `alone`: the keeper stops the pool, without a supervisor. `last`: the
    supervisor has stopped the pool and is about to exit; it is not started again, however it exits.

    All times are those of one monotonic clock, in seconds.
    """

    def __init__(self, store: Store, reaper: Reaper, directory: str) -> None:
        self.over = False
        self.alone = False
        self.last = False
        self.due: float | None = None
        self._begun_at = 0.0
        self._store = store
        self._reaper = reaper
        self._directory = directory

    @property
    def begun(self) -> bool:
        """Whether it has been requested."""
        return self.due is not None

    def begin(self, now: float) -> None:
        """Request the shutdown: the supervisor has to confirm it."""
        if self.due is None:
            self._begun_at = now
            self.due = now + ANSWER_SECONDS

    def answered(self, seconds: float = 0.0) -> None:
        """The supervisor has confirmed, and may take this long by its servers' own limits.

        The time runs from the request: a second confirmation by a successor does not extend it.
        """
        if self.begun and not self.alone:
            self.due = self._begun_at + ANSWER_SECONDS + max(STOP_SECONDS, seconds)

    def check(self, now: float, supervisor: int) -> bool:
        """Take the action that is due; whether the time is over."""
        if self.alone and not any(map(self._is_there, self._workers())):
            return True
        if self.due is None or now < self.due:
            return False
        if self.alone or not self._workers():
            return True
        self.alone = True
        self.due = now + ALONE_SECONDS
        if supervisor:
            self._reaper.signal(supervisor, signal.SIGKILL, group=False)
        for meta in self._store.values(store_keys.WORKER):
            self._reaper.signal(int(meta["pid"]), signal.SIGTERM, group=False, start=meta.get("start"))
        return False

    def finish(self) -> None:
        """Kill the watched processes, and close every descriptor: the readers of pipes and sockets get end of file."""
        if self.begun and not self.last:
            # The shutdown was requested although no supervisor has confirmed it.
            desired_state_file.remove(self._directory)
        self._reaper.watcher.kill_all(_KILLED_SECONDS)
        self._store.clear()

    def _workers(self) -> list[int]:
        return [int(meta["pid"]) for meta in self._store.values(store_keys.WORKER)]

    def _is_there(self, pid: int) -> bool:
        return is_child(pid) or pid in self._reaper.watcher.pids


def kill_children(patience_seconds: float = 0.0) -> None:
    """Kill and reap every child, with its process group, until there is none. They may first exit by themselves.

    One that cannot be killed is left: it is blocked in the kernel, perhaps on a file system.
    """
    patient_until = time.monotonic() + patience_seconds
    until = patient_until + _KILLED_SECONDS
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        while (now := time.monotonic()) < until and _some_are_left():
            if now >= patient_until:
                for child in children():
                    for kill in (os.killpg, os.kill):
                        with contextlib.suppress(ProcessLookupError):
                            kill(child, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, (patient_until if now < patient_until else until) - now)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _some_are_left() -> bool:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def children(pid: int | None = None) -> list[int]:
    """The pids of the children of this process's first thread, or of another's."""
    pid = pid or os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
