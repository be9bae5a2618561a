"""Makes uvicorn's configuration for a worker; the part that workers share is prepared in the zygote."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import uvicorn

# The settings of a server without an `http` table.
USUAL: dict[str, Any] = {
    "http": "auto",
    "loop": "auto",
    "ws": "auto",
    "timeout_keep_alive": 75.0,
    "root_path": "",
    "proxy_headers": False,
    "forwarded_allow_ips": [],
    "access_log": False,
    "limit_concurrency": None,
    "limit_max_requests": None,
}

_prepared: list[uvicorn.Config] = []


def prepare() -> None:
    """Make the usual configuration once, before the first fork; it saves each worker 0.3 MB and 1 ms."""
    made = _make(_nothing, USUAL)
    made.load()
    # Given as classes, they are not looked up by name in each worker (0.1 MB).
    made.http, made.ws = made.http_protocol_class, made.ws_protocol_class  # type: ignore[assignment]
    made.loaded = False
    _prepared[:] = [made]


def drainable(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a parser instead of `auto`, whose meaning may change in uvicorn.

    Connections with these parsers can be drained without loss.
    """
    if settings["http"] != "auto":
        return settings
    return {**settings, "http": "h11" if find_spec("httptools") is None else "httptools"}


def configure(app: Any, settings: dict[str, Any]) -> uvicorn.Config:
    """A configuration for `app`, not loaded yet."""
    if settings != USUAL or not _prepared:
        return _make(app, settings)
    # Not copy.copy(), whose code would make 0.1 MB of pages private.
    config = object.__new__(uvicorn.Config)
    config.__dict__.update(_prepared[0].__dict__, app=app)
    return config


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """An application for a configuration that is only loaded."""


def _make(app: Any, settings: dict[str, Any]) -> uvicorn.Config:
    # The preload has set up the logging; the access log is poolctl's own.
    return uvicorn.Config(app, log_config=None, log_level="warning", **drainable(settings))
