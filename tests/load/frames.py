"""WebSocket frames as a client needs them (RFC 6455 §5): short, unfragmented, masked on the way out."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import NamedTuple

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Frame(NamedTuple):
    kind: int
    payload: bytes

    @property
    def code(self) -> int:
        """Of a close frame; 1005 when it carries none."""
        return int.from_bytes(self.payload[:2], "big") if len(self.payload) >= 2 else 1005


def new_key() -> bytes:
    return base64.b64encode(os.urandom(16))


def accept_of(key: bytes) -> bytes:
    """What a server must answer to that key."""
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


def frame(kind: int, payload: bytes) -> bytes:
    """One masked frame of at most 125 bytes."""
    assert len(payload) <= 125
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return bytes([0x80 | kind, 0x80 | len(payload)]) + mask + masked


class Frames:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @property
    def within(self) -> bool:
        return bool(self._bytes)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete. Raises ValueError for one that a server may not send here."""
        self._bytes += data
        found = []
        while len(self._bytes) >= 2:
            length = self._bytes[1]
            if length > 125 or not self._bytes[0] & 0x80:
                raise ValueError("a masked, long or fragmented frame")
            if len(self._bytes) < 2 + length:
                break
            found.append(Frame(self._bytes[0] & 0x0F, bytes(self._bytes[2 : 2 + length])))
            del self._bytes[: 2 + length]
        return found
