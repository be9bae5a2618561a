"""How the keeper's program ends: with its pool, or by executing another version of itself.

A shutdown is carried out by the supervisor or without one, and its duration is always bounded. execve(2) keeps the pid,
the children with their exit statuses, the subreaper flag, and every inheritable descriptor; the rest of this process's
state goes into a file in memory for the next program.
"""

from __future__ import annotations

import json
import os
import signal
import socket

from ..platform import read_file
from . import fd_store, pool_files, wire
from .fd_store import Store
from .reap import KILLED_SECONDS, Reaper, is_child

# Each of these requests the end of the pool.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

STOP_SECONDS = 30.0
# The time a supervisor has to confirm that it stops the pool; after that the keeper stops, then kills the workers.
ANSWER_SECONDS = 5.0
ALONE_SECONDS = 3.0
LAST_OUTPUT_SECONDS = 1.0


class Signals:
    """The signals of this process: children that have exited, and requests to end the pool.

    Its descriptor is readable when one was received: handlers do no work.
    """

    def __init__(self) -> None:
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *ENDING):
            signal.signal(number, lambda *_: None)
        # They were blocked during execve.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def fileno(self) -> int:
        """Readable when `taken` has something to report."""
        return self._wake.fileno()

    def taken(self) -> bool:
        """Read the received signals; returns whether one of them requests the end."""
        return any(number in ENDING for number in self._wake.recv(4096))


class Shutdown:
    """The shutdown of the pool.

    `over`: nothing is left to wait for. `alone`: the keeper stops the pool without a supervisor. `last`: the supervisor
    has stopped the pool and is about to exit; it is not started again, however it exits.

    All times are in seconds on one monotonic clock.
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
        """Whether the shutdown has been requested."""
        return self.due is not None

    def begin(self, now: float) -> None:
        """Request the shutdown; the supervisor must confirm it."""
        if self.due is None:
            self._begun_at = now
            self.due = now + ANSWER_SECONDS

    def answered(self, seconds: float = 0.0) -> None:
        """Note that the supervisor has confirmed, and may take this long because of its servers' own limits.

        The time runs from the request: a second confirmation by a successor does not extend it.
        """
        if self.begun and not self.alone:
            self.due = self._begun_at + ANSWER_SECONDS + max(STOP_SECONDS, seconds)

    def check(self, now: float, supervisor: int) -> bool:
        """Take the action that is due. Returns whether the time limit has passed."""
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
        # The gateway would keep running without keeper and supervisor.
        for kind in (fd_store.WORKER, fd_store.GATEWAY_LINK):
            for meta in self._store.values(kind):
                number = meta.get("stop_signal", signal.SIGTERM)
                self._reaper.signal(int(meta["pid"]), number, group=False, start=meta.get("start"))
        return False

    def finish(self) -> None:
        """Kill the watched processes, and close every descriptor: the readers of pipes and sockets get end of file."""
        if self.begun and not self.last:
            # The shutdown was requested although no supervisor has confirmed it.
            pool_files.remove_desired(self._directory)
        self._reaper.watcher.kill_all(KILLED_SECONDS)
        self._store.clear()

    def leave(self) -> None:
        """Remove all files except logs from the pool's directory, because no process of the pool is left."""
        pool_files.remove_traces(self._directory)

    def _workers(self) -> list[int]:
        return [int(meta["pid"]) for meta in self._store.values(fd_store.WORKER)]

    def _is_there(self, pid: int) -> bool:
        return is_child(pid) or pid in self._reaper.watcher.starts


def execute_next(
    argv: list[str], supervisor: list[str], store: Store, reaper: Reaper, open_files: tuple[int, int]
) -> None:
    """Execute the next version of the keeper: `argv` without its last argument; `supervisor` is its supervisor.

    Returns only if it cannot be executed; the state is then unchanged.
    """
    # The next supervisor creates new ones.
    store.clear(*fd_store.OF_THE_VERSION)
    state = {
        "entries": (rows := store.rows()),
        "unheard": reaper.unacknowledged,
        "sequence": reaper.sequence,
        "watched": reaper.watcher.starts,
        "open_files": open_files,
    }
    file = os.memfd_create("poolctl-keeper", 0)
    os.write(file, json.dumps(state).encode())
    kept = [fd for _, _, fds in rows for fd in fds]
    # Signals that arrive in between are pending for the next program.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        os.execv(argv[0], [*argv, json.dumps({"supervisor": supervisor, "restored": file})])
    except OSError:
        for fd in kept:
            os.set_inheritable(fd, False)
        os.close(file)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def restore(file: int, store: Store, reaper: Reaper) -> tuple[int, int]:
    """Restore the previous program's state; returns the limits of open files for workers."""
    state: wire.Message = json.loads(read_file(file))
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
