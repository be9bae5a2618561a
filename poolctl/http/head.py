"""The grammar that requests and responses share, and how a message is framed (RFC 9112 §5 and §6).

Strict: a head that two recipients could read in two ways is refused. Request smuggling lives on such heads.
"""

from __future__ import annotations

import re

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # RFC 9110 §5.6.2
# A field's value: no CR, LF, NUL or other control (RFC 9110 §5.5). No space stands before the colon (RFC 9112 §5.1).
TEXT = rb"[\t \x21-\x7e\x80-\xff]*+"
FIELD_LINE = TOKEN + rb":" + TEXT + rb"\r\n"

# Neither part of a line nor its end: a control, a bare CR, a bare LF. A CR may be the last byte that has come yet.
UNFIT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?![\n]|\Z)")
FIELD_LINES = re.compile(rb"(?:" + FIELD_LINE + rb")*+")

# The fields that decide how a message is framed and whose it is, looked for in a head in lower case.
_DECIDING = re.compile(rb"\r\n(connection|content-length|transfer-encoding):(" + TEXT + rb")")
_MAX_LENGTH_DIGITS = 15


class BadMessage(Exception):
    """What came is not the message that it should be. `status` is what a server answers to it."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Head:
    """The head of a message that is in order: its bytes from the start line to the empty line.

    `content_length` is None where the head names none; `keep_alive`, the sender would keep the connection open.
    """

    content_length: int | None = None
    chunked = False

    def __init__(self, raw: bytes, *, http_1_1: bool) -> None:
        self.raw = raw
        self.http_1_1 = self.keep_alive = http_1_1
        self._lower = raw.lower()
        for name, value in _DECIDING.findall(self._lower):
            if name == b"connection":
                # RFC 9110 §7.6.1, RFC 9112 §9.3: of several options close decides.
                options = {option.strip(b" \t") for option in self.get(name).lower().split(b",")}
                self.keep_alive = (http_1_1 or b"keep-alive" in options) and b"close" not in options
            else:
                self._read_framing(name, value.strip(b" \t"))
        if self.chunked and self.content_length is not None:
            raise BadMessage("both content-length and transfer-encoding")  # RFC 9112 §6.1

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.raw.strip().split(bytes((13,)))[0].decode('latin-1')}>"

    def values(self, name: bytes) -> list[bytes]:
        """The values of every field of this name, which is in lower case; as they were sent, in their order."""
        found: list[bytes] = []
        key = b"\r\n" + name + b":"
        at = self._lower.find(key)
        while at >= 0:
            end = self.raw.index(b"\r\n", at + len(key))
            found.append(self.raw[at + len(key) : end].strip(b" \t"))
            at = self._lower.find(key, end)
        return found

    def get(self, name: bytes) -> bytes:
        """The value of the field of this name: several ones joined by a comma (RFC 9110 §5.2), b"" without one."""
        return b", ".join(self.values(name))

    def _read_framing(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            # Neither twice nor as a list, be the numbers equal: RFC 9110 §8.6 leaves that to the recipient.
            if self.content_length is not None:
                raise BadMessage("more than one content-length")
            if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
                raise BadMessage("content-length is not a number")
            self.content_length = int(value)
        elif self.chunked:
            raise BadMessage("more than one transfer-encoding")
        elif value != b"chunked":
            raise BadMessage("transfer-encoding is not chunked", 501)  # RFC 9112 §6.1
        else:
            self.chunked = True
