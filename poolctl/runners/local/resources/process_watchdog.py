"""A process of the pool's own that is asked now and then whether it is there: one that hangs is killed.

Its end is seen where every end of it is seen, at its link, and whoever started it starts another.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

from poolctl.keeper import wire
from poolctl.keeper.pidfd_watch import signal_process
from poolctl.keeper.watchdog import Watchdog
from poolctl.platform import process_start

from ...link import Link

PING: wire.Message = {"t": "ping"}

logger = logging.getLogger("poolctl.supervisor")


def identity(pid: int) -> dict[str, Any]:
    """What is kept of a process so that a later supervisor can watch it as well."""
    return {"pid": pid, "start": process_start(pid)}


class ProcessWatchdog:
    """Asks over `link`, on the running loop, until `close`; whatever the process says, to `heard`, is an answer.

    `known` is its `identity`, empty as long as nobody knows it: it says its pid itself, which `found` is told of then.
    Who has not (another version of it) is left alone. `name` is what the log calls it, `watchdog` says how often it is
    asked, and how long an answer may take.
    """

    def __init__(
        self,
        link: Link,
        known: dict[str, Any],
        name: str,
        found: Callable[[dict[str, Any]], None] = lambda known: None,
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

    def heard(self, message: wire.Message) -> None:
        """It has said something."""
        if message.get("t") == "pong" and "pid" not in self._known:
            self._known = identity(int(message["pid"]))
            self._found(self._known)
        self._watchdog.heard(self._loop.time())
        if self._timer is not None:
            self._timer.cancel()
            self._set_timer()

    def close(self) -> None:
        """Ask no more: it has ended, or is to end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = self._loop.call_at(self._watchdog.due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if self._watchdog.is_silent(now):
            self._timer = None
            if "pid" in self._known:
                logger.error("%s (pid %d) does not answer: it is killed", self._name, self._known["pid"])
                kill(self._known)
            return
        if self._watchdog.should_ping(now):
            self._link.send(PING)
        self._set_timer()


def kill(known: dict[str, Any], number: int = signal.SIGKILL) -> None:
    """Send the signal to the process that this is the identity of, and to no other one that has its pid by now."""
    pid, start = known.get("pid"), known.get("start")
    if pid is not None and start is not None:
        signal_process(pid, start, number)
