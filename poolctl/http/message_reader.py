"""Messages of HTTP/1.1, read as their bytes arrive, however they are split: requests and responses.

Every limit holds while the message is still arriving: a head without an end, a chunk without a size, a trailer section
without an end are refused as soon as they are longer than a message may be.
"""

from __future__ import annotations

from .chunked_body import MOST_CHUNKS_A_SECOND, ChunkedBody
from .message_head import (
    UNFIT,
    BadMessage,
    MessageHead,
    RequestHead,
    ResponseHead,
    compiled,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

MAX_HEAD_BYTES = 64 * 1024
_END = b"\r\n\r\n"
_BEGINNING_OF_RESPONSE = b"HTTP/1."
_MAX_INTERIM = 20
_BODILESS = (204, 304)  # RFC 9112 §6.3
_SHARED_HEAD_BYTES, _MOST_SHARED_HEADS = 1024, 128
_shared_heads: dict[bytes, ResponseHead] = {}


class MessageReader:
    """`feed` it until the message is complete.

    With `max_body_bytes` None the body has no limit, neither in bytes nor in chunks a second: for callers that take it
    as it arrives.
    """

    kind: ClassVar[type[MessageHead]]

    # The state of a reader that has read nothing; set on an instance only where it changes. A supervisor makes a
    # thousand readers a second for its probes, and most of them read one piece.
    complete = False
    rest = b""  # the bytes after the message
    _buffer = b""  # not understood yet
    _scanned = 0  # so many of its bytes are fit for a head
    _checked = 0  # and so many are whole lines in order
    _framed: MessageHead | None = None  # the final head, once it is there
    _left: int | None = None  # of the body; None: it lasts until the connection ends
    _chunks: ChunkedBody | None = None  # the body, if it comes in chunks
    _pieces: list[bytes] | None = None  # of the body
    _body_bytes = 0

    def __init__(self, *, max_head_bytes: int = MAX_HEAD_BYTES, max_body_bytes: int | None = None) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_body_bytes = max_body_bytes

    @property
    def started(self) -> bool:
        """Whether a part of the message has been received."""
        return bool(self._buffer) or self._framed is not None

    @property
    def body(self) -> bytes:
        """The part of the body that has arrived and was not taken."""
        return b"".join(self._pieces or ())

    def take_body(self) -> bytes:
        """Take the part of the body that has arrived; b"" for none."""
        body, self._pieces = self.body, None
        return body

    def feed(self, data: bytes) -> bool:
        """Whether the message is complete with these bytes; `rest` holds the bytes after it. Raises BadMessage."""
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        while self._framed is None:
            end = data.find(_END, max(0, self._scanned - 3))
            if end < 0:
                self._check_beginning(data)
                self._buffer = data
                return False
            end += len(_END)
            if end > self._max_head_bytes:
                raise BadMessage("the head is too large", 431)
            raw, data = data[:end], data[end:]
            self._scanned = self._checked = 0
            self._read_head(raw)
        return self._read_plain(data) if self._chunks is None else self._read_chunks(self._chunks, data)

    def _read_head(self, raw: bytes) -> None:
        """Understand this head, and say by `_frame` which body follows. Raises BadMessage."""
        raise NotImplementedError

    def _body_too_large(self) -> bool:
        """The body is larger than it may be: whether that completes the message. Or raise BadMessage."""
        raise NotImplementedError

    def _frame(self, head: MessageHead, left: int | None) -> None:
        """`left` bytes of a body follow; None: chunks of it, or all that comes until the connection ends."""
        self._framed = head
        self._left = left
        if head.chunked and left is None:
            unlimited = self._max_body_bytes is None
            self._chunks = ChunkedBody(decode=True, most_a_second=0 if unlimited else MOST_CHUNKS_A_SECOND)

    def _check_beginning(self, data: bytes) -> None:
        """Refuse a part of a head that no more bytes can put in order."""
        if len(data) > self._max_head_bytes:
            raise BadMessage("the head is too large", 431)
        if compiled(UNFIT).search(data, max(0, self._scanned - 1)):
            raise BadMessage("a control character, or a line that does not end with CRLF")
        self._scanned = len(data)
        end = data.rfind(b"\r\n") + 2
        if end > max(self._checked, 2):  # an empty line may come first
            begin = self._checked
            if not begin:
                start = compiled(self.kind.start_line).match(data)
                begin = start.end() if start is not None else 0
            lines = compiled(self.kind.field_lines).match(data, begin, end)
            if not begin or lines is None or lines.end() != end:
                raise self.kind.problem(data[:end] + b"\r\n")
            self._checked = end

    def _read_plain(self, data: bytes) -> bool:
        left = self._left
        if left is not None and len(data) > left:
            data, self.rest = data[:left], data[left:]
        if data and self._add(data):
            return True
        if left is not None:
            self._left = left - len(data)
            self.complete = not self._left
        return self.complete

    def _add(self, piece: bytes) -> bool:
        """Take a piece of the body; whether it completes the message, being too much."""
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
    """Reads one request: `head`, then `body`. The bytes in `rest` belong to the next one."""

    kind = RequestHead
    head: RequestHead | None = None

    def _read_head(self, raw: bytes) -> None:
        head = self.head = RequestHead(raw)
        length = head.content_length or 0
        if self._max_body_bytes is not None and length > self._max_body_bytes:
            self._body_too_large()
        self._frame(head, None if head.chunked else length)

    def _body_too_large(self) -> bool:
        raise BadMessage("the body is too large", 413)


class ResponseReader(MessageReader):
    """Reads the response to one request; interim responses before it are passed over (RFC 9110 §15.2).

    `head_only` for the answer to a HEAD. `status` is 0 until the head is there. Of a body that is too large the
    beginning is kept, and it counts as complete; the connection is of no further use then.
    """

    kind = ResponseHead
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
        head = self.head
        if head is None or not self.complete or self._truncated or self.rest or not head.keep_alive:
            return False
        # A body with neither a length nor chunks ended with the connection; chunks in HTTP/1.0 are a fault (§6.1).
        return head.http_1_1 if self._chunks is not None else self._left == 0

    def end(self) -> bool:
        """Whether the response is complete now that nothing more comes."""
        if self._framed is not None and self._left is None and not self._framed.chunked:
            self.complete = True
        return self.complete

    def _read_head(self, raw: bytes) -> None:
        head = _shared_head(raw) if len(raw) <= _SHARED_HEAD_BYTES else ResponseHead(raw)
        if head.status == 101:
            raise BadMessage("switches protocols without being asked")
        if head.status < 200:
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise BadMessage(f"more than {_MAX_INTERIM} interim responses")
            return
        self.head, self.status = head, head.status
        bodiless = self._head_only or head.status in _BODILESS
        self._frame(head, 0 if bodiless else head.content_length)

    def _check_beginning(self, data: bytes) -> None:
        if not data.startswith(_BEGINNING_OF_RESPONSE[: len(data)]):
            raise ResponseHead.problem(data)
        super()._check_beginning(data)

    def _body_too_large(self) -> bool:
        self._truncated = True
        return True


def _shared_head(raw: bytes) -> ResponseHead:
    """The head, parsed once for all workers that send the same one: those of one application do, for a second."""
    head = _shared_heads.get(raw)
    if head is None:
        if len(_shared_heads) >= _MOST_SHARED_HEADS:
            _shared_heads.clear()
        head = _shared_heads[raw] = ResponseHead(raw)
    return head
