"""A page over TLS, and a redirect to it from the plain address: one application, configured by its environment."""

from __future__ import annotations

import os
from typing import Any

REDIRECT_TO = os.environ.get("REDIRECT_TO", "")
PAGE = b"<!doctype html><title>poolctl</title><p>This page came over TLS.\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif REDIRECT_TO:
        target = f"{REDIRECT_TO}{scope['raw_path'].decode()}".encode()
        await _answer(send, 308, [(b"location", target)], b"")
    else:
        headers = [(b"content-type", b"text/html"), (b"strict-transport-security", b"max-age=3600")]
        await _answer(send, 200, headers, PAGE)


async def _answer(send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Any, send: Any) -> None:
    for _ in ("startup", "shutdown"):
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
