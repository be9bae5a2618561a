"""The pool's processes: reports of their exits, kept until acknowledged, and signals to them.

Children are reaped after the rest of their process group was killed. Processes started by a previous keeper are not
children of this one, and are watched by pidfd: only their parent, now init, gets their exit status.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time

from ..platform import process_start
from . import wire

KILLED_SECONDS = 5.0


class Reaper:
    """Reaps children and watches other processes of the pool; keeps a report of each exit until it is acknowledged.

    The report of a child has its exit status or signal. In the report of any other process, status and signal are None.
    """

    def __init__(self) -> None:
        self.unacknowledged: list[wire.Message] = []
        self.watcher = Watcher()
        self.sequence = 0

    def resume(self, unacknowledged: list[wire.Message], sequence: int, watched: dict[int, int]) -> None:
        """Restore the state from before execve(2). `watched` maps pids to start times."""
        self.unacknowledged, self.sequence = unacknowledged, sequence
        for pid, start in watched.items():
            # The exit of a process that cannot be watched is detected by its control socket.
            with contextlib.suppress(OSError):
                self.watch(pid, start)

    def reap_and_kill_groups(self) -> list[wire.Message]:
        """Reap all exited children; returns the new reports, which are also appended to `unacknowledged`."""
        fresh = []
        while (child := _peek_ended_child()) is not None:
            # The rest of the worker's process group is killed before its pid can be reused.
            kill_group(child)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            fresh.append(self._append_report(child, code if code >= 0 else None, -code if code < 0 else None))
        return fresh

    def report_exited(self) -> list[wire.Message]:
        """The new reports for watched processes that have exited, which are also appended to `unacknowledged`."""
        return [self._append_report(pid, None, None) for pid in self.watcher.unwatch_exited_and_kill_groups()]

    def watch(self, pid: int, start: int) -> wire.Message | None:
        """Watch a process; returns its exit report if it has exited already.

        Returns None for a running process, and for a child of this process: `reap` reports the exits of children.
        """
        if is_child(pid) or self.watcher.watch(pid, start):
            return None
        if any(report["pid"] == pid for report in self.unacknowledged):
            return None  # a child is reported elsewhere, with its exit status
        kill_rest_of_group(pid, start)
        return self._append_report(pid, None, None)

    def acknowledge(self, sequence: int) -> None:
        """Drop the reports up to and including number `sequence`."""
        self.unacknowledged = [each for each in self.unacknowledged if each["sequence"] > sequence]

    def signal(self, pid: int, number: int, *, group: bool, start: int | None = None) -> bool:
        """Send a signal to a child that has not been reaped or to a watched process; with `group`, to its group.

        Returns False, and sends nothing, if the pid is neither, or its start time is not `start`. Only the parent, or
        the holder of a pidfd, can be sure that another process has not reused the pid.
        """
        if pid <= 1 or (start is not None and process_start(pid) not in (start, None)):
            return False
        if not is_child(pid):
            return self.watcher.signal(pid, number, group=group)
        # A new child leads no group until it has called setsid(): until then only the process is signalled.
        for send in (os.killpg, os.kill) if group else (os.kill,):
            try:
                send(pid, number)
            except ProcessLookupError:
                continue
            return True
        return False

    def _append_report(self, pid: int, status: int | None, number: int | None) -> wire.Message:
        self.sequence += 1
        report = {"event": "exit", "sequence": self.sequence, "pid": pid, "status": status, "signal": number}
        self.unacknowledged.append(report)
        return report


def is_child(pid: int) -> bool:
    """Whether the process is a child that has not been reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _peek_ended_child() -> int | None:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None


