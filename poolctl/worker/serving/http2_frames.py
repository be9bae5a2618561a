"""How far the bytes of an HTTP/2 connection have come within a frame, or within the head of a request."""

from __future__ import annotations

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_HEADER_BYTES = 9  # RFC 9113 §4.1
_HEADERS, _CONTINUATION = 1, 9
_END_HEADERS = 0x4


class Frames:
    """Is fed with what a client sends, its preface included."""

    def __init__(self) -> None:
        self.head_bytes = 0  # of the head that is being sent, or has been sent last
        self._left = len(PREFACE)  # of the preface, then of the frame
        self._header = b""
        self._head_goes_on = False

    @property
    def within(self) -> bool:
        """Whether a frame, or the head of a request, is not complete."""
        return bool(self._left or self._header or self._head_goes_on)

    def feed(self, data: bytes) -> None:
        """Go on by this."""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            step = min(_HEADER_BYTES - len(self._header), end - at)
            self._header += data[at : at + step]
            at += step
            if len(self._header) == _HEADER_BYTES:
                self._begin(self._header)
                self._header = b""

    def _begin(self, header: bytes) -> None:
        self._left = int.from_bytes(header[:3], "big")
        kind, flags = header[3], header[4]
        if kind == _HEADERS:
            self.head_bytes = 0
        if kind in (_HEADERS, _CONTINUATION):
            self.head_bytes += self._left
            self._head_goes_on = not flags & _END_HEADERS
