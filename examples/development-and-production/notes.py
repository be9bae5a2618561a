"""Two applications that say in which mode they run; in development errors are shown to the client."""

from __future__ import annotations

import os
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

MODE = os.environ.get("MODE", "development")
NOTES = ["buy milk", "write tests", "sleep"]


def web_page(path: str) -> str:
    if path == "/":
        return f"{len(NOTES)} notes ({MODE})\n"
    return NOTES[int(path.strip("/"))] + "\n"


def feed_page(path: str) -> str:
    return "".join(f"{number}: {note}\n" for number, note in enumerate(NOTES))


def application(page: Callable[[str], str]) -> Callable[[Any, Any, Any], Awaitable[None]]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in ("startup", "shutdown"):
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
            return
        status, headers = 200, [(b"content-type", b"text/plain; charset=utf-8")]
        try:
            text = page(scope["path"])
        except (ValueError, IndexError):
            status, text = 404, traceback.format_exc() if MODE == "development" else "no such note\n"
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


web = application(web_page)
feed = application(feed_page)
