"""Watches the keeper, and replaces a keeper that has died.

A silent keeper gets SIGCONT, then SIGKILL if it can be replaced: while it is silent, no worker's exit is reported, and
no process can be signaled. The new keeper gets all sockets and files that the old one held.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from types import FrameType

from poolctl.clock import PING_SECONDS, SILENT_SECONDS, HungProcessDetector
from poolctl.json_form import Table
from poolctl.keeper import fd_store, wire
from poolctl.keeper.spawn import start_detached
from poolctl.monitor.event_queue import EventBus
from poolctl.platform import close_all, continue_periodically, continue_when_parent_ends
from poolctl.private_directory import recreate_pool_directory
from poolctl.runners.process_link import KeeperLink, identity, kill

logger = logging.getLogger("poolctl.supervisor")

_PING = {"op": "ping", "id": 0}


class KeeperWatch:
    """Pings the keeper from the running loop. A silent keeper gets SIGCONT, then SIGKILL if it can be replaced.

    Both signals are recorded as events. A keeper that has sent a message since the last check is not pinged.
    """

    def __init__(self, keeper: KeeperLink, pid: int, events: EventBus) -> None:
        self._keeper = keeper
        self._process = identity(pid)
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._watchdog = HungProcessDetector(self._loop.time(), PING_SECONDS, SILENT_SECONDS)
        self._watchdog.received(self._loop.time())
        self._heard = keeper.heard
        self._late = self._given_up = False
        self._loop.call_at(self._watchdog.due, self._ping_or_signal_silent_keeper)

    def _ping_or_signal_silent_keeper(self) -> None:
        if self._keeper.sock.fileno() < 0:
            return
        now = self._loop.time()
        if self._record_keeper_answer(now):
            pass
        elif self._watchdog.check_for_hang(now):
            self._kill_or_resume_silent_keeper(now)
        elif self._watchdog.may_be_stopped and not self._late:
            self._late = True
            kill(self._process, signal.SIGCONT)  # the keeper may have been stopped
            self._report_silence("warning", ": SIGCONT was sent; it will be replaced if that does not help")
        elif self._watchdog.mark_ping_sent_if_due(now):
            self._keeper.send(_PING)
        self._loop.call_at(self._watchdog.due, self._ping_or_signal_silent_keeper)

    def _kill_or_resume_silent_keeper(self, now: float) -> None:
        # The ping stays in the socket, and the keeper answers it as soon as it runs.
        self._watchdog = HungProcessDetector(now, PING_SECONDS, SILENT_SECONDS)
        self._late = True
        reason = reason_irreplaceable(self._keeper, self._process["pid"], os.environ)
        kill(self._process, signal.SIGCONT if reason else signal.SIGKILL)
        if self._given_up:
            return
        self._given_up = True
        outcome = ": it was killed, but has not exited yet"
        if reason:
            outcome = (
                f" and cannot be replaced, because {reason}: exits of workers are not noticed; "
                "restart the service or the container"
            )
        self._report_silence("error", outcome)

    def _record_keeper_answer(self, now: float) -> bool:
        """Record an answer if the keeper has sent anything since the last call; returns whether it has."""
        if self._keeper.heard == self._heard:
            return False
        self._heard = self._keeper.heard
        self._watchdog.received(now)
        if self._late:
            self._late = self._given_up = False
            message = f"the keeper (pid {self._process['pid']}) answers again"
            logger.warning(message)
            self._events.record("pool", "keeper back", message=message, severity="info")
        return True

    def _report_silence(self, severity: str, outcome: str) -> None:
        message = f"the keeper (pid {self._process['pid']}) does not answer{outcome}"
        logger.error(message)
        self._events.record("pool", "keeper silent", message=message, severity=severity)


def reason_irreplaceable(keeper: KeeperLink, pid: int, env: Mapping[str, str]) -> str:
    """Why this keeper cannot be replaced; empty if it can."""
    if pid == 1:
        return "it is the first process of a container (PID 1)"
    # `poolctl run`, which has a lifeline, is itself the main process of a service; after `poolctl start` the keeper is.
    if env.get("NOTIFY_SOCKET") and fd_store.LIFELINE not in keeper.entries:
        return "it is the main process of a systemd service"
    return "" if keeper.whole else "the supervisor does not know all of its descriptors yet"


class KeeperExitWatchdog:
    """Watch for the keeper's exit. If the event loop hangs for 10 s after the exit, the watch calls `replace`.

    `replace` gets the stack frame that hangs. The kernel sends this process SIGCONT when the keeper, its parent, exits.
    A timer then repeats SIGCONT every 2 s, because SIGCONT also resumes a stopped process. The signal's handler runs
    even if the event loop hangs, except in native code or in a system call that signals do not interrupt.
    """

    def __init__(self, keeper_pid: int, replace: Callable[[FrameType | None], object]) -> None:
        self._keeper_pid = keeper_pid
        self._replace = replace
        self._signals = 0
        signal.signal(signal.SIGCONT, self._replace_ended_keeper_on_sigcont)
        continue_when_parent_ends()
        signal.raise_signal(signal.SIGCONT)  # the keeper may already have ended

    def _replace_ended_keeper_on_sigcont(self, number: int, frame: FrameType | None) -> None:
        if os.getppid() == self._keeper_pid:
            return
        if not self._signals:
            continue_periodically(_LATE_SECONDS)
        self._signals += 1
        if self._signals * _LATE_SECONDS > SILENT_SECONDS:
            self._replace(frame)


_PAUSES_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_HELLO_SECONDS = 20.0
_FULL_SECONDS = 0.002
# A keeper that is silent, or whose socket is full, for this long gets SIGCONT.
_LATE_SECONDS = 2
_FIRST = (fd_store.LOCK, fd_store.CONTROL, fd_store.WANTED, fd_store.CONFIGURATION)
# Another process may be replacing the same keeper, or the keeper is about to end.
_REFUSALS = 5

# By name: the value and the descriptors of an entry.
Entries = Mapping[str, tuple[object, list[int]]]


class _Refused(Exception):
    """The new keeper has refused to take over, because another keeper exists."""


def hand_over_to_new_keeper(
    directory: str, keeper: Sequence[str], supervisor: list[str], entries: Entries, *, stop_pool: bool
) -> None:
    """Pass `entries` to a new keeper, which starts a new supervisor; the caller should then exit.

    `keeper` and `supervisor` are their commands. Blocks on purpose: the state must not change during the handover.
    Retries without limit, unless new keepers report several times that another keeper exists. With `stop_pool` the new
    keeper stops the pool.
    """
    refusals = 0
    for pause in chain(_PAUSES_SECONDS, repeat(_PAUSES_SECONDS[-1])):
        time.sleep(pause)
        try:
            with _start_new_keeper(directory, keeper, supervisor) as (link, process):
                _fill_keeper(link, process, entries, stop_pool=stop_pool)
                _await(link, "adopted", process)
                return
        except _Refused:
            refusals += 1
            if refusals >= _REFUSALS:
                return
        except (OSError, wire.WireError):
            pass


@contextlib.contextmanager
def _start_new_keeper(
    directory: str, command: Sequence[str], supervisor: list[str]
) -> Iterator[tuple[socket.socket, Table]]:
    """Context manager: start a new keeper and wait for its first message; yields the link to it and its identity."""
    recreate_pool_directory(directory)
    plan = json.dumps({"supervisor": supervisor, "donor": 3, "donor_process": identity(os.getpid())})
    ours, theirs = wire.pair()
    with ours:
        with theirs:
            start_detached([*command, directory, plan], dict(os.environ), [theirs.fileno()])
        ours.settimeout(_HELLO_SECONDS)
        keeper = identity(int(_await(ours, "hello")["pid"]))
        ours.settimeout(_LATE_SECONDS)
        yield ours, keeper


def _fill_keeper(link: socket.socket, keeper: Table, entries: Entries, *, stop_pool: bool) -> None:
    # In this order: if we die here, a keeper that has the control socket continues, so it must hold the lock, and its
    # supervisor must not mistake a worker for an unwanted worker.
    for name in sorted(entries, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)):
        meta, fds = entries[name]
        _send_until_accepted(link, keeper, {"op": "put", "name": name, "meta": meta}, fds)
    for name, (meta, _) in entries.items():
        if name.startswith((fd_store.WORKER, fd_store.GATEWAY_LINK)) and isinstance(meta, dict):
            _send_until_accepted(link, keeper, {"op": "watch", "pid": meta["pid"], "start": meta["start"]})
    if stop_pool:
        _send_until_accepted(link, keeper, {"op": "terminate"})
    _send_until_accepted(link, keeper, {"op": "whole"})


def _send_until_accepted(
    link: socket.socket,
    keeper: Table,
    message: wire.Message,
    fds: list[int] | tuple[int, ...] = (),
) -> None:
    while True:
        try:
            wire.send(link, message, fds)
            return
        except (BlockingIOError, TimeoutError):  # too many descriptors or messages are in flight
            kill(keeper, signal.SIGCONT)
            time.sleep(_FULL_SECONDS)


def _await(link: socket.socket, event: str, keeper_to_resume: Table | None = None) -> wire.Message:
    """Block until the new keeper sends a message with the given event; return the message.

    `keeper_to_resume` is the new keeper's identity. If it is given, there is no time limit: a silent new keeper gets
    SIGCONT every 2 s, because it may have been stopped. If it is None, TimeoutError is raised after the timeout of
    `link`. Raises OSError if the new keeper exits first, and _Refused if it reports that another keeper exists.
    """
    while True:
        try:
            received = wire.receive(link, wait=True)
        except TimeoutError:
            if keeper_to_resume is None:
                raise
            kill(keeper_to_resume, signal.SIGCONT)
            continue
        if received is None:
            raise ConnectionResetError("the keeper ended")
        message, fds = received
        close_all(fds)
        if message.get("event") == event:
            return message
        if message.get("event") == "refused":
            raise _Refused
        if message.get("event") == "ping" and keeper_to_resume is not None:
            _send_until_accepted(link, keeper_to_resume, {"op": "pong"})
