"""Limits on connections to the dashboard: the time in which a request must arrive, and their number."""

from __future__ import annotations

import asyncio

import h11

from poolctl.worker.serving.uvicorn_parts import H11Protocol

# From the connection, or from a request's first byte, to the end of its body.
REQUEST_SECONDS = 10.0
MOST_CONNECTIONS = 256


class Connection(H11Protocol):
    """Closed when a request takes too long to arrive, or when it has been idle longest and room is needed.

    Parsed by h11, which limits the size of a request's head; uvicorn's other parser does not.
    """

    _deadline: asyncio.TimerHandle | None = None
    _since = 0.0  # when waiting for the current or last request began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        if len(self.connections) >= MOST_CONNECTIONS and not self._make_room():
            transport.abort()
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._deadline is None and not self._is_answering():
            self._await_request()
        super().data_received(data)
        if self._has_request():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _make_room(self) -> bool:
        """Close the connection that has waited longest without a request; whether there was one."""
        waiting = [
            each for each in self.connections if isinstance(each, Connection) and not each._has_request()
        ]
        oldest = min(waiting, key=lambda each: each._since, default=None)
        if oldest is not None:
            self.connections.discard(oldest)
            oldest.transport.abort()
        return oldest is not None

    def _has_request(self) -> bool:
        """Whether a request has arrived completely, answered or not."""
        return self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)

    def _is_answering(self) -> bool:
        return self.conn.our_state is h11.SEND_BODY

    def _await_request(self) -> None:
        self._stop_waiting()
        self._since = self.loop.time()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.abort()
