"""Loads the application of a server: imports it, picks it from a mapping of handlers, or calls its factory.

After an import before the forks, its framework does work once that it would otherwise do in the first request of each
worker. That calls no code of the application: no lifespan, middleware or endpoint.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import linecache
import os
import sys
import tokenize
import traceback
from typing import Any

from .process_setup import Spec

# The limit for an error that goes to the supervisor; the log has all of it.
MOST_CHARACTERS = 2000
# A path that matches no route: each route prepares itself to find that out.
_PATH = "/\0"
_MAX_DEPTH = 8


class LoadFailed(Exception):
    """The application cannot be loaded; the message names it and the cause. The cause itself is chained."""


def explain(failure: LoadFailed) -> str:
    """The cause as a traceback that begins in the user's own code; the message if there is no cause."""
    cause = failure.__cause__
    if cause is None:
        return f"{failure}\n"
    frame = cause.__traceback__
    while frame is not None and _is_machinery(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(cause), cause, frame))


def _is_machinery(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")


def import_app(spec: Spec) -> Any:
    """Import the application, or its factory or mapping, without calling it. Raises LoadFailed."""
    return _attribute(_path(spec))


def module_of(spec: Spec) -> str:
    """The module that `import_app` imports."""
    return _path(spec).partition(":")[0]


def _path(spec: Spec) -> str:
    return str(spec["handlers"] if spec["app"] is None else spec["app"])


def load_app(spec: Spec) -> Any:
    """The ASGI application that the specification names. Raises LoadFailed."""
    if spec["app"] is None:
        path = f"{spec['handlers']}()[{spec['handler_key']!r}]"
        app = _from_handlers(spec["handlers"], spec["handler_key"])
    else:
        path = f"{spec['app']}()" if spec["factory"] else spec["app"]
        app = spec["app"] if callable(spec["app"]) else _attribute(spec["app"])
        app = _call(app, spec["app"]) if spec["factory"] else app
    if not callable(app):
        # uvicorn would accept it and answer every request with 500.
        raise LoadFailed(f"{path} is no ASGI application but {app!r:.60}")
    return app


def _from_handlers(path: str, key: str) -> Any:
    mapping = _call(_attribute(path), path)
    try:
        return mapping[key]
    except (KeyError, TypeError) as error:
        raise LoadFailed(f"{path}() has no handler {key!r}") from error


def _attribute(path: str) -> Any:
    module_name, _, attributes = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise LoadFailed(f"cannot import {path!r}: {type(error).__name__}: {error}") from error
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError as error:
            near = _nearest(attribute, found)
            meant = f"; did you mean {near!r}?" if near else ""
            raise LoadFailed(f"cannot import {path!r}: {error}{meant}") from error
    return found


def _nearest(attribute: str, holder: object) -> str:
    """The public name in `holder` that was probably meant, or ""."""
    import difflib

    names = [name for name in dir(holder) if not name.startswith("_")]
    return next(iter(difflib.get_close_matches(attribute, names, n=1)), "")


def _call(function: Any, path: str) -> Any:
    try:
        return function()
    except Exception as error:
        raise LoadFailed(f"{path}() failed: {type(error).__name__}: {error}") from error


def set_app_environment(spec: Spec) -> None:
    """Set sys.argv and the import path for the application. A second call, after a preload, changes nothing."""
    sys.argv = [spec["app"] or spec["server"]]
    if sys.path[0] != spec["app_dir"]:
        sys.path.insert(0, spec["app_dir"])
    if "PYTHONBREAKPOINT" not in os.environ:
        sys.breakpointhook = functools.partial(_pass_breakpoint, spec.get("server") or "NAME")


def _pass_breakpoint(server: str, *args: object, **kwargs: object) -> None:
    # pdb would read the end of its input here, and end the request with BdbQuit.
    caller = sys._getframe(1)
    where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    message = f"breakpoint() at {where} does not stop here, without a terminal: poolctl run --debug {server}"
    print(message, file=sys.stderr, flush=True)


def exit_status(code: object) -> int:
    """The exit status for the argument of sys.exit(): an integer itself, 0 for None; a text is printed and gives 1."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def warm_up(app: object) -> None:
    """Let the routes of a Starlette or FastAPI application prepare themselves; ignore other applications.

    FastAPI builds the routes of an included router on its first use: 20 ms and 6 MB for thirty routes. The first
    request of an endpoint looks up its source, and compiles regular expressions for that.
    """
    routing = sys.modules.get("starlette.routing")
    if routing is None:
        return
    sources: set[str] | None = None
    if "fastapi" in sys.modules:
        sources = set()
        with contextlib.suppress(Exception):  # imported when the application starts, if this version has it
            importlib.import_module("fastapi.telemetry._runtime")
        with contextlib.suppress(OSError):
            inspect.getsourcelines(tokenize.generate_tokens)
    _warm_up_routes(app, routing.BaseRoute, sources, _MAX_DEPTH)


def _warm_up_routes(router: object, kind: type, sources: set[str] | None, depth: int) -> None:
    """Ask each route for a path that matches none, and read the files of the endpoints unless they are in `sources`."""
    with contextlib.suppress(Exception):  # the first request meets any error again
        for route in getattr(router, "routes", ()) if depth else ():
            with contextlib.suppress(Exception):
                if isinstance(route, kind):
                    route.matches(_scope())  # type: ignore[attr-defined]
            code = getattr(getattr(route, "endpoint", None), "__code__", None)
            if sources is not None and inspect.iscode(code) and code.co_filename not in sources:
                sources.add(code.co_filename)
                linecache.getlines(code.co_filename)
            _warm_up_routes(getattr(route, "original_router", route), kind, sources, depth - 1)


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
