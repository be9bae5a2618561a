"""Finds a gateway process that has outlived keeper and supervisor, and adopts or ends it.

The new keeper receives the descriptors that the old one held: the gateway's listeners, the socket pair for connections
that workers give back, and the supervisor's socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from dataclasses import dataclass, field

from poolctl.clock import SILENT_SECONDS
from poolctl.json_form import from_json, to_json
from poolctl.keeper import fd_store, pool_files, rendezvous, wire
from poolctl.keeper.reap import await_exit, signal_process
from poolctl.platform import peer_credentials, process_start
from poolctl.runners.process_link import Link, Refused

from ..process.settings import ListenerSettings

_ANSWER_SECONDS = 2.0
_DRAIN_SECONDS = 5.0

logger = logging.getLogger("poolctl.supervisor")


@dataclass(eq=False)
class OrphanedGateway:
    """A gateway process without a supervisor, connected by `sock`. `mark` is "" until the process has sent its mark."""

    pid: int
    start: int
    sock: socket.socket
    mark: str = ""
    pair: list[int] = field(default_factory=list)
    listeners: list[tuple[ListenerSettings, list[int]]] = field(default_factory=list)

    def signal(self, number: int) -> None:
        """Send the process a signal, if it still runs."""
        with contextlib.suppress(OSError):
            signal_process(self.pid, self.start, number)

    def terminate_or_kill(self, timeout_seconds: float) -> bool:
        """Ask the process to exit, and kill it after the timeout; returns whether it exited by itself. Blocks."""
        self.signal(signal.SIGTERM)
        if await_exit(self.pid, self.start, timeout_seconds):
            return True
        self.signal(signal.SIGKILL)
        await_exit(self.pid, self.start, _ANSWER_SECONDS)
        return False

    def close(self) -> None:
        """Close this process's copies of the gateway's descriptors; the gateway continues to serve."""
        for fd in [*self.pair, *(fd for _, fds in self.listeners for fd in fds)]:
            os.close(fd)
        self.pair, self.listeners = [], []
        self.sock.close()


def find(directory: str) -> list[OrphanedGateway]:
    """Find the orphaned gateways of the pool in this directory; the caller closes them. Blocks."""
    found = []
    for sock, answer in rendezvous.connect_to_all(directory, pool_files.GATEWAY, _ANSWER_SECONDS):
        pid, uid, _ = peer_credentials(sock)  # of the process that listens
        start = process_start(pid)
        if start is None or uid != os.geteuid():
            sock.close()
            continue
        orphan = OrphanedGateway(pid, start, sock)
        found.append(orphan)
        sock.settimeout(_ANSWER_SECONDS)
        while answer is not None:
            message, fds = answer
            if message.get("t") == "pair":
                orphan.pair = fds
            elif message.get("t") == "listener":
                orphan.listeners.append((from_json(ListenerSettings, message["listener"]), fds))
            elif message.get("t") == "over":
                orphan.mark = str(message["mark"])
                break
            answer = rendezvous.receive_or_none(sock)
    return found


def end_all(directory: str, timeout_seconds: float) -> list[tuple[int, bool]]:
    """End the orphaned gateways; returns each pid, and whether that process exited by itself in time. Blocks."""
    ended = []
    for each in find(directory):
        ended.append((each.pid, each.terminate_or_kill(timeout_seconds)))
        each.close()
    return ended


class GatewaySearch:
    """Finds the orphaned gateway of a pool. A gateway that does not answer is killed after a while."""

    def __init__(self, keeper: Link, directory: str) -> None:
        self.silent = False  # a gateway was found that has not answered yet
        self._keeper = keeper
        self._directory = directory
        self._silent_since = 0.0

    async def find_orphan_and_drain_others(self) -> OrphanedGateway | None:
        """Find an orphaned gateway that has answered, to be passed to `keep`; returns None if there is none.

        There are several if the pool was killed while one gateway replaced another; the others are told to drain.
        """
        if not pool_files.find_listeners(self._directory, pool_files.GATEWAY):
            self.silent = False
            return None
        found = await asyncio.to_thread(find, self._directory)
        self._revive_or_kill_silent_gateways([each for each in found if not each.mark])
        answered = [each for each in found if each.mark]
        for each in answered[1:]:
            with contextlib.suppress(OSError):
                wire.send(each.sock, {"t": "drain", "seconds": _DRAIN_SECONDS})
        for each in found:
            if each not in answered[:1]:
                each.close()
        return answered[0] if answered else None

    async def hand_over_to_keeper(self, orphan: OrphanedGateway) -> None:
        """Store the gateway's descriptors in the keeper, where a GatewayManager finds them, and close them here."""
        with contextlib.closing(orphan):
            keeper = self._keeper
            for listener, fds in orphan.listeners:
                name = f"{fd_store.GATEWAY_LISTENER}{listener.key}"
                keeper.send({"op": "put", "name": name, "meta": to_json(listener)}, fds)
            _, held = await keeper.call({"op": "get", "name": fd_store.GATEWAY_PAIR})
            for fd in held:
                os.close(fd)
            if orphan.pair and not held:
                keeper.send({"op": "put", "name": fd_store.GATEWAY_PAIR}, orphan.pair)
            _, links = await keeper.call({"op": "get", "name": fd_store.GATEWAY_LINK})
            for fd in links:
                # The process that the orphan was to replace. Closing only its link would make it an orphan, too.
                with wire.socket_from_fd(fd) as link, contextlib.suppress(OSError):
                    wire.send(link, {"t": "drain", "seconds": _DRAIN_SECONDS})
            known = {"pid": orphan.pid, "start": orphan.start}
            message = {"op": "put", "name": fd_store.GATEWAY_LINK, "meta": {**known, "mark": orphan.mark}}
            keeper.send(message, [orphan.sock.fileno()])
            logger.info("the gateway (pid %d) has outlived its pool: it is adopted", orphan.pid)
            # The answer confirms that the keeper has everything: if we die now, the next supervisor finds it there.
            with contextlib.suppress(Refused):
                await keeper.call({"op": "watch", **known})

    def _revive_or_kill_silent_gateways(self, silent: list[OrphanedGateway]) -> None:
        now = time.monotonic()
        if not self.silent:
            self._silent_since = now
        self.silent = bool(silent)
        for each in silent:
            late = now - self._silent_since > SILENT_SECONDS
            logger.warning("the gateway that outlived its pool (pid %d) does not answer", each.pid)
            # The process may have been stopped.
            each.signal(signal.SIGKILL if late else signal.SIGCONT)
