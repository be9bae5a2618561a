"""Adopts, after a supervisor's exit, the previous runner's workers and descriptors from the keeper's store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from poolctl.address import AddressError, parse
from poolctl.config import ServerConfig
from poolctl.keeper import fd_store, wire

from ..keeper_link import KeeperLink
from ..process_link import HasDescriptor, Link
from ..runner_protocol import Placement, RunnerEvents
from ..worker_spec import find_user_id, hook_config
from .fork_verification import Children
from .local_worker import LocalWorker
from .program_readiness import NotifySocket
from .tallies import Tally

logger = logging.getLogger("poolctl.supervisor")

_REPORT_SECONDS = 0.2

# Gets the rest of an entry's name, its value and its descriptors; returns the new owners of these, or nothing if the
# entry is no longer needed.
Adopter = Callable[[str, wire.Message, list[int]], Sequence[HasDescriptor]]


async def take_over(keeper: KeeperLink, adopters: Mapping[str, Adopter]) -> list[str]:
    """Give each entry of the keeper's store to the adopter for its kind, and return the names of all entries."""
    names: list[str] = []
    while True:
        reply, _ = await keeper.call({"op": "list", "after": names[-1] if names else ""})
        if not reply["entries"]:
            return names
        for name, meta in reply["entries"]:
            names.append(name)
            kind = next((kind for kind in adopters if name.startswith(kind)), None)
            if kind is not None:
                _, fds = await keeper.call({"op": "get", "name": name})
                if owners := adopters[kind](name.removeprefix(kind), meta, fds):
                    keeper.share(name, meta, owners)


async def inherited(keeper: Link) -> dict[str, list[int]]:
    """The descriptors of the sockets that systemd passed to the pool, by number and by name."""
    reply, fds = await keeper.call({"op": "get", "name": fd_store.INHERITED})
    found = {str(number): [fd] for number, fd in enumerate(fds, 3)}
    for name, fd in zip(reply["meta"] or (), fds, strict=True):
        if name:
            found.setdefault(name, []).append(fd)
    return found


async def reports_of(workers: Sequence[LocalWorker]) -> None:
    """Wait briefly for the workers to report their state, which may be newer than the recorded one."""
    waiting = [
        worker.answered if worker.control is None else worker.reported
        for worker in workers
        if not (worker.exited.done() or (worker.control is None and worker.answered.done()))
    ]
    if waiting:
        await asyncio.wait(waiting, timeout=_REPORT_SECONDS)


@dataclass
class WorkerAdoption:
    """Adopts workers: each gets the configuration under its id in `placed`, or otherwise its server's."""

    keeper: KeeperLink
    children: Children
    events: RunnerEvents
    servers: Mapping[str, ServerConfig]
    placed: Mapping[str, ServerConfig]
    found: list[LocalWorker] = field(default_factory=list)
    hooks: list[LocalWorker] = field(default_factory=list)

    def adopt(
        self, follow: Callable[[LocalWorker], None], name: str, meta: wire.Message, fds: list[int]
    ) -> Sequence[HasDescriptor]:
        """Adopt a worker and register it with `follow`. A worker that belongs to no server is stopped."""
        if meta["server"] not in self.servers:
            self._end_unknown(name, meta, fds)
            return []
        server = self.placed.get(name, self.servers[meta["server"]])
        hook = str(meta.get("hook", ""))
        if hook:
            server = hook_config(server, hook)
        if (key := str(meta.get("key", server.key))) != server.key:
            # Its configuration was not saved yet: at least its address must be right, where it shares a pair.
            with contextlib.suppress(AddressError):
                server = server.at(parse(key))
        pid = int(meta["pid"])
        if meta.get("start") is not None:
            # Without effect for a child of the keeper; another process may not be watched yet.
            self.keeper.send({"op": "watch", "pid": pid, "start": meta["start"]})
        placement = Placement.of(
            server.name, int(meta["generation"]), int(meta["index"]), where=f"pid {pid}", pid=pid
        )
        if hook:
            placement = replace(placement, id=name)
        output, protocol = str(meta["output"]), meta.get("protocol")
        worker = LocalWorker(self.children, self.events, placement, server, output, protocol)
        worker.start, worker.place, worker.hook = meta.get("start"), meta.get("place"), hook
        worker.follows_routes = bool(meta.get("follows_routes"))
        sock = next((socket.socket(fileno=fd) for fd in fds if stat.S_ISSOCK(os.fstat(fd).st_mode)), None)
        # Before the worker's exit can be reported.
        worker.tally = next((Tally(fd) for fd in fds if not stat.S_ISSOCK(os.fstat(fd).st_mode)), None)
        owners: list[HasDescriptor] = [each for each in (sock, worker.tally) if each is not None]
        self.keeper.share(f"{fd_store.WORKER}{name}", meta, owners)
        worker.adopt(reports=sock is not None and meta["notify"] is None)
        follow(worker)
        self._resume(worker, meta, sock)
        (self.hooks if hook else self.found).append(worker)
        return []

    def _resume(self, worker: LocalWorker, meta: wire.Message, sock: socket.socket | None) -> None:
        if meta["notify"] is not None and sock is not None:
            # If its user has been removed, only root's messages count.
            uid = find_user_id(worker.server) or 0
            worker.listen(NotifySocket(sock, str(meta["notify"]), uid))
        elif sock is not None:
            worker.control_by(sock)
        worker.begin()
        if worker.control is not None:
            worker.control.send({"order": "report"})
        if meta["ready_at"] is not None and not worker.exited.done():
            worker.ready_at = float(meta["ready_at"])
            worker.answer()

    def _end_unknown(self, name: str, meta: wire.Message, fds: list[int]) -> None:
        """Stop the worker of an unrecorded server: its supervisor exited while the server was being added."""
        logger.warning("pid %d belongs to no server of the pool: stopping it", meta["pid"])
        if meta["notify"] is None and fds:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fds[0])) as control:
                wire.send(control, {"order": "stop", "to": "none"})
        number = meta.get("stop_signal", signal.SIGTERM)
        self.keeper.send({"op": "signal", "pid": meta["pid"], "signal": number, "group": False})
        self.keeper.send({"op": "drop", "name": f"{fd_store.WORKER}{name}"})
        for fd in fds:
            wire.close(fd)
