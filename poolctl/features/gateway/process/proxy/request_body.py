"""The body of a request on its way through: a number of bytes, or chunks."""

from __future__ import annotations

from poolctl.http.chunked_body import MOST_CHUNKS_AT_ONCE, Buffer, ChunkedBody
from poolctl.http.message_head import CHUNKED, BadMessage


class RequestBody:
    """`feed` returns the bytes that can be passed on. At its end `done` is true, and `rest` holds the bytes behind it.

    Before that, `rest` are bytes that were not read because they hold too many chunks for one turn of the loop.

    `length` is the number of its bytes, or CHUNKED; a body longer than `most` is refused with 413 (0: no limit).
    """

    __slots__ = ("_chunks", "_left", "_most", "done", "rest")

    def __init__(self, length: int, most: int) -> None:
        self._chunks = ChunkedBody() if length == CHUNKED else None
        self._left = length
        self._most = most
        self.done = False
        self.rest = b""
        self._check(length)

    def feed(self, data: bytes) -> Buffer:
        """The part of these bytes that can be passed on. Raises BadMessage."""
        chunks = self._chunks
        if chunks is None:
            if len(data) > self._left:
                data, self.rest = data[: self._left], data[self._left :]
            self._left -= len(data)
            self.done = not self._left
            return data
        passed = chunks.feed(data, most=MOST_CHUNKS_AT_ONCE)
        self._check(chunks.size)
        self.done, self.rest = chunks.done, chunks.rest
        return passed

    def _check(self, size: int) -> None:
        if self._most and size > self._most:
            raise BadMessage("the body is too large", 413)
