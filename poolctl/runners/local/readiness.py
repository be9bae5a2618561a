"""Waits until workers are ready, and connects to them for probes.

The workers of a program share a listener. /proc shows which worker has accepted a connection: one of its processes has
the connection's socket (proc(5), fd).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Callable, Sequence, Set

from poolctl import platform
from poolctl.errors import ServerError
from poolctl.listeners.sock_diag import (
    accepted_inodes,
    has_others_waiting,
    is_listed,
    peer_inode,
    wait_until_accepted,
)
from poolctl.platform import peer_has_closed, waits_for_events

from ..runner_protocol import WorkerFailed
from .children import ProcessIdentity
from .local_worker import LocalWorker, RunnerWorkers
from .program_ports import (
    FIRST_CONNECT_PAUSE_SECONDS,
    FIRST_LISTING_PAUSE_SECONDS,
    LAST_CONNECT_PAUSE_SECONDS,
    LAST_LISTING_PAUSE_SECONDS,
    LISTING_SECONDS,
    connect,
    listening_inodes,
    wait_until_listening,
)

# There is no notification when another program calls accept().
_FIRST_ACCEPT_PAUSE_SECONDS = 0.001
# The kernel may give each connection to the same process (EPOLLEXCLUSIVE), but not many that arrive at once.
_PROBES_AT_ONCE, _MAX_PROBES_AT_ONCE = 4, 32


async def wait_until_ready(
    worker: LocalWorker, listeners: Sequence[socket.socket], workers: RunnerWorkers
) -> None:
    """Wait until the worker is ready. Raises WorkerFailed if it exits before, ServerError if it cannot become so.

    A job is ready when it has exited with 0. A program that does not report readiness is ready when it accepts a
    connection or, without a port, when it has run for a moment.
    """
    server, sockets = worker.server, ProgramSockets(worker, workers)
    if server.job:
        exit_ = await asyncio.shield(worker.exited)
        if not exit_.ok:
            raise WorkerFailed(exit_.message, hint=f"poolctl logs {server.name}", exit=exit_)
    elif not (server.listens or server.notify):
        if server.is_ready_by_running:
            await asyncio.wait({worker.exited}, timeout=server.ready_after)
        worker.mark_ready()
    elif server.command and not server.notify:
        if listeners:
            shared = listeners[0]
            await worker.become_ready_by(
                sockets.wait_until_probe_accepted(shared),
                sockets.wait_until_client_accepted(shared),
            )
        elif worker.config.is_proxied:
            await worker.become_ready_by(sockets.wait_until_private_port_is_own())
        else:
            await worker.become_ready_by(sockets.wait_until_listening())
    await asyncio.shield(worker.answered)


async def connect_for_probe(
    worker: LocalWorker,
    kind: str,
    plain: bool,
    listeners: Sequence[socket.socket],
    workers: RunnerWorkers,
    *,
    exact: bool,
) -> socket.socket:
    """Connect to the worker, and return the caller's end of the connection. Raises OSError.

    A worker that runs a command is reached through the first of `listeners` or, if there is none, at the address
    that the command binds itself. Another worker of its server may accept the connection, unless `exact`.
    """
    if worker.exited.done():
        raise ConnectionRefusedError("it has exited")
    if worker.control is None:
        if exact and listeners:
            return await ProgramSockets(worker, workers).connect(listeners[0])
        return await connect(worker.server, next(iter(listeners), None))
    if worker.control.waits:
        raise BlockingIOError(errno.EAGAIN, "it has not read earlier commands")
    ours, theirs = socket.socketpair()
    with theirs:
        worker.order("conn", [theirs.fileno()], kind=kind, plain=plain)
    return ours


class ProgramSockets:
    """The sockets of a worker that runs a program: where it listens, and which connections it accepts.

    `workers` are all workers of the runner.
    """

    def __init__(self, worker: LocalWorker, workers: RunnerWorkers) -> None:
        self._worker = worker
        self._workers = workers

    async def connect(self, listener: socket.socket) -> socket.socket:
        """Connect through the listener until a process of the worker accepts the connection; returns the connection.

        Connections that other workers of the server accept are closed. While all are in the accept queue, no further
        ones are made.
        """
        count, pause = 1, FIRST_CONNECT_PAUSE_SECONDS
        while True:
            accepted = None
            probes: list[socket.socket] = []
            try:
                for _ in range(count):
                    probes.append(await connect(self._worker.server, listener))
                if _accepts_only_data(listener):
                    accepted = await self._assume_own(probes[0])
                else:
                    accepted = await self._wait_for_accept(probes)
            except OSError:
                pass
            finally:
                for probe in probes:
                    if probe is not accepted:
                        probe.close()
            if accepted is not None:
                return accepted
            await asyncio.sleep(pause)
            # More only if it may already wait for them: they also burden the other workers.
            waits = await asyncio.to_thread(self._waits_for_events)
            count = min(count * 2, _MAX_PROBES_AT_ONCE if waits else _PROBES_AT_ONCE)
            pause = min(pause * 1.5, LAST_CONNECT_PAUSE_SECONDS)

    def _waits_for_events(self) -> bool:
        """Whether a process of the worker waits for events (see platform.waits_for_events). Blocks."""
        pid = self._worker.process.pid
        return any(map(waits_for_events, platform.processes_by_leader({pid})[pid]))

    async def _wait_for_accept(self, probes: Sequence[socket.socket]) -> socket.socket | None:
        """The first of the connections that the worker accepts; None if others have accepted all of them."""
        waiting = list(probes)
        pause = _FIRST_ACCEPT_PAUSE_SECONDS
        while True:
            for probe in list(waiting):
                inode = peer_inode(probe)
                if inode == 0 and not peer_has_closed(probe):
                    continue  # in the accept queue
                if await self._is_accepted_here(probe, inode):
                    return probe
                probe.close()  # the other worker may serve one client at a time
                waiting.remove(probe)
            if not waiting:
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LAST_CONNECT_PAUSE_SECONDS)

    async def _is_accepted_here(self, probe: socket.socket, inode: int | None) -> bool:
        """Whether a process of the worker has accepted the connection. `inode` is the socket at the other end, if any.

        A connection that is already closed counts as accepted while no older worker of the server runs.
        """
        if inode:
            accepts = await self._has_socket(lambda: {inode}, strictly=self._overlaps)
        elif peer_has_closed(probe) or is_listed(probe):
            accepts = not self._overlaps
        else:
            accepts = None  # the kernel does not answer
        return (await self._assume_own(probe)) is not None if accepts is None else accepts

    async def _assume_own(self, probe: socket.socket) -> socket.socket | None:
        """Return the connection, because the system does not show which process accepts it.

        While an older worker runs, this worker is killed instead, because it has to start after the end of the older
        one. It is not killed once it has reported that it is ready.
        """
        if self._worker.answered.done() or not self._overlaps:
            return probe
        await self._worker.kill_and_wait("the system does not show which process accepts connections")
        return None

    @property
    def _overlaps(self) -> bool:
        """Whether a worker runs that this one replaces."""
        placement = self._worker.placement
        return any(
            peer.placement.index == placement.index and peer.placement.generation < placement.generation
            for peer in self._workers.running_peers(self._worker)
        )

    async def _has_socket(self, inodes: Callable[[], Set[int]], *, strictly: bool) -> bool | None:
        """Whether a process of the worker has a socket with one of the `inodes`; None if that cannot be seen.

        Unless `strictly`, processes without a worker also count if they are not older than this one: the program may
        have started them elsewhere, such as in a container.
        """
        worker = self._worker.process
        peers = {peer.process.pid for peer in self._workers.running_peers(self._worker)}
        # In a thread, because there may be many processes.
        return await asyncio.to_thread(lambda: _worker_has_socket(worker, peers, inodes(), strictly=strictly))

    async def wait_until_listening(self) -> None:
        """Wait until the program listens at its port. A socket that listened there before its start does not count."""
        server, earlier = self._worker.server, self._worker.earlier_listeners
        while True:
            await wait_until_listening(server)
            if not earlier:
                return
            listening = await asyncio.to_thread(listening_inodes, server)
            if not listening or listening - earlier:
                return
            await asyncio.sleep(LAST_CONNECT_PAUSE_SECONDS)

    async def wait_until_private_port_is_own(self) -> None:
        """Wait until a process of the worker listens at its private port. Raises ServerError if another one does."""
        await wait_until_listening(self._worker.server)
        if await self._has_socket(lambda: listening_inodes(self._worker.server), strictly=True) is False:
            message = f"another process listens at its private port {self._worker.server.address.port}"
            raise ServerError(message, hint=f"poolctl restart {self._worker.config.name}")

    async def wait_until_probe_accepted(self, listener: socket.socket) -> None:
        """Wait until the worker has accepted a connection that is made here."""
        while True:
            with await self.connect(listener) as probe, contextlib.suppress(OSError):
                await wait_until_accepted(probe)
                return

    async def wait_until_client_accepted(self, listener: socket.socket) -> None:
        """Wait until the worker has accepted any connection: with many clients, a probe may wait long in the queue."""

        def accepted() -> set[int]:
            return set(accepted_inodes(listener, time.monotonic() + LISTING_SECONDS))

        pause = FIRST_LISTING_PAUSE_SECONDS
        while True:
            await asyncio.sleep(pause)
            if has_others_waiting(listener) and await self._has_socket(accepted, strictly=True):
                return
            pause = min(pause * 1.5, LAST_LISTING_PAUSE_SECONDS)


def _accepts_only_data(listener: socket.socket) -> bool:
    """Whether a connection is accepted only when data has arrived (tcp(7), TCP_DEFER_ACCEPT)."""
    if listener.family == socket.AF_UNIX:
        return False
    return listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0


def _worker_has_socket(
    worker: ProcessIdentity, peers: Set[int], inodes: Set[int], *, strictly: bool
) -> bool | None:
    """See ProgramSockets._has_socket; `peers` are the pids of the other workers. Blocks."""
    processes = platform.processes_by_leader({worker.pid, *peers})
    by_process = [platform.socket_inodes(pid) for pid in processes.pop(worker.pid)]
    if any(held and not held.isdisjoint(inodes) for held in by_process):
        return True
    if strictly:
        return None if all(held is None for held in by_process) else False
    strangers = processes.pop(None)
    others = [pid for pids in processes.values() for pid in pids]
    others += [pid for pid in strangers if (platform.process_start(pid) or 0) < (worker.start or 0)]
    return all((platform.socket_inodes(pid) or set()).isdisjoint(inodes) for pid in others)
