"""What every worker needs, imported once in the process that workers are forked from."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging.config
import sys
import zipimport
from collections.abc import Iterator

from ..serving import uvicorn_parts
from ..serving.settings import prepare

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
