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
from typing import TYPE_CHECKING, NamedTuple

from poolctl.config import ServerConfig
from poolctl.keeper import fd_store, wire

from ..link import HasDescriptor, KeeperLink, Link
from ..protocol import Placement, RunnerEvents
from ..spec import find_user_id
from .local_worker import LocalWorker
from .programs import NotifySocket
from .spawn.zygotes import Source
from .tallies import Tally

if TYPE_CHECKING:
    from .activation.sleeping_servers import SleepingServers
    from .children import Children
    from .output import Output
    from .sockets import AdoptionPairs, Sockets
    from .spawn.app_zygotes import AppZygotes
    from .spawn.forking import Forker
    from .spawn.zygotes import Zygotes
    from .tallies import Tallies

logger = logging.getLogger("poolctl.supervisor")

_REPORT_SECONDS = 0.2

_KINDS = (
    fd_store.LISTENER,
    fd_store.ADOPTION,
    fd_store.OUTPUT,
    fd_store.TALLY,
    fd_store.HELD_CONNECTION,
    fd_store.WORKER,
)


class Parts(NamedTuple):
    """The parts of a runner that take the keeper's entries."""

    keeper: KeeperLink
    children: Children
    events: RunnerEvents
    zygotes: Zygotes
    app_zygotes: AppZygotes
    forker: Forker
    sockets: Sockets
    adoptions: AdoptionPairs
    output: Output
    tallies: Tallies
    sleeping: SleepingServers


async def take_over(
    parts: Parts,
    servers: Mapping[str, ServerConfig],
    placed: Mapping[str, ServerConfig],
    follow: Callable[[LocalWorker], None],
) -> list[LocalWorker]:
    """The running workers, each registered at the runner by `follow`, with their sockets, pipes and pages.

    `placed` as in `LocalRunner.adopt`.
    """
    adopted: list[LocalWorker] = []
    warm = False
    after = ""
    by_key = {server.key: server for server in servers.values()}
    while True:
        reply, _ = await parts.keeper.call({"op": "list", "after": after})
        for name, meta in reply["entries"]:
            after = name
            if name.startswith(fd_store.ZYGOTE):
                parts.zygotes.adopt(Source.of(name.removeprefix(fd_store.ZYGOTE)))
                warm = True
            elif name.startswith(fd_store.APP_ZYGOTE):
                _, fds = await parts.keeper.call({"op": "get", "name": name})
                parts.app_zygotes.adopt(meta, fds[0])
            kind = next((kind for kind in _KINDS if name.startswith(kind)), None)
            if kind is None:
                continue
            _, fds = await parts.keeper.call({"op": "get", "name": name})
            if kind != fd_store.WORKER:
                owners = _take(parts, name, kind, meta, fds, by_key)
                if owners:
                    parts.keeper.share(name, meta, owners)
            elif meta["server"] in servers:
                server = placed.get(name.removeprefix(kind), servers[meta["server"]])
                if meta.get("start") is not None:
                    # Without effect for a child of the keeper; another process may not be watched yet.
                    parts.keeper.send({"op": "watch", "pid": meta["pid"], "start": meta["start"]})
                adopted.append(_worker(parts, name, server, meta, fds, follow))
            else:
                _end_unknown(parts.keeper, name, meta, fds)
        if not reply["entries"]:
            if adopted and not warm:
                # The zygotes exited with their keeper.
                parts.forker.warm(adopted[0].server)
            _keep_app_zygotes(parts, servers)
            await _take_acceptor(parts, by_key)
            return adopted


async def inherited(keeper: Link) -> dict[str, list[int]]:
    """The descriptors of the sockets that systemd passed when the pool was started, by number and by name."""
    reply, fds = await keeper.call({"op": "get", "name": fd_store.INHERITED})
    found = {str(number): [fd] for number, fd in enumerate(fds, 3)}
    for name, fd in zip(reply["meta"] or (), fds, strict=True):
        if name:
            found.setdefault(name, []).append(fd)
    return found


