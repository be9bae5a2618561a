"""A worker's control socket: orders come in, events go out, and no call blocks.

A heartbeat is answered without a message: the time is written to a page of memory that the supervisor reads. A worker
whose keeper and supervisor have both exited serves on, and a later supervisor can adopt it with a new control socket. A
digest of its specification shows whether it still matches its server's configuration; the digest omits everything that
comes from the machine, or from the command that started the pool: interpreter, limits, base environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import time
from binascii import crc32
from typing import Protocol

from ..keeper import pool_files, rendezvous, wire
from .process_setup import Spec, discard_output
from .tally import BEAT_ASKED_NS, BEAT_AT_NS, BEAT_CPU_NS, BEAT_LAG_NS

# As encoded by `wire`. Compared as bytes, because parsing would touch pages that a fork shares until then.
BEAT = b'{"order":"beat"}'
VERSION = 2  # version of the messages from an orphaned worker to a supervisor
_OUTPUT_CHECK_SECONDS = 0.2
_KEYS = (
    "app", "app_dir", "cwd", "drain_seconds", "env", "factory", "handler_key", "handlers", "requests", "stop_seconds",
    "umask", "user", "uvicorn",
)  # fmt: skip


class Controlled(Protocol):
    """A worker that follows the orders of its control socket."""

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Follow an order; its descriptors are closed afterwards."""

    def stop(self) -> None:
        """Stop, because the keeper and the supervisor of an embedded pool have exited."""

    def greeting(self) -> tuple[wire.Message, list[int]]:
        """The worker's state and descriptors, for a supervisor that may adopt it."""


