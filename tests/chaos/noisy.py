"""An application that prints more than its log can hold."""

from __future__ import annotations

from tests.load import apps


async def app(scope: apps.Scope, receive: apps.Receive, send: apps.Send) -> None:
    if scope["type"] == "http":
        print("x" * 500, flush=True)
    await apps.app(scope, receive, send)
