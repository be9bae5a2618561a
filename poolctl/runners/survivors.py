"""What still serves of a pool whose keeper and supervisor are both dead. Standard library only; every call blocks."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from dataclasses import dataclass, field
from typing import Any

from poolctl.keeper import rendezvous, wire
from poolctl.platform import peer_credentials, process_start

_ANSWER_SECONDS = 2.0


@dataclass
class Survivor:
    """A worker. `sock` leads to it, `fds` are its listeners and its adoption pair; a program has neither.

    `said` is what it says of itself: server, key, generation, index, ready_at, output, protocol …
    """

    pid: int
    uid: int
    start: int
    said: dict[str, Any]
    sock: socket.socket | None = None
    fds: list[int] = field(default_factory=list)

    def order(self, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> bool:
        """Whether the worker will read the order."""
        if self.sock is None:
            return False
        try:
            wire.send(self.sock, message, fds)
        except OSError:
            return False
        return True

    def ask_to_end(self) -> None:
        """Tell it to finish what it has and end."""
        if not self.order({"order": "stop"}) and process_start(self.pid) == self.start:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGTERM)

    def await_end(self, timeout_seconds: float) -> bool:
        """Whether it has ended by then."""
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            poll = select.poll()
            poll.register(process, select.POLLIN)
            return process_start(self.pid) != self.start or bool(poll.poll(timeout_seconds * 1000))
        finally:
            os.close(process)

    def kill(self) -> None:
        """End it, and its process group, at once."""
        if process_start(self.pid) == self.start:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it; it serves on."""
        if self.sock is not None:
            self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []


@dataclass
class Pipes:
    """The pipes of a logger that outlived its pool, by their keys, with the orders by which it was given them."""

    streams: dict[str, tuple[wire.Message, int]] = field(default_factory=dict)
    _loggers: list[socket.socket] = field(default_factory=list)

    def take(self) -> None:
        """Tell the logger that another one reads them from now on."""
        for sock in self._loggers:
            with contextlib.suppress(OSError):
                wire.send(sock, {"t": "taken"})

    def close(self) -> None:
        """Let go of them."""
        for sock in self._loggers:
            sock.close()
        for _, fd in self.streams.values():
            os.close(fd)


def find(directory: str) -> tuple[list[Survivor], Pipes]:
    """Everything that still serves of the pool of this directory, and the pipes that take what it prints.

    Programs, which speak no protocol, are known by the logger only.
    """
    found = [*_workers(directory)]
    pipes = _pipes(directory)
    found += _programs(pipes, {survivor.pid for survivor in found})
    return found, pipes


def are_there(directory: str) -> bool:
    """Whether there is anything to find."""
    kinds = (rendezvous.WORKER, rendezvous.LOGGER)
    return any(rendezvous.find(directory, kind) for kind in kinds)


def _workers(directory: str) -> list[Survivor]:
    connections = [
        rendezvous.connect(name, _ANSWER_SECONDS) for name in rendezvous.find(directory, rendezvous.WORKER)
    ]
    found = []
    for sock in connections:
        survivor = _greeted(sock) if sock is not None else None
        if survivor is not None:
            found.append(survivor)
    return found


def _greeted(sock: socket.socket) -> Survivor | None:
    received = rendezvous.receive(sock)
    if received is None or received[0].get("event") != "orphan":
        sock.close()
        return None
    message, fds = received
    pid, uid, _ = peer_credentials(sock)
    start = process_start(pid)
    if start is None or pid != message.get("pid") or uid not in _possible_users():
        for fd in fds:
            os.close(fd)
        sock.close()
        return None
    return Survivor(pid, uid, start, message, sock, fds)


def _possible_users() -> range | set[int]:
    # Root starts servers as other users; who it may be is checked by who knows the server.
    return range(2**32) if os.geteuid() == 0 else {os.geteuid()}


def _pipes(directory: str) -> Pipes:
    pipes = Pipes()
    for name in rendezvous.find(directory, rendezvous.LOGGER):
        sock = rendezvous.connect(name, _ANSWER_SECONDS)
        if sock is None:
            continue
        if peer_credentials(sock)[1] != os.geteuid():
            sock.close()
            continue
        pipes._loggers.append(sock)
        while (received := rendezvous.receive(sock)) is not None and received[0].get("t") == "add":
            message, (fd,) = received
            pipes.streams[str(message["id"])] = message, fd
    return pipes


def _programs(pipes: Pipes, known: set[int]) -> list[Survivor]:
    found = []
    for key, (message, _) in pipes.streams.items():
        pid, start = int(message["pid"]), message.get("start")
        if start is not None and pid not in known and process_start(pid) == start:
            ready_at = start / os.sysconf("SC_CLK_TCK")
            said = {"server": message["name"], "output": key, "ready_at": ready_at, "leaving": False}
            found.append(Survivor(pid, os.stat(f"/proc/{pid}").st_uid, start, said))
    return found
