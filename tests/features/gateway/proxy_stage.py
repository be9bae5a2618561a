"""A proxy in this process: clients and scripted backends over real loopback sockets."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvloop

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostStates
from poolctl.features.gateway.process.counts import TrafficCounts
from poolctl.features.gateway.process.descriptor_limit import lowest_free
from poolctl.features.gateway.process.edge import GatewayState
from poolctl.features.gateway.process.proxy.connection_pool import ProxyConnections
from poolctl.features.gateway.process.proxy.serving import start_serving, start_serving_tls
from poolctl.features.gateway.process.settings import GatewaySettings
from poolctl.routing.route import Route, Target, Timeouts
from poolctl.routing.route_table import RouteTable, write_table

# The limit of every wait in a test, much longer than any of them needs.
DEADLINE = 60.0
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

    async def exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), DEADLINE)

    async def until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), DEADLINE)

    async def some(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(65536), DEADLINE)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        return await asyncio.wait_for(self.reader.read(), DEADLINE)

    async def response(self) -> tuple[bytes, bytes]:
        """The head and the body of a response with a Content-Length, or in chunks."""
        head = await self.head()
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            return head, await self.chunks()
        at = lower.find(b"content-length:")
        return head, await self.exactly(int(lower[at + 15 :].split(b"\r\n")[0])) if at >= 0 else b""

    async def chunks(self) -> bytes:
        body = b""
        while size := int(await self.until(b"\r\n"), 16):
            body += (await self.exactly(size + 2))[:-2]
        while await self.until(b"\r\n") != b"\r\n":
            pass
        return body

    def eof(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """End the connection with a reset."""
        sock = self.writer.get_extra_info("socket")
        with suppress(AttributeError, OSError):  # the connection is already closed
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


class Backend:
    """A server that runs its script for every connection. `connections` counts them, `heads` are those it was sent."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.heads: list[bytes] = []
        self.url = ""
        self._server: asyncio.AbstractServer
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, path: str = "", context: ssl.SSLContext | None = None) -> Backend:
        if path:
            self._server = await asyncio.start_unix_server(self._connected, path, ssl=context)
            self.url = f"unix:{path}"
        else:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=context)
            port = self._server.sockets[0].getsockname()[1]
            self.url = f"{'https' if context else 'http'}://{'localhost' if context else '127.0.0.1'}:{port}"
        return self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        wire = Wire(reader, writer)
        # uvloop raises RuntimeError for a write to a closed connection.
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, RuntimeError):
            try:
                await self.script(self, wire)
            finally:
                writer.close()

    async def request(self, wire: Wire) -> bytes:
        """The next request's head, which is kept."""
        head = await wire.head()
        self.heads.append(head)
        return head

    def close(self) -> None:
        self._server.close()


class Stage:
    """A gateway's edge with routes to backends, made and ended within one loop."""

    def __init__(self, **settings: Any) -> None:
        given = GatewaySettings(**{"directory": "/", **settings})
        self.edge = GatewayState(given, lambda kind, data: None)
        self.edge.configure(given)
        self.edge.hosts = HostStates(self.edge.now)
        self.edge.counts = TrafficCounts()
        self.edge.backends = Backends(self.edge.hosts, self.edge.now, None, self.edge.counts)
        self.edge.pool = ProxyConnections()
        self._backends: list[Backend] = []
        self._wires: list[Wire] = []

    async def backend(self, script: Script, path: str = "", context: ssl.SSLContext | None = None) -> Backend:
        backend = await Backend(script).start(path, context)
        self._backends.append(backend)
        return backend

    def routes(self, *routes: Route) -> None:
        fd = write_table(routes, 1)
        try:
            self.edge.table = RouteTable(fd)
        finally:
            os.close(fd)

    async def route(self, script: Script, **fields: Any) -> Backend:
        """A backend, and the only route, which leads to it."""
        backend = await self.backend(script)
        self.routes(route(backend, **fields))
        return backend

    async def client(
        self, received: bytes = b"", context: ssl.SSLContext | None = None, **client: Any
    ) -> Wire:
        ours, theirs = _pair()
        if context is None:
            start_serving(self.edge, theirs, received)
        else:
            start_serving_tls(self.edge, theirs, context)
        ours.setblocking(False)
        wire = Wire(*await asyncio.wait_for(asyncio.open_connection(sock=ours, **client), DEADLINE))
        self._wires.append(wire)
        return wire

    def close(self) -> None:
        for wire in self._wires:
            wire.close()
        for backend in self._backends:
            backend.close()
        self.edge.close()


def route(*backends: Backend, **fields: Any) -> Route:
    timeouts = Timeouts(**{"connect": 10.0, "head": 10.0, "idle": 10.0, **fields.pop("timeouts", {})})
    targets = tuple(Target(url=each.url) for each in backends)
    return Route(**{"alias": "app", "to": targets, "timeouts": timeouts, **fields})


def play(
    scene: Callable[[Any], Coroutine[Any, Any, None]], make: type[Stage] = Stage, **settings: Any
) -> None:
    """Run it with a stage; an exception that the loop reports fails the test."""
    reported: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        stage = make(**settings)
        try:
            async with asyncio.timeout(60):
                await scene(stage)
        finally:
            stage.close()
            for _ in range(5):
                await asyncio.sleep(0)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            for _ in range(5):  # iterations of the loop in which closed connections end
                await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    assert not reported, reported


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection: the client's and the accepted one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


@contextmanager
def no_descriptors_left() -> Iterator[list[int]]:
    """The descriptors that take up all that are left."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free() + 1, limits[1]))
    held: list[int] = []
    try:
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            yield held
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in held:
            os.close(fd)


async def ok(backend: Backend, wire: Wire) -> None:
    """Answer every request with "hello"."""
    while True:
        await backend.request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\nhello")
