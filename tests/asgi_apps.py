"""Applications that tests serve: importable by a worker process, and as objects in this one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def answer(send: Send, text: str, status: int = 200) -> None:
    """One whole plain-text response."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text.encode())).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def lifespan(receive: Receive, send: Send) -> None:
    """The lifespan of an application that has nothing to do in it."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def saying(text: str) -> App:
    """An application that answers with `text`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await answer(send, text)

    return app


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Says hello; `/slow` takes a moment, `/pid` tells the process, `/state` its state."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["path"] == "/slow":
        await asyncio.sleep(0.3)
        await answer(send, "slow hello")
    elif scope["path"] == "/pid":
        await answer(send, str(os.getpid()))
    elif scope["path"] == "/state":
        await answer(send, repr(dict(scope.get("state", {}))))
    else:
        await answer(send, "hello")


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """Does not start."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def hanging(scope: Scope, receive: Receive, send: Send) -> None:
    """Neither starts nor fails."""
    await asyncio.Event().wait()


async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
    """Starts, and then does not end."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.Event().wait()
    else:
        await answer(send, "still here")


def make_hello() -> App:
    """A factory."""
    return saying("made")


def handlers() -> dict[str, App]:
    """A mapping of handlers, as `[pool] handlers` names one."""
    return {"": saying("default"), "admin": saying("admin")}
