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

# Otherwise the first request imports anyio's backend, which takes 18 ms.
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
# A path that matches no route: each route prepares itself to find that out.
_PATH = "/\0"
_MAX_DEPTH = 8


def preload() -> None:
    """Import uvicorn and those of its optional libraries that are installed; set up its logging."""
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            # Optional libraries may be missing; a missing uvicorn is reported where it is needed.
            continue
    logging.config.dictConfig(uvicorn_parts.LOGGING_CONFIG)
    # The output becomes a pipe in the worker, where lines would wait for a full buffer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def prepare_for_forks() -> None:
    """Prepare the process for its first fork; nothing of poolctl is imported afterwards."""
    prepare()
    # Applications are imported from directories. With zip files tried first, each worker pays for an error.
    sys.path_hooks.sort(key=lambda hook: hook is zipimport.zipimporter)
    # The application may have its own poolctl, in its own interpreter.
    for name in [name for name in sys.modules if name == "poolctl" or name.startswith("poolctl.")]:
        del sys.modules[name]
    freeze()


@contextlib.contextmanager
def collecting_rarely() -> Iterator[None]:
    """Collect garbage rarely during an import, which creates hardly any: collecting takes a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(_MANY_OBJECTS, *before[1:])
    try:
        yield
    finally:
        # The application may have set its own.
        if gc.get_threshold() == (_MANY_OBJECTS, *before[1:]):
            gc.set_threshold(*before)


def freeze() -> None:
    """Freeze all current objects: forks share them, and never scan them for garbage."""
    gc.collect()
    gc.freeze()


def warm_up(app: Any) -> None:
    """Let the routes of a Starlette or FastAPI application prepare themselves; other applications are left as they are.

    FastAPI builds the routes of an included router on its first use: 20 ms and 6 MB for thirty routes.
    """
    routing = sys.modules.get("starlette.routing")
    if routing is not None:
        if "fastapi" in sys.modules:
            _warm_up_fastapi()
        _match(getattr(app, "routes", None), routing.BaseRoute, _MAX_DEPTH)
        if "fastapi" in sys.modules:
            # The first request meets any error again.
            with contextlib.suppress(Exception):
                _read_sources(app)


def _read_sources(app: Any) -> None:
    """Read the source files of the endpoints, which the first request of each looks up."""
    read = set()
    for endpoint in _endpoints(app, _MAX_DEPTH):
        code = getattr(endpoint, "__code__", None)
        if inspect.iscode(code) and code.co_filename not in read:
            read.add(code.co_filename)
            linecache.getlines(code.co_filename)


def _endpoints(router: Any, depth: int) -> Iterator[Any]:
    routes = getattr(router, "routes", None)
    if not isinstance(routes, Iterable) or not depth:
        return
    for route in routes:
        yield getattr(route, "endpoint", None)
        yield from _endpoints(getattr(route, "original_router", route), depth - 1)


def _warm_up_fastapi() -> None:
    with contextlib.suppress(Exception):  # it is imported when the application starts, if this version has it
        importlib.import_module("fastapi.telemetry._runtime")
    # The first request of an endpoint looks up its source, and compiles regular expressions for that.
    with contextlib.suppress(OSError):
        inspect.getsourcelines(tokenize.generate_tokens)


def _match(routes: Any, kind: type[Any], depth: int) -> None:
    if not isinstance(routes, Iterable) or not depth:
        return
    for route in routes:
        if not isinstance(route, kind):
            continue
        try:
            route.matches(_scope())
            below = getattr(route, "routes", None)
        except Exception:
            continue
        _match(below, kind, depth - 1)


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
