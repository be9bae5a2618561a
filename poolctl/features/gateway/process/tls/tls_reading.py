"""Reading from connections with TLS into one buffer for all of them.

For a protocol that takes bytes objects uvloop allocates 256 KiB for each read, which the C library maps and unmaps:
a small request took half as long again.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

BUFFER_BYTES = 256 * 1024

P = TypeVar("P", bound=asyncio.Protocol)


class TlsReader(asyncio.BufferedProtocol, Generic[P]):
    """Stands between the transport and `protocol`. Received data stays in the buffer only until it is taken."""

    __slots__ = ("_buffer", "protocol")

    def __init__(self, protocol: P, buffer: memoryview) -> None:
        self.protocol = protocol
        self._buffer = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.protocol.data_received(bytes(self._buffer[:nbytes]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.protocol.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.protocol.connection_lost(error)

    def eof_received(self) -> bool | None:
        return self.protocol.eof_received()

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()
