"""Requests and responses over one connection: kept, new for each, pipelined, with bodies, slow streams."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from .connection import Connection, way_of
from .responses import Malformed, Response, Responses

if TYPE_CHECKING:
    from .generator import Generator

CLOSES_WITHIN_SECONDS = 2.0  # the time a server has to close a connection when asked to


class Exchange:
    """Up to `depth` requests under way on a connection that is kept."""

    depth = 1
    keeps = True

    def __init__(self, generator: Generator, target: str) -> None:
        self.generator = generator
        self.settings = generator.settings
        self.tally = generator.tally
        self.target = target
        self.responses = Responses()
        self.under_way: deque[tuple[int, float]] = deque()  # number, and when it was sent
        self.done_at = 0.0  # when the only request of this connection was answered
        generator.live.add(self)
        # The first request begins here, so that a refused connection counts as a refused request.
        self._begin()
        self.connection = Connection(generator, target, self)
        self.connection.connect()

    def request(self, number: int) -> bytes:
        closing = "" if self.keeps else "Connection: close\r\n"
        paths = self.settings.paths or [self.settings.path]
        path = paths[number % len(paths)]
        return f"GET {path}?n={number:012} HTTP/1.1\r\nHost: load\r\n{closing}\r\n".encode()

    def fault(self, number: int, response: Response) -> str:
        """What is wrong with the answer; nothing, if it is the one that was asked for."""
        if response.status not in self.settings.statuses:
            return f"status {response.status}"
        if self.settings.echo and response.body != f"n={number:012}".encode():
            return f"body {response.body[:40]!r} for request {number} (echo is for tests.load.apps only)"
        return ""

    def connected(self) -> None:
        self.connection.write(self.request(self.under_way[0][0]))
        self._fill_keeper()

    def received(self, data: bytes) -> None:
        try:
            responses = self.responses.feed(data)
        except Malformed as error:
            return self._broken("wrong", str(error))
        now = time.monotonic()
        for response in responses:
            if not self._answered(response, now):
                return None
        if responses:
            self._go_on()
        return None

    def ended(self, error: OSError | None) -> None:
        now = time.monotonic()
        for response in self.responses.end() if error is None else []:
            if not self._answered(response, now):
                return None
        if not self.under_way:
            if error or not self.done_at:
                self.tally.counts["idle_reset" if error else "closed"] += 1
            return self._leave()
        kind = way_of(error) if error is not None else "truncated" if self.responses.within else "dropped"
        number, began = self.under_way[0]
        return self._broken(
            kind, f"{self.target} {error or 'closed'}, request {number} of {now - began:.3f} s"
        )

    def look(self, now: float) -> None:
        """Fail what is overdue."""
        if self.under_way and now - self.under_way[0][1] > self.settings.patience:
            self._broken("unanswered", f"{self.target} request {self.under_way[0][0]}")
        elif self.done_at and now - self.done_at > CLOSES_WITHIN_SECONDS:
            self._leave()

    def finish(self) -> None:
        if not self.under_way:
            self._leave()

    def _begin(self) -> int:
        number = next(self.generator.numbers)
        self.tally.counts["sent"] += 1
        self.under_way.append((number, time.monotonic()))
        return number

    def _fill_keeper(self) -> None:
        if self.generator.stopping or not self.keeps:
            return
        requests = [self.request(self._begin()) for _ in range(self.depth - len(self.under_way))]
        if requests:
            self.connection.write(b"".join(requests))

    def _answered(self, response: Response, now: float) -> bool:
        """Count it; False when the connection is of no use any more."""
        if not self.under_way or self.done_at:
            # A late answer would be taken for the answer to the next request, so that one counts as lost.
            self._begin()
            self._broken("wrong", f"{self.target} a response that nobody asked for: {response!r:.100}")
            return False
        number, began = self.under_way.popleft()
        if fault := self.fault(number, response):
            self.tally.fail("wrong", f"{self.target} {fault}, request {number} of {now - began:.3f} s")
        else:
            self.tally.complete(now, began)
        if response.closes and self.keeps:
            if self.under_way:
                self._broken(
                    "dropped", f"{self.target} closed after an answer, request {self.under_way[0][0]}"
                )
            else:
                self.tally.counts["closed"] += 1
                self._leave()
            return False
        return True

    def _go_on(self) -> None:
        if not self.keeps:
            # The next request begins before the server has closed this connection.
            self.done_at = time.monotonic()
            self.generator.later(self.settings.pause, lambda: self.generator.open(self.target))
            if self.generator.stopping:
                self._leave()
        elif self.generator.stopping:
            self.finish()
        elif self.settings.pause:
            self.generator.later(self.settings.pause, self._resume)
        else:
            self._fill_keeper()

    def _resume(self) -> None:
        if not self.connection.is_over and len(self.under_way) < self.depth:
            self._fill_keeper()

    def _broken(self, kind: str, text: str) -> None:
        """Everything under way is lost in that way."""
        if self.under_way:
            self.tally.fail(kind, text, len(self.under_way))
        self.under_way.clear()
        self.generator.live.discard(self)
        self.connection.close()
        if not self.done_at:
            self.generator.open_after_failure(self.target)

    def _leave(self) -> None:
        self.generator.live.discard(self)
        self.connection.close()
        if not self.done_at:
            self.generator.open(self.target)


class NewConnection(Exchange):
    """One request a connection, which the server is asked to close."""

    keeps = False


class Pipelined(Exchange):
    """Several requests under way, always."""

    def __init__(self, generator: Generator, target: str) -> None:
        self.depth = generator.settings.depth
        super().__init__(generator, target)


class Bodies(Exchange):
    """Requests with a body that comes back."""

    def request(self, number: int) -> bytes:
        head = f"POST {self.settings.path} HTTP/1.1\r\nHost: load\r\nContent-Length: {self.settings.body_bytes}\r\n\r\n"
        return head.encode() + self._body(number)

    def fault(self, number: int, response: Response) -> str:
        if response.status not in self.settings.statuses:
            return f"status {response.status}"
        if self.settings.echo and response.body != self._body(number):
            return f"another body of {len(response.body)} bytes for request {number}"
        return ""

    def _body(self, number: int) -> bytes:
        return (b"%012d " % number * (self.settings.body_bytes // 13 + 1))[: self.settings.body_bytes]


class Chunked(Bodies):
    """Requests with a body of chunks, which comes back whole."""

    CHUNK_BYTES = 4096

    def request(self, number: int) -> bytes:
        head = f"POST {self.settings.path} HTTP/1.1\r\nHost: load\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = self._body(number)
        parts = [body[at : at + self.CHUNK_BYTES] for at in range(0, len(body), self.CHUNK_BYTES)]
        return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in [*parts, b""])


class Uploads(Bodies):
    """Bodies in so many chunks, with a pause before each."""

    def request(self, number: int) -> bytes:
        head, end, body = super().request(number).partition(b"\r\n\r\n")
        size = -(-len(body) // self.settings.chunks)
        for chunk in range(self.settings.chunks):
            part = body[chunk * size : (chunk + 1) * size]
            self.generator.later(
                (chunk + 1) * self.settings.chunk_pause, lambda part=part: self._send(number, part)
            )
        return head + end

    def _send(self, number: int, part: bytes) -> None:
        if self.under_way and self.under_way[0][0] == number:
            self.connection.write(part)


class Bodiless(Exchange):
    """GET, HEAD, and a GET that is answered with 304, in turn."""

    def request(self, number: int) -> bytes:
        way = number % 3
        self.responses.bodiless = way == 1
        method, more = ("HEAD", "") if way == 1 else ("GET", 'If-None-Match: "load"\r\n' * (way == 2))
        return f"{method} {self.settings.path}?n={number:012} HTTP/1.1\r\nHost: load\r\n{more}\r\n".encode()

    def fault(self, number: int, response: Response) -> str:
        way = number % 3
        if way == 0:
            return super().fault(number, response)
        wanted = 200 if way == 1 else 304
        return "" if response.status == wanted and not response.body else f"status {response.status}"


class Streams(Exchange):
    """Chunked responses that take their time."""

    def request(self, number: int) -> bytes:
        query = f"chunks={self.settings.chunks}&pause={self.settings.chunk_pause}&n={number:012}"
        return f"GET /stream?{query} HTTP/1.1\r\nHost: load\r\n\r\n".encode()

    def fault(self, number: int, response: Response) -> str:
        if response.status not in self.settings.statuses:
            return f"status {response.status}"
        want = b"".join(b"%d of %012d\n" % (chunk, number) for chunk in range(self.settings.chunks))
        if self.settings.echo and response.body != want:
            return f"another stream of {len(response.body)} bytes for request {number}"
        return ""
