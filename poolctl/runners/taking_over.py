"""After the death of a supervisor: what the keeper holds of a runner before, in the hands of its successor."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from poolctl.config.model import ServerConfig
from poolctl.keeper import stored, wire

from .link import Link
from .placed.notify import Notify
from .placed.tallies import Tally
from .placed.workers import LocalWorker
from .protocol import Placement

if TYPE_CHECKING:
    from .local import LocalRunner

logger = logging.getLogger("poolctl.supervisor")

_KINDS = (
    stored.LISTENER,
    stored.ADOPTION,
    stored.OUTPUT,
    stored.TALLY,
    stored.VISITOR,
    stored.WORKER,
)


async def take_over(
    runner: LocalRunner,
    servers: Mapping[str, ServerConfig],
    placed: Mapping[str, ServerConfig],
    follow: Callable[[LocalWorker], None],
) -> list[LocalWorker]:
    """The workers that are there, each known to the runner by `follow`; with them all that they need.

    `placed` as in `LocalRunner.adopt`.
    """
    adopted: list[LocalWorker] = []
    warm = False
    after = ""
    by_key = {server.key: server for server in servers.values()}
    while True:
        reply, _ = await runner.keeper.call({"op": "list", "after": after})
        for name, meta in reply["entries"]:
            after = name
            if name.startswith(stored.ZYGOTE):
                runner.zygotes.adopt(name.removeprefix(stored.ZYGOTE))
                warm = True
            elif name.startswith(stored.APP_ZYGOTE):
                _, fds = await runner.keeper.call({"op": "get", "name": name})
                runner.app_zygotes.adopt(meta, fds[0])
            kind = next((kind for kind in _KINDS if name.startswith(kind)), None)
            if kind is None:
                continue
            _, fds = await runner.keeper.call({"op": "get", "name": name})
            if kind != stored.WORKER:
                _take(runner, name, kind, meta, fds, by_key)
            elif meta["server"] in servers:
                server = placed.get(name.removeprefix(kind), servers[meta["server"]])
                if meta.get("start") is not None:
                    # Of no effect for a child of the keeper; one that is not may have come without being watched.
                    runner.keeper.send({"op": "watch", "pid": meta["pid"], "start": meta["start"]})
                adopted.append(_worker(server, meta, fds, follow))
            else:
                _end_unknown(runner.keeper, name, meta, fds)
        if not reply["entries"]:
            if adopted and not warm:
                # The zygotes went with their keeper.
                runner.forker.warm(adopted[0].server)
            _keep_app_zygotes(runner, servers)
            return adopted


def _end_unknown(keeper: Link, name: str, meta: wire.Message, fds: list[int]) -> None:
    """End the worker of a server that is in no record: the supervisor died while it was being added."""
    logger.warning("pid %d belongs to no server of the pool: it is stopped", meta["pid"])
    if meta["notify"] is None and fds:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fds[0])) as control:
            wire.send(control, {"order": "stop", "to": "nobody"})
    keeper.send({"op": "signal", "pid": meta["pid"], "signal": signal.SIGTERM, "group": False})
    keeper.send({"op": "drop", "name": name})
    for fd in fds:
        os.close(fd)


def _take(
    runner: LocalRunner,
    name: str,
    kind: str,
    meta: wire.Message,
    fds: list[int],
    by_key: Mapping[str, ServerConfig],
) -> None:
    key = name.removeprefix(kind)
    if kind == stored.LISTENER:
        runner.sockets.adopt(key, fds)
    elif kind == stored.ADOPTION:
        runner.adoptions.adopt(key, fds, meta)
    elif kind == stored.OUTPUT:
        runner.output.adopt(key, meta, fds[0])
    elif kind == stored.TALLY:
        runner.tallies.adopt(meta["server"], key, fds[0])
    else:
        runner.sleepers.adopt(by_key.get(meta["key"]), name, fds[0])


def _keep_app_zygotes(runner: LocalRunner, servers: Mapping[str, ServerConfig]) -> None:
    for server in servers.values():
        if server.preload and runner.endpoints(server.key):
            runner.forker.need(server)
    runner.app_zygotes.end_unneeded()


def _worker(
    server: ServerConfig, meta: wire.Message, fds: list[int], follow: Callable[[LocalWorker], None]
) -> LocalWorker:
    generation, index, pid = int(meta["generation"]), int(meta["index"]), int(meta["pid"])
    placement = Placement.of(server.name, generation, index, where=f"pid {pid}", pid=pid)
    worker = LocalWorker(placement, server, str(meta["output"]), meta.get("protocol"))
    worker.start = meta.get("start")
    # Before the worker turns out to have ended.
    worker.tally = Tally(fds[2]) if len(fds) > 2 else None
    follow(worker)
    if meta["notify"] is not None:
        worker.listen(Notify(socket.socket(fileno=fds[0]), str(meta["notify"])))
    elif fds:
        os.close(fds[1])
        worker.control = Link(socket.socket(fileno=fds[0]), worker.heard)
    worker.begin()
    if worker.control is not None:
        worker.control.send({"order": "report"})
    if meta["ready_at"] is not None and not worker.exited.done():
        worker.ready_at = float(meta["ready_at"])
        worker.answer()
    return worker
