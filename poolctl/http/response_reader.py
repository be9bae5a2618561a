"""Responses as a client reads them."""

from __future__ import annotations

from .head import TEXT, TOKEN, BadMessage, MessageHead, are_fields, compiled, has_control
from .message_reader import MAX_HEAD_BYTES, MessageReader

# The space after the status is left out by many when there is no reason phrase (RFC 9112 §4).
_START_LINE = rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + TEXT + rb")?+\r\n"
# A user agent reads a folded line as one (RFC 9112 §5.2); a server refuses it.
_FIELD_LINES = rb"(?:(?:" + TOKEN + rb":|[\t ])" + TEXT + rb"\r\n)*+"
_FOLD = rb"[\t ]*+\r\n[\t ]++"
_BEGINNING = b"HTTP/1."
_MAX_INTERIM = 20
_SHARED_HEAD_BYTES = 1024
_MOST_HEADS = 128
_END = b"\r\n\r\n"
_VERSIONS = (b"HTTP/1.0 ", b"HTTP/1.1 ")
_ONE = ord("1")
_SHORTEST = len("HTTP/1.1 200")
_BODILESS = (204, 304)  # RFC 9112 §6.3


class ResponseHead(MessageHead):
    """The head of a response: its status and its fields."""

    def __init__(self, raw: bytes) -> None:
        if not _is_head(raw):
            raw = compiled(_FOLD).sub(b" ", raw)
            if not _is_head(raw):
                raise reason(raw)
        self.status = int(raw[9:12])
        super().__init__(raw, http_1_1=raw[7] == _ONE)


def _is_head(raw: bytes) -> bool:
    """Whether these are a start line, as _START_LINE has it, fields, and an empty line."""
    start, *fields = raw.removesuffix(_END).split(b"\r\n")
    return (
        raw.endswith(_END)
        and start[:9] in _VERSIONS
        and start[9:12].isdigit()
        and start[9:10] != b"0"
        and start[12:13] in (b"", b" ")
        and len(start) >= _SHORTEST
        and not has_control(start)
        and are_fields(fields)
    )


_heads: dict[bytes, ResponseHead] = {}


def _parsed(raw: bytes) -> ResponseHead:
    """The head, parsed once for all workers that send the same one: those of one application do, for a second."""
    head = _heads.get(raw)
    if head is None:
        if len(_heads) >= _MOST_HEADS:
            _heads.clear()
        head = _heads[raw] = ResponseHead(raw)
    return head


class ResponseReader(MessageReader):
    """Reads the response to one request; interim responses before it are passed over (RFC 9110 §15.2).

    `head_only` for the answer to a HEAD. `status` is 0 until the head is there. Of a body that is too large the
    beginning is kept, and it counts as complete; the connection is of no further use then.
    """

    start_line = _START_LINE
    field_lines = _FIELD_LINES

    status = 0
    head: ResponseHead | None = None
    _interim = 0
    _truncated = False

    def __init__(
        self,
        *,
        head_only: bool = False,
        max_head_bytes: int = MAX_HEAD_BYTES,
        max_body_bytes: int | None = None,
    ) -> None:
        self._head_only = head_only
        self._max_head_bytes = max_head_bytes
        self._max_body_bytes = max_body_bytes

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on the connection, once the response is complete."""
        head = self.head
        if head is None or not self.complete or self._truncated or self.rest or not head.keep_alive:
            return False
        # A body with neither a length nor chunks ended with the connection; chunks in HTTP/1.0 are a fault (§6.1).
        return head.http_1_1 if self._chunked else self._left == 0

    def end(self) -> bool:
        """Whether the response is complete now that nothing more comes."""
        if self._framed is not None and self._left is None and not self._framed.chunked:
            self.complete = True
        return self.complete

    def _read_head(self, raw: bytes) -> None:
        head = _parsed(raw) if len(raw) <= _SHARED_HEAD_BYTES else ResponseHead(raw)
        if head.status == 101:
            raise BadMessage("switches protocols without being asked")
        if head.status < 200:
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise BadMessage(f"more than {_MAX_INTERIM} interim responses")
            return
        self.head, self.status = head, head.status
        if self._head_only or head.status in _BODILESS:
            self._frame(head, 0)
        else:
            self._frame(head, head.content_length)

    def _check_beginning(self, data: bytes) -> None:
        if not data.startswith(_BEGINNING[: len(data)]):
            raise reason(data)
        super()._check_beginning(data)

    def _body_too_large(self) -> bool:
        self._truncated = True
        return True

    def _reason(self, raw: bytes) -> BadMessage:
        return reason(raw)


def reason(raw: bytes) -> BadMessage:
    """Why this is not the head of a response."""
    if compiled(_START_LINE).match(raw):
        return BadMessage("malformed header field")
    return BadMessage("no HTTP/1.1 status line")
