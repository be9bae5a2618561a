"""An application with a download that goes on until the test lets it end, and a client that reads it."""

from __future__ import annotations

import socket
import threading

# The file `may-end` ends all downloads. `/block` blocks the event loop, and creates the file `blocked`.
APP = """
import asyncio, os, pathlib, time

async def app(scope, receive, send):
    assert scope["type"] == "http"
    path = scope["path"]
    if path == "/block":
        pathlib.Path("blocked").touch()
        time.sleep(600)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while path == "/download" and not os.path.exists("may-end"):
        await send({"type": "http.response.body", "body": b"more\\n", "more_body": True})
        await asyncio.sleep(0.02)
    print("the end of", path, flush=True)
    await send({"type": "http.response.body", "body": b"the end"})
"""


class Download(threading.Thread):
    """A download that has begun; `received` is its text, or what went wrong, once it has ended."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.received = ""
        self._client = socket.create_connection(("127.0.0.1", port), timeout=200)
        self._client.sendall(b"GET /download HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        begin = self._client.recv(4096)
        assert begin.startswith(b"HTTP/1.1 200"), begin
        self.start()

    def run(self) -> None:
        try:
            with self._client as client:
                self.received = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        except OSError as error:
            self.received = repr(error)

    @property
    def is_complete(self) -> bool:
        return self.received.endswith("the end\r\n0\r\n\r\n")
