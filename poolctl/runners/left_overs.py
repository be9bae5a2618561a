"""Notes the pool's processes, so that `start` or `stop` can end processes that outlive keeper and supervisor.

A process is noted before it begins, in a file in the pool's directory. Its pid and start time identify it, and it leads
a session. Notes from before a reboot, or from another PID namespace, are ignored: their pids may belong to other
processes now.

If keeper and supervisor are killed at once, workers finish their requests and exit. Programs, hung workers and HAProxy
do not, and are ended here. If the leader of a session has exited, its pid may have been reused: then only processes
that have the server's name in their environment are ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import astuple, dataclass, field
from functools import partial

from poolctl.keeper import pool_files
from poolctl.keeper.reap import KILLED_SECONDS, deliver
from poolctl.listeners.sock_diag import LISTEN, tcp_sockets, unix_sockets
from poolctl.platform import (
    boot_identity,
    is_running,
    process_start,
    process_variable,
    processes,
    replace_file,
    socket_inodes,
)

logger = logging.getLogger("poolctl.supervisor")

STOP_SECONDS = 10.0
_MAX_LINES_PER_PROCESS = 2
_SPARE_LINES = 200
_LISTING_SECONDS = 5.0
# The kernel does not report that a process has closed a listener, so it is polled.
_LISTENER_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ProcessNote:
    """A process of the pool, and how it is ended if it is left over.

    `server` is the name of its server; "" for one of the pool's own processes, which `label` names. `drain_seconds` is
    the time for its requests, once it has closed its listeners; None: it ends after all others, as the logger does.
    """

    pid: int
    start: int
    label: str
    server: str = ""
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = STOP_SECONDS
    drain_seconds: float | None = 0.0


class ProcessNotes:
    """The notes of a running pool. If the file cannot be written, that is logged, and the pool runs without it.

    `earlier` are the notes of an earlier supervisor, or of a pool that was killed.
    """

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, pool_files.PROCESSES)
        self.earlier = _read(self._path)
        self._notes = {note.pid: note for note in self.earlier}
        self._file: int | None = None
        self._lines = self._max_lines = 0
        self._problem = ""

    def add(self, note: ProcessNote) -> None:
        """Note a process before it begins."""
        if self._notes.get(note.pid) == note:
            return
        self._notes[note.pid] = note
        self._lines += 1
        if self._file is None or self._lines > self._max_lines:
            self.rewrite()
            return
        try:
            line = _line(note)
            if os.write(self._file, line) < len(line):
                self._close_file()
        except OSError as error:
            self._report(error)

    def rewrite(self) -> None:
        """Rewrite the file with the noted processes that still run."""
        self._close_file()
        self._notes = {note.pid: note for note in living(self._notes.values())}
        self._lines = len(self._notes)
        self._max_lines = self._lines * _MAX_LINES_PER_PROCESS + _SPARE_LINES
        try:
            _write(self._path, self._notes.values())
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._problem = ""
        except OSError as error:
            self._report(error)

    def close(self, left: Iterable[ProcessNote]) -> None:
        """Forget this pool's processes, which have ended; keep the notes `left`, of an earlier pool's processes."""
        self._close_file()
        with contextlib.suppress(OSError):
            _write_or_remove(self._path, living(left))

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _report(self, error: OSError) -> None:
        self._close_file()
        if self._problem != str(error):
            self._problem = str(error)
            logger.warning("processes that outlive the pool will not be found: %s", error)


def left_overs(directory: str) -> list[ProcessNote]:
    """The notes of processes that are left over from a pool of this directory. Reads /proc if there are any notes."""
    return living(_read(os.path.join(directory, pool_files.PROCESSES)))


def forget_ended(directory: str) -> None:
    """Remove the notes of processes that have ended, and the file with the last one. Never raises."""
    path = os.path.join(directory, pool_files.PROCESSES)
    with contextlib.suppress(OSError):
        if os.path.exists(path):
            _write_or_remove(path, left_overs(directory))


def _read(path: str) -> list[ProcessNote]:
    try:
        with open(path, "rb") as file:
            scope, *lines = file.read().splitlines()
        if json.loads(scope) != _pid_scope():
            return []
    except (OSError, ValueError, RecursionError):
        return []
    notes = {}
    for line in lines:
        # A line may be incomplete, because the disk was full.
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            note = ProcessNote(*json.loads(line))
            notes[note.pid] = note
    return [*notes.values()]


def _pid_scope() -> list[object]:
    """Identifies the boot and the PID namespace: noted pids are valid only while this is unchanged."""
    return [*boot_identity(), os.stat("/proc/self/ns/pid").st_ino]


def _write(path: str, notes: Iterable[ProcessNote]) -> None:
    replace_file(path, json.dumps(_pid_scope()).encode() + b"\n" + b"".join(map(_line, notes)))


def _write_or_remove(path: str, notes: Collection[ProcessNote]) -> None:
    if notes:
        _write(path, notes)
    else:
        os.unlink(path)


def _line(note: ProcessNote) -> bytes:
    return json.dumps(astuple(note)).encode() + b"\n"


def living(notes: Iterable[ProcessNote]) -> list[ProcessNote]:
    """The notes of sessions that still have a running process. Blocks."""
    by_session = {note.pid: note for note in notes}
    members = _members_of_sessions(by_session) if by_session else {}
    return [note for pid, note in by_session.items() if members.get(pid)]


def _members_of_sessions(notes: Mapping[int, ProcessNote]) -> dict[int, list[int]]:
    """The running processes of these sessions, by the leader's pid; none if another process has reused that pid."""
    members: dict[int, list[int]] = {}
    for pid in processes():
        with contextlib.suppress(OSError):
            # A newly forked process does not lead its session yet. A reused pid may be a member of another session.
            is_noted = pid in notes and process_start(pid) == notes[pid].start
            if (session := pid if is_noted else os.getsid(pid)) in notes:
                members.setdefault(session, []).append(pid)
    return {
        session: running
        for session, pids in members.items()
        if process_start(session) in (None, notes[session].start)
        and (running := [pid for pid in pids if is_running(pid)])
    }


