"""Shared code of the three services: JSON over ASGI without a framework, and calls between services."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

Handler = Callable[[str, Any], Awaitable[tuple[int, Any]]]


def service(handlers: dict[str, Handler]) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """An ASGI application that answers each method with its handler's result for path and JSON body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in ("startup", "shutdown"):
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
            return
        body = await _body(receive)
        handler = handlers.get(scope["method"])
        if handler is None:
            status, answer = 405, {"error": "method not allowed"}
        else:
            try:
                status, answer = await handler(scope["path"].strip("/"), json.loads(body or b"null"))
            except (ValueError, KeyError, TypeError) as error:
                status, answer = 400, {"error": f"bad request: {error}"}
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": json.dumps(answer).encode() + b"\n"})

    return app


async def call(url: str, body: Any = None) -> Any:
    """The JSON answer of another service. Raises OSError when it does not answer with success."""

    def request() -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=5) as response:
            return json.load(response)

    return await asyncio.to_thread(request)


async def _body(receive: Any) -> bytes:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)
