"""The back office: a Starlette application of the same package, at module level."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from .books import SHELF
from .settings import Settings


async def stock(_: Request) -> JSONResponse:
    return JSONResponse({"title": Settings.from_environment().title, "books": len(SHELF)})


app = Starlette(routes=[Route("/", stock)])
