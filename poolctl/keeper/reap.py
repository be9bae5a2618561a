"""The pool's processes: reports of their exits, kept until acknowledged, and signals to them.

Children are reaped after the rest of their process group was killed or, for programs, has ended. Processes started by a
previous keeper are not children of this one, and are watched by pidfd: only their parent, now init, gets their exit
status.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from functools import partial

from ..platform import close_all, group_members, process_start
from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How long to wait for the exit of a process that got SIGKILL.
KILLED_SECONDS = 5.0
# Signals by which programs are asked to end (`stop_signal`).
END_SIGNALS = frozenset((
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
))  # fmt: skip


class Reaper:
    """Reaps children and watches other processes of the pool; keeps a report of each exit until it is acknowledged.

    The report of a child has its exit status or signal. In the report of any other process, status and signal are None.
    The rest of its process group is killed, unless `keeps_group` returns true for its pid: then the report has
    `group_left` if processes of the group still run, and a second report, "gone", follows when they have ended.
    """

    def __init__(self, keeps_group: Callable[[int], bool] = lambda pid: False) -> None:
        self.unacknowledged: list[wire.Message] = []
        self.watcher = Watcher()
        self.left_groups = GroupWatcher()
        self.sequence = 0
        self._keeps_group = keeps_group

    def resume(
        self,
        unacknowledged: list[wire.Message],
        sequence: int,
        watched: dict[int, int],
        left_groups: list[int],
    ) -> None:
        """Restore the state from before execve(2). `watched` maps pids to start times."""
        self.unacknowledged, self.sequence = unacknowledged, sequence
        for pid, start in watched.items():
            # The exit of a process that cannot be watched is detected by its control socket.
            with contextlib.suppress(OSError):
                self.watch(pid, start)
        for pid in left_groups:
            if not self.left_groups.watch(pid):
                self._end_left_group(pid)

    def reap(self) -> list[wire.Message]:
        """Report all exited children; returns the new reports, which are also appended to `unacknowledged`."""
        return [self._reap_child(ended) for ended in self._ended_children()]

    def _ended_children(self) -> Iterator[os.waitid_result]:
        while (ended := _peek(os.P_ALL, 0)) is not None and ended.si_pid not in self.left_groups:
            yield ended
        if ended is not None:
            # waitid(2) keeps naming the unreaped leader of a left group, so each other child is asked for.
            for child in children():
                if child not in self.left_groups and (ended := _peek(os.P_PID, child)) is not None:
                    yield ended

    def _reap_child(self, ended: os.waitid_result) -> wire.Message:
        pid, number = ended.si_pid, ended.si_status
        left = self._keeps_group(pid) and self.left_groups.watch(pid)
        if not left:
            # The rest of the process group is killed before the pid can be reused.
            kill_group(pid)
            os.waitpid(pid, 0)
        exited = ended.si_code == os.CLD_EXITED
        return self._append_exit(pid, number if exited else None, None if exited else number, left=left)

    def report_exited(self) -> list[wire.Message]:
        """The new reports for watched processes that have exited, which are also appended to `unacknowledged`."""
        return [self._report_watched(pid, start) for pid, start in self.watcher.unwatch_exited()]

    def _report_watched(self, pid: int, start: int) -> wire.Message:
        left = self._keeps_group(pid) and self.left_groups.watch(pid)
        if not left:
            kill_rest_of_group(pid, start)
        return self._append_exit(pid, None, None, left=left)

    def report_gone(self) -> list[wire.Message]:
        """The new reports for left groups that have become empty, also appended to `unacknowledged`."""
        return [self._end_left_group(pid) for pid in self.left_groups.unwatch_empty()]

    def _end_left_group(self, pid: int) -> wire.Message:
        if _peek(os.P_PID, pid) is not None:
            # A process may have been forked while /proc was read; killed before the pid can be reused.
            kill_group(pid)
            os.waitpid(pid, 0)
        return self._append_report({"event": "gone", "pid": pid})

    def watch(self, pid: int, start: int) -> wire.Message | None:
        """Watch a process; returns its exit report if it has exited already.

        Returns None for a running process, and for a child of this process: `reap` reports the exits of children.
        """
        if pid in self.left_groups or is_child(pid) or self.watcher.watch(pid, start):
            return None
        if any(report["pid"] == pid for report in self.unacknowledged):
            return None  # `reap` has reported it already, with its exit status
        return self._report_watched(pid, start)

    def acknowledge(self, sequence: int) -> None:
        """Drop the reports up to and including number `sequence`."""
        self.unacknowledged = [exit_ for exit_ in self.unacknowledged if exit_["sequence"] > sequence]

    def signal(self, pid: int, number: int, *, group: bool, start: int | None = None) -> bool:
        """Send a signal to a child that has not been reaped or to a watched process; with `group`, to its group.

        Returns False, and sends nothing, if the pid is neither, its start time is not `start`, or it has become another
        user's. Only the parent, or the holder of a pidfd, can be sure that another process has not reused the pid.
        """
        if pid <= 1 or (start is not None and process_start(pid) not in (start, None)):
            return False
        if pid in self.left_groups:
            if group:
                signal_group(pid, number)
            return group
        if not is_child(pid):
            return self.watcher.signal(pid, number, group=group)
        # A new child leads no group until it has called setsid(): until then only the process is signalled.
        try:
            if not (group and _try_signal_group(pid, number)):
                deliver(partial(os.kill, pid), number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def kill_all(self, limit_seconds: float) -> None:
        """Kill left groups and watched processes; wait for the exits of the watched ones (see Watcher.kill_all)."""
        for pid in self.left_groups.leaders:
            kill_group(pid)
        self.watcher.kill_all(limit_seconds)

    def close(self) -> None:
        self.left_groups.close()
        self.watcher.close()

    def _append_exit(self, pid: int, status: int | None, number: int | None, *, left: bool) -> wire.Message:
        report = {"event": "exit", "pid": pid, "status": status, "signal": number}
        return self._append_report({**report, "group_left": True} if left else report)

    def _append_report(self, report: wire.Message) -> wire.Message:
        self.sequence += 1
        report["sequence"] = self.sequence
        self.unacknowledged.append(report)
        return report


def is_child(pid: int) -> bool:
    """Whether the process is a child that has not been reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _peek(kind: int, which: int) -> os.waitid_result | None:
    """How one of these children has ended, without reaping it; None if none has (waitid(2))."""
    try:
        return os.waitid(kind, which, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


class GroupWatcher:
    """Process groups that outlive their leaders. One descriptor becomes readable when any of them may have ended.

    A leader that is a child is not reaped before its group is empty, so that its pid, which is the group's id, is not
    reused. The kernel reports no end of a group, so one of its processes at a time is watched by pidfd.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._leaders: dict[int, int] = {}  # by pidfd of the watched process
        self._pidfds: dict[int, int] = {}  # by leader

    def fileno(self) -> int:
        """The descriptor that is readable when `unwatch_empty` may have something to report."""
        return self._epoll.fileno()

    def __contains__(self, leader: int) -> bool:
        return leader in self._pidfds

    @property
    def leaders(self) -> list[int]:
        """The pids of the ended leaders, which are the ids of the groups."""
        return list(self._pidfds)

    def watch(self, leader: int) -> bool:
        """Watch the group of an ended leader; False if the group is empty, or its processes cannot be watched."""
        for pid in group_members(leader):
            with contextlib.suppress(OSError):
                fd = os.pidfd_open(pid)
                try:
                    # From here on, reuse of the pid would be detected.
                    if os.getpgid(pid) == leader:
                        self._epoll.register(fd, select.EPOLLIN)
                        self._leaders[fd], self._pidfds[leader] = leader, fd
                        return True
                finally:
                    if leader not in self._pidfds:
                        os.close(fd)
        return False

    def unwatch_empty(self) -> list[int]:
        """The leaders of groups that have become empty since the last call."""
        empty = []
        for fd, _ in self._epoll.poll(0):
            leader = self._leaders.pop(fd)
            self._epoll.unregister(fd)
            os.close(self._pidfds.pop(leader))
            if not self.watch(leader):
                empty.append(leader)
        return empty

    def close(self) -> None:
        close_all(self._leaders)
        self._epoll.close()


class Watcher:
    """Watches processes by pid and start time. One descriptor becomes readable when any of them may have exited."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pids: dict[int, int] = {}  # by pidfd
        self._pidfds: dict[int, int] = {}  # by pid
        self.starts: dict[int, int] = {}  # the start times of the watched processes by pid

    def fileno(self) -> int:
        """The descriptor that is readable when `unwatch_exited` has something to report."""
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
        actual_start = process_start(pid)
        if actual_start != start:
            os.close(fd)
            if actual_start is None and os.path.exists(f"/proc/{pid}"):
                # The process exists but cannot be opened, most likely because no descriptor is free.
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return False
        self.starts[pid] = start
        self._pids[fd], self._pidfds[pid] = pid, fd
        self._epoll.register(fd, select.EPOLLIN)
        return True

    def unwatch_exited(self) -> list[tuple[int, int]]:
        """The pids and start times of processes that have exited since the last call."""
        exited = []
        for fd, _ in self._epoll.poll(0):
            pid = self._pids.pop(fd)
            self._epoll.unregister(fd)
            os.close(self._pidfds.pop(pid))
            exited.append((pid, self.starts.pop(pid)))
        return exited

    def signal(self, pid: int, number: int, *, group: bool) -> bool:
        """Send a signal to a watched process and, with `group`, to its group.

        Returns False if it has exited, is unknown, or has become another user's.
        Uses the process's existing pidfd, so that a keeper without a free descriptor can still stop it.
        """
        if pid not in self._pidfds:
            return False
        try:
            signal.pidfd_send_signal(self._pidfds[pid], 0)
            if not (group and _try_signal_group(pid, number)):
                deliver(partial(signal.pidfd_send_signal, self._pidfds[pid]), number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def close(self) -> None:
        close_all(self._pids)
        self._epoll.close()

    def kill_all(self, limit_seconds: float) -> None:
        """Kill all watched processes, and wait at most `limit_seconds` until they have exited."""
        for pid in self.starts:
            self.signal(pid, signal.SIGKILL, group=True)
        deadline = time.monotonic() + limit_seconds
        while self.starts and self._epoll.poll(max(0.0, deadline - time.monotonic())):
            for pid, start in self.unwatch_exited():
                kill_rest_of_group(pid, start)


def deliver(send: Callable[[int], object], number: int) -> None:
    """Call `send` with a signal and, if it asks a process to end, SIGCONT, so that a suspended process handles it.

    As systemd does (systemd.kill(5)).
    """
    send(number)
    if number in END_SIGNALS:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(signal.SIGCONT)


def kill_rest_of_group(pid: int, start: int) -> None:
    """Kill the remaining processes of a group after the exit of its leader. `start` is the leader's start time.

    Does nothing if another process has the leader's pid: the kernel reuses a pid only after its group is empty.
    """
    if process_start(pid) in (None, start):
        kill_group(pid)


def kill_group(pid: int) -> None:
    signal_group(pid, signal.SIGKILL)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the processes of the group `pid`, if there are any that may be signalled."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        deliver(partial(os.killpg, pid), number)


def _try_signal_group(pid: int, number: int) -> bool:
    """Signal the group that the process leads, with the process itself; False if it leads none."""
    try:
        deliver(partial(os.killpg, pid), number)
    except ProcessLookupError:
        return False
    return True


def signal_process(pid: int, start: int, number: int, *, group: bool = False) -> bool:
    """Send a signal to the process with this start time and, with `group`, its group.

    Returns False if it has exited, or has become another user's.
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
        if group and _try_signal_group(pid, number):
            return True
        if process < 0:
            deliver(partial(os.kill, pid), number)
        else:
            deliver(partial(signal.pidfd_send_signal, process), number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if process >= 0:
            os.close(process)
    return True


def wait_or_kill_children(grace_seconds: float) -> None:
    """Kill and reap all children and their process groups, after giving them `grace_seconds` to exit.

    A process that cannot be killed is left behind: the kernel blocks it on a file system, or it is another user's.
    """
    kill_at = time.monotonic() + grace_seconds
    until = kill_at + KILLED_SECONDS
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        while (now := time.monotonic()) < until and _reap_and_check_children():
            if now >= kill_at:
                for child in children():
                    for kill in (os.killpg, os.kill):
                        with contextlib.suppress(ProcessLookupError, PermissionError):
                            kill(child, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, (kill_at if now < kill_at else until) - now)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reap_and_check_children() -> bool:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def children(pid: int | None = None, thread: int | None = None) -> list[int]:
    """The pids of the children of one thread (default: the first one) of process `pid` (default: this process).

    Empty if the kernel does not list them (proc(5), children).
    """
    pid = pid or os.getpid()
    try:
        with open(f"/proc/{pid}/task/{thread or pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []
