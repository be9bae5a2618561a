"""What a framework leaves to the first request, done once before the forks instead of once in each worker.

Of the application's own code nothing is called: neither its lifespan nor a middleware or an endpoint.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import linecache
import sys
import tokenize
from collections.abc import Iterable, Iterator
from typing import Any

# A path that no route has: each one says no, and has been made ready to say so.
_PATH = "/\0"
_MOST_DEEP = 8


def warm_up(app: Any) -> None:
    """Let a Starlette or FastAPI application's routes prepare themselves; with any other nothing happens.

    FastAPI builds the routes of an included router when it is first looked at: 20 ms and 6 MB for thirty routes.
    """
    routing = sys.modules.get("starlette.routing")
    if routing is not None:
        if "fastapi" in sys.modules:
            _warm_up_fastapi()
        _ask(getattr(app, "routes", None), routing.BaseRoute, _MOST_DEEP)
        if "fastapi" in sys.modules:
            # What the first request would have met, it will.
            with contextlib.suppress(Exception):
                _read_sources(app)


def _read_sources(app: Any) -> None:
    """Read the files in which endpoints are written: the first request of each looks for itself in its file."""
    read = set()
    for endpoint in _endpoints(app, _MOST_DEEP):
        code = getattr(endpoint, "__code__", None)
        if inspect.iscode(code) and code.co_filename not in read:
            read.add(code.co_filename)
            linecache.getlines(code.co_filename)


def _endpoints(router: Any, deep: int) -> Iterator[Any]:
    routes = getattr(router, "routes", None)
    if not isinstance(routes, Iterable) or not deep:
        return
    for route in routes:
        yield getattr(route, "endpoint", None)
        yield from _endpoints(getattr(route, "original_router", route), deep - 1)


def _warm_up_fastapi() -> None:
    with contextlib.suppress(Exception):  # it is imported when the application starts, if this version has it
        importlib.import_module("fastapi.telemetry._runtime")
    # Where an endpoint is written is looked up by its first request; the expressions for that are compiled only then.
    with contextlib.suppress(OSError):
        inspect.getsourcelines(tokenize.generate_tokens)


def _ask(routes: Any, kind: type[Any], deep: int) -> None:
    if not isinstance(routes, Iterable) or not deep:
        return
    for route in routes:
        if not isinstance(route, kind):
            continue
        try:
            route.matches(_scope())
            below = getattr(route, "routes", None)
        except Exception:
            continue
        _ask(below, kind, deep - 1)


def _scope() -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": _PATH,
        "raw_path": b"/%00",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
        "state": {},
    }
