"""A worker whose keeper and supervisor have both exited: it serves on, and a later supervisor can adopt it.

A digest of its specification tells whether it still matches its server's configuration. The digest leaves out whatever
comes from the machine, or from the command that started the pool: interpreter, limits, base environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
from binascii import crc32
from typing import Any, Protocol

from ..keeper import rendezvous, wire
from .control_socket import Controlled

VERSION = 2
_OUTPUT_CHECK_SECONDS = 0.2
_KEYS = (
    "app", "app_dir", "cwd", "drain_seconds", "env", "factory", "handler_key", "handlers", "requests", "stop_seconds",
    "user", "uvicorn",
)  # fmt: skip


class Adoptable(Controlled, Protocol):
    """The worker that waits to be adopted."""

    def greeting(self) -> tuple[wire.Message, list[int]]:
        """Its state for a supervisor, and the descriptors that it holds."""

    def adopted(self, control: int, bound: int | None) -> None:
        """It has been adopted, and is controlled over this socket; it listens on `bound` if it is orphaned again."""


class OrphanedWorker:
    """Listens in the pool's directory, and answers each connection with the worker's state and descriptors.

    The order `adopt` ends this: it brings a new control socket. If `bound` was given it also brings a socket to listen
    on the next time, and a new output pipe if the current one has no reader. `bound` is a socket that was bound for
    this worker before it started; without it the worker's user can enter the directory itself.
    """

    def __init__(
        self, directory: str, bound: socket.socket | None, uids: set[int], worker: Adoptable
    ) -> None:
        self._uids = uids
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._connections: list[socket.socket] = []
        self._path = ""
        if bound is None:
            bound, self._path = rendezvous.bind(directory, rendezvous.WORKER)
        self._listener, self._needs_another = bound, not self._path
        self._listener.listen()
        self._loop.add_reader(self._listener.fileno(), self._accept)
        self._check_output()

    def close(self) -> None:
        """Stop listening."""
        self._checking.cancel()
        for sock in (self._listener, *self._connections):
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._connections.clear()
        if self._path:
            rendezvous.forget(self._path)

    def close_in_child(self) -> None:
        """Close everything in a process that the application has forked."""
        for sock in (self._listener, *self._connections):
            os.close(sock.detach())

    def _check_output(self) -> None:
        # Repeatedly: the logger may exit later, or may not have closed the pipe yet.
        _discard_output_if_closed()
        self._checking = self._loop.call_later(_OUTPUT_CHECK_SECONDS, self._check_output)

    def _accept(self) -> None:
        connection = rendezvous.accept(self._listener, self._uids)
        if connection is None:
            return
        message, fds = self._worker.greeting()
        try:
            wire.send(
                connection,
                {"event": "orphan", "version": VERSION, "deaf": output_is_closed(), **message},
                fds,
            )
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
            self.close()
            control, *output = fds
            bound = output.pop(0) if self._needs_another and output else None
            for fd in output:
                os.dup2(fd, 1)
                os.dup2(fd, 2)
                os.close(fd)
            self._worker.adopted(control, bound)
            return
        try:
            self._worker.perform(message, fds)
        finally:
            for fd in fds:
                os.close(fd)


def output_is_closed() -> bool:
    """Whether no process reads the output any more: writing to it would be an error."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0)) or _is_null(1)


def _discard_output_if_closed() -> None:
    # An application that prints must not fail because the logger has been killed too.
    if output_is_closed():
        null = os.open(os.devnull, os.O_WRONLY)
        for standard in (1, 2):
            os.dup2(null, standard)
        os.close(null)


def _is_null(fd: int) -> bool:
    return os.path.samestat(os.fstat(fd), os.stat(os.devnull))


def permitted_uids(spec: dict[str, Any]) -> set[int]:
    """The users who may connect: root, and the user who started the pool, but no other user of the pool's servers."""
    return {0} if spec["user"] is not None else {0, os.geteuid()}


def spec_digest(spec: dict[str, Any]) -> int:
    """The digest of a specification; equal digests mean that the server's configuration has not changed."""
    return crc32(json.dumps({key: spec[key] for key in _KEYS}, sort_keys=True).encode())
