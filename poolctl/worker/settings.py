"""uvicorn's configuration for a worker, made ready in the zygote as far as workers have it in common."""

from __future__ import annotations

import copy
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
    _prepared[:] = [_make(None, USUAL)]


def configure(app: Any, settings: dict[str, Any]) -> uvicorn.Config:
    """A configuration for `app`, not loaded yet."""
    if settings != USUAL or not _prepared:
        return _make(app, settings)
    config = copy.copy(_prepared[0])
    config.app = app
    return config


def _make(app: Any, settings: dict[str, Any]) -> uvicorn.Config:
    # The logging was set up by the preload; the access log is the one thing a server decides. Who asks for it wants to
    # see the WebSockets too, of which uvicorn tells elsewhere, at this level.
    return uvicorn.Config(
        app, log_config=None, log_level="info" if settings["access_log"] else "warning", **settings
    )
