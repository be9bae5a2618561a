"""Reads responses that arrive in pieces of any size, makes heads of requests, and checks requests for a server.

h11 frames all of them. This module adds limits while a response arrives: on fields, interim responses and chunks,
because each costs as much work as a thousand bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import h11

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 100  # of a head; browsers send about thirty
MAX_INTERIM = 20  # responses before the final one
MAX_CHUNKS = 20_000  # of a body; usual programs send chunks of kilobytes

# A control character, or a line that ends without CRLF. A CR may be the last byte received so far.
UNFIT = rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)"
# Searched before h11 parses, which takes quadratic time for blanks before such a character.
_unfit = re.compile(UNFIT).search
_has_control = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search
_VERSION_PREFIX = b"HTTP/1."
UNFIT_CHARACTER = "a control character, or a line that does not end with CRLF"
END_OF_HEAD = b"\r\n\r\n"
# The size of a chunk, and the trailers together; h11 gets no more at once, because blanks there cost quadratic time.
_LINE_BYTES = 2048
_BLANK_LINE = re.compile(rb"\n\r?\n")
# The size of a chunk in a body, after the end of the chunk before it.
_CHUNK_SIZE = re.compile(rb"(?:\r\n)?([0-9A-Fa-f]+)[ \t\r]*(?:;[^\n]*)?\n")


class BadMessage(Exception):
    """The received bytes are not a valid message. `status` is the status of a server's response to them."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ServerConnection(h11.Connection):
    """A server's connection that refuses control characters in heads, chunk sizes and trailers.

    h11 takes quadratic time for blanks before such a character: 4 s for 32 KiB.
    """

    _between_chunks = False
    _searched = 0

    def __init__(self, max_incomplete_bytes: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_bytes)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event, as in h11. Raises RemoteProtocolError."""
        if self.their_state is h11.IDLE or (self.their_state is h11.SEND_BODY and self._between_chunks):
            self._check_lines(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._between_chunks = any(name == b"transfer-encoding" for name, _ in event.headers)
        elif isinstance(event, h11.Data):
            self._between_chunks = event.chunk_end
        return event

    def _check_lines(self, received: bytes) -> None:
        """Check the complete lines at the start of `received`, because h11 parses them next."""
        chunk_size = _CHUNK_SIZE.match(received) if self._between_chunks else None
        end = chunk_size.end() if chunk_size else 0
        if chunk_size is None or not int(chunk_size[1], 16):
            blank_line = _BLANK_LINE.search(received, max(0, self._searched - 2))
            end = blank_line.end() if blank_line else end
        self._searched = 0 if end else len(received)
        if _unfit(received, 0, end):
            raise h11.RemoteProtocolError(UNFIT_CHARACTER)


def next_event(connection: h11.Connection) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
    """The next event. Raises BadMessage, which does not repeat the received bytes."""
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadMessage(str(error).partition(": bytearray(")[0], error.error_status_hint) from None


def request_head(method: str, target: str, fields: Iterable[tuple[str, str]]) -> h11.Request:
    """The head of a request. Raises ValueError for invalid characters; the error does not repeat them."""
    headers = []
    for name, value in fields:
        if _has_control(value):
            raise ValueError(f"the header {name!r} has a control character in its value")
        headers.append((name.encode(), value.strip(" \t").encode(errors="surrogateescape")))
    try:
        return h11.Request(method=method, target=target, headers=headers)
    except (h11.LocalProtocolError, UnicodeEncodeError):  # a target with non-ASCII characters
        raise ValueError("the method, the target or the name of a header is not valid") from None


class ResponseReader:
    """Reads the response to one request: send `payload`, then call `feed` until the response is complete.

    Interim responses are skipped (RFC 9110 §15.2). `head` is None until it was read. A body larger than
    `max_body_bytes` is cut off: the response counts as complete, and the connection cannot be reused.
    """

    def __init__(self, request: h11.Request, body: bytes = b"", *, max_body_bytes: float = math.inf) -> None:
        self._connection = h11.Connection(h11.CLIENT, _LINE_BYTES)
        self.payload = self._connection.send(request) + body
        self.head: h11.Response | None = None
        self.complete = False
        self._max_body_bytes = max_body_bytes
        self._received = b""  # the beginning of a head
        self._interim = 0
        self._body = bytearray()
        self._body_bytes = 0
        self._chunks = 0

    @property
    def status(self) -> int:
        """The status of the final response, 0 until its head was read."""
        return 0 if self.head is None else self.head.status_code

    @property
    def body(self) -> bytes:
        """The part of the body that has arrived and was not taken yet."""
        return bytes(self._body)

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on the connection, after the response is complete."""
        connection = self._connection
        return connection.their_state is h11.DONE and connection.trailing_data == (b"", False)

    def take_body(self) -> bytes:
        """Return and remove the part of the body that has arrived; b"" if there is none."""
        body = self.body
        self._body.clear()
        return body

    def feed(self, data: bytes) -> bool:
        """Process received bytes; returns whether the response is complete. Raises BadMessage."""
        if self.head is None:
            data = self._read_heads(self._received + data, len(self._received))
        for at in range(0, len(data), _LINE_BYTES):
            self._connection.receive_data(data[at : at + _LINE_BYTES])
            self._read_body()
        return self.complete

    def record_disconnect(self) -> bool:
        """Record that the connection has ended; returns whether the response is complete."""
        self._connection.receive_data(b"")
        if self.head is not None:
            try:
                self._read_body()
            except BadMessage:
                return False
        return self.complete

    def _read_heads(self, received: bytes, checked: int) -> bytes:
        """Skip interim heads, read the final head, and return the bytes after it; b"" while it is incomplete.

        The first `checked` bytes were already checked by an earlier call.
        """
        while self.head is None:
            end = received.find(END_OF_HEAD, max(0, checked - 3)) + len(END_OF_HEAD)
            is_whole = end >= len(END_OF_HEAD)
            head = received[:end] if is_whole else received
            if not _VERSION_PREFIX.startswith(head[: len(_VERSION_PREFIX)]):
                raise BadMessage("no HTTP/1.1 status line")
            if len(head) > MAX_HEAD_BYTES:
                raise BadMessage("the head is too large")
            if _unfit(head, max(0, checked - 1)):
                raise BadMessage(UNFIT_CHARACTER)
            if not is_whole:
                self._received = received
                return b""
            self._read_head(head)
            received, checked = received[end:], 0
        self._received = b""
        self._read_body()  # it may be empty
        return received

    def _read_head(self, head: bytes) -> None:
        if head.count(b"\n") - 2 > MAX_FIELDS:
            raise BadMessage(f"more than {MAX_FIELDS} fields")
        self._connection.receive_data(head)
        event = next_event(self._connection)
        if isinstance(event, h11.Response):
            self.head = event
            return
        assert isinstance(event, h11.InformationalResponse)
        self._interim += 1
        if event.status_code == 101:
            raise BadMessage("it switches protocols")
        if self._interim > MAX_INTERIM:
            raise BadMessage(f"more than {MAX_INTERIM} interim responses")

    def _read_body(self) -> None:
        while not self.complete:
            event = next_event(self._connection)
            if isinstance(event, h11.EndOfMessage):
                self.complete = True
            elif isinstance(event, h11.Data):
                self._chunks += event.chunk_start
                if self._chunks > MAX_CHUNKS:
                    raise BadMessage(f"more than {MAX_CHUNKS} chunks")
                room = self._max_body_bytes - self._body_bytes
                self._body += event.data if len(event.data) <= room else event.data[: int(room)]
                self._body_bytes += len(event.data)
                self.complete = self._body_bytes > self._max_body_bytes
            else:
                return  # more has to arrive
