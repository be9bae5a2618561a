"""Takes orders: asks `users` who it is and `payments` for the money."""

from __future__ import annotations

import os
import urllib.error
from typing import Any

from .service import call, service

PRICES_CENTS = {"book": 1_990, "yacht": 99_000_000}


async def get(_: str, __: Any) -> tuple[int, Any]:
    return 200, {"prices_cents": PRICES_CENTS}


async def post(_: str, body: Any) -> tuple[int, Any]:
    cents = PRICES_CENTS[body["item"]]
    try:
        user = await call(f"{os.environ['USERS']}/{body['user']}")
        payment = await call(f"{os.environ['PAYMENTS']}/", {"cents": cents, "user": user["id"]})
    except urllib.error.HTTPError as error:
        return error.code, {"error": error.read().decode().strip()}
    return 201, {"item": body["item"], "user": user["name"], "paid_cents": payment["paid_cents"]}


app = service({"GET": get, "POST": post})
