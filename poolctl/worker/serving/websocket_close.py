"""Closes the WebSockets of a worker that drains or stops, with a close frame and time for the client's reply."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from .uvicorn_parts import WEBSOCKETS

logger = logging.getLogger("uvicorn.error")

REPLY_SECONDS = 2.0
SERVICE_RESTART = 1012  # of the registry that RFC 6455 §11.7 set up

WebSocket = Any  # a connection of a class of uvicorn_parts.WEBSOCKETS


def close_websocket(connection: WebSocket) -> None:
    """Close one of uvicorn's WebSockets with 1012; shut down any other connection as uvicorn does.

    For a WebSocket uvicorn's own way closes the socket right after the close frame. With unread data in the receive
    buffer that is a reset, which loses the frame.
    """
    kind: Any = type(connection)
    closed = _closing_function(kind)
    try:
        if closed is None or connection.transport.is_closing() or not closed(connection):
            if closed is not None:
                connection.send_500_response = functools.partial(_refuse_handshake, connection)
            connection.shutdown()
    except Exception:
        # An error of one connection must not keep the others from closing, nor the application's shutdown.
        logger.warning("aborting a connection of class %s", type(connection).__name__, exc_info=True)
        connection.transport.abort()


@functools.cache
def _closing_function(protocol: Any) -> Callable[[WebSocket], bool] | None:
    """The function that closes connections of this class; None if the class lacks parts, as before uvicorn 0.53."""
    parts = WEBSOCKETS.get(protocol.__name__)
    return None if parts is None or parts.missing(protocol) else _CLOSING_FUNCTIONS[protocol.__name__]


def _refuse_handshake(connection: WebSocket) -> None:
    """Respond with 503 to a handshake that the application has not answered yet; the connection closes then."""
    if getattr(connection, "initial_response", None) or getattr(connection, "response_started", False):
        return
    connection.transport.write(
        b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )
    if isinstance(started := getattr(connection, "handshake_started_event", None), asyncio.Event):
        started.set()  # for uvicorn's handler, which waits for it


def _sansio(connection: WebSocket) -> bool:
    if not connection.handshake_complete or connection.close_sent:
        return False
    # Discard data that the client sends before its close frame.
    connection.send_receive_event_to_app = connection.frames.clear
    connection.conn.send_close(SERVICE_RESTART)
    _await_reply(connection, b"".join(connection.conn.data_to_send()))
    return True


def _wsproto(connection: WebSocket) -> bool:
    from wsproto.events import CloseConnection

    if not connection.handshake_complete or connection.close_sent or connection.response_started:
        return False
    # Discard data, and also pings and pongs, which cannot be answered after the close frame.
    connection.handle_message = connection.handle_ping = connection.handle_pong = lambda event: None
    _await_reply(connection, connection.conn.send(CloseConnection(code=SERVICE_RESTART)))
    return True


def _await_reply(connection: WebSocket, close_frame: bytes) -> None:
    connection.stop_keepalive()
    connection.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART})
    connection.transport.write(close_frame)
    connection.transport.resume_reading()
    # A set timer keeps the connection open after the end of the application's task; uvicorn clears it.
    connection.close_timer = connection.loop.call_later(REPLY_SECONDS, connection.transport.close)


def _legacy(connection: WebSocket) -> bool:
    if not connection.handshake_completed_event.is_set() or not connection.open:
        return False
    connection.ws_server.closing = True  # so the application gets this code, too
    connection.close_timeout = REPLY_SECONDS
    task = connection.loop.create_task(connection.close(SERVICE_RESTART))
    connection.tasks.add(task)
    task.add_done_callback(connection.tasks.discard)
    return True


# Indexed by the names of uvicorn_parts.WEBSOCKETS.
_CLOSING_FUNCTIONS: dict[str, Callable[[WebSocket], bool]] = {
    "WebSocketsSansIOProtocol": _sansio,
    "WSProtocol": _wsproto,
    "WebSocketProtocol": _legacy,
}
