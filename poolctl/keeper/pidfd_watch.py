"""Watches by pidfd the processes of a keeper that has exited, which are not children of this one.

Only their parent, which is init by now, gets their exit status; this module learns only that they have exited.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal

from ..platform import process_start


class Watcher:
    """Watches processes by pid and start time. A single descriptor gets readable when some of them may have exited."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pids: dict[int, int] = {}  # by pidfd
        self._processes: dict[int, tuple[int, int]] = {}  # pid to pidfd and start time

    def fileno(self) -> int:
        """Readable when `ended` has something to report."""
        return self._epoll.fileno()

    @property
    def pids(self) -> list[int]:
        """The watched pids."""
        return list(self._processes)

    @property
    def starts(self) -> dict[int, int]:
        """The start times of the watched processes by pid."""
        return {pid: start for pid, (_, start) in self._processes.items()}

    def watch(self, pid: int, start: int) -> bool:
        """Watch the process; False if it has exited, even if its pid was given to another since. Raises OSError."""
        if pid in self._processes:
            return True
        try:
            fd = os.pidfd_open(pid)
        except OSError as error:
            # The number may be that of another process's thread by now.
            if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise
            return False
        # Checked after the descriptor was opened: from now on the pid cannot be reused unnoticed.
        found = process_start(pid)
        if found != start:
            os.close(fd)
            if found is None and os.path.exists(f"/proc/{pid}"):
                # It exists but cannot be opened: most likely for want of a descriptor.
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return False
        self._processes[pid] = fd, start
        self._pids[fd] = pid
        self._epoll.register(fd, select.EPOLLIN)
        return True

    def ended(self) -> list[int]:
        """The pids that have exited since the last call; the rest of their process groups is killed."""
        pids = []
        for fd, _ in self._epoll.poll(0):
            pid = self._pids.pop(fd)
            _, start = self._processes.pop(pid)
            self._epoll.unregister(fd)
            os.close(fd)
            kill_rest(pid, start)
            pids.append(pid)
        return pids

    def signal(self, pid: int, number: int, *, group: bool) -> bool:
        """Send a signal to a watched process, or to its group; False if it has exited or is unknown."""
        if pid not in self._processes:
            return False
        try:
            signal.pidfd_send_signal(self._processes[pid][0], 0)
            if group:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, number)
            signal.pidfd_send_signal(self._processes[pid][0], number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Stop watching."""
        for fd, _ in self._processes.values():
            os.close(fd)
        self._epoll.close()

    def kill_all(self, limit_seconds: float) -> None:
        """Kill all watched processes, and wait at most that long for their exits."""
        for pid in self.pids:
            self.signal(pid, signal.SIGKILL, group=True)
        while self._processes and self._epoll.poll(limit_seconds):
            self.ended()


def kill_rest(pid: int, start: int) -> None:
    """Kill the rest of the process group whose leader has exited.

    The pid is not reused while the group has a member: if another process has it, the group no longer exists.
    """
    if process_start(pid) in (None, start):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def signal_process(pid: int, start: int, number: int, *, group: bool = False) -> bool:
    """Send a signal to the process of that start time, or first to its group; False if it has exited.

    Sent by pidfd where available (not in every sandbox), so that a process that has reused the pid gets nothing.
    """
    process = -1
    try:
        try:
            process = os.pidfd_open(pid)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS):
                return False
        if process_start(pid) != start:
            return False
        if group:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                pass  # it leads no group
        if process < 0:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        return False
    finally:
        if process >= 0:
            os.close(process)
    return True
