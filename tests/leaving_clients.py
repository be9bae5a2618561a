"""Clients that leave while a server wakes, and an app whose startup waits until they have."""

from __future__ import annotations

import socket
import struct

# Starts when there is a file named "go", and writes the path of each request to another one.
APP = """
import asyncio, pathlib

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    with open("requests", "a") as file:
        print(scope["path"], file=file)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def connect(where: int | str, first_bytes: bytes = b"") -> socket.socket:
    """A connection to a port of 127.0.0.1, or to the path of a Unix socket, on which this has been sent."""
    if isinstance(where, int):
        sock = socket.create_connection(("127.0.0.1", where), timeout=60)
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(where)
    sock.sendall(first_bytes)
    return sock


def post(where: int | str, path: str) -> socket.socket:
    """A connection on which a whole POST was sent."""
    sock = connect(where)
    sock.sendall(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody" % path.encode())
    return sock


def close(sock: socket.socket) -> None:
    """Leave with a FIN."""
    sock.close()


def reset(sock: socket.socket) -> None:
    """Leave with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def shut(sock: socket.socket) -> None:
    """Send nothing more, and wait for the answer, which is the end of the connection."""
    sock.shutdown(socket.SHUT_WR)


WAYS_TO_LEAVE = (close, reset, shut)
