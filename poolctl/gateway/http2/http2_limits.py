"""Bounds for clients that speak HTTP/2: the h2 library's, and one for what it leaves open.

Frames that cost a client nothing cost the gateway time, answers, or the beginning of a request on a backend: PING,
SETTINGS, PRIORITY, empty DATA, and streams that are reset as soon as they are opened (CVE-2023-44487).
"""

from __future__ import annotations

from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

MOST_STREAMS = 100
# What a client may send before a backend takes it: of one request's body, and of all of a connection.
STREAM_WINDOW = 128 * 1024
CONNECTION_WINDOW = 1024 * 1024
MOST_TABLE_BYTES = 4096  # of fields of responses, kept for compression, however many the client would keep
# In frames. A completed response gives some back, as time does.
MOST_CREDIT = 1000.0
CREDIT_PER_SECOND = 50.0
CREDIT_OF_RESPONSE = 10.0
COST_OF_RESET = 6.0  # its backend may have begun to work


class ClientCredit:
    """What is left to one connection."""

    __slots__ = ("_at", "_left", "_now")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._left = MOST_CREDIT
        self._at = now()

    def __repr__(self) -> str:
        return f"<ClientCredit: {self._left:.0f} frames>"

    def responded(self) -> None:
        """A response has been sent to its end."""
        self._left += CREDIT_OF_RESPONSE

    def spend(self, cost: float) -> bool:
        """Whether there was as much left."""
        now = self._now()
        self._left = min(self._left + (now - self._at) * CREDIT_PER_SECOND, MOST_CREDIT) - cost
        self._at = now
        return self._left >= 0


class _BoundedConnection(H2Connection):
    MAX_CLOSED_STREAMS = 10 * MOST_STREAMS  # remembered, a hundred bytes each


def server_connection(max_head_bytes: int) -> H2Connection:
    """The server's side of a connection, which has its settings to send."""
    connection = _BoundedConnection(
        H2Configuration(
            client_side=False,
            header_encoding=None,
            # Done by http2_fields, with an error of the stream instead of the connection's, and in less time.
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )
    connection.local_settings = Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: max_head_bytes,
        },
    )
    # A head that is somewhat larger gets a response (431); for more the connection is ended.
    connection.decoder.max_header_list_size = 2 * max_head_bytes
    connection.initiate_connection()
    connection.increment_flow_control_window(CONNECTION_WINDOW - connection.inbound_flow_control_window)
    return connection
