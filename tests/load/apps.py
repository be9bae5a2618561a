"""What a load asks: one application that answers every mode. `app = "tests.load.apps:app"`, or copied beside a pool."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

EVENT_PAUSE_SECONDS = 0.05


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """`/` says the query again, a POST its body; `/stream` and `/events` take their time; WebSockets echo.

    What ends with `/broken` answers 500 and raises, as Starlette does after an exception that no handler takes.

    `If-None-Match: "load"` is answered with 304. Each POST is a line of the file $EXECUTED, if there is one: its path,
    and the first word of its body, the number of the request.
    """
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(receive, send)
    elif scope["path"] == "/stream":
        await stream(scope["query_string"], send)
    elif scope["path"] == "/events":
        await events(receive, send)
    elif scope["path"].endswith("/broken"):
        body = b"Internal Server Error"
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 500, "headers": [length]})
        await send({"type": "http.response.body", "body": body})
        raise RuntimeError("broken")
    elif (b"if-none-match", b'"load"') in scope["headers"]:
        await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", b'"load"')]})
        await send({"type": "http.response.body", "body": b""})
    else:
        body = scope["query_string"] if scope["method"] in ("GET", "HEAD") else await whole_body(receive)
        if scope["method"] == "POST" and (file := os.environ.get("EXECUTED")):
            note(file, scope["path"], body)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def whole_body(receive: Receive) -> bytes:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message.get("more_body"):
            break
    return body


def note(file: str, path: str, body: bytes) -> None:
    with open(file, "ab", buffering=0) as opened:  # one write, so that lines of several workers do not mix
        opened.write(path.encode() + b" " + body.partition(b" ")[0] + b"\n")


async def stream(query: bytes, send: Send) -> None:
    """So many numbered lines, with a pause before each."""
    asked = {name: values[0] for name, values in parse_qs(query.decode()).items()}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for chunk in range(int(asked["chunks"])):
        await asyncio.sleep(float(asked["pause"]))
        line = b"%d of %s\n" % (chunk, asked["n"].encode())
        await send({"type": "http.response.body", "body": line, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def events(receive: Receive, send: Send) -> None:
    """Server-sent events until the client goes."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    gone = asyncio.ensure_future(disconnect(receive))
    try:
        while not gone.done():
            await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
            await asyncio.wait({gone}, timeout=EVENT_PAUSE_SECONDS)
    finally:
        gone.cancel()


async def disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def websocket(receive: Receive, send: Send) -> None:
    """Says every text again."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
