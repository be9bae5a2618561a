"""Finds zygotes that are stopped (SIGSTOP) while nothing is forked, before a worker is needed and waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from poolctl.clock import PING_SECONDS, aligned
from poolctl.platform import is_stopped

from ..fork_verification import Children, Process

logger = logging.getLogger("poolctl.supervisor")


class StoppedZygotes:
    """Checks the zygotes periodically, on the running loop until `close`, and kills zygotes found stopped twice.

    The zygotes are not asked, because each would have to fork for the answer. The next fork starts another zygote.
    """

    def __init__(self, children: Children, zygotes: Callable[[], Iterable[Process]]) -> None:
        self._children = children
        self._zygotes = zygotes
        self._stopped: set[Process] = (
            set()
        )  # at the last look: a debugger, or a paused container, takes a moment
        self._loop = asyncio.get_running_loop()
        self._set_timer()

    def close(self) -> None:
        """Stop checking."""
        self._timer.cancel()

    def _set_timer(self) -> None:
        self._timer = self._loop.call_at(aligned(self._loop.time(), PING_SECONDS), self._look)

    def _look(self) -> None:
        before, self._stopped = self._stopped, {each for each in self._zygotes() if is_stopped(each.pid)}
        for process in before & self._stopped:
            logger.error("a zygote (pid %d) is stopped: killing it", process.pid)
            self._children.kill(process)
        self._set_timer()
