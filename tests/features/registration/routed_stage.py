"""Backends over real loopback sockets, and requests that take the route table in force, as HAProxy has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from poolctl.routing.route_table import RouteTable
from tests.asyncio_server import hang_up, start_server

# The limit of every wait in a test, much longer than any of them needs.
DEADLINE = 60.0
# Turns of the loop until a connection that it has accepted is known here.
Script = Callable[["Backend", "Wire"], Awaitable[None]]


class Wire:
    """One end of a connection, read and written as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), DEADLINE)

    async def head(self) -> bytes:
        """A message's head, with its empty line."""
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), DEADLINE)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        return await asyncio.wait_for(self.reader.read(), DEADLINE)


class Backend:
    """A server that runs its script for every connection. `connections` counts them."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.url = ""
        self._server: asyncio.Server

    async def start(self) -> Backend:
        self._server = await start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self.script(self, Wire(reader, writer))
        writer.close()

    async def aclose(self) -> None:
        await hang_up(self._server)


class Stage:
    """The route table in force, and backends."""

    def __init__(self) -> None:
        self.table: RouteTable | None = None
        self._backends: list[Backend] = []

    async def backend(self, script: Script) -> Backend:
        self._backends.append(await Backend(script).start())
        return self._backends[-1]

    async def ask(self, path: str) -> bytes:
        """The status of the answer to a request; with the body if it is "hello"."""
        route = None if self.table is None else self.table.find("x", path)
        if route is None or not route.to:
            return b"404" if route is None else b"503"
        host, _, port = route.to[0].url.partition("://")[2].rpartition(":")
        wire = Wire(*await asyncio.open_connection(host, int(port)))
        try:
            await wire.send(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode())
            head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        finally:
            wire.writer.close()
        return head.split()[1] + (b" " + body if body == b"hello" else b"")

    async def aclose(self) -> None:
        for each in self._backends:
            await each.aclose()


def play(work: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    """Run the test with a stage of its own."""

    async def run() -> None:
        stage = Stage()
        try:
            await asyncio.wait_for(work(stage), DEADLINE)
        finally:
            await stage.aclose()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for each in others:
                each.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    asyncio.run(run())
