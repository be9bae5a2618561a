"""A worker's whole run in the zygote, before the first fork: it starts, serves a few requests and stops.

The interpreter writes into the code it runs (specialised bytecode, caches, imports of the first request); written
before the fork, those pages are shared by all workers. Measured: a third of the time and a seventh of the memory of
each. No loop and no thread of it is left.
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
# So often that the interpreter has specialised what it runs, and writes into it no more.
_ROUNDS = 8
_SECONDS = 2.0  # in which it is over, unless an application has changed what it is made of


def prefork_run() -> None:
    """Serve a few requests of a blank application on a socket that nobody else can reach."""
    before = descriptors()
    with open(os.devnull, "w") as nowhere, _logging_to(nowhere):
        for _ in range(_ROUNDS):
            _live_once()
    keep_fds(descriptors() - before)


def prefork_run_again() -> None:
    """Run once more, after an import, whose objects have taken the memory that the first run had warmed up.

    Measured: a tenth of the pages that a worker copies until it is ready. Nothing is logged, nothing raised: what the
    application has made of uvicorn is its workers' concern.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.suppress(Exception):
            _live_once()
    finally:
        logging.disable(disabled)


def _live_once() -> None:
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
            # A few milliseconds early: what a worker runs after a request, it is to have run before.
            if server.accounts.batch is not None:
                server.accounts.batch.write()
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
