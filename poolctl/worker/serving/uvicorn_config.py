"""uvicorn's configuration for a worker, made ready in the zygote as far as workers have it in common."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import uvicorn

# What a server says that leaves its `http` table out.
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
    """Make the usual configuration, once, before the first fork (0.3 MB and 1 ms for each worker)."""
    made = _make(_nothing, USUAL)
    made.load()
    # As classes they need not be looked for by their names in each worker (0.1 MB).
    made.http, made.ws = made.http_protocol_class, made.ws_protocol_class  # type: ignore[assignment]
    made.loaded = False
    _prepared[:] = [made]


def drainable(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a parser in the place of `auto`, which uvicorn may understand in another way some day.

    Its connections can be drained without loss.
    """
    if settings["http"] != "auto":
        return settings
    return {**settings, "http": "h11" if find_spec("httptools") is None else "httptools"}


def configure(app: Any, settings: dict[str, Any]) -> uvicorn.Config:
    """A configuration for `app`, not loaded yet."""
    if settings != USUAL or not _prepared:
        return _make(app, settings)
    # Not copy.copy(), whose machinery is 0.1 MB of pages that were shared until then.
    config = object.__new__(uvicorn.Config)
    config.__dict__.update(_prepared[0].__dict__, app=app)
    return config


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """An application for what is only to be loaded."""


def _make(app: Any, settings: dict[str, Any]) -> uvicorn.Config:
    # The logging was set up by the preload; the lines of an access log are our own.
    return uvicorn.Config(app, log_config=None, log_level="warning", **drainable(settings))
