"""Imports and runs what every worker needs, once, in the process that workers are forked from.

The prefork run is a whole worker that starts, serves a few requests and stops. The interpreter writes into the code
that it runs (specialised bytecode, caches, imports of the first request), and pages that are written before the fork
are shared by all workers. Measured: a third of the time and a seventh of the memory of each. No loop and no thread is
left.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging.config
import socket
import sys
import zipimport
from collections.abc import Iterator

import uvicorn

from ..keeper import wire
from ..platform import release_freed_memory
from .control_socket import BEAT, answer
from .memory_layout import fill_gaps, gather_code, noting_code, release_zeros
from .process_setup import SPEC_FD, descriptors, keep_fds
from .provided_modules import provide_modules
from .serving import uvicorn_parts
from .serving.pool_server import PoolServer
from .serving.uvicorn_logging import omit_lifespan_lines, omit_uvicorns_lines
from .serving.uvicorn_parts import prepare
from .stack_dump import STACK_DUMP
from .tally import blank_page

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

# Their functions run in every worker, but not in the prefork run.
_WORKERS_OWN = frozenset(
    f"{__package__}.{name}" for name in ("control_socket", "load_app", "process_setup", "worker_process")
)

_MANY_OBJECTS = 100_000
_PREFORK_REQUEST = b"GET / HTTP/1.1\r\nhost: prefork\r\nconnection: close\r\n\r\n"
# Enough for the interpreter to have specialised the code, so that it writes into it no more.
_ROUNDS = 8
_SECONDS = 2.0  # the limit, in case an application has changed parts of uvicorn


def preload() -> None:
    """Import uvicorn and those of its optional libraries that are installed; set up its logging; collect garbage."""
    # First: faulthandler's large allocations would otherwise leave gaps, which are then filled in each worker.
    STACK_DUMP.prepare(SPEC_FD)  # which a worker does not need any more when it begins
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
    # Frozen, the imports are not scanned when the prefork run's garbage is collected: that took 8 ms.
    gc.freeze()
    gc.enable()


def prepare_for_forks() -> None:
    """Prepare the process for its first fork; nothing of poolctl is imported afterwards."""
    omit_uvicorns_lines()
    prepare(_blank)
    # Applications are imported from directories. With zip files tried first, each worker pays for an error.
    sys.path_hooks.sort(key=lambda hook: hook is zipimport.zipimporter)
    provide_modules()
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
    fill_gaps()
    release_freed_memory()


def prefork_run() -> None:
    """Serve a few requests with an empty application, on a socket that no other process can reach."""
    before = descriptors()
    with noting_code() as codes:
        _run_once()
        importlib.import_module(uvicorn_parts.SMALL_MODULE)  # as an application is imported
    gather_code(codes, _WORKERS_OWN)
    for _ in range(_ROUNDS):
        _run_once()
    keep_fds(descriptors() - before)


def prefork_run_again() -> None:
    """Run once more after an import, whose objects have taken the memory that the first run had warmed up.

    Measured: a tenth of the pages that a worker copies until it is ready. Nothing is raised: if the application has
    changed uvicorn, its workers show the effect.
    """
    with contextlib.suppress(Exception):
        _run_once()


def _run_once() -> None:
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        config = uvicorn.Config(_blank, log_config=None, access_log=False)
        config.load()
        omit_lifespan_lines(config)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve_one(config))
    finally:
        logging.disable(disabled)
    ours, theirs = wire.pair()
    with ours, theirs:
        ours.send(BEAT)
        answer(theirs, blank_page())


async def _serve_one(config: uvicorn.Config) -> None:
    release_zeros(asyncio.get_running_loop())
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")  # a name that the kernel chooses (unix(7), autobind)
        listener.listen()
        for sock in (listener, client):
            sock.setblocking(False)
        server = PoolServer(config, tally=blank_page())

        async def ask() -> None:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, listener.getsockname())
            await loop.sock_sendall(client, _PREFORK_REQUEST)
            while await loop.sock_recv(client, 4096):
                continue
            # A few milliseconds early, so that this code has run before the fork as well.
            if server.server_state.batch is not None:
                server.server_state.batch.write()
            server.stop()

        asking: list[asyncio.Task[None]] = []
        async with asyncio.timeout(_SECONDS):
            await server.run([listener], lambda: asking.append(asyncio.ensure_future(ask())))


async def _blank(
    scope: uvicorn_parts.Scope, receive: uvicorn_parts.Receive, send: uvicorn_parts.Send
) -> None:
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
