"""A uvicorn server on listeners that the supervisor holds too, controlled by messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from typing import Any

import uvicorn

from poolctl.keeper import wire
from poolctl.logs.internal import InternalLog
from poolctl.runners.link import Link
from poolctl.runners.local.resources.process_watchdog import PING

from .accepting import Acceptor
from .app import make_app
from .certificates import context_of, keep_current
from .connections import Connection
from .orphan import Orphan
from .settings import Settings

# Streams never end by themselves.
_LAST_SECONDS = 1


class Server:
    """Serves from `begin` (with the listeners) to `end` or SIGTERM, or until no process is left to send these."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def run(self) -> None:
        """Return when it is over."""
        self._over = asyncio.Event()
        self._messages: asyncio.Future[tuple[dict[str, Any], list[int]]] = (
            asyncio.get_running_loop().create_future()
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._over.set)
        self._lost = asyncio.Event()
        link = self._link = Link(self._sock, self._on_message, self._lost.set)
        if await self._begins():
            message, fds = self._messages.result()
            sockets = [socket.socket(fileno=fd) for fd in fds]
            settings = Settings(**message["settings"])
            log = InternalLog(os.path.join(message["directory"], "dashboard.log"))
            logging.basicConfig(handlers=[log], level=logging.WARNING)
            made = config(settings, self._over)
            server = Quiet(made, self._over)
            serving = asyncio.ensure_future(server.serve(sockets))
            serving.add_done_callback(lambda _: self._over.set())
            link.send({"t": "up"})
            beside = [asyncio.ensure_future(self._outlive(message, sockets))]
            if settings.tls:
                beside.append(asyncio.ensure_future(keep_current(made.ssl, settings.tls)))
            await serving
            for task in beside:
                task.cancel()
        link.close()

    async def _begins(self) -> bool:
        """Whether `begin` arrives before the end."""
        others = [asyncio.ensure_future(event.wait()) for event in (self._over, self._lost)]
        waiting: set[asyncio.Future[Any]] = {self._messages, *others}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        return self._messages.done()

    async def _outlive(self, message: dict[str, Any], sockets: list[socket.socket]) -> None:
        """Keep serving without keeper and supervisor, until a new pool has taken the listener over."""
        await self._lost.wait()
        if not self._over.is_set():
            await Orphan(message["directory"], message["bind"], sockets).taken()
            self._over.set()

    def _on_message(self, message: wire.Message, fds: list[int]) -> None:
        if message.get("t") == "begin" and not self._messages.done():
            self._messages.set_result((message, fds))
        elif message == PING:
            self._link.send({"t": "pong", "pid": os.getpid()})
        elif message.get("t") == "end":
            self._over.set()


class Quiet(uvicorn.Server):
    """Waits for the end without waking up, where uvicorn polls ten times a second."""

    def __init__(self, config: uvicorn.Config, over: asyncio.Event) -> None:
        super().__init__(config)
        self._over = over

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server, which bounds neither handshakes nor connections."""

        def connection() -> asyncio.Protocol:
            return Connection(self.config, self.server_state, {})

        # A listener that was shut down means that the dashboard ends; the order to stop follows.
        acceptors = [Acceptor(sock, connection, self.config.ssl, self._over.set) for sock in sockets or ()]
        self.servers = acceptors  # type: ignore[assignment]
        self.started = True

    async def main_loop(self) -> None:
        await self._over.wait()

    def capture_signals(self) -> Any:
        """Nothing: the owner of this server handles signals."""
        return contextlib.nullcontext()


def config(settings: Settings, over: asyncio.Event) -> uvicorn.Config:
    """The page's uvicorn configuration; streams end when `over` is set. Raises OSError for an unusable certificate."""
    made = uvicorn.Config(
        make_app(settings, over),
        http=Connection,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        date_header=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_LAST_SECONDS,
        h11_max_incomplete_event_size=32 * 1024,
    )
    made.load()
    if settings.tls:
        made.ssl = context_of(settings.tls)
    return made
