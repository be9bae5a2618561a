"""Where the frames of a WebSocket end, in bytes that are copied without being understood (RFC 6455 §5.2)."""

from __future__ import annotations

from poolctl.http.chunked_body import Buffer

# A close frame of a server with status 1012, service restart.
_CLOSE_1012 = b"\x88\x02" + (1012).to_bytes(2, "big")
_LONGER, _LONGEST = 126, 127
# Frames of one read that are followed. A server that sends more, of less than some hundred bytes each, is copied and
# not followed any longer: looking at each of them would hold up the other connections.
MOST_FRAMES_AT_ONCE = 1024
_MASKED = 0x80


class FrameBoundary:
    """Follows the frames that a server sends; a frame may be inserted where `at_boundary` is true.

    `ending`: a close frame replaces the next frame. `lost`: there were too many to follow.
    """

    __slots__ = ("_header", "_left", "ending", "lost")

    def __init__(self) -> None:
        self.ending = self.lost = False
        self._left = 0  # of the present frame's payload
        self._header = b""

    @property
    def at_boundary(self) -> bool:
        """Whether a frame is complete and the next has not begun."""
        return not (self._left or self._header or self.lost)

    def passed_on(self, data: Buffer) -> Buffer:
        """The bytes to send to the client in place of these bytes."""
        if not self.ending:
            self.feed(data)
            return data
        if self.at_boundary:
            return b""
        rest = bytes(data[: self.feed(data, only_first=True)])
        return rest + _CLOSE_1012 if self.at_boundary else rest

    def end(self) -> bytes:
        """End the WebSocket with status 1012 as soon as possible; returns the bytes to send now."""
        self.ending = True
        return _CLOSE_1012 if self.at_boundary else b""

    def feed(self, data: Buffer, *, only_first: bool = False) -> int:
        """Follow these bytes; with `only_first` up to the end of the present frame. How many were followed."""
        if self.lost:
            return len(data)
        if self._left > len(data):
            self._left -= len(data)
            return len(data)
        at, size, frames = 0, len(data), 0
        while at < size:
            if only_first and self.at_boundary:
                return at
            if self._left:
                taken = min(self._left, size - at)
                self._left -= taken
                at += taken
                continue
            frames += 1
            if frames > MOST_FRAMES_AT_ONCE:
                self.lost = True
                return size
            header = self._header + bytes(data[at : at + 14 - len(self._header)])
            length = _header_length(header)
            if len(header) < length:
                self._header = header
                return size
            at += length - len(self._header)
            self._header = b""
            self._left = _payload_length(header)
        return at


def _header_length(header: bytes) -> int:
    """The length of a frame's header, as far as its first bytes determine it."""
    if len(header) < 2:
        return 2
    short = header[1] & ~_MASKED
    extended = 2 if short == _LONGER else 8 if short == _LONGEST else 0
    return 2 + extended + (4 if header[1] & _MASKED else 0)


def _payload_length(header: bytes) -> int:
    short = header[1] & ~_MASKED
    if short < _LONGER:
        return short
    return int.from_bytes(header[2:4] if short == _LONGER else header[2:10], "big")
