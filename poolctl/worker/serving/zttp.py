"""uvicorn's HTTP/1.1 protocol on the parser zttp: it lingers, as nothing tells what the parser still holds."""

from __future__ import annotations

import sys
from typing import Any

from .connection import Lingering


class LingeringZttp(Lingering):
    """Mixed in before that class."""

    flow: Any
    _ahead = 0

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        ahead = not self.idle and not cycle.more_body
        super().data_received(data)
        if ahead and cycle is self.cycle:
            # Requests that are sent ahead wait in the parser, which has room for all.
            self._ahead += len(data)
            heads = self.server_state.heads
            if heads is not None and self._ahead > heads.most_bytes:
                self.flow.pause_reading()

    def handle_remote_protocol_error(self) -> None:
        # zttp has limits of its own: 16 KiB and a hundred headers.
        if "size limit" in str(sys.exception()) and self.idle:
            self.refuse(431)
        else:
            super().handle_remote_protocol_error()  # type: ignore[misc]

    def on_response_complete(self) -> None:
        self._ahead = 0
        super().on_response_complete()

    def last_chunk(self) -> bytes:
        """See Lingering."""
        return b"0\r\n\r\n" if self.cycle.chunked_encoding else b""
