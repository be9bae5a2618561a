"""Imports what every worker needs, once, in the process that workers are forked from.

After the import of an application, its framework does once what it would otherwise do in the first request of each
worker. None of the application's own code is called: neither its lifespan nor a middleware or an endpoint.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import linecache
import logging.config
import sys
import tokenize
import zipimport
from collections.abc import Iterable, Iterator
from typing import Any

from .serving import uvicorn_parts
from .serving.uvicorn_config import prepare

# anyio's backend is imported by the first request otherwise, which cost that request 18 ms.
_MODULES = (
    "uvloop",
    "httptools",
    "websockets",
    *uvicorn_parts.MODULES,
    "concurrent.futures.thread",
    "starlette.applications",
    "starlette.routing",
    "starlette.responses",
    "anyio._backends._asyncio",
)

_MANY_OBJECTS = 100_000
# A path that no route has: each one says no, and has been made ready to say so.
_PATH = "/\0"
_MOST_DEEP = 8


def preload() -> None:
    """Import uvicorn and whatever of its company this interpreter has; set up its logging."""
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            # Optional ones may be missing; a missing uvicorn is reported where it is needed.
            continue
    logging.config.dictConfig(uvicorn_parts.LOGGING_CONFIG)
    # The output becomes a pipe in the worker: without this, lines would wait there for a full buffer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def settle() -> None:
    """The last thing before the first fork: what is there now is there for good."""
    prepare()
    # A directory is what an application is imported from. Tried last, it costs each worker an error and its traceback.
    sys.path_hooks.sort(key=lambda hook: hook is zipimport.zipimporter)
    # The application may have a poolctl of its own, in its own interpreter. From here on nothing of ours is imported.
    for name in [name for name in sys.modules if name == "poolctl" or name.startswith("poolctl.")]:
        del sys.modules[name]
    keep()


@contextlib.contextmanager
def collecting_seldom() -> Iterator[None]:
    """Hardly anything that an import makes is garbage: looking for it is a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(_MANY_OBJECTS, *before[1:])
    try:
        yield
    finally:
        # The application may have its own idea of it.
        if gc.get_threshold() == (_MANY_OBJECTS, *before[1:]):
            gc.set_threshold(*before)


def keep() -> None:
    """What is there now is shared by all forks from here on, and none of them looks through it for garbage."""
    gc.collect()
    gc.freeze()


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
