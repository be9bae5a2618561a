"""Ends everything that the keeper has started, within a time limit."""

from __future__ import annotations

import os
import signal
import socket

from . import fd_store, pool_files
from .reap import KILLED_SECONDS, Reaper, is_child
from .store import WORKERS, Store

# Each of these signals requests the shutdown of the pool.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
UPGRADE = signal.SIGUSR1
# The minimum time for a supervisor that has confirmed a shutdown to stop the servers.
STOP_SECONDS = 30.0
# How long a supervisor may take to confirm a shutdown. Then the keeper kills it, and stops the workers.
ANSWER_SECONDS = 5.0
# How long the keeper waits for the workers before it kills them.
ALONE_SECONDS = 3.0


class Signals:
    """The signals that this process receives: exits of children, and requests to shut down or to upgrade.

    Its descriptor becomes readable when a signal has arrived; the signal handlers do nothing.
    """

    def __init__(self) -> None:
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *ENDING, UPGRADE):
            signal.signal(number, lambda *_: None)
        # Unblock all: the previous keeper blocked these for execve(2), and the caller may have blocked others.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def fileno(self) -> int:
        """The descriptor that is readable when `read` has something to report."""
        return self._wake.fileno()

    def read(self) -> bytes:
        """Return the numbers of the received signals. Raises BlockingIOError if there are none."""
        return self._wake.recv(4096)


class Shutdown:
    """The shutdown of the pool.

    `over`: nothing is left to wait for. `alone`: the keeper stops the pool without a supervisor. `last`: the supervisor
    has stopped the pool and is about to exit; it is not restarted, whatever its exit status.

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
        return self.due is not None

    def start_confirmation_deadline(self, now: float) -> None:
        """Note that the shutdown is requested; the supervisor has ANSWER_SECONDS to confirm it (see `tick`)."""
        if self.due is None:
            self._begun_at = now
            self.due = now + ANSWER_SECONDS

    def expect_no_supervisor(self, now: float) -> None:
        """If the shutdown has been requested, stop the workers now, without a supervisor."""
        if self.due is not None and not self.alone:
            self.due = now

    def set_stop_deadline(self, seconds: float = 0.0) -> None:
        """Set the time limit of a supervisor that has confirmed the shutdown and needs `seconds` to stop the servers.

        The time counts from the request for the shutdown, even if a restarted supervisor confirms the shutdown again.
        """
        if self.begun and not self.alone:
            self.due = self._begun_at + ANSWER_SECONDS + max(STOP_SECONDS, seconds)

    def tick(self, now: float, supervisor_pid: int) -> bool:
        """Enforce the time limits of the shutdown. Return whether the wait for the workers is over.

        When the supervisor's limit has passed, the supervisor is killed and the workers are asked to stop. Then the
        wait is over when no worker is left, or after ALONE_SECONDS. `supervisor_pid` is 0 if none runs.
        """
        if self.alone and not any(map(self._is_running, self._workers())):
            return True
        if self.due is None or now < self.due:
            return False
        if self.alone or not self._workers():
            return True
        self.alone = True
        self.due = now + ALONE_SECONDS
        if supervisor_pid:
            self._reaper.signal(supervisor_pid, signal.SIGKILL, group=False)
        # The gateway would keep running without a keeper and a supervisor.
        for meta in self._store.values(*WORKERS, fd_store.GATEWAY_LINK):
            number, group = meta.get("stop_signal", signal.SIGTERM), bool(meta.get("keeps_group"))
            self._reaper.signal(int(meta["pid"]), number, group=group, start=meta.get("start"))
        return False

    def kill_and_close_store(self) -> None:
        """Kill left groups and watched processes, and close all stored descriptors: readers get end of file.

        If a shutdown was requested, but no supervisor has completed it, also remove the files with the saved state.
        """
        if self.begun and not self.last:
            pool_files.remove_left_states(self._directory)
            pool_files.unlink_quietly(os.path.join(self._directory, pool_files.PROCESSES))
        self._reaper.kill_all(KILLED_SECONDS)
        self._store.clear()

    def _workers(self) -> list[int]:
        return [int(meta["pid"]) for meta in self._store.values(*WORKERS)]

    def _is_running(self, pid: int) -> bool:
        return is_child(pid) or pid in self._reaper.watcher.starts or pid in self._reaper.left_groups
