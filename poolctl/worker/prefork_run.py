"""Runs a whole worker in the zygote, before the first fork: it starts, serves a few requests and stops.

The interpreter writes into the code that it runs (specialised bytecode, caches, imports of the first request). Pages
that are written before the fork are shared by all workers. Measured: a third of the time and a seventh of the memory
of each. No loop and no thread is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, TextIO

import uvicorn

from ..keeper import wire
from .control_socket import BEAT, answer
from .kept_fds import descriptors, keep_fds
from .serving.pool_server import PoolServer
from .tally import blank_page

_REQUEST = b"GET / HTTP/1.1\r\nhost: prefork\r\nconnection: close\r\n\r\n"
# Enough for the interpreter to have specialised the code, so that it writes into it no more.
_ROUNDS = 8
_SECONDS = 2.0  # the limit, in case an application has changed parts of uvicorn


def prefork_run() -> None:
    """Serve a few requests with an empty application, on a socket that no other process can reach."""
    before = descriptors()
    with open(os.devnull, "w") as nowhere, _logging_to(nowhere):
        for _ in range(_ROUNDS):
            _run_once()
    keep_fds(descriptors() - before)


def prefork_run_again() -> None:
    """Run once more after an import, whose objects have taken the memory that the first run had warmed up.

    Measured: a tenth of the pages that a worker copies until it is ready. Nothing is logged or raised: if the
    application has changed uvicorn, its workers show the effect.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.suppress(Exception):
            _run_once()
    finally:
        logging.disable(disabled)


def _run_once() -> None:
    config = uvicorn.Config(_blank, log_config=None)
    config.load()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve_one(config))
    _answer_a_heartbeat()


def _answer_a_heartbeat() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        ours.send(BEAT)
        answer(theirs, blank_page())


@contextlib.contextmanager
def _logging_to(stream: TextIO) -> Iterator[None]:
    names = ("uvicorn", "uvicorn.access")
    handlers = [each for name in names for each in logging.getLogger(name).handlers]
    streams = [each for each in handlers if isinstance(each, logging.StreamHandler)]
    before = [each.setStream(stream) for each in streams]
    try:
        yield
    finally:
        for each, original in zip(streams, before, strict=True):
            each.setStream(original)


async def _serve_one(config: uvicorn.Config) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")  # a name that the kernel chooses (unix(7), autobind)
        listener.listen()
        for sock in (listener, client):
            sock.setblocking(False)
        server = PoolServer(config, tally=blank_page())

        async def ask() -> None:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, listener.getsockname())
            await loop.sock_sendall(client, _REQUEST)
            while await loop.sock_recv(client, 4096):
                continue
            # A few milliseconds early, so that this code has run before the fork as well.
            if server.server_state.batch is not None:
                server.server_state.batch.write()
            server.stop()

        asking: list[asyncio.Task[None]] = []
        async with asyncio.timeout(_SECONDS):
            await server.run([listener], lambda: asking.append(asyncio.ensure_future(ask())))


async def _blank(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