class Watcher:
    """Watches processes by pid and start time. One descriptor becomes readable when any of them may have exited."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pids: dict[int, int] = {}  # by pidfd
        self._pidfds: dict[int, int] = {}  # by pid
        self.starts: dict[int, int] = {}  # the start times of the watched processes by pid

    def fileno(self) -> int:
        """The descriptor that is readable when `unwatch_exited_and_kill_groups` has something to report."""
        return self._epoll.fileno()

    def watch(self, pid: int, start: int) -> bool:
        """Watch the process; False if it has exited, even if its pid has been reused. Raises OSError."""
        if pid in self.starts:
            return True
        try:
            fd = os.pidfd_open(pid)
        except OSError as error:
            # EINVAL: the pid may already have been reused as a thread id of another process.
            if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise
            return False
        # Checked after the pidfd was opened: from then on, reuse of the pid is detected.
        found = process_start(pid)
        if found != start:
            os.close(fd)
            if found is None and os.path.exists(f"/proc/{pid}"):
                # The process exists but cannot be opened, most likely because no descriptor is free.
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return False
        self.starts[pid] = start
        self._pids[fd], self._pidfds[pid] = pid, fd
        self._epoll.register(fd, select.EPOLLIN)
        return True

    def unwatch_exited_and_kill_groups(self) -> list[int]:
        """The pids of processes that have exited since the last call. The rest of their process groups is killed."""
        pids = []
        for fd, _ in self._epoll.poll(0):
            pid = self._pids.pop(fd)
            self._epoll.unregister(fd)
            os.close(self._pidfds.pop(pid))
            kill_rest_of_group(pid, self.starts.pop(pid))
            pids.append(pid)
        return pids

    def signal(self, pid: int, number: int, *, group: bool) -> bool:
        """Send a signal to a watched process and, with `group`, to its group; False if it has exited or is unknown.

        Uses the process's existing pidfd, so that a keeper without a free descriptor can still stop it.
        """
        if pid not in self._pidfds:
            return False
        try:
            signal.pidfd_send_signal(self._pidfds[pid], 0)
            if group:
                with contextlib.suppress(ProcessLookupError):  # it leads no group
                    os.killpg(pid, number)
            signal.pidfd_send_signal(self._pidfds[pid], number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Stop watching all processes, and close the descriptors used for watching."""
        for fd in self._pids:
            os.close(fd)
        self._epoll.close()

    def kill_all(self, limit_seconds: float) -> None:
        """Kill all watched processes, and wait at most `limit_seconds` until they have exited."""
        for pid in self.starts:
            self.signal(pid, signal.SIGKILL, group=True)
        while self.starts and self._epoll.poll(limit_seconds):
            self.unwatch_exited_and_kill_groups()


def kill_rest_of_group(pid: int, start: int) -> None:
    """Kill the remaining processes of a group whose leader has exited. `start` is the leader's start time.

    Does nothing if another process has the leader's pid: the kernel reuses a pid only after its group is empty.
    """
    if process_start(pid) in (None, start):
        kill_group(pid)


def kill_group(pid: int) -> None:
    """Kill the processes of the group `pid`, if there are any."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def signal_process(pid: int, start: int, number: int, *, group: bool = False) -> bool:
    """Send a signal to the process with this start time and, with `group`, its group; False if it has exited.

    Sent by pidfd where available (not in every sandbox), so that a process that has reused the pid is never signalled.
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
            with contextlib.suppress(ProcessLookupError):  # it leads no group
                os.killpg(pid, number)
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


def await_exit(pid: int, start: int, timeout_seconds: float) -> bool:
    """Whether the process with this start time exits within the timeout. Blocks."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return process_start(pid) != start or bool(poll.poll(timeout_seconds * 1000))
    finally:
        os.close(process)


def wait_or_kill_children(patience_seconds: float) -> None:
    """Kill and reap all children and their process groups, after giving them `patience_seconds` to exit.

    A process that cannot be killed, such as one blocked in the kernel on a file system, is left behind.
    """
    patient_until = time.monotonic() + patience_seconds
    until = patient_until + KILLED_SECONDS
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        while (now := time.monotonic()) < until and _reap_and_check_left():
            if now >= patient_until:
                for child in children():
                    for kill in (os.killpg, os.kill):
                        with contextlib.suppress(ProcessLookupError):
                            kill(child, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, (patient_until if now < patient_until else until) - now)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reap_and_check_left() -> bool:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def children(pid: int | None = None) -> list[int]:
    """The pids of the children of the first thread of process `pid` (default: this process)."""
    pid = pid or os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
