"""An application is found as it was written, or the error says what could not be had and why."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match, Mount, Route, Router

from poolctl.worker.load_app import LoadFailed, load_app, warm_up

MODULE = """
class App(str):
    async def __call__(self, scope, receive, send): ...
class Inner:
    app = App("dotted")
class Outer:
    inner = Inner
app = App("plain")
def make():
    return App("made")
def broken():
    raise ValueError("no settings")
def handlers():
    return {"": App("the shared one"), "users": App("the one for users"), "none": 3}
text = "text"
def nobody():
    return None
def no_mapping():
    return None
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "load_me.py").write_text(MODULE)
    (tmp_path / "load_me_broken.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "load_me_exits.py").write_text("raise SystemExit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("load_me", "load_me_broken", "load_me_exits"):
        sys.modules.pop(name, None)


def spec(app: str | None = None, **more: Any) -> dict[str, Any]:
    return {"app": app, "factory": False, "handlers": None, "handler_key": "", **more}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (spec("load_me:app"), "plain"),
        (spec("load_me:Outer.inner.app"), "dotted"),
        (spec("load_me:make", factory=True), "made"),
        (spec(handlers="load_me:handlers"), "the shared one"),
        (spec(handlers="load_me:handlers", handler_key="users"), "the one for users"),
    ],
)
def test_application_is_loaded_from_each_kind_of_path(given: dict[str, Any], found: str) -> None:
    assert load_app(given) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (spec("no_such_module_at_all:app"), ["no_such_module_at_all:app", "ModuleNotFoundError"]),
        (spec("load_me_broken:app"), ["load_me_broken:app", "no_such_module_anywhere"]),
        (spec("load_me:nothing"), ["load_me:nothing", "has no attribute 'nothing'"]),
        (spec("load_me:Outer.inner.nothing"), ["load_me:Outer.inner.nothing", "nothing"]),
        (spec("load_me:broken", factory=True), ["load_me:broken()", "ValueError: no settings"]),
        (spec(handlers="load_me:handlers", handler_key="orders"), ["load_me:handlers()", "'orders'"]),
        (spec(handlers="load_me:no_mapping"), ["load_me:no_mapping()"]),
        (spec("load_me:text"), ["load_me:text is no ASGI application but 'text'"]),
        (spec("load_me:nobody", factory=True), ["load_me:nobody() is no ASGI application but None"]),
        (spec(handlers="load_me:handlers", handler_key="none"), ["load_me:handlers()['none'] is no ASGI"]),
    ],
)
def test_application_that_cannot_be_loaded_is_named_with_the_cause(given: Any, words: list[str]) -> None:
    with pytest.raises(LoadFailed) as caught:
        load_app(given)
    assert [word for word in words if word not in str(caught.value)] == []


def test_exit_during_an_import_is_passed_on() -> None:
    with pytest.raises(SystemExit) as caught:
        load_app(spec("load_me_exits:app"))
    assert caught.value.code == 7


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
