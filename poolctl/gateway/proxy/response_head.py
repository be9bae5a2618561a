"""Heads of responses: what decides about the message, and the fields that a proxy may pass on.

One expression recognises the heads that nearly all servers send: they go on byte by byte, without the lines that keep
the connection alive. Others are read by the strict parser of `poolctl.http`, and written again: that takes five times
as long.
"""

from __future__ import annotations

import re

from ...http.canonical_head import CHUNKED
from ...http.chunked_body import Buffer
from ...http.message_head import TEXT, TOKEN, UNFIT, BadMessage, ResponseHead, without_fields

UNTIL_CLOSE = -2
MAX_HEAD_BYTES = 64 * 1024
_BEGINNING = b"HTTP/1."
_END = b"\r\n\r\n"
# Fields about one connection (RFC 9110 §7.6.1): never passed on.
HOP_BY_HOP = (
    rb"connection|keep-alive|proxy-connection|proxy-authenticate|proxy-authorization|te"
    rb"|transfer-encoding|upgrade"
)
_OTHER = (
    rb"(?:[ABDF-JL-OQ-SV-Zabdf-jl-oq-sv-z]|(?!(?i:content-length|"
    + HOP_BY_HOP
    + rb"):)[!#$%&'*+.^_`|~0-9CEKPTUcekptu-])"
    + TOKEN[:-2]
    + rb"*+:"
    + TEXT
    + rb"\r\n"
)
# The lines are distinct, so that nothing is tried twice; possessive groups with branches fail in Python before 3.11.5.
_PLAIN = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9]{2})(?: " + TEXT + rb")?\r\n"
    rb"(?:" + _OTHER + rb")*"
    rb"(?:(?:(?i:content-length): ?([0-9]{1,15}+)|(?i:transfer-encoding: ?(chunked)))\r\n(?:"
    + _OTHER
    + rb")*)?\r\n"
)
# Nearly all servers send the first of these, or none, and some both: HTTP/1.1 means the same without them.
_KEEP_ALIVE = re.compile(rb"\r\n(?=[CKck])(?i:connection: ?keep-alive|keep-alive:" + TEXT + rb")(?=\r\n)")
_REMOVED = re.compile(rb"\r\n(?i:content-length|" + HOP_BY_HOP + rb"):[^\r\n]*+")
_UNFIT = re.compile(UNFIT)
_PLAIN_OPTIONS = frozenset((b"", b"close", b"keep-alive", b"upgrade"))


class Response:
    """The head of a response. `body` is the length of what follows, CHUNKED or UNTIL_CLOSE.

    `lines` are the status line and the fields that may be passed on, each with its end: without Content-Length where
    a body follows. `received` are the bytes from the head on, perhaps without lines that keep the connection alive;
    with `plain` they may be passed on up to the body's end as they are, head included: they are canonical. `length` is
    the Content-Length, -1 without one.
    """

    __slots__ = (
        "_first",
        "_lines",
        "body",
        "end",
        "keep_alive",
        "length",
        "plain",
        "received",
        "status",
        "upgrade",
    )

    def __init__(
        self,
        received: bytes,
        end: int,
        status: int,
        length: int,
        body: int,
        *,
        keep_alive: bool = True,
        plain: bool = True,
        lines: bytes = b"",
        upgrade: bytes = b"",
    ) -> None:
        self.received, self.end, self.status, self.length, self.body = received, end, status, length, body
        self.keep_alive, self.plain, self.upgrade = keep_alive, plain, upgrade
        self._lines = lines
        self._first: Buffer | None = None

    def __repr__(self) -> str:
        return f"<Response {self.status}>"

    @property
    def lines(self) -> bytes:
        """The status line, and the fields without those of the connection and of framing; each with its end."""
        if not self._lines:
            self._lines = _REMOVED.sub(b"", self.received[: self.end - 2])
        return self._lines

    @property
    def first(self) -> Buffer:
        """The bytes of the body that came with the head."""
        return self.received[self.end :] if self._first is None else self._first

    @first.setter
    def first(self, data: Buffer) -> None:
        self._first = data

    @property
    def first_size(self) -> int:
        """Their number."""
        return len(self.received) - self.end if self._first is None else len(self._first)

    def framed(self, *, http_1_1: bool, keep: bool) -> tuple[bytes, bool, bool]:
        """The head for a client of this version, whether its connection is kept, and whether chunks are to be made."""
        framing, wraps = b"", False
        if self.body in (CHUNKED, UNTIL_CLOSE):
            if http_1_1:
                framing = b"Transfer-Encoding: chunked\r\n"
                wraps = self.body == UNTIL_CLOSE
            else:
                keep = False
        elif self.length >= 0:
            framing = b"Content-Length: %d\r\n" % self.length
        if not keep:
            framing += b"Connection: close\r\n"
        elif not http_1_1:
            framing += b"Connection: keep-alive\r\n"
        return b"%b%b\r\n" % (self.lines, framing), keep, wraps

    def replace(self, former: re.Pattern[bytes], lines: bytes) -> None:
        """Pass on these fields, each with its end, instead of those whose lines the expression recognises."""
        self._lines = former.sub(b"", self.lines[:-2]) + b"\r\n" + lines
        self.plain = False

    def add(self, line: bytes) -> None:
        """Add a field, with its end, to those that are passed on."""
        self._lines = self.lines + line
        self.plain = False


