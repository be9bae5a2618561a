"""Takes over the workers of an earlier supervisor.

They are adopted, with their descriptors, from the keeper's store. A worker that belongs to no configured server, or to
a server with another address, is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from poolctl.address import AddressError, parse
from poolctl.config import ServerConfig
from poolctl.keeper import fd_store, wire

from ..process_link import HasDescriptor, KeeperLink, Link, stored_entries
from ..runner_protocol import Placement, RunnerEventHandler
from ..worker_spec import hook_config, usable_user_id
from .children import Children
from .local_worker import LocalWorker
from .notify_socket import NotifySocket
from .tally_page import Tally

logger = logging.getLogger("poolctl.supervisor")

_REPORT_SECONDS = 0.2

# Adopts an entry: gets its name without the prefix, its value and its descriptors. Returns the new owners of the
# descriptors, to be recorded with the entry; an empty sequence if no entry is to be recorded.
Adopter = Callable[[str, wire.Message, list[int]], Sequence[HasDescriptor]]


@dataclass(frozen=True, slots=True)
class AdoptionResult:
    """The processes and listeners taken over from an earlier supervisor.

    `hooks` maps servers with a running hook to the name of the hook and the placement of its process.
    `endpoints` maps the key of a server to the addresses of its open listeners.
    """

    workers: Sequence[LocalWorker] = ()
    hooks: Mapping[str, tuple[str, Placement]] = field(default_factory=dict)
    endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


async def take_over(keeper: KeeperLink, adopters: Mapping[str, Adopter]) -> list[str]:
    """Pass each entry of the keeper's store to the adopter for its kind; returns the names of all entries."""
    names: list[str] = []
    async for name, meta in stored_entries(keeper):
        names.append(name)
        kind = next((kind for kind in adopters if name.startswith(kind)), None)
        if kind is not None:
            _, fds = await keeper.call({"op": "get", "name": name})
            if owners := adopters[kind](name.removeprefix(kind), meta, fds):
                keeper.remember_entry(name, meta, owners)
    return names


async def systemd_sockets(keeper: Link) -> dict[str, list[int]]:
    """The sockets that systemd passed to the pool, by descriptor number ("3" is the first) and by name, if any."""
    reply, fds = await keeper.call({"op": "get", "name": fd_store.INHERITED})
    sockets = {str(number): [fd] for number, fd in enumerate(fds, 3)}
    for name, fd in zip(reply["meta"] or (), fds, strict=True):
        if name:
            sockets.setdefault(name, []).append(fd)
    return sockets


async def wait_briefly_for_reports(workers: Sequence[LocalWorker]) -> None:
    """Wait briefly until the workers have reported their state, which may be newer than the recorded state."""
    waiting = [
        worker.answered if worker.control is None else worker.reported
        for worker in workers
        if not (worker.exited.done() or (worker.control is None and worker.answered.done()))
    ]
    if waiting:
        await asyncio.wait(waiting, timeout=_REPORT_SECONDS)


@dataclass
class WorkerAdoption:
    """Adopts workers and running hooks, and appends them to `workers` and `hooks`.

    `placed` maps ids of workers to their configurations; the other workers get their server's configuration.
    """

    keeper: KeeperLink
    children: Children
    events: RunnerEventHandler
    servers: Mapping[str, ServerConfig]
    placed: Mapping[str, ServerConfig]
    workers: list[LocalWorker] = field(default_factory=list)
    hooks: list[LocalWorker] = field(default_factory=list)

    def adopt_or_stop(
        self, register: Callable[[LocalWorker], None], name: str, meta: wire.Message, fds: list[int]
    ) -> Sequence[HasDescriptor]:
        """Adopt a worker, and pass it to `register`. If its server is unknown, stop the worker instead. Owns `fds`.

        Always returns [], so that the caller records nothing: this method itself records the entry of the worker.
        """
        if meta["server"] not in self.servers:
            self._end_unknown(name, meta, fds)
            return []
        server = self.placed.get(name, self.servers[meta["server"]])
        hook = str(meta.get("hook", ""))
        if hook:
            server = hook_config(server, hook)
        private = None
        key = str(meta.get("key", server.key))
        if server.is_proxied:
            with contextlib.suppress(AddressError):
                private = parse(key)
        elif key != server.key:
            # Its configuration was not saved. At least the address must be right, because it selects the shared pair.
            with contextlib.suppress(AddressError):
                server = server.at(parse(key))
        pid = int(meta["pid"])
        if meta["start"] is not None:
            # The keeper watches its own children already; this is for other processes.
            self.keeper.send({"op": "watch", "pid": pid, "start": meta["start"]})
        placement = Placement(
            name,
            server.name,
            int(meta["generation"]),
            int(meta["index"]),
            where=f"pid {pid}",
            pid=pid,
            address="" if private is None else private.key,
        )
        sock = next((socket.socket(fileno=fd) for fd in fds if stat.S_ISSOCK(os.fstat(fd).st_mode)), None)
        tally = next((Tally(fd) for fd in fds if not stat.S_ISSOCK(os.fstat(fd).st_mode)), None)
        notify = None
        if meta["notify"] is not None and sock is not None:
            # If its user has been removed, only root's messages count.
            notify = NotifySocket(sock, str(meta["notify"]), usable_user_id(server) or 0)
        owners: list[HasDescriptor] = [holder for holder in (sock, tally) if holder is not None]
        self.keeper.remember_entry(f"{fd_store.WORKER}{name}", meta, owners)
        worker = LocalWorker(
            self.children,
            self.events,
            placement,
            server,
            str(meta["output"]),
            start=meta["start"],
            control=sock if notify is None else None,
            notify=notify,
            tally=tally,
            handover_group=meta["protocol"],
            private=private,
            hook=hook,
            adopted=True,
        )
        register(worker)
        worker.order_to_begin()
        worker.order("report")
        if meta["ready_at"] is not None:
            worker.mark_ready(float(meta["ready_at"]))
        (self.hooks if hook else self.workers).append(worker)
        return []

    def _end_unknown(self, name: str, meta: wire.Message, fds: list[int]) -> None:
        """Stop a worker whose server is unknown: its supervisor exited while it was adding this server to the pool."""
        logger.warning("pid %d belongs to no server of the pool: stopping it", meta["pid"])
        if meta["notify"] is None and fds:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fds[0])) as control:
                wire.send(control, {"order": "drain", "to": "none"})
        number = meta.get("stop_signal", signal.SIGTERM)
        self.keeper.send({"op": "signal", "pid": meta["pid"], "signal": number, "group": False})
        self.keeper.send({"op": "drop", "name": f"{fd_store.WORKER}{name}"})
        for fd in fds:
            wire.close_with_unread_descriptors(fd)
