"""Tells applications of WSGI and ASGI apart by the arguments that they take.

Standard library only, and no other module of poolctl: `validate --import` runs this file in the application's
interpreter, where poolctl need not be installed.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

# How many requests of a WSGI application a worker serves at once, unless `http.threads` is configured.
THREADS = 10
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def is_wsgi(app: Any) -> bool:
    """Whether `app` requires two positional arguments, as a WSGI application does, and is no coroutine function.

    A class also has to be iterable, because its instances are the bodies of responses (PEP 3333).
    """
    signature = _signature(app)
    if signature is None or is_coroutine_function(app):
        return False
    required = [each for each in signature.parameters.values() if _is_required(each)]
    two = len(required) == 2 and all(each.kind in _POSITIONAL for each in required)
    return two and (not inspect.isclass(app) or hasattr(app, "__iter__"))


def is_factory(app: Any) -> bool:
    """Whether `app` requires no argument, so that it can only be a function that creates the application."""
    signature = _signature(app)
    if signature is None or is_coroutine_function(app):
        return False
    parameters = signature.parameters.values()
    return not any(each.kind is each.VAR_POSITIONAL or _is_required(each) for each in parameters)


def mismatch(app: Any, interface: str) -> str:
    """Why `app` is no application of the configured `interface`; "" if it may be one.

    Any application may be one of `auto`, or one whose parameters are unknown.
    """
    if interface == "wsgi" and is_coroutine_function(app):
        return 'is a coroutine function, so it is an ASGI application, and interface is "wsgi"'
    if interface == "wsgi" and not accepts(app, 2):
        return 'does not take the two arguments of a WSGI application, and interface is "wsgi"'
    if interface == "asgi" and is_wsgi(app):
        return 'takes two arguments, so it is a WSGI application, and interface is "asgi"'
    return ""


def accepts(app: Any, count: int) -> bool:
    """Whether `app` can be called with `count` positional arguments; True if its parameters are unknown."""
    signature = _signature(app)
    try:
        if signature is not None:
            signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def is_coroutine_function(app: Any) -> bool:
    """Whether a call of `app`, which may be a partial function or an instance with `__call__`, returns a coroutine."""
    while isinstance(app, functools.partial):
        app = app.func
    return any(map(inspect.iscoroutinefunction, (app, type(app).__call__)))


def _signature(app: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(app)
    except Exception:  # a proxy may raise any exception for an attribute
        return None


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic
