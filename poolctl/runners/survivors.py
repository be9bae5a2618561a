"""Workers that still serve after keeper and supervisor have both died. Standard library only; every call blocks."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from poolctl.keeper import rendezvous, wire
from poolctl.keeper.reap import signal_process
from poolctl.platform import close_promptly, peer_credentials, process_start, process_users
from poolctl.worker.tally import is_page

from . import untrusted

_ANSWER_SECONDS = 2.0
_MOST = 1_000_000_000
SILENCE = "nothing that can be read"


@dataclass
class Survivor:
    """A worker. `sock` leads to it; a program, and a worker that is too busy to listen, have none, and no descriptors.

    `said` is what it says of itself, checked: server, key, generation, index, ready_at, output, protocol … It may be
    forged, so callers check that `uid` is the server's user. A process with a `fault`, the reason why its message was
    rejected, has only a server, which is "".
    """

    pid: int
    uid: int
    start: int
    said: dict[str, Any]
    sock: socket.socket | None = None
    listeners: list[int] = field(default_factory=list)
    pair: list[int] = field(default_factory=list)
    tally: list[int] = field(default_factory=list)
    fault: str = ""

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
        """Ask it to finish its requests and end."""
        if not self.order({"order": "stop"}):
            self._signal(signal.SIGTERM)

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
        self._signal(signal.SIGKILL, group=True)

    def _signal(self, number: int, *, group: bool = False) -> None:
        with contextlib.suppress(OSError):
            signal_process(self.pid, self.start, number, group=group)

    def close(self) -> None:
        """Close the descriptors; the worker serves on."""
        if self.sock is not None:
            wire.close(self.sock.detach())
        for fds in (self.listeners, self.pair, self.tally):
            while fds:
                close_promptly(fds.pop())


@dataclass
class Pipes:
    """The pipes of a logger that outlived its pool, by their keys, with the orders by which it was given them."""

    streams: dict[str, tuple[wire.Message, int]] = field(default_factory=dict)
    _loggers: list[socket.socket] = field(default_factory=list)

    def take(self) -> None:
        """Let the logger stop reading: another one reads them from now on."""
        for sock in self._loggers:
            with contextlib.suppress(OSError):
                wire.send(sock, {"t": "taken"}, wait=True)

    def close(self) -> None:
        """Close them."""
        for sock in self._loggers:
            sock.close()
        for _, fd in self.streams.values():
            os.close(fd)


def find(directory: str) -> tuple[list[Survivor], Pipes]:
    """The workers of this directory's pool that still serve, and the pipes that take their output.

    Programs, which speak no protocol, and workers whose event loop is blocked are known by the logger only.
    """
    found = [*_workers(directory)]
    pipes = _pipes(directory)
    found += _without_socket(pipes, {survivor.pid for survivor in found})
    return found, pipes


def are_there(directory: str) -> bool:
    """Whether there is anything to find."""
    kinds = (rendezvous.WORKER, rendezvous.LOGGER)
    return any(rendezvous.find(directory, kind) for kind in kinds)


def _workers(directory: str) -> list[Survivor]:
    answers = rendezvous.ask(directory, rendezvous.WORKER, _ANSWER_SECONDS)
    return [survivor for sock, answer in answers if (survivor := _worker(sock, answer)) is not None]


def _worker(sock: socket.socket, answer: rendezvous.Answer | None) -> Survivor | None:
    """The worker at the other end; None when it has ended, or is none that could be ours."""
    message, fds = answer or ({}, [])
    # Of the process that began to listen.
    pid, uid, _ = peer_credentials(sock)
    start, users = process_start(pid), process_users(pid)
    if start is not None and users == {uid} and uid in _possible_users():
        try:
            if answer is None:
                raise untrusted.Malformed(SILENCE)
            said = _checked(message, pid)
            return Survivor(pid, uid, start, said, sock, *_sorted_out(fds, said.pop("listeners")))
        except untrusted.Malformed as error:
            for fd in fds:
                close_promptly(fd)
            return Survivor(pid, uid, start, {"server": ""}, sock, fault=f"sent {error}")
    for fd in fds:
        close_promptly(fd)
    wire.close(sock.detach())
    return None


def _checked(message: wire.Message, pid: int) -> dict[str, Any]:
    if message.get("event") != "orphan" or message.get("pid") != pid:
        raise untrusted.Malformed("a message that is not its status")
    ready_at, protocol = message.get("ready_at"), untrusted.text(message, "protocol")
    if ready_at is not None and (not isinstance(ready_at, float) or not 0 <= ready_at <= time.monotonic()):
        raise untrusted.Malformed("an invalid time")
    if protocol.partition(" ")[0] not in ("plain", "tls"):
        raise untrusted.Malformed("an unknown protocol")
    texts = {key: untrusted.text(message, key) for key in ("server", "key", "output")}
    return {
        **texts,
        "generation": untrusted.number(message, "generation", 1, _MOST),
        "index": untrusted.number(message, "index", 0, _MOST),
        "listeners": untrusted.number(message, "listeners", 0, _MOST),
        "likeness": untrusted.number(message, "likeness", 0, 1 << 32),
        "leaving": untrusted.flag(message, "leaving"),
        "deaf": untrusted.flag(message, "deaf"),
        "ready_at": ready_at,
        "protocol": protocol,
    }


def _sorted_out(fds: list[int], count: int) -> tuple[list[int], list[int], list[int]]:
    """The listeners, the adoption pair and the page of counts among the descriptors. Raises Malformed."""
    listeners, pair, tally = fds[:count], fds[count : count + 2], fds[count + 2 :]
    if (
        len(listeners) != count
        or len(pair) != 2
        or len(tally) != 1
        or not all(is_socket(fd, socket.SOCK_STREAM, listens=True) for fd in listeners)
        or not all(is_socket(fd, socket.SOCK_SEQPACKET, listens=False) for fd in pair)
        or not is_page(tally[0])
    ):
        raise untrusted.Malformed("descriptors that a worker does not have")
    return listeners, pair, tally


def is_socket(fd: int, kind: int, *, listens: bool) -> bool:
    """Whether the descriptor is a socket of that type which listens, or else one that can be a pair's."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) if listens else (socket.AF_UNIX,)
            accepts = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return sock.family in families and sock.type == kind and bool(accepts) == listens
    except OSError:
        return False


def _possible_users() -> range | set[int]:
    # Root starts servers as other users; who it may be is checked by who knows the server.
    return range(2**32) if os.geteuid() == 0 else {os.geteuid()}


def _pipes(directory: str) -> Pipes:
    pipes = Pipes()
    for sock, answer in rendezvous.ask(directory, rendezvous.LOGGER, _ANSWER_SECONDS):
        pipes._loggers.append(sock)
        sock.settimeout(_ANSWER_SECONDS)
        while answer is not None and answer[0].get("t") == "add" and len(answer[1]) == 1:
            pipes.streams[str(answer[0]["id"])] = answer[0], answer[1][0]
            answer = rendezvous.receive(sock)
    return pipes


def _without_socket(pipes: Pipes, known: set[int]) -> list[Survivor]:
    found = []
    for key, (message, _) in pipes.streams.items():
        pid, start = int(message["pid"]), message.get("start")
        if start is not None and pid not in known and process_start(pid) == start:
            ready_at = start / os.sysconf("SC_CLK_TCK")
            said = {
                "server": message["name"], "command": message.get("command"), "output": key,
                "ready_at": ready_at, "leaving": False,
            }  # fmt: skip
            users = process_users(pid) or set()
            if len(users) == 1:
                found.append(Survivor(pid, users.pop(), start, said))
    return found