def read_response(data: bytes, *, head_only: bool = False) -> Response | None:
    """The response whose head these bytes begin with; None while it is not complete. Raises BadMessage."""
    found = _PLAIN.match(data)
    if found is None:
        head = data[: data.find(_END) + 2]
        short = _KEEP_ALIVE.sub(b"", head)
        if len(short) < len(head):
            short += data[len(head) :]
            found = _PLAIN.match(short)
        if found is None:
            return _read_any(data, head_only=head_only)
        data = short
    end = found.end()
    status, length, chunked = found.groups()
    if chunked is not None and not head_only and status not in (b"204", b"304"):
        return Response(data, end, int(status), -1, CHUNKED)
    if length is None:
        body = 0 if head_only or status in (b"204", b"304") else UNTIL_CLOSE
        return Response(
            data, end, int(status), -1, body, keep_alive=body == 0, plain=body == 0 and not chunked
        )
    number = int(length)
    if head_only or status == b"304":
        return Response(data, end, int(status), number, 0)
    if status == b"204":
        return Response(data, end, 204, -1, 0, plain=False)
    return Response(data, end, int(status), number, number)


def _read_any(data: bytes, *, head_only: bool) -> Response | None:
    end = data.find(_END) + len(_END)
    if end < len(_END):
        if not data.startswith(_BEGINNING[: len(data)]):
            raise BadMessage("no HTTP/1.1 status line")
        if len(data) > MAX_HEAD_BYTES:
            raise BadMessage("the head is too large")
        if _UNFIT.search(data):
            raise BadMessage("a control character, or a line that does not end with CRLF")
        return None
    if end > MAX_HEAD_BYTES:
        raise BadMessage("the head is too large")
    head = ResponseHead(data[:end])
    length = -1 if head.content_length is None else head.content_length
    status = head.status
    lines = _passed_on(head)
    upgrade = head.get(b"upgrade") if status == 101 else b""
    if status < 200 or head_only or status in (204, 304):
        body = 0
    elif head.chunked:
        body = CHUNKED
    else:
        body = length if length >= 0 else UNTIL_CLOSE
    # Chunks in HTTP/1.0 are a fault, after which nothing else can be expected (RFC 9112 §6.1).
    keep_alive = head.keep_alive and body != UNTIL_CLOSE and (head.http_1_1 or body != CHUNKED)
    return Response(
        data, end, status, -1 if status == 204 else length, body,
        keep_alive=keep_alive, plain=False, lines=lines, upgrade=upgrade,
    )  # fmt: skip


def _passed_on(head: ResponseHead) -> bytes:
    """The status line in the proxy's own version, and the fields that are not of this connection."""
    lines = b"HTTP/1.1" + _REMOVED.sub(b"", head.raw[8:-2])
    options = {option.strip(b" \t") for option in head.get(b"connection").lower().split(b",")}
    named = options - _PLAIN_OPTIONS
    return without_fields(lines, named) if named else lines
