"""Imports what workers need: common modules once, before the forks, and the server's application.

The configuration says whether the application is imported, created by a factory, or taken from a mapping of handlers.
If the application is imported before the forks, `warm_up` prepares its routes once. Otherwise each worker prepares the
routes in its first request. Preparing routes calls no lifespan, middleware or endpoint of the application.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.util
import logging
import logging.config
import os
import sys
import traceback
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

from ..app_interface import (
    accepts,
    is_asgi3,
    is_coroutine_function,
    is_factory,
    is_plain_asgi3,
    is_wsgi,
    mismatch,
)
from ..json_form import from_json
from ..routing import registry, route_health
from ..routing.route import ExcludedRoute, Route, StreamRoute
from .process_setup import SPEC_FD, Spec, print_message
from .serving import uvicorn_parts
from .serving.uvicorn_parts import App, Receive, Scope, Send, keep_loggers_enabled, omit_uvicorns_lines
from .serving.wsgi import WsgiApp
from .tally import STACK_DUMP

logger = logging.getLogger("uvicorn.error")

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


_PACKAGES = "poolctl", "poolctl.gateway", "poolctl.routing"
_EXPORTS = "poolctl.gateway.routes"
_ONLY_EXPORTED = registry, route_health  # imported for applications; workers do not use them


class RoutesImportHook:
    """Import hook (in sys.meta_path) that makes `poolctl.gateway.routes` importable without poolctl installed.

    The hook returns the worker's modules, so that a route in an ASGI scope is an instance of the class that the
    application imports. They are loaded before the first fork, so a later upgrade of poolctl cannot change them.

    If poolctl is also installed in the application's interpreter, the application imports the installed modules, and
    the hook supplies only modules that the installed poolctl lacks. Functions of the installed modules accept the
    worker's routes, because they read a route's fields by name.
    """

    def __init__(self, modules: dict[str, ModuleType], exports: CodeType) -> None:
        self._modules = modules
        self._exports = exports

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in self._modules or name == _EXPORTS:
            return ModuleSpec(name, self)  # type: ignore[arg-type]
        # A package without a directory, because no other part of poolctl is meant for applications.
        return ModuleSpec(name, self, is_package=True) if name in _PACKAGES else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == _EXPORTS:
            exec(self._exports, module.__dict__)


def make_routes_module_importable() -> None:
    """Make `poolctl.gateway.routes` importable in this process and its forks from now on (see RoutesImportHook)."""
    for kind in (Route, StreamRoute, ExcludedRoute):
        from_json(kind, {})  # resolves the types of fields now, while their modules are still in sys.modules
    modules = {
        name: module
        for name, module in sys.modules.items()
        if name.startswith("poolctl.routing.") or name == "poolctl.json_form"
    }
    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), "gateway", "routes.py")
    spec = importlib.util.spec_from_file_location(_EXPORTS, path)
    assert spec is not None
    code = spec.loader.get_code(_EXPORTS)  # type: ignore[union-attr]
    sys.meta_path.append(RoutesImportHook(modules, code))


def import_libraries_and_set_up() -> None:
    """Install the signal handlers for stack dumps, import uvicorn and others, and configure logging and gc."""
    # The number of the specification's descriptor, which a worker no longer needs by then.
    STACK_DUMP.install_signal_handlers(SPEC_FD)
    import_libraries()
    configure_logging_and_garbage_collection()


def import_libraries() -> None:
    """Import uvicorn and what serves an application with it."""
    for name in _MODULES:
        # Optional libraries may be missing; a missing uvicorn is reported where it is needed.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def configure_logging_and_garbage_collection() -> None:
    """Set up uvicorn's logging, buffer the output by lines, and enable garbage collection, after poolctl's imports."""
    logging.config.dictConfig(uvicorn_parts.LOGGING_CONFIG)
    # The worker's output will be a pipe, in which lines would otherwise wait until a buffer is full.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # Frozen objects are not scanned by the first collection, which took 8 ms.
    gc.freeze()
    gc.enable()


def hide_poolctl_from_applications() -> None:
    """Remove poolctl from `sys.modules`, so that the application can import another version of it.

    First sets up logging and import hooks, which workers share. Called once, before the first fork. Afterwards
    poolctl's own code must not import further modules of poolctl.
    """
    omit_uvicorns_lines()
    keep_loggers_enabled()
    make_routes_module_importable()
    for name in [name for name in sys.modules if name == "poolctl" or name.startswith("poolctl.")]:
        del sys.modules[name]
    gc.freeze()  # forks share these objects, and never scan them for garbage


# Maximum length of an error sent to the supervisor; the log has the whole text.
MAX_CHARACTERS = 2000
_UNMATCHED_PATH = "/\0"


class LoadFailed(Exception):
    """The application cannot be loaded; the message names it and the cause. The cause itself is chained."""

    @property
    def missing(self) -> str:
        """The name of the module that the import did not find; "" if it failed for another reason."""
        cause = self.__cause__
        return str(cause.name or "")[:MAX_CHARACTERS] if isinstance(cause, ModuleNotFoundError) else ""


def explain(failure: LoadFailed) -> str:
    """Return the text to print for `failure`: its cause's traceback, without leading frames of poolctl and importlib.

    If `failure` has no cause, the text is its message.
    """
    cause = failure.__cause__
    if cause is None:
        return f"{failure}\n"
    frame = cause.__traceback__
    while frame is not None and _is_import_frame(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(cause), cause, frame))


def _is_import_frame(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")


def import_app(spec: Spec) -> Any:
    """Import the application, or the function that creates it; return it without calling it. Raises LoadFailed."""
    return _import_attribute(spec["handlers"] if spec["app"] is None else spec["app"])


def load_app(spec: Spec) -> Any:
    """The ASGI application that the specification names, or one that serves the WSGI application. Raises LoadFailed."""
    if spec["app"] is None:
        path = f"{spec['handlers']}()[{spec['handler_key']!r}]"
        mapping = _call(_import_attribute(spec["handlers"]), spec["handlers"])
        try:
            app = mapping[spec["handler_key"]]
        except (KeyError, TypeError) as error:
            raise LoadFailed(f"{spec['handlers']}() has no handler {spec['handler_key']!r}") from error
    else:
        path = f"{spec['app']}()" if spec["factory"] else spec["app"]
        app = spec["app"] if callable(spec["app"]) else _import_attribute(spec["app"])
        app = _call(app, spec["app"]) if spec["factory"] else app
    if spec["interface"] != "wsgi" and is_plain_asgi3(app):
        return app
    if is_factory(app):
        # uvicorn calls it too, but assumes that it returns an ASGI application.
        app = _call(app, path)
        logger.warning(
            "%s takes no argument: it is called to create the application; set factory = true", path
        )
    if not callable(app):
        # uvicorn would accept it and answer every request with 500.
        raise LoadFailed(f"{path} is no ASGI or WSGI application but {app!r:.60}")
    return _served_application(app, path, spec)


def _served_application(app: Any, path: str, spec: Spec) -> App:
    interface = spec["interface"]
    if reason := mismatch(app, interface):
        raise LoadFailed(f"{path} {reason}")
    if interface == "wsgi" or (interface == "auto" and is_wsgi(app)):
        return WsgiApp(app, spec["threads"])
    if (is_asgi3(app) or (interface == "asgi" and accepts(app, 3))) and not is_coroutine_function(app):
        # uvicorn would call it as an ASGI 2 application, and answer every request with 500.
        async def asgi3(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)

        return asgi3
    return app  # type: ignore[no-any-return]


def _import_attribute(path: str) -> Any:
    module_name, _, attributes = path.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:
        raise LoadFailed(f"cannot import {path!r}: {type(error).__name__}: {error}") from error
    for attribute in attributes.split("."):
        try:
            value = getattr(value, attribute)
        except AttributeError as error:
            import difflib

            names = [name for name in dir(value) if not name.startswith("_")]
            near = difflib.get_close_matches(attribute, names, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise LoadFailed(f"cannot import {path!r}: {error}{meant}") from error
    return value


def _call(function: Any, path: str) -> Any:
    try:
        return function()
    except Exception as error:
        raise LoadFailed(f"{path}() failed: {type(error).__name__}: {error}") from error


def set_argv_and_path(spec: Spec) -> None:
    """Set sys.argv, the import path and the breakpoint hook for the application.

    A second call, in a worker whose application was imported before the fork, changes nothing.
    """
    sys.argv = [spec["app"] or spec["server"]]
    if sys.path[0] != spec["app_dir"]:
        sys.path.insert(0, spec["app_dir"])
    if "PYTHONBREAKPOINT" not in os.environ:
        sys.breakpointhook = functools.partial(_skip_breakpoint_with_message, spec.get("server") or "NAME")


def _skip_breakpoint_with_message(server: str, *args: object, **kwargs: object) -> None:
    # pdb would find no input here, and end the request with BdbQuit.
    caller = sys._getframe(1)
    where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    message = f"breakpoint() at {where} does not stop here, without a terminal: poolctl run --debug {server}"
    print_message(message)


def exit_status(code: object) -> int:
    """The exit status for an argument of sys.exit(): the low 8 bits of an integer; 0 for None.

    Any other argument is printed to stderr, and the status is 1.
    """
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print_message(code)
    return 1


def warm_up(app: object) -> None:
    """Match each route of a Starlette or FastAPI application once; ignore other applications.

    FastAPI builds the routes of an included router when it is first matched, which takes 1 ms of each worker's first
    request for each route.
    """
    scope = {"type": "http", "method": "GET", "path": _UNMATCHED_PATH, "root_path": "", "headers": []}
    with contextlib.suppress(Exception):  # an error will recur with the first request
        from starlette.routing import BaseRoute

        for route in app.routes:  # type: ignore[attr-defined]
            if isinstance(route, BaseRoute):
                route.matches(scope)
