"""Reads HTTP/1.1 requests and responses as their bytes arrive, however they are split.

Every limit applies while the message is still arriving: a head without an end, a chunk without a size or a trailer
section without an end is refused as soon as it exceeds its limit.
"""

from __future__ import annotations

from .chunked_body import MOST_CHUNKS_A_SECOND, ChunkedBody
from .message_head import (
    CHUNKED,
    MAX_HEAD_BYTES,
    MOST_INTERIM,
    UNTIL_CLOSE,
    BadMessage,
    MessageHead,
    RequestHead,
    ResponseHead,
)


class MessageReader:
    """Reads a message; call `feed` until it is complete.

    With `max_body_bytes` None the body has no limit, neither in bytes nor in chunks a second: for callers that take it
    as it arrives.
    """

    # The state of a reader that has read nothing; set on an instance only where it changes. A supervisor makes a
    # thousand readers a second for its probes, and most of them read one piece.
    complete = False
    rest = b""  # the bytes after the message
    _buffer = b""  # not understood yet
    _framed = False  # the final head was read
    _left = 0  # bytes of the body, or UNTIL_CLOSE
    _chunks: ChunkedBody | None = None  # the body, if it comes in chunks
    _pieces: list[bytes] | None = None  # of the body
    _body_bytes = 0

    def __init__(self, *, max_head_bytes: int = MAX_HEAD_BYTES, max_body_bytes: int | None = None) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_body_bytes = max_body_bytes

    @property
    def started(self) -> bool:
        """Whether a part of the message has been received."""
        return bool(self._buffer) or self._framed

    @property
    def body(self) -> bytes:
        """The part of the body that has arrived and was not taken."""
        return b"".join(self._pieces or ())

    def take_body(self) -> bytes:
        """Take the part of the body that has arrived; b"" for none."""
        body, self._pieces = self.body, None
        return body

    def feed(self, data: bytes) -> bool:
        """Process received bytes; returns whether the message is complete. `rest` then holds the bytes after it.

        Raises BadMessage.
        """
        scanned = len(self._buffer)
        if scanned:
            data, self._buffer = self._buffer + data, b""
        while not self._framed:
            head = self._read_head(data, scanned)
            if head is None:
                self._buffer = data
                return False
            data, scanned = data[head.end :], 0
        return self._read_plain(data) if self._chunks is None else self._read_chunks(self._chunks, data)

    def _read_head(self, data: bytes, scanned: int) -> MessageHead | None:
        """The head at the beginning of these bytes, None while it is incomplete. Raises BadMessage.

        Calls `_frame` if it is the final head.
        """
        raise NotImplementedError

    def _body_too_large(self) -> bool:
        """Whether a body that is too large completes the message. Raises BadMessage if it is an error instead."""
        raise NotImplementedError

    def _frame(self, body: int) -> None:
        """Prepare to read a body of this length, CHUNKED or UNTIL_CLOSE."""
        self._framed = True
        self._left = body
        if body == CHUNKED:
            unlimited = self._max_body_bytes is None
            self._chunks = ChunkedBody(decode=True, most_a_second=0 if unlimited else MOST_CHUNKS_A_SECOND)

    def _read_plain(self, data: bytes) -> bool:
        left = self._left
        if left >= 0 and len(data) > left:
            data, self.rest = data[:left], data[left:]
        if data and self._add(data):
            return True
        if left >= 0:
            self._left = left - len(data)
            self.complete = not self._left
        return self.complete

    def _add(self, piece: bytes) -> bool:
        """Add a piece of the body; returns whether it exceeds the limit and so completes the message."""
        limit = self._max_body_bytes
        if limit is not None and self._body_bytes + len(piece) > limit:
            self._keep(piece[: limit - self._body_bytes])
            self.complete = self._body_too_large()
            return self.complete
        self._keep(piece)
        return False

    def _keep(self, piece: bytes) -> None:
        self._body_bytes += len(piece)
        if self._pieces is None:
            self._pieces = []
        self._pieces.append(piece)

    def _read_chunks(self, body: ChunkedBody, data: bytes) -> bool:
        piece = body.feed(data)
        if piece and self._add(bytes(piece)):
            return True
        self.rest, self.complete = body.rest, body.done
        return self.complete


class RequestReader(MessageReader):
    """Reads one request: `head`, then `body`. The bytes in `rest` belong to the next request."""

    head: RequestHead | None = None

    def _read_head(self, data: bytes, scanned: int) -> RequestHead | None:
        head = self.head = RequestHead.read(data, scanned, self._max_head_bytes)
        if head is not None:
            if self._max_body_bytes is not None and head.body > self._max_body_bytes:
                self._body_too_large()
            self._frame(head.body)
        return head

    def _body_too_large(self) -> bool:
        raise BadMessage("the body is too large", 413)


class ResponseReader(MessageReader):
    """Reads the response to one request; interim responses before it are skipped (RFC 9110 §15.2).

    `head_only`: it is the response to a HEAD. `status` is 0 until the head was read. If the body is too large, its
    beginning is kept and the response counts as complete; the connection cannot be reused then.
    """

    head: ResponseHead | None = None
    status = 0
    _interim = 0
    _truncated = False

    def __init__(self, *, head_only: bool = False, max_body_bytes: int | None = None) -> None:
        super().__init__(max_body_bytes=max_body_bytes)
        self._head_only = head_only

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on the connection, once the response is complete."""
        usable = self.complete and not self._truncated and not self.rest
        return usable and self.head is not None and self.head.reusable

    def end(self) -> bool:
        """Whether the response is complete now that the connection has ended."""
        self.complete = self.complete or self._left == UNTIL_CLOSE
        return self.complete

    def _read_head(self, data: bytes, scanned: int) -> ResponseHead | None:
        head = ResponseHead.read(data, scanned, self._max_head_bytes)
        if head is None:
            return None
        if head.status == 101:
            raise BadMessage("switches protocols without being asked")
        if head.status < 200:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise BadMessage(f"more than {MOST_INTERIM} interim responses")
            return head
        if self._head_only:
            head.leave_out_body()
        self.head, self.status = head, head.status
        self._frame(head.body)
        return head

    def _body_too_large(self) -> bool:
        self._truncated = True
        return True
