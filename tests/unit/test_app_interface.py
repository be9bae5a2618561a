"""WSGI and ASGI are told apart by the arguments that an application takes."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from poolctl.app_interface import accepts, is_asgi3, is_factory, is_plain_asgi3, is_wsgi, mismatch


def wsgi(environ: Any, start_response: Any) -> Any: ...


def wsgi_with_options(environ: Any, start_response: Any, extra: int = 1, *, debug: bool = False) -> Any: ...


def generator(environ: Any, start_response: Any) -> Any:
    yield b""


def configured(settings: Any, environ: Any, start_response: Any) -> Any: ...


@functools.wraps(wsgi)
def decorated(*arguments: Any) -> Any: ...


class Flask:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...

    def method(self, environ: Any, start_response: Any) -> Any: ...

    @classmethod
    def of_class(cls, environ: Any, start_response: Any) -> Any: ...

    @staticmethod
    def static(environ: Any, start_response: Any) -> Any: ...


class Pep3333:
    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Any: ...


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


async def asgi_of_two(scope: Any, rest: Any) -> None: ...


def asgi3(scope: Any, receive: Any, send: Any) -> Any: ...


def asgi2(scope: Any) -> Any: ...


class Asgi2:
    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


class Starlette:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Middleware:
    def __init__(self, app: Any, options: Any) -> None: ...

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Unknown:
    __signature__ = "none"

    def __call__(self, *arguments: Any) -> Any: ...


def variadic(*arguments: Any) -> Any: ...


@functools.wraps(wsgi)
def wrapped_by_asgi(scope: Any, receive: Any, send: Any) -> Any: ...


@functools.wraps(configured)
def with_settings(environ: Any, start_response: Any) -> Any: ...


async def handler(request: Any) -> None: ...


def named(environ: Any, start_response: Any, *, settings: Any) -> Any: ...


def create_app(config: Any = None, **more: Any) -> Any: ...


def _name(app: Any) -> str:
    return str(getattr(app, "__name__", type(app).__name__))


WSGI = [
    wsgi, wsgi_with_options, generator, functools.partial(configured, {}), decorated, Flask(), Flask().method,
    Flask.of_class, Flask.static, functools.partial(Flask()), Pep3333, lambda environ, start_response: [],
]  # fmt: skip
OTHERS = [
    asgi, asgi3, asgi2, Asgi2, Starlette(), functools.partial(asgi), Unknown(), variadic, create_app, configured,
    functools.partial(Starlette()), dict, print, wrapped_by_asgi,
]  # fmt: skip
NEITHER = [asgi_of_two, Middleware, named, handler]
FACTORIES = [Starlette, create_app, Flask, functools.cache(create_app)]


@pytest.mark.parametrize("app", WSGI, ids=_name)
def test_callable_that_requires_two_arguments_is_a_wsgi_application(app: Any) -> None:
    assert (is_wsgi(app), is_factory(app)) == (True, False)
    assert (mismatch(app, "auto"), mismatch(app, "wsgi")) == ("", "")
    assert ("WSGI" in mismatch(app, "asgi")) is (not accepts(app, 3))


@pytest.mark.parametrize("app", OTHERS, ids=_name)
def test_all_other_callables_are_left_to_uvicorn(app: Any) -> None:
    assert not is_wsgi(app)
    assert (mismatch(app, "auto"), mismatch(app, "asgi")) == ("", "")


@pytest.mark.parametrize("app", NEITHER, ids=_name)
def test_what_no_interface_can_call_is_refused(app: Any) -> None:
    assert not is_wsgi(app)
    assert {mismatch(app, "auto"), mismatch(app, "asgi")} == {
        "takes neither the arguments of an ASGI application nor those of a WSGI application"
    }


@pytest.mark.parametrize(
    "app", [asgi, asgi3, asgi2, Starlette(), functools.partial(asgi), asgi_of_two], ids=_name
)
def test_application_of_asgi_is_refused_as_one_of_wsgi(app: Any) -> None:
    assert "WSGI" in mismatch(app, "wsgi") or "ASGI" in mismatch(app, "wsgi")


def test_decorated_application_is_refused_only_for_the_arguments_that_its_decorator_takes() -> None:
    assert (mismatch(with_settings, "wsgi"), mismatch(wrapped_by_asgi, "asgi")) == ("", "")


def test_application_whose_parameters_are_unknown_may_be_one_of_either() -> None:
    assert {mismatch(app, "wsgi") for app in (Unknown(), variadic)} == {""}


def test_function_without_required_parameters_creates_the_application() -> None:
    assert [each for each in (*OTHERS, *NEITHER, *FACTORIES) if is_factory(each)] == [create_app, *FACTORIES]


def test_three_arguments_are_those_of_asgi_3() -> None:
    three = [each for each in OTHERS if is_asgi3(each)]
    assert [_name(each) for each in three] == [
        "asgi", "asgi3", "Starlette", "partial", "configured", "partial", "wsgi",
    ]  # fmt: skip


def test_plain_application_of_asgi_3_is_seen_without_its_signature() -> None:
    plain = [each for each in (*WSGI, *OTHERS, *NEITHER, *FACTORIES) if is_plain_asgi3(each)]
    assert [_name(each) for each in plain] == ["asgi", "Starlette"]
    for app in plain:
        assert is_asgi3(app)
        assert not is_factory(app)
        assert mismatch(app, "auto") == mismatch(app, "asgi") == ""
