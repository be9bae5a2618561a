"""Closes WebSockets when the server restarts: the client gets a close frame and time to reply."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from .uvicorn_parts import WEBSOCKETS

logger = logging.getLogger("uvicorn.error")

REPLY_SECONDS = 2.0
SERVICE_RESTART = 1012  # of the registry that RFC 6455 §11.7 set up


def close_websocket(connection: Any) -> None:
    """Close an open WebSocket of uvicorn's with 1012; anything else is shut down in its own way.

    uvicorn's own way closes the socket behind the close frame. With anything of the client's unread in the receive
    buffer that is a reset, which takes the frame with it.
    """
    kind: Any = type(connection)
    closed = _way(kind)
    try:
        if closed is None or connection.transport.is_closing() or not closed(connection):
            connection.shutdown()
    except Exception:
        # An error of one connection must not keep the others from closing, nor the application's shutdown.
        logger.warning("aborting a connection of class %s", type(connection).__name__, exc_info=True)
        connection.transport.abort()


@functools.cache
def _way(protocol: Any) -> Callable[[Any], bool] | None:
    """How connections of this class are closed; None for a class without what that takes, as in uvicorn before 0.53."""
    parts = WEBSOCKETS.get(protocol.__name__)
    return None if parts is None or parts.missing(protocol) else _WAYS[protocol.__name__]


def _sansio(connection: Any) -> bool:
    if not connection.handshake_complete or connection.close_sent:
        return False
    # Discard what the client sends before its close frame.
    connection.send_receive_event_to_app = connection.frames.clear
    connection.conn.send_close(SERVICE_RESTART)
    _await_reply(connection, b"".join(connection.conn.data_to_send()))
    return True


def _wsproto(connection: Any) -> bool:
    from wsproto.events import CloseConnection

    if not connection.handshake_complete or connection.close_sent or connection.response_started:
        return False
    # Likewise; and pings and pongs, to which no answer can be sent after this.
    connection.handle_message = connection.handle_ping = connection.handle_pong = lambda event: None
    _await_reply(connection, connection.conn.send(CloseConnection(code=SERVICE_RESTART)))
    return True


def _await_reply(connection: Any, close_frame: bytes) -> None:
    connection.stop_keepalive()
    connection.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART})
    connection.transport.write(close_frame)
    connection.transport.resume_reading()
    # Set, it keeps the connection open beyond the end of the application's task; uvicorn clears it.
    connection.close_timer = connection.loop.call_later(REPLY_SECONDS, connection.transport.close)


def _legacy(connection: Any) -> bool:
    if not connection.handshake_completed_event.is_set() or not connection.open:
        return False
    connection.ws_server.closing = True  # so the application gets this code, too
    connection.close_timeout = REPLY_SECONDS
    task = connection.loop.create_task(connection.close(SERVICE_RESTART))
    connection.tasks.add(task)
    task.add_done_callback(connection.tasks.discard)
    return True


# By the names of uvicorn_parts.WEBSOCKETS.
_WAYS: dict[str, Callable[[Any], bool]] = {
    "WebSocketsSansIOProtocol": _sansio,
    "WSProtocol": _wsproto,
    "WebSocketProtocol": _legacy,
}
