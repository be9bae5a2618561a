"""Loads the application of a server: imports it, picks it from a mapping of handlers, or calls its factory."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

# The limit for an error that goes to the supervisor; the log has all of it.
MOST_CHARACTERS = 2000


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


def import_app(spec: dict[str, Any]) -> Any:
    """Import the application, or its factory or mapping, without calling it. Raises LoadFailed."""
    return _attribute(_path(spec))


def module_of(spec: dict[str, Any]) -> str:
    """The module that `import_app` imports."""
    return _path(spec).partition(":")[0]


def _path(spec: dict[str, Any]) -> str:
    return str(spec["handlers"] if spec["app"] is None else spec["app"])


def load_app(spec: dict[str, Any]) -> Any:
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
            raise LoadFailed(f"cannot import {path!r}: {error}") from error
    return found


def _call(function: Any, path: str) -> Any:
    try:
        return function()
    except Exception as error:
        raise LoadFailed(f"{path}() failed: {type(error).__name__}: {error}") from error
