"""Pings one of the pool's own processes periodically, and kills it if it hangs.

A process that sleeps in its event loop is not pinged. The owner sees the exit at the link, as any other exit, and
starts a replacement.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from poolctl.clock import Watchdog
from poolctl.keeper import wire
from poolctl.keeper.reap import signal_process
from poolctl.platform import process_start, waits_for_events

from .process_link import Link

PING: wire.Message = {"t": "ping"}

logger = logging.getLogger("poolctl.supervisor")


def identity(pid: int) -> wire.Message:
    """The pid and start time of a process, in a form that a later supervisor can use to watch it."""
    return {"pid": pid, "start": process_start(pid)}


class ProcessWatchdog:
    """Pings a process over `link`, on the running loop, until `close`.

    Any message passed to `received` counts as an answer. A process that waits for events is not pinged. `known` is its
    `identity`, empty until the process has sent its pid; then `found` is called with the identity. A process that does
    not send it (another version) is not killed. `name` is its name in the log; `watchdog` decides how often it is
    pinged, and how long an answer may take.
    """

    def __init__(
        self,
        link: Link,
        known: wire.Message,
        name: str,
        found: Callable[[wire.Message], None] = lambda known: None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._link = link
        self._known = known
        self._name = name
        self._found = found
        self._loop = asyncio.get_running_loop()
        self._watchdog = watchdog or Watchdog(self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        link.send(PING)
        self._set_timer()

    def received(self, message: wire.Message) -> None:
        """Note that the process has sent a message."""
        if message.get("t") == "pong" and "pid" not in self._known:
            self._known = identity(int(message["pid"]))
            self._found(self._known)
        self._watchdog.received(self._loop.time())
        if self._timer is not None:
            self._timer.cancel()
            self._set_timer()

    def close(self) -> None:
        """Stop pinging the process."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = self._loop.call_at(self._watchdog.due, self._check)

    def _check(self) -> None:
        now = self._loop.time()
        if self._watchdog.is_silent(now):
            self._timer = None
            if "pid" in self._known:
                logger.error("%s (pid %d) does not answer: killing it", self._name, self._known["pid"])
                kill(self._known)
            return
        if self._watchdog.should_ping(now):
            if waits_for_events(self._known.get("pid", 0)):
                # It hangs nowhere, so that it is not woken up for an answer.
                self._watchdog.received(now)
            else:
                self._link.send(PING)
        self._set_timer()


def kill(known: wire.Message, number: int = signal.SIGKILL) -> None:
    """Send the signal to the process with this identity, but not to another process that has reused its pid."""
    pid, start = known.get("pid"), known.get("start")
    if pid is not None and start is not None:
        signal_process(pid, start, number)