@dataclass
class LeftOver:
    """A session that is being ended. `is_ours`: at least one process in it was certainly the pool's.

    `unmarked` processes may not be the pool's, because the session's leader has exited: they are not ended.
    """

    note: ProcessNote
    is_ours: bool = False
    listens: bool = True
    was_killed: bool = False
    unmarked: set[int] = field(default_factory=set)
    _pidfds: dict[int, int] = field(default_factory=dict)
    _sent: dict[int, int] = field(default_factory=dict)

    @property
    def drains(self) -> bool:
        """Whether it closes its listeners first, and exits after its last request."""
        return self.note.drain_seconds != 0

    @property
    def pidfds(self) -> Collection[int]:
        return self._pidfds.values()

    def update(self, members: Iterable[int], listening: Set[int]) -> None:
        """Find out which processes of the session are left, and whether any of them listens."""
        is_certain = process_start(self.note.pid) == self.note.start
        current = {*members}
        for pid in [*self._pidfds]:
            if pid not in current:
                os.close(self._pidfds.pop(pid))
        for pid in current - self._pidfds.keys() - self.unmarked:
            with contextlib.suppress(OSError):
                self._add(pid, is_certain=is_certain)
        self.listens = any((socket_inodes(pid) or set()) & listening for pid in self._pidfds)

    def _add(self, pid: int, *, is_certain: bool) -> None:
        pidfd = os.pidfd_open(pid)
        # From here on, reuse of the pid would be detected.
        is_ours = is_certain or (
            self.note.server != "" and process_variable(pid, "POOLCTL_NAME") == self.note.server
        )
        if is_ours and self.note.pid in (pid, os.getsid(pid)):
            self.is_ours, self._pidfds[pid] = True, pidfd
            return
        os.close(pidfd)
        self.unmarked.add(pid)

    def signal_if_due(self, seconds: float, kill_after: float) -> None:
        """Send the signals that are due after `seconds`; after `kill_after` SIGKILL to all processes."""
        self.was_killed = self.was_killed or seconds >= kill_after
        number = signal.SIGKILL if self.was_killed else self._graceful_signal(seconds)
        # As in a stop, the other processes of a session get the signal when its leader has ended.
        to_all = self.was_killed or self.note.pid not in self._pidfds
        for pid, pidfd in self._pidfds.items():
            if (to_all or pid == self.note.pid) and self._sent.get(pid) != number:
                self._sent[pid] = number
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    deliver(partial(signal.pidfd_send_signal, pidfd), number)

    def _graceful_signal(self, seconds: float) -> int:
        if not self.drains or self.listens:
            return self.note.stop_signal
        if self.note.drain_seconds is not None and seconds >= self.note.drain_seconds:
            return signal.SIGTERM
        # A worker notices the loss of keeper and supervisor and drains: only resume it. HAProxy does not notice.
        return signal.SIGCONT if self.note.stop_signal == signal.SIGTERM else self.note.stop_signal

    @property
    def warnings(self) -> list[str]:
        """Warnings about the processes that did not end by themselves."""
        label, left = self.note.label, sorted(self._pidfds)
        warnings = [f"{label}: pid {pid} could not be ended" for pid in left]
        if self.was_killed and not left:
            warnings.append(f"{label}: pid {self.note.pid} had to be killed")
        return warnings + [
            f"{label}: pid {pid} may be left over from a killed pool, or another program, and was not ended: "
            f"if it is the pool's, kill {pid}"
            for pid in sorted(self.unmarked)
        ]

    def kill_after(self, limit_seconds: float | None, last_began: float | None) -> float:
        """The time of SIGKILL in seconds. `last_began`: since when only processes that end last are left, if at all."""
        note = self.note
        if note.drain_seconds is None:
            allowed = float("inf") if last_began is None else last_began + note.stop_seconds
        else:
            allowed = note.stop_seconds + (0.0 if self.listens else note.drain_seconds)
        return allowed if limit_seconds is None else min(allowed, limit_seconds)


