"""Who may order."""

from __future__ import annotations

from typing import Any

from .service import service

USERS = {"ada": "Ada Lovelace", "alan": "Alan Turing", "grace": "Grace Hopper"}


async def get(path: str, _: Any) -> tuple[int, Any]:
    if not path:
        return 200, USERS
    if path not in USERS:
        return 404, {"error": f"no user {path!r}"}
    return 200, {"id": path, "name": USERS[path]}


app = service({"GET": get})
