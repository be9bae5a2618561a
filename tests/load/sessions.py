"""Long conversations: WebSockets that echo, and streams of events. One request is one session."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .connection import Connection, way_of
from .frames import CLOSE, PING, PONG, TEXT, Frame, Frames, accept_of, frame, new_key
from .responses import Malformed, Responses

if TYPE_CHECKING:
    from .generator import Generator

SERVICE_RESTART, NORMAL = 1012, 1000
PAUSE_SECONDS = 0.02


class Session:
    """From the request to an end in good order; whatever else ends it is a failure."""

    def __init__(self, generator: Generator, target: str) -> None:
        self.generator = generator
        self.settings = generator.settings
        self.tally = generator.tally
        self.target = target
        self.responses = Responses()
        self.began = self.heard_at = time.monotonic()
        self.established = False
        generator.live.add(self)
        self.tally.counts["sent"] += 1
        self.connection = Connection(generator, target, self)
        self.connection.connect()

    def connected(self) -> None:
        raise NotImplementedError

    def received(self, data: bytes) -> None:
        raise NotImplementedError

    def ended_in_order(self) -> bool:
        """Whether a close just now is the end that the session should have."""
        raise NotImplementedError

    def ended(self, error: OSError | None) -> None:
        if error is None and self.ended_in_order():
            self._complete()
        elif error is not None:
            self._failed(way_of(error), f"{error}")
        else:
            self._failed("truncated" if self.established else "dropped", "closed")

    def look(self, now: float) -> None:
        """Nothing heard for too long is a failure as well."""
        if now - self.heard_at > self.settings.patience:
            self._failed("unanswered", "silent")

    def finish(self) -> None:
        """This side wants to end it."""
        if self.established:
            self._complete()

    def _message(self) -> None:
        self.heard_at = time.monotonic()
        self.tally.counts["messages"] += 1
        self.tally.heard(self.heard_at)

    def _complete(self) -> None:
        self._over()
        self.tally.complete(time.monotonic(), self.began)
        self.generator.open(self.target)

    def _failed(self, kind: str, text: str) -> None:
        self._over()
        age = time.monotonic() - self.began
        self.tally.fail(kind, f"{self.target} {text}, a session of {age:.2f} s")
        self.generator.open_after_failure(self.target)

    def _over(self) -> None:
        self.generator.live.discard(self)
        self.connection.close()


class WebSocket(Session):
    """Says something and hears it again, until the server closes with 1012 or the load ends."""

    def __init__(self, generator: Generator, target: str) -> None:
        self.key = new_key()
        self.frames = Frames()
        self.said = b""
        self.count = 0
        self.closing = False
        super().__init__(generator, target)

    def connected(self) -> None:
        self.connection.write(
            b"GET /ws HTTP/1.1\r\nHost: load\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + self.key + b"\r\n\r\n"
        )

    def received(self, data: bytes) -> None:
        try:
            if not self.established:
                responses = self.responses.feed(data)
                if not responses:
                    return None
                if responses[0].status != 101:
                    return self._failed("wrong", f"status {responses[0].status}")
                if responses[0].headers.get(b"sec-websocket-accept") != accept_of(self.key):
                    return self._failed("wrong", "the handshake of another")
                self.established = True
                self._say()
                data = self.responses.rest()
            for received in self.frames.feed(data):
                if self.connection.is_over:
                    return None
                self._heard(received)
        except (Malformed, ValueError) as error:
            self._failed("wrong", str(error))

    def finish(self) -> None:
        if self.established and not self.closing:
            self.closing = True
            self.connection.write(frame(CLOSE, NORMAL.to_bytes(2, "big")))

    def ended_in_order(self) -> bool:
        return False

    def _say(self) -> None:
        if self.generator.stopping:
            self.finish()
        elif not self.connection.is_over:
            self.count += 1
            self.said = b"message %d" % self.count
            self.connection.write(frame(TEXT, self.said))

    def _heard(self, received: Frame) -> None:
        if received.kind == CLOSE:
            if received.code == SERVICE_RESTART or (self.closing and received.code == NORMAL):
                self.connection.write(frame(CLOSE, received.payload[:2]))
                self._complete()
            else:
                self._failed("wrong", f"closed with {received.code}")
        elif received.kind == PING:
            self.connection.write(frame(PONG, received.payload))
        elif received.kind == TEXT and received.payload == self.said:
            self.said = b""
            self._message()
            self.generator.later(self.settings.pause or PAUSE_SECONDS, self._say)
        elif received.kind != PONG:
            self._failed("wrong", f"{received!r:.100} for {self.said!r}")


class Events(Session):
    """Server-sent events without an end of their own: they may end between two events, not within one."""

    def connected(self) -> None:
        self.connection.write(b"GET /events HTTP/1.1\r\nHost: load\r\nAccept: text/event-stream\r\n\r\n")

    def received(self, data: bytes) -> None:
        try:
            whole = self.responses.feed(data)
        except Malformed as error:
            return self._failed("wrong", str(error))
        head = whole[0] if whole else self.responses.head
        if head is None:
            return None
        if head.status != 200:
            return self._failed("wrong", f"status {head.status}")
        self.established = True
        body = self.responses.partial
        while (end := body.find(b"\n\n")) >= 0:
            del body[: end + 2]
            self._message()
        if whole:
            if whole[0].body and not whole[0].body.endswith(b"\n\n"):
                return self._failed("truncated", "ended within an event")
            return self._complete()
        if self.generator.stopping:
            self.finish()
        return None

    def ended_in_order(self) -> bool:
        return self.established and not self.responses.partial and not self.responses.amid
