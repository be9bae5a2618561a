"""The public API: a FastAPI application made by a factory, with a lifespan and a router."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from .books import SHELF, router
from .settings import Settings


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.shelf = dict(SHELF)  # a connection pool, in a larger shop
    yield
    app.state.shelf.clear()


def create_app() -> FastAPI:
    settings = Settings.from_environment()
    app = FastAPI(title=settings.title, lifespan=lifespan)
    app.state.settings = settings
    app.include_router(router)
    return app
