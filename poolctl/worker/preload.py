"""What every worker needs, imported once in the process that workers are forked from."""

from __future__ import annotations

import gc
import importlib
import logging.config
import sys
from typing import Any

from .settings import prepare

# anyio's backend is imported by the first request otherwise, which cost that request 18 ms.
_MODULES = (
    "uvloop",
    "httptools",
    "websockets",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.protocols.websockets.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.lifespan.on",
    "uvicorn.lifespan.off",
    "uvicorn.loops.auto",
    "uvicorn.middleware.proxy_headers",
    "concurrent.futures.thread",
    "starlette.applications",
    "starlette.routing",
    "starlette.responses",
    "anyio._backends._asyncio",
)


def preload() -> None:
    """Import uvicorn and whatever of its company this interpreter has; set up its logging."""
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            # Optional ones may be missing; a missing uvicorn is reported where it is needed.
            continue
    from uvicorn.config import LOGGING_CONFIG

    logging.config.dictConfig(LOGGING_CONFIG)
    # What it says of every start and end the worker says itself, for a thirtieth of its memory.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # The output becomes a pipe in the worker: without this, lines would wait there for a full buffer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


_FILLERS = 150
_SIZES = range(0, 480, 16)
_filling: list[list[Any]] = []


def settle() -> None:
    """The last thing before the first fork: what is there now is there for good."""
    prepare()
    # The application may have a poolctl of its own, in its own interpreter. From here on nothing of ours is imported.
    for name in [name for name in sys.modules if name == "poolctl" or name.startswith("poolctl.")]:
        del sys.modules[name]
    keep()


def keep() -> None:
    """What is there now is shared by all forks from here on, and none of them looks through it for garbage."""
    gc.collect()
    _fill_the_gaps()
    gc.freeze()


def _fill_the_gaps() -> None:
    # What the imports freed is scattered over all pages. A worker that allocates there copies a page for each object;
    # with the gaps filled it allocates on pages of its own (measured: 0.3 MB less for each).
    small: list[list[Any]] = [
        [object() for _ in range(_FILLERS)],
        [float(number) for number in range(_FILLERS)],
    ]
    _filling.extend([*small, *([bytes(size) for _ in range(_FILLERS)] for size in _SIZES)])
