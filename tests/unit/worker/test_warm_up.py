"""Before the forks routes are asked once, and nothing of the application is called."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match, Mount, Route, Router

from poolctl.worker.load_app import warm_up

called: list[str] = []  # warm_up() ignores what is raised


@pytest.fixture(autouse=True)
def application_is_not_called() -> Iterator[None]:
    called.clear()
    yield
    assert called == []


class Lazy(BaseRoute):
    """Says no, and remembers that it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.paths: list[str] = []
        self.error = error

    def matches(self, scope: Any) -> tuple[Match, Any]:
        self.paths.append(scope["path"])
        if self.error is not None:
            raise self.error
        return Match.NONE, {}


class Refusing:
    """A middleware, an endpoint, a dependency: none of them may be made or called."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        called.append("middleware")


def refuse() -> None:
    called.append("endpoint")


def test_warm_up_asks_every_route_including_mounted_applications() -> None:
    own, mounted, deep = Lazy(), Lazy(), Lazy()
    inner = Starlette(routes=[mounted, Mount("/deeper", app=Router([deep]))])
    app = Starlette(routes=[own, Mount("/inner", app=inner), Route("/", refuse)])
    app.add_middleware(Refusing)
    warm_up(app)
    assert [len(each.paths) for each in (own, mounted, deep)] == [1, 1, 1]


def test_warm_up_ignores_a_route_that_fails() -> None:
    failing, next_one = Lazy(ValueError("no")), Lazy()
    warm_up(Starlette(routes=[failing, next_one]))
    assert len(failing.paths) == len(next_one.paths) == 1


def test_warm_up_calls_nothing_of_a_fastapi_application() -> None:
    router = APIRouter(dependencies=[Depends(refuse)])
    router.add_api_route("/items/{number}", refuse)
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    app.add_middleware(Refusing)  # type: ignore[arg-type]
    warm_up(app)


def test_warm_up_reads_the_sources_of_a_fastapi_application() -> None:
    router = APIRouter()
    router.add_api_route("/items", refuse)
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    linecache.clearcache()
    warm_up(app)
    assert __file__ in linecache.cache


async def plain(scope: Any, receive: Any, send: Any) -> None:
    called.append("application")


class Odd:
    routes = 7


class Endless:
    """An application that is mounted in itself."""

    def __init__(self) -> None:
        self.routes = [Mount("/", app=self)]  # type: ignore[arg-type]


@pytest.mark.parametrize("app", [plain, None, Odd(), Endless()])
def test_warm_up_leaves_other_applications_alone(app: Any) -> None:
    warm_up(app)
