"""A server that is served in the foreground, with its health address."""

from __future__ import annotations

import subprocess
import threading
from typing import Any

import pytest

from tests.configuration import server
from tests.http_get import Reply, get
from tests.real_pool import RealPool

HEALTH = "127.0.0.1:{}".format
# The import waits for a file; so does the answer to /slow. /check answers what is in a file.
APP = """
import asyncio, os, pathlib, time

pathlib.Path("importing").touch()
while not os.path.exists("imported"):
    time.sleep(0.01)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    status = 200
    if scope["path"] == "/slow":
        pathlib.Path("asked").touch()
        while not os.path.exists("answer"):
            await asyncio.sleep(0.01)
    if scope["path"] == "/block":
        pathlib.Path("asked").touch()
        while not os.path.exists("answer"):
            time.sleep(0.01)
    if scope["path"].startswith("/check"):
        status = int(pathlib.Path(scope["path"][1:]).read_text())
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


class Served:
    """A server that is served, with its health address."""

    def __init__(self, pool: RealPool, port: int, health: int, *args: str) -> None:
        self.pool, self.port, self.health_port = pool, port, health
        self.process: subprocess.Popen[str] = pool.spawn("serve", "web", "--health", HEALTH(health), *args)

    def health(self, path: str = "/health") -> tuple[int, str]:
        """The status and the text; (0, "") while nothing listens."""
        try:
            reply = get(self.health_port, path)
        except ConnectionRefusedError:
            return 0, ""
        return reply.status, reply.text.strip()

    def touch(self, name: str, text: str = "") -> None:
        (self.pool.directory / name).write_text(text)

    def is_importing(self) -> bool:
        return (self.pool.directory / "importing").exists()

    def is_asked(self) -> bool:
        return (self.pool.directory / "asked").exists()

    def get_later(self, path: str, replies: list[Reply]) -> threading.Thread:
        thread = threading.Thread(target=lambda: replies.append(get(self.port, path)))
        thread.start()
        return thread


@pytest.fixture
def serve(real_pool: RealPool, free_port: Any) -> Any:
    """`serve(*arguments, **keys)`: serves APP, imported unless `waits`."""

    def begin(*args: str, waits: bool = False, text: str = APP, **keys: Any) -> Served:
        port, health = free_port(), free_port()
        real_pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", app="application:app", **keys))
        real_pool.write("application.py", text)
        if not waits:
            real_pool.write("imported", "")
        return Served(real_pool, port, health, *args)

    return begin
