"""The connection through which `poolctl run` stops its pool, and receives the pool's sd_notify messages."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

from poolctl.control import sd_notify
from poolctl.daemon_threads import DaemonThreads
from poolctl.keeper import wire
from poolctl.platform import close_all, signals_blocked
from poolctl.runners.process_link import Link, LinkHandler

# A message is dropped if the service manager does not read for this long.
_SEND_SECONDS = 10.0


class Lifeline(LinkHandler):
    """The pool stops when this connection is closed; `ended` is set once the pool has stopped.

    Forwards the supervisor's notifications in order, with their descriptors. A service manager accepts them only from
    the main process of a unit (NotifyAccess=main), so that workers cannot speak for the pool.
    """

    def __init__(self, fd: int, env: Mapping[str, str]) -> None:
        self.ended = asyncio.Event()
        self._env = env
        self._link = Link(socket.socket(fileno=fd), self)
        with signals_blocked():
            self._thread = DaemonThreads(1)

    def received(self, message: wire.Message, fds: list[int]) -> None:
        self._thread.submit(self._pass_on, message.get("notify") or (), fds)

    def on_link_lost(self) -> None:
        self.ended.set()

    def close(self) -> None:
        """Stop the pool."""
        self._link.close()

    def _pass_on(self, lines: list[str], fds: list[int]) -> None:
        try:
            sd_notify.notify(self._env, *lines, fds=fds, timeout_seconds=_SEND_SECONDS)
        finally:
            close_all(fds)
