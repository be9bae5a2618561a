"""New connections of a server that speaks HTTP/1.1 and HTTP/2: TLS says which it is, or the first bytes do."""

from __future__ import annotations

import asyncio
from typing import Any

from .connection import QUIET_SECONDS
from .heads import FIRST, Head, unread_bytes
from .http2 import PREFACE


class Http1Or2(asyncio.Protocol):
    """A connection until it is known what is spoken on it; `http1` and `http2` are the classes for it then.

    In the clear it is HTTP/2 if it begins with the client's preface (RFC 9113 §3.3).
    """

    http1: type[Any]
    http2: type[Any]

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        self.transport: Any = None
        self.idle = True
        self.server_state = server_state
        self._made_with = {"config": config, "server_state": server_state, "app_state": app_state}
        self._loop = _loop or asyncio.get_event_loop()
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._until: tuple[float | None, bool] | None = None
        self.head: Head | None = None if server_state.heads is None else FIRST
        if config.ssl is not None:
            server_state.expect(self)

    def connection_made(self, transport: Any) -> None:
        due = self.server_state.handshake_is_over(self)
        self.transport = transport
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._become(self.http2 if tls.selected_alpn_protocol() == "h2" else self.http1, due)
        elif self._until is not None and self._until[1]:
            self._become(self.http1)  # it was handed over between two requests
        else:
            self.server_state.connections.add(self)
            if self.head is not None:
                self.server_state.heads.wait(self, due if self._until is None else self._until[0])
            if self.server_state.draining:
                self.linger()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) >= len(PREFACE) or not PREFACE.startswith(self._data):
            self.server_state.connections.discard(self)
            self._become(self.http2 if self._data.startswith(PREFACE) else self.http1, self._end())

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)
        self._end()

    def head_is_late(self) -> None:
        """Nothing has come, or a part of what begins HTTP/2."""
        self._end()
        self.transport.close()

    def take_over(self, until: float | None, *, asked: bool) -> None:
        """See LimitedHead."""
        self._until = until, asked

    def leave(self) -> None:
        """Leave this worker."""
        self.linger()

    def linger(self) -> None:
        """Close if nothing comes for a moment; what comes is answered, and is the last."""
        self._loop.call_later(QUIET_SECONDS, self._close_if_silent)

    def stay(self) -> None:
        """See Lingering."""

    def end_events(self) -> None:
        """See Lingering."""

    def shutdown(self) -> None:
        """Close."""
        self.transport.close()

    def _close_if_silent(self) -> None:
        undecided: Any = self.transport.get_protocol()
        if undecided is self and not self._data and not unread_bytes(self.transport):
            self.transport.close()

    def _end(self) -> float | None:
        if self.server_state.heads is None:
            return None
        due: float | None = self.server_state.heads.due.get(self)
        self.server_state.heads.end(self)
        return due

    def _become(self, kind: type[Any], due: float | None = None) -> None:
        protocol = kind(**self._made_with, _loop=self._loop)
        if self._until is not None:
            protocol.take_over(*self._until)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if due is not None and protocol.head is not None:
            self.server_state.heads.wait(protocol, due)
        if self._data:
            protocol.data_received(self._data)
