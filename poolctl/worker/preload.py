"""Imports the modules that every worker needs, once, in the process that workers are forked from."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging.config
import sys
import zipimport
from collections.abc import Iterator

from .process_setup import SPEC_FD
from .provided_modules import provide_modules
from .serving import uvicorn_parts
from .serving.uvicorn_logging import omit_uvicorns_lines
from .serving.uvicorn_parts import prepare
from .stack_dump import STACK_DUMP

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


def preload() -> None:
    """Import uvicorn and its optional libraries that are installed; set up its logging; enable garbage collection."""
    STACK_DUMP.prepare(SPEC_FD)  # the descriptor is free again by the time a worker begins
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
    # Frozen, the imports are not scanned by the first collection: that took 8 ms.
    gc.freeze()
    gc.enable()


def prepare_for_forks() -> None:
    """Prepare the process for its first fork; nothing of poolctl is imported afterwards."""
    omit_uvicorns_lines()
    prepare()
    # Applications are imported from directories. With zip files tried first, each worker pays for an error.
    sys.path_hooks.sort(key=lambda hook: hook is zipimport.zipimporter)
    provide_modules()
    # The application may have its own poolctl, in its own interpreter.
    for name in [name for name in sys.modules if name == "poolctl" or name.startswith("poolctl.")]:
        del sys.modules[name]
    gc.freeze()  # forks share these objects, and never scan them for garbage


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
