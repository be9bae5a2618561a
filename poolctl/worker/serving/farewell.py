"""The end of a WebSocket whose server restarts: the client is told, and has the time to say that it has understood."""

from __future__ import annotations

from typing import Any

REPLY_SECONDS = 2.0
SERVICE_RESTART = 1012  # of the registry that RFC 6455 §11.7 set up


def say_goodbye(connection: Any) -> None:
    """Close an open WebSocket of uvicorn's with 1012; anything else is shut down in its own way.

    uvicorn's own way closes the socket behind the close frame. With anything of the client's unread in the receive
    buffer that is a reset, which takes the frame with it.
    """
    if not _is_open(connection):
        connection.shutdown()
        return
    connection.stop_keepalive()
    connection.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART})
    # What the client says until it has understood is for nobody.
    connection.send_receive_event_to_app = connection.frames.clear
    connection.conn.send_close(SERVICE_RESTART)
    connection.transport.write(b"".join(connection.conn.data_to_send()))
    connection.transport.resume_reading()
    # Set, it keeps the connection open beyond the end of the application's task; uvicorn clears it.
    connection.close_timer = connection.loop.call_later(REPLY_SECONDS, connection.transport.close)


def _is_open(connection: Any) -> bool:
    return (
        hasattr(connection, "close_timer")  # uvicorn's WebSocketsSansIOProtocol
        and connection.handshake_complete
        and not connection.close_sent
        and not connection.transport.is_closing()
    )