async def reports_of(workers: Sequence[LocalWorker]) -> None:
    """Wait a moment for the workers to report their own state: ready although unrecorded, or stopping as ordered."""
    waiting = [
        worker.answered if worker.control is None else worker.reported
        for worker in workers
        if not (worker.exited.done() or (worker.control is None and worker.answered.done()))
    ]
    if waiting:
        await asyncio.wait(waiting, timeout=_REPORT_SECONDS)


def _end_unknown(keeper: Link, name: str, meta: wire.Message, fds: list[int]) -> None:
    """Stop the worker of an unrecorded server: the supervisor exited while the server was being added."""
    logger.warning("pid %d belongs to no server of the pool: stopping it", meta["pid"])
    if meta["notify"] is None and fds:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fds[0])) as control:
            wire.send(control, {"order": "stop", "to": "nobody"})
    keeper.send({"op": "signal", "pid": meta["pid"], "signal": signal.SIGTERM, "group": False})
    keeper.send({"op": "drop", "name": name})
    for fd in fds:
        wire.close(fd)


def _take(
    parts: Parts,
    name: str,
    kind: str,
    meta: wire.Message,
    fds: list[int],
    by_key: Mapping[str, ServerConfig],
) -> Sequence[HasDescriptor]:
    """The new owners of the entry's descriptors; none if it is not needed any more."""
    key = name.removeprefix(kind)
    if kind == fd_store.LISTENER:
        return parts.sockets.adopt(key, fds, meta)
    if kind == fd_store.ADOPTION:
        return parts.adoptions.adopt(key, fds, meta)
    if kind == fd_store.OUTPUT:
        return [parts.output.adopt(key, meta, fds[0])]
    if kind == fd_store.TALLY:
        parts.tallies.adopt(meta["server"], key, fds[0])
    else:
        parts.sleeping.adopt(by_key.get(meta["key"]), name, meta, fds[0])
    return []


async def _take_acceptor(parts: Parts, by_key: Mapping[str, ServerConfig]) -> None:
    """Adopt the accept helper, last of all: connections that it accepted earlier go to the servers' pairs."""
    reply, fds = await parts.keeper.call({"op": "get", "name": fd_store.ACCEPTOR})
    if fds:
        owners = parts.sleeping.adopt_acceptor(reply["meta"], fds[0], by_key)
        parts.keeper.share(fd_store.ACCEPTOR, reply["meta"], owners)


def _keep_app_zygotes(parts: Parts, servers: Mapping[str, ServerConfig]) -> None:
    for server in servers.values():
        if server.preload and parts.sockets.endpoints(server.key):
            parts.forker.need(server)
    parts.app_zygotes.end_unneeded()


def _worker(
    parts: Parts,
    name: str,
    server: ServerConfig,
    meta: wire.Message,
    fds: list[int],
    follow: Callable[[LocalWorker], None],
) -> LocalWorker:
    generation, index, pid = int(meta["generation"]), int(meta["index"]), int(meta["pid"])
    placement = Placement.of(server.name, generation, index, where=f"pid {pid}", pid=pid)
    worker = LocalWorker(
        parts.children, parts.events, placement, server, str(meta["output"]), meta.get("protocol")
    )
    worker.start, worker.place = meta.get("start"), meta.get("place")
    sockets = [socket.socket(fileno=fd) for fd in fds if stat.S_ISSOCK(os.fstat(fd).st_mode)]
    # Before the worker's exit can be reported.
    worker.tally = next((Tally(fd) for fd in fds if not stat.S_ISSOCK(os.fstat(fd).st_mode)), None)
    parts.keeper.share(name, meta, [*sockets[:1], *([worker.tally] if worker.tally is not None else [])])
    follow(worker)
    # An earlier version kept the worker's end as well.
    for theirs in sockets[1:]:
        theirs.close()
    if meta["notify"] is not None and sockets:
        # If its user has been removed, only root's messages count.
        worker.listen(NotifySocket(sockets[0], str(meta["notify"]), find_user_id(server) or 0))
    elif sockets:
        worker.control_by(sockets[0])
    worker.begin()
    if worker.control is not None:
        worker.control.send({"order": "report"})
    if meta["ready_at"] is not None and not worker.exited.done():
        worker.ready_at = float(meta["ready_at"])
        worker.answer()
    return worker
