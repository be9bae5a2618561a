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
from collections.abc import Callable
from typing import Any

from ..keeper import rendezvous, wire

VERSION = 2
_HEARING_SECONDS = 0.2
_KEYS = (
    "app", "app_dir", "cwd", "drain_seconds", "env", "factory", "handler_key", "handlers", "requests", "stop_seconds",
    "user", "uvicorn",
)  # fmt: skip

Greeting = tuple[wire.Message, list[int]]


class Orphan:
    """Greets whoever comes with what `greeting` says and holds; what it is ordered goes to `obey`.

    The order `adopt` ends the waiting. It brings a new control socket, which is passed to `adopted`. If `bound` was
    given it also brings a socket to listen on the next time, and a new output pipe if the current one has no reader.
    `bound` is a socket that was bound for us beforehand; without it we can enter the directory ourselves.
    """

    def __init__(
        self,
        directory: str,
        bound: socket.socket | None,
        uids: set[int],
        greeting: Callable[[], Greeting],
        adopted: Callable[[int, int | None], None],
        obey: Callable[[wire.Message, list[int]], None],
    ) -> None:
        self._uids = uids
        self._greeting = greeting
        self._adopted = adopted
        self._obey = obey
        self._loop = asyncio.get_running_loop()
        self._connections: list[socket.socket] = []
        self._path = ""
        if bound is None:
            bound, self._path = rendezvous.bind(directory, rendezvous.WORKER)
        self._listener, self._needs_another = bound, not self._path
        self._listener.listen()
        self._loop.add_reader(self._listener.fileno(), self._accept)
        self._check_hearing()

    def close(self) -> None:
        """Wait no more."""
        self._checking.cancel()
        for sock in (self._listener, *self._connections):
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._connections.clear()
        if self._path:
            rendezvous.forget(self._path)

    def forget(self) -> None:
        """Close everything, in a process that is not this worker."""
        for sock in (self._listener, *self._connections):
            os.close(sock.detach())

    def _check_hearing(self) -> None:
        # Again and again: those who have just died may not have closed all they had, and the logger may die as well.
        _silence_if_deaf()
        self._checking = self._loop.call_later(_HEARING_SECONDS, self._check_hearing)

    def _accept(self) -> None:
        connection = rendezvous.accept(self._listener, self._uids)
        if connection is None:
            return
        message, fds = self._greeting()
        try:
            wire.send(connection, {"event": "orphan", "version": VERSION, "deaf": is_deaf(), **message}, fds)
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
            self._adopted(control, bound)
            return
        try:
            self._obey(message, fds)
        finally:
            for fd in fds:
                os.close(fd)


def is_deaf() -> bool:
    """Whether nobody can read what is printed here: it would be an error to print."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0)) or _is_null(1)


def _silence_if_deaf() -> None:
    # An application that prints is not to fail because the logger has been killed too.
    if is_deaf():
        null = os.open(os.devnull, os.O_WRONLY)
        for standard in (1, 2):
            os.dup2(null, standard)
        os.close(null)


def _is_null(fd: int) -> bool:
    return os.path.samestat(os.fstat(fd), os.stat(os.devnull))


def who_may_ask(spec: dict[str, Any]) -> set[int]:
    """Root, and the user who started the pool: one for whom root started it is not to reach others' sockets."""
    return {0} if spec["user"] is not None else {0, os.geteuid()}


def spec_digest(spec: dict[str, Any]) -> int:
    """The digest of a specification; equal digests mean that the server's configuration has not changed."""
    return crc32(json.dumps({key: spec[key] for key in _KEYS}, sort_keys=True).encode())
