"""A page, an API and a chat behind one address, and a service that knows nothing of it."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from poolctl.gateway.routes import try_get_route

PAGE = """<!doctype html><title>poolctl</title>
<p id=answer>…</p><input id=say placeholder="say something"><pre id=said></pre>
<script>
fetch("/api/hello").then(r => r.json()).then(found => answer.textContent = JSON.stringify(found))
const chat = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/chat`)
chat.onmessage = event => said.textContent += event.data + "\\n"
say.onchange = () => { chat.send(say.value); say.value = "" }
</script>
"""


async def page(request: Request) -> HTMLResponse:
    return HTMLResponse(PAGE)


async def hello(request: Request) -> JSONResponse:
    route = try_get_route(request.scope)
    client = request.client.host if request.client else ""
    return JSONResponse({"route": route.alias if route else None, "client": client, "pid": os.getpid()})


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(f"you said: {text}")


async def monthly(request: Request) -> PlainTextResponse:
    via = request.headers.get("x-forwarded-for", "nobody")
    return PlainTextResponse(f"a report from elsewhere, for {via}\n")


web = Starlette(routes=[Route("/", page)])
api = Starlette(routes=[Route("/api/hello", hello)])
chat = Starlette(routes=[WebSocketRoute("/chat", echo)])
reports = Starlette(routes=[Route("/monthly", monthly)])