class ControlSocket:
    """Receives orders for the worker and sends its events.

    When keeper and supervisor have both exited, the worker waits to be adopted. A socket may have been bound for that
    before the worker started, as `bound_fd`; without it the worker's user can enter the directory itself.
    """

    def __init__(self, fd: int, worker: Controlled, spec: Spec, bound_fd: int) -> None:
        self._worker = worker
        self._spec = spec
        place = spec["orphanage"]
        is_bound = place is not None and place["bound"]
        self._bound = socket.socket(fileno=bound_fd) if is_bound else None
        self._orphan: OrphanedWorker | None = None
        self._tally: memoryview | None = None
        self._take(fd)

    def _take(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)

    def listen(self, tally: memoryview | None) -> None:
        """Begin to accept orders. Heartbeats are answered on the page `tally`."""
        self._tally = tally
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)
        # Orders that have already arrived hold for the first connection. Polled without raising an error: a newly
        # forked worker pays for it.
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        while waiting.poll(0) and self._read_order():
            continue

    def ignore(self) -> None:
        """Stop accepting orders."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def send(self, message: wire.Message) -> None:
        """Send an event if there is room; a supervisor that does not read must not delay a request."""
        with contextlib.suppress(OSError):
            wire.send(self._sock, message)

    def send_raw(self, message: bytes) -> None:
        """Send an encoded message, which a new fork can do without touching the memory of the JSON encoder."""
        with contextlib.suppress(OSError):
            self._sock.send(message)

    def adopted(self, fd: int, bound: int | None) -> None:
        """Accept orders from this socket instead. With `bound`, listen there if both processes exit again."""
        self._orphan = None
        self._bound = None if bound is None else socket.socket(fileno=bound)
        self._sock.close()
        self._take(fd)
        self.listen(self._tally)

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Let the worker follow an order; closes the descriptors."""
        try:
            self._worker.perform(message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def close_in_child(self) -> None:
        """Close everything in a process that the application has forked."""
        orphans = () if self._orphan is None else self._orphan.sockets
        for sock in (self._sock, *orphans, *([] if self._bound is None else [self._bound])):
            with contextlib.suppress(OSError):
                os.close(sock.detach())

    def _readable(self) -> None:
        self._read_order()

    def _read_order(self) -> bool:
        """Read and follow the next order; False if no order has arrived."""
        if answer(self._sock, self._tally):
            return True
        try:
            received = wire.receive(self._sock)
        except BlockingIOError:
            return False
        except wire.WireError:
            return True
        except ConnectionError:
            received = None
        if received is None:
            # An end of file is always readable.
            self.ignore()
            self._lost()
            return False
        self.perform(*received)
        return True

    def _lost(self) -> None:
        if self._spec["orphanage"] is None:
            self._worker.stop()
            return
        # Without a socket it cannot be found, but still serves.
        with contextlib.suppress(OSError):
            self._orphan = OrphanedWorker(self, self._worker, self._spec, self._bound)


def begin(tally: memoryview | None) -> None:
    """Mark the page to show that this worker answers heartbeats."""
    if tally is not None:
        tally[BEAT_AT_NS] = time.monotonic_ns()


def answer(control: socket.socket, tally: memoryview | None) -> bool:
    """If the next message on the control socket is a heartbeat, read and answer it; False for any other message."""
    try:
        if control.recv(len(BEAT) + 1, socket.MSG_PEEK) != BEAT:
            return False
        control.recv(len(BEAT))
    except OSError:
        # The next read sees the same error.
        return False
    if tally is not None:
        now = time.monotonic_ns()
        tally[BEAT_LAG_NS] = max(0, now - tally[BEAT_ASKED_NS])
        tally[BEAT_AT_NS] = now
        tally[BEAT_CPU_NS] = time.process_time_ns()
    return True


class OrphanedWorker:
    """Listens in the pool's directory, and answers each connection with the worker's state and descriptors.

    The order `adopt` ends this: it brings a new control socket. If `bound` was given it also brings a socket to listen
    on the next time, and a new output pipe if the current one has no reader.
    """

    def __init__(
        self, control: ControlSocket, worker: Controlled, spec: Spec, bound: socket.socket | None
    ) -> None:
        self._control = control
        self._worker = worker
        self._spec = spec
        self._uids = _permitted_uids(spec)
        self._loop = asyncio.get_running_loop()
        self._connections: list[socket.socket] = []
        self._path = ""
        if bound is None:
            bound, self._path = rendezvous.bind(spec["orphanage"]["directory"], pool_files.WORKER)
        self._listener, self._needs_another = bound, not self._path
        self._listener.listen()
        self._loop.add_reader(self._listener.fileno(), self._accept)
        self._check_output()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listener and its connections."""
        return self._listener, *self._connections

    def _close(self) -> None:
        self._checking.cancel()
        for sock in self.sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._connections.clear()
        if self._path:
            pool_files.forget(self._path)

    def _check_output(self) -> None:
        # Repeatedly: the logger may exit later, or may not have closed the pipe yet.
        if output_is_closed():
            # An application that prints must not fail because the logger has been killed too.
            discard_output()
        self._checking = self._loop.call_later(_OUTPUT_CHECK_SECONDS, self._check_output)

    def _accept(self) -> None:
        connection = rendezvous.accept(self._listener, self._uids)
        if connection is None:
            return
        message, fds = self._worker.greeting()
        about = {"event": "orphan", "version": VERSION, "deaf": output_is_closed(), "pid": os.getpid()}
        message = {**about, **self._spec["orphanage"], "likeness": spec_digest(self._spec), **message}
        try:
            wire.send(connection, message, fds)
        except OSError:
            connection.close()
            return
        self._connections.append(connection)
        self._loop.add_reader(connection.fileno(), self._read, connection)

    def _read(self, connection: socket.socket) -> None:
        received = rendezvous.receive(connection)
        if received is None:
            self._loop.remove_reader(connection.fileno())
            self._connections.remove(connection)
            connection.close()
            return
        message, fds = received
        if message.get("order") == "adopt" and fds:
            self._close()
            control, *output = fds
            bound = output.pop(0) if self._needs_another and output else None
            for fd in output:
                os.dup2(fd, 1)
                os.dup2(fd, 2)
                os.close(fd)
            self._control.adopted(control, bound)
        else:
            self._control.perform(message, fds)


def output_is_closed() -> bool:
    """Whether the reader of the output is gone, so that writing to it would fail."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0)) or (
        os.path.samestat(os.fstat(1), os.stat(os.devnull))
    )


def _permitted_uids(spec: Spec) -> set[int]:
    """The users who may connect: root and the user who started the pool."""
    return {0} if spec["user"] is not None else {0, os.geteuid()}


def spec_digest(spec: Spec) -> int:
    """The digest of a specification; equal digests mean that the server's configuration has not changed."""
    return crc32(json.dumps({key: spec[key] for key in _KEYS if key in spec}, sort_keys=True).encode())
