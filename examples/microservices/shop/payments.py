"""Takes money, up to a limit."""

from __future__ import annotations

from typing import Any

from .service import service

LIMIT_CENTS = 100_000


async def get(_: str, __: Any) -> tuple[int, Any]:
    return 200, {"limit_cents": LIMIT_CENTS}


async def post(_: str, body: Any) -> tuple[int, Any]:
    if body["cents"] > LIMIT_CENTS:
        return 402, {"error": "over the limit"}
    return 201, {"paid_cents": body["cents"], "by": body["user"]}


app = service({"GET": get, "POST": post})
