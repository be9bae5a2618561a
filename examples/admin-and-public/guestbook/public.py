"""For everybody: GET lists the entries, POST adds one."""

from __future__ import annotations

from typing import Any

from .asgi import answer, lifespan, read
from .store import entries


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    if scope["method"] == "POST":
        text = (await read(receive)).strip()
        if not text:
            return await answer(send, 400, {"error": "an entry needs text"})
        with entries() as database:
            added = database.execute("insert into entry (text) values (?)", [text])
        return await answer(send, 201, {"id": added.lastrowid})
    with entries() as database:
        rows = database.execute("select id, text from entry order by id desc limit 50").fetchall()
    return await answer(send, 200, [{"id": number, "text": text} for number, text in rows])