def end_left_overs(
    notes: Iterable[ProcessNote],
    *,
    limit_seconds: float | None = None,
    on_released: Callable[[Sequence[LeftOver]], object] = lambda sessions: None,
) -> list[LeftOver]:
    """End these processes, each within the time in its note and within `limit_seconds`; return the outcomes. Blocks.

    `on_released` is called once the remaining processes have closed their listeners, and only finish requests.
    """
    sessions = [LeftOver(note) for note in notes]
    began, last_began, released = time.monotonic(), None, False
    while left := _still_running(sessions):
        seconds = time.monotonic() - began
        # A killed process closes its listeners before it has ended, but does not finish its requests.
        if not released and all(
            session.drains and not (session.listens or session.was_killed) for session in left
        ):
            released = True
            on_released(sessions)
        if last_began is None and all(session.note.drain_seconds is None for session in left):
            last_began = seconds
        limits = [session.kill_after(limit_seconds, last_began) for session in left]
        for session, kill_after in zip(left, limits, strict=True):
            session.signal_if_due(seconds, kill_after)
        if all(seconds >= kill_after + KILLED_SECONDS for kill_after in limits):
            break  # still running after SIGKILL
        is_closing = any(session.drains and session.listens for session in left)
        _await_exit(left, limits, began, _LISTENER_POLL_SECONDS if is_closing else None)
    if not released:
        on_released(sessions)
    return sessions


def left_over_text(labels: Iterable[str]) -> str:
    """A message that these processes were left over."""
    processes = [*labels]
    names, many = ", ".join(dict.fromkeys(processes)), len(processes) > 1
    return f"{len(processes)} process{'es' * many} of a killed pool {'were' if many else 'was'} left over: {names}"


def _still_running(sessions: list[LeftOver]) -> list[LeftOver]:
    members = _members_of_sessions({session.note.pid: session.note for session in sessions})
    until = time.monotonic() + _LISTING_SECONDS
    listening = {sock.inode for sock in tcp_sockets(LISTEN, until)}
    listening |= {inode for _, inode, _ in unix_sockets(LISTEN, until)}
    for session in sessions:
        session.update(members.get(session.note.pid, ()), listening)
    return [session for session in sessions if session.pidfds]


def _await_exit(left: list[LeftOver], limits: list[float], began: float, pause_seconds: float | None) -> None:
    """Wait until one of the processes has exited, another signal is due, or `pause_seconds` have passed."""
    poll = select.poll()
    for pidfd in (pidfd for session in left for pidfd in session.pidfds):
        poll.register(pidfd, select.POLLIN)
    seconds = time.monotonic() - began
    drains = [session.note.drain_seconds or 0.0 for session in left]
    moments = [*limits, *(limit + KILLED_SECONDS for limit in limits), *drains]
    pauses = [moment - seconds for moment in moments if seconds < moment < float("inf")]
    pauses += [] if pause_seconds is None else [pause_seconds]
    poll.poll(min(pauses) * 1000 + 1 if pauses else None)
