"""The loop of the load's process: one epoll, a few timers, and the conversations that a mode asks for."""

from __future__ import annotations

import heapq
import itertools
import select
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .connection import Connection
from .report import Tally

if TYPE_CHECKING:
    import socket

LOOK_SECONDS = 0.05  # the interval of checks for overdue answers
AFTER_FAILURE_SECONDS = 0.01  # the pause after a failure, as a closed port fails at once


@dataclass
class Settings:
    """What is asked of a load; durations in seconds."""

    targets: list[str]
    mode: str = "keep_alive"
    connections: int = 8
    tls: bool = False
    depth: int = 8  # for pipelined: requests in progress on one connection
    body_bytes: int = 65_536  # for bodies: the size of request and response bodies
    chunks: int = 20  # for stream and uploads: chunks of one body, one each `chunk_pause`
    chunk_pause: float = 0.1
    pause: float = 0.0  # between an answer and the next request, or between two messages
    patience: float = 30.0  # the time after which a request counts as unanswered
    path: str = "/"
    paths: list[str] = field(default_factory=list)  # used in turn by the requests of all connections
    echo: bool = True  # whether answers must be from tests.load.apps; otherwise the status is enough
    statuses: list[int] = field(default_factory=lambda: [200])


class Generator:
    """Runs conversations until `stopping` is set and what is under way is done, or overdue."""

    def __init__(self, settings: Settings) -> None:
        from .modes import conversation_of

        self.settings = settings
        self.tally = Tally()
        self.epoll = select.epoll()
        self.tls = _any_certificate(settings.mode) if settings.tls else None
        self.stopping = False
        self.numbers = itertools.count(1)
        self.live: set[Any] = set()  # conversations that have not ended
        self._new: Callable[[Generator, str], Any] = conversation_of(settings.mode)
        self._valid_handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def run(self, beside: Sequence[tuple[socket.socket, Callable[[], None]]] = ()) -> None:
        """Until stopped; `beside` are sockets to look at as well, each with what to do when it is readable."""
        for sock, act in beside:
            self._valid_handlers[sock.fileno()] = lambda _, act=act: act()
            self.epoll.register(sock, select.EPOLLIN)
        for number in range(self.settings.connections):
            self.open(self.settings.targets[number % len(self.settings.targets)])
        looked = time.monotonic()
        while not (self.stopping and not self.live):
            for descriptor, events in self.epoll.poll(self._until_timer(), 256):
                if handler := self._valid_handlers.get(descriptor):
                    handler(events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            if now - looked > LOOK_SECONDS:
                looked = now
                for conversation in list(self.live):
                    conversation.look(now)

    def stop(self) -> None:
        """Begin nothing new; `run` returns when what is under way has ended."""
        self.stopping = True
        for conversation in list(self.live):
            conversation.finish()

    def open(self, target: str) -> None:
        """A new connection with a conversation of this load's mode."""
        if not self.stopping:
            self.tally.counts["connections"] += 1
            self._new(self, target)

    def open_after_failure(self, target: str) -> None:
        self.later(AFTER_FAILURE_SECONDS, lambda: self.open(target))

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), act))

    def register(self, connection: Connection, events: int) -> None:
        self._valid_handlers[connection.sock.fileno()] = connection.handle
        self.epoll.register(connection.sock, events)

    def forget(self, connection: Connection) -> None:
        if self._valid_handlers.pop(connection.sock.fileno(), None):
            self.epoll.unregister(connection.sock)

    def _until_timer(self) -> float:
        if not self._timers:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, max(0.0, self._timers[0][0] - time.monotonic()))


def _any_certificate(mode: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2" if mode == "http2" else "http/1.1"])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
