"""Response heads as the proxy passes them on, and responses of the gateway itself."""

from __future__ import annotations

import re
from math import ceil

from poolctl.http import messages

_REMOVED = re.compile(rb"\r\n(?i:content-length|" + messages.HOP_BY_HOP + rb"):[^\r\n]*+")
_PLAIN_OPTIONS = frozenset((b"", b"close", b"keep-alive", b"upgrade"))
PLAIN_TEXT = "text/plain; charset=utf-8"


class Response(messages.ResponseHead):
    """The head of a response, and the part of its body that was received with it (`first`)."""

    first: messages.Buffer
    _lines: bytes

    @property
    def end_to_end_lines(self) -> bytes:
        """The status line, and the fields except connection and framing fields; each with its line end."""
        if not self._lines:
            lines = b"HTTP/1.1%b%b\r\n" % (self.status_line[8:], _REMOVED.sub(b"", self.fields))
            named = self.options - _PLAIN_OPTIONS
            self._lines = messages.without_fields(lines, named) if named else lines
        return self._lines

    def head_keep_alive_and_chunked(self, *, http_1_1: bool, keep: bool) -> tuple[bytes, bool, bool]:
        """The head for the client, whether the client's connection stays open, and whether the body is sent in chunks.

        With `keep`, the connection stays open unless only closing it can mark the end of the body.
        """
        framing, wraps = b"", False
        if self.body in (messages.CHUNKED, messages.UNTIL_CLOSE):
            if http_1_1:
                framing = b"Transfer-Encoding: chunked\r\n"
                wraps = self.body == messages.UNTIL_CLOSE
            else:
                keep = False
        elif self.length >= 0:
            framing = b"Content-Length: %d\r\n" % self.length
        if not keep:
            framing += b"Connection: close\r\n"
        elif not http_1_1:
            framing += b"Connection: keep-alive\r\n"
        return b"%b%b\r\n" % (self.end_to_end_lines, framing), keep, wraps

    def replace(self, pattern: re.Pattern[bytes], lines: bytes) -> None:
        """Replace the lines that match the pattern by these fields, each with its line end."""
        self._lines = pattern.sub(b"", self.end_to_end_lines[:-2]) + b"\r\n" + lines

    def add(self, line: bytes) -> None:
        """Add a field, with its line end, to the fields that are passed on."""
        self._lines = self.end_to_end_lines + line


def read_response(data: bytes, scanned: int, *, head_only: bool) -> Response | None:
    """The response whose head is at the start of these bytes; None if it is incomplete. Raises BadMessage.

    `head_only`: it answers a HEAD request. The first `scanned` bytes were already searched for the end of the head.
    """
    response = Response.read(data, scanned)
    if response is None:
        return None
    if head_only:
        response.expect_no_body()
    response.first, response._lines = data[response.end :], b""
    return response


def whole_response(
    status: int,
    *,
    retry_after_seconds: float = 0,
    head_only: bool = False,
    keep_alive: bool = False,
    fields: bytes = b"",
    kind: str = PLAIN_TEXT,
    body: bytes = b"",
) -> bytes:
    """A complete HTTP/1.1 response; by default its body is the status as text.

    Without `keep_alive` it has `Connection: close`. `fields` are further header lines, each with its line end.
    """
    phrase = messages.phrase_of(status)
    body = body or f"{status} {phrase}\n".encode()
    lines = [f"HTTP/1.1 {status} {phrase}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    if retry_after_seconds:
        lines.append(f"Retry-After: {max(1, ceil(retry_after_seconds))}")
    if not keep_alive:
        lines.append("Connection: close")
    head = "\r\n".join([*lines, ""]).encode() + fields + b"\r\n"
    return head if head_only else head + body
