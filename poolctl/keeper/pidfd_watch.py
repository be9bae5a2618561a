"""Processes that are not children of this one, because the keeper that started them is gone: watched by pidfd.

Only the parent, which is init by now, learns how they ended; that they ended is seen here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal

from ..platform import process_start


class Watcher:
    """Known by pid and start time. One descriptor says that some of them may have ended, whatever their number."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pids: dict[int, int] = {}  # by pidfd
        self._processes: dict[int, tuple[int, int]] = {}  # pid to pidfd and start time

    def fileno(self) -> int:
        """Readable when `ended` has something to tell."""
        return self._epoll.fileno()

    @property
    def pids(self) -> list[int]:
        """Those that are watched."""
        return list(self._processes)

    @property
    def starts(self) -> dict[int, int]:
        """Their start times by pid."""
        return {pid: start for pid, (_, start) in self._processes.items()}

    def watch(self, pid: int, start: int) -> bool:
        """Watch the process; False when it has ended, even if its pid is another's by now. Raises OSError."""
        if pid in self._processes:
            return True
        try:
            fd = os.pidfd_open(pid)
        except OSError as error:
            # The number may be a thread's of some other process by now.
            if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise
            return False
        # Looked at after the descriptor was opened: from now on the pid cannot become another's unnoticed.
        found = process_start(pid)
        if found != start:
            os.close(fd)
            if found is None and os.path.exists(f"/proc/{pid}"):
                # It is there, and cannot be looked at: without a descriptor, most likely.
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return False
        self._processes[pid] = fd, start
        self._pids[fd] = pid
        self._epoll.register(fd, select.EPOLLIN)
        return True

    def ended(self) -> list[int]:
        """Those that have ended since the last call, with what was left of their process groups."""
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
        """Send a signal to a watched process, or to its group; False when it has ended or is unknown."""
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
        """Watch nothing any more."""
        for fd, _ in self._processes.values():
            os.close(fd)
        self._epoll.close()

    def kill_all(self, limit_seconds: float) -> None:
        """Kill every one, and wait for their ends at most that long."""
        for pid in self.pids:
            self.signal(pid, signal.SIGKILL, group=True)
        while self._processes and self._epoll.poll(limit_seconds):
            self.ended()


def kill_rest(pid: int, start: int) -> None:
    """Kill what is left of the group that a dead process led.

    Its pid is given to nobody else while the group has a member: if it is, there is no such group any more.
    """
    if process_start(pid) in (None, start):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def signal_process(pid: int, start: int, number: int, *, group: bool = False) -> bool:
    """Send a signal to the process of that start time, or first to its group; False when it has ended.

    It goes by pidfd where there is one (not in every sandbox): another process that has the pid by now gets nothing.
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
                pass  # it leads none
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
