"""For the operator: GET counts the entries, DELETE /ID removes one."""

from __future__ import annotations

from typing import Any

from .asgi import answer, lifespan
from .store import entries


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    with entries() as database:
        if scope["method"] == "DELETE":
            removed = database.execute("delete from entry where id = ?", [scope["path"].strip("/")]).rowcount
            return await answer(send, 200 if removed else 404, {"removed": removed})
        (count,) = database.execute("select count(*) from entry").fetchone()
    return await answer(send, 200, {"entries": count})
