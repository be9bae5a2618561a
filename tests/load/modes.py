"""What the modes of a load are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .exchanges import Bodies, Bodiless, Chunked, Exchange, NewConnection, Pipelined, Streams, Uploads
from .http2 import Http2
from .sessions import Events, WebSocket

if TYPE_CHECKING:
    from .generator import Generator

MODES: dict[str, Callable[[Generator, str], Any]] = {
    "keep_alive": Exchange,
    "new_connection": NewConnection,
    "pipelined": Pipelined,
    "bodies": Bodies,
    "chunked": Chunked,
    "uploads": Uploads,
    "bodiless": Bodiless,
    "http2": Http2,
    "stream": Streams,
    "websocket": WebSocket,
    "sse": Events,
}


def conversation_of(mode: str) -> Callable[[Generator, str], Any]:
    """Raises ValueError for a mode that there is not."""
    if mode not in MODES:
        raise ValueError(f"no mode {mode!r}: {', '.join(MODES)}")
    return MODES[mode]
