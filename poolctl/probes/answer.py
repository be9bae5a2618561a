"""An HTTP/1.1 response, read as its bytes come (RFC 9112): the status, the body as far as it matters, and its end."""

from __future__ import annotations

LONGEST_HEAD_BYTES = 64 * 1024
LONGEST_BODY_BYTES = 1024 * 1024  # more of it is not looked at, and ends the connection
# What answers may be hostile: in many small pieces it would keep the reader busy.
MOST_CHUNKS = 4096
_MOST_INTERIM = 20
_MOST_DIGITS = 15
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")

_END = b"\r\n\r\n"
_NO_BODY = (204, 304)


class BadAnswer(Exception):
    """What came is no HTTP response."""


class Answer:
    """`feed` it until it says that it is complete; `kept` tells whether the connection can be used again."""

    __slots__ = ("_chunked", "_head_only", "_left", "_pieces", "_rest", "body", "kept", "status")

    def __init__(self, *, head_only: bool = False) -> None:
        self.status = 0
        self.body = b""
        self.kept = False
        self._head_only = head_only  # it answers a HEAD
        self._rest = b""
        self._left: int | None = None  # of the body; None: until the connection ends
        self._chunked = False
        self._pieces = 0  # interim responses, then chunks

    def feed(self, data: bytes) -> bool:
        """Whether the response is complete with these bytes. Raises BadAnswer."""
        self._rest += data
        while not self.status:
            if not self._read_head():
                return False
        return self._read_body()

    def end(self) -> bool:
        """Whether the response is complete now that nothing more comes."""
        return bool(self.status) and self._left is None and not self._chunked

    def _read_head(self) -> bool:
        head, end, rest = self._rest.partition(_END)
        if not end:
            if len(head) > LONGEST_HEAD_BYTES or not b"HTTP/1."[: len(head)] == head[:7]:
                raise BadAnswer("the answer is no HTTP/1.1")
            return False
        version, _, line = head[:12].partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not (line.isdigit() and len(line) == 3):
            raise BadAnswer("the answer is no HTTP/1.1")
        self._rest = rest
        status = int(line)
        if status < 200:
            self._pieces += 1
            if self._pieces > _MOST_INTERIM:
                raise BadAnswer(f"more than {_MOST_INTERIM} interim responses")
            return True  # interim (RFC 9110 §15.2); the final one follows
        self.status, self._pieces = status, 0
        self._read_fields(head.lower(), version == b"HTTP/1.1")
        return True

    def _read_fields(self, head: bytes, kept: bool) -> None:
        connection = _field(head, b"connection")
        self.kept = (kept or b"keep-alive" in connection) and b"close" not in connection
        if self._head_only or self.status in _NO_BODY:
            self._left = 0
        elif b"chunked" in _field(head, b"transfer-encoding"):
            self._chunked = True
        elif length := _field(head, b"content-length"):
            if not length.isdigit() or len(length) > _MOST_DIGITS:
                raise BadAnswer("its content-length is no number")
            self._left = int(length)
        else:
            self.kept = False

    def _read_body(self) -> bool:
        if self._chunked:
            return self._read_chunks()
        if len(self.body) + len(self._rest) > LONGEST_BODY_BYTES:
            return self._enough()
        self.body += self._rest
        self._rest = b""
        return self._left is not None and len(self.body) >= self._left

    def _read_chunks(self) -> bool:
        while True:
            size, end, rest = self._rest.partition(b"\r\n")
            if not end:
                if len(size) > LONGEST_HEAD_BYTES:
                    raise BadAnswer("a chunk of it has no size")
                return False
            digits = size.partition(b";")[0].rstrip(b" \t")
            if not 0 < len(digits) <= _MOST_DIGITS or not _HEX_DIGITS.issuperset(digits):
                raise BadAnswer("a chunk of it has no size")
            length = int(digits, 16)
            if not length:
                # Trailers, if there are any, end with an empty line.
                return self._rest.endswith(b"\r\n\r\n")
            if len(self.body) + length > LONGEST_BODY_BYTES:
                return self._enough()
            if self._pieces == MOST_CHUNKS:
                self.kept = False
                return True
            if len(rest) < length + 2:
                return False
            self._pieces += 1
            self.body += rest[:length]
            self._rest = rest[length + 2 :]

    def _enough(self) -> bool:
        self.body += self._rest[: LONGEST_BODY_BYTES - len(self.body)]
        self.kept = False
        return True


def _field(head: bytes, name: bytes) -> bytes:
    """The value of a field in a head in lower case; empty when it is not there."""
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip() if found else b""
