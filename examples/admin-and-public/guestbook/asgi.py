"""The minimal ASGI code that the two interfaces need."""

from __future__ import annotations

import json
from typing import Any


async def read(receive: Any, limit_bytes: int = 4096) -> str:
    """The request's body as text, cut off at the limit."""
    body = b""
    while True:
        message = await receive()
        body = (body + message.get("body", b""))[:limit_bytes]
        if not message.get("more_body"):
            return body.decode(errors="replace")


async def answer(send: Any, status: int, content: Any) -> None:
    """A JSON response."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode() + b"\n"})


async def lifespan(receive: Any, send: Any) -> None:
    """Nothing to do at start and end."""
    for _ in ("startup", "shutdown"):
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
