"""Tells WSGI from ASGI applications by their signatures.

Standard library only, and no other module of poolctl: `validate --import` runs this file in the application's
interpreter, where poolctl need not be installed.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

# The number of requests of a WSGI application that a worker serves at once, unless `http.threads` is configured.
THREADS = 10
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def is_wsgi(app: Any) -> bool:
    """Whether `app` requires two positional arguments, as a WSGI application does, and is not a coroutine function.

    A class also has to be iterable, because its instances are the bodies of responses (PEP 3333).
    """
    signature = _signature(app)
    if signature is None or is_coroutine_function(app) or not accepts(app, 2):
        return False
    required = [parameter for parameter in signature.parameters.values() if _is_required(parameter)]
    takes_two = len(required) == 2 and all(parameter.kind in _POSITIONAL for parameter in required)
    return takes_two and (not inspect.isclass(app) or hasattr(app, "__iter__"))


def is_factory(app: Any) -> bool:
    """Whether `app` requires no argument, so that it can only be a function that creates the application."""
    signature = _signature(app)
    if signature is None or is_coroutine_function(app) or not accepts(app, 0):
        return False
    parameters = signature.parameters.values()
    return not any(
        parameter.kind is parameter.VAR_POSITIONAL or _is_required(parameter) for parameter in parameters
    )


def mismatch(app: Any, interface: str) -> str:
    """Why `app` cannot be served with the configured `interface`; "" if it may be, or if `app` is a factory."""
    if is_factory(app):
        return ""
    is_coroutine = is_coroutine_function(app)
    if interface == "wsgi" and is_coroutine:
        return 'is a coroutine function, so it is an ASGI application, and interface is "wsgi"'
    if interface == "wsgi":
        problem = 'does not take the two arguments of a WSGI application, and interface is "wsgi"'
        return "" if accepts(app, 2) else problem
    if accepts(app, 3) or (accepts(app, 1) and not is_coroutine):
        return ""
    if is_wsgi(app):
        problem = 'takes two arguments, so it is a WSGI application, and interface is "asgi"'
        return problem if interface == "asgi" else ""
    return "takes neither the arguments of an ASGI application nor those of a WSGI application"


def is_asgi3(app: Any) -> bool:
    """Whether `app` takes three arguments (ASGI 3) and not one (ASGI 2)."""
    return accepts(app, 3) and not accepts(app, 1)


def is_plain_asgi3(app: Any) -> bool:
    """Whether `app`, or the `__call__` of its class, is a coroutine function of exactly three arguments.

    Most applications are. The check spares each worker inspect.signature(), which unshares 100 KB of memory.
    """
    if not callable(app):
        return False
    call: Any = app if inspect.isfunction(app) else type(app).__call__
    code = getattr(call, "__code__", None)
    if (
        code is None
        or not code.co_flags & inspect.CO_COROUTINE
        or code.co_kwonlyargcount
        or call.__defaults__
    ):
        return False
    return bool(code.co_argcount == (3 if call is app else 4))


def accepts(app: Any, count: int) -> bool:
    """Whether `app` can be called with `count` positional arguments; True if its parameters are unknown."""
    # Not the wrapped function: a decorator may change the arguments.
    signature = _signature(app, follow_wrapped=False)
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


def _signature(app: Any, *, follow_wrapped: bool = True) -> inspect.Signature | None:
    try:
        return inspect.signature(app, follow_wrapped=follow_wrapped)
    except Exception:  # a proxy may raise any exception for an attribute
        return None


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic
