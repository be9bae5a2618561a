"""HTTP/1.1 responses out of whatever pieces arrive (RFC 9112 §6): never a whole one in one recv()."""

from __future__ import annotations

from typing import NamedTuple

MAX_HEAD_BYTES = 65_536


class Malformed(Exception):
    """What arrived is no HTTP."""


class Response(NamedTuple):
    status: int
    headers: dict[bytes, bytes]  # names in lower case
    body: bytes
    closes: bool  # the server has announced that it closes the connection


class _Head(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    length: int | None  # None: the body ends with the connection
    chunked: bool
    closes: bool


class Responses:
    """Bytes in, complete responses out; `partial` is the body so far of one that is not complete.

    With `bodiless` the next response is one to HEAD, which has a length and no body.
    """

    def __init__(self) -> None:
        self.bodiless = False
        self.partial = bytearray()
        self.head: _Head | None = None
        self._bytes = bytearray()
        self._chunk_left: int | None = None
        self._heads: dict[bytes, _Head] = {}

    @property
    def amid(self) -> bool:
        """Whether a part of a chunk, or of a head, has arrived."""
        return self._chunk_left is not None or bool(self._bytes)

    @property
    def within(self) -> bool:
        """Whether some bytes of a response have arrived that is not complete."""
        return self.head is not None or bool(self._bytes)

    def feed(self, data: bytes) -> list[Response]:
        """The responses that these bytes complete. Raises Malformed."""
        self._bytes += data
        found: list[Response] = []
        while self._advance(found):
            continue
        return found

    def end(self) -> list[Response]:
        """The response whose body the end of the connection completes, if there is one."""
        if self.head and self.head.length is None and not self.head.chunked:
            found: list[Response] = []
            self._finish(found)
            return found
        return []

    def rest(self) -> bytes:
        """What came behind the head: for a connection that is no HTTP any more."""
        rest = bytes(self._bytes)
        self._bytes.clear()
        return rest

    def _advance(self, found: list[Response]) -> bool:
        if self.head is None:
            return self._begin(found)
        if self.head.chunked:
            return self._next_chunk(found)
        if self.head.length is None:
            self.partial += self._bytes
            self._bytes.clear()
            return False
        if len(self._bytes) < self.head.length:
            return False
        self.partial = self._bytes[: self.head.length]
        del self._bytes[: self.head.length]
        self._finish(found)
        return bool(self._bytes)

    def _begin(self, found: list[Response]) -> bool:
        end = self._bytes.find(b"\r\n\r\n")
        if end < 0:
            if len(self._bytes) > MAX_HEAD_BYTES or not b"HTTP/1.1 ".startswith(self._bytes[:9]):
                raise Malformed(f"no head of a response: {bytes(self._bytes[:60])!r}")
            return False
        raw = bytes(self._bytes[:end])
        del self._bytes[: end + 4]
        head = self._heads.get(raw)
        if head is None:
            if len(self._heads) > 100:
                self._heads.clear()
            head = self._heads[raw] = _parse(raw)
        if head.status == 101:
            found.append(Response(101, head.headers, b"", False))
            return False
        if head.status >= 200:
            self.head = head._replace(length=0, chunked=False) if self.bodiless else head
        return True

    def _next_chunk(self, found: list[Response]) -> bool:
        if self._chunk_left is None:
            line, separator, _ = self._bytes[:100].partition(b"\r\n")
            if not separator:
                if len(line) == 100:
                    raise Malformed(f"no size of a chunk: {bytes(line)!r}")
                return False
            try:
                self._chunk_left = int(line.partition(b";")[0], 16)
            except ValueError:
                raise Malformed(f"no size of a chunk: {bytes(line)!r}") from None
            del self._bytes[: len(line) + 2]
        if self._chunk_left == 0:
            return self._trailers(found)
        if len(self._bytes) < self._chunk_left + 2:
            return False
        if self._bytes[self._chunk_left : self._chunk_left + 2] != b"\r\n":
            raise Malformed("a chunk that does not end where it should")
        self.partial += self._bytes[: self._chunk_left]
        del self._bytes[: self._chunk_left + 2]
        self._chunk_left = None
        return bool(self._bytes)

    def _trailers(self, found: list[Response]) -> bool:
        line, separator, _ = self._bytes.partition(b"\r\n")
        if not separator:
            return False
        del self._bytes[: len(line) + 2]
        if not line:
            self._chunk_left = None
            self._finish(found)
        return bool(self._bytes)

    def _finish(self, found: list[Response]) -> None:
        head = self.head
        assert head is not None
        found.append(Response(head.status, head.headers, bytes(self.partial), head.closes))
        self.head = None
        self.partial = bytearray()


def _parse(raw: bytes) -> _Head:
    first, *lines = raw.split(b"\r\n")
    try:
        version, status_text, *_ = first.split(b" ", 2)
        status = int(status_text)
        headers = {name.lower(): value.strip() for name, value in (line.split(b":", 1) for line in lines)}
        length = int(headers[b"content-length"]) if b"content-length" in headers else None
    except ValueError:
        raise Malformed(f"no head of a response: {raw[:60]!r}") from None
    if version != b"HTTP/1.1":
        raise Malformed(f"not HTTP/1.1: {raw[:60]!r}")
    chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
    if status in (204, 304):
        length = 0
    closes = headers.get(b"connection", b"").lower() == b"close" or (length is None and not chunked)
    return _Head(status, headers, length, chunked, closes)
