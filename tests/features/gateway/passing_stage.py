"""A gateway's listener in this process: clients connect to it, and tests take what it passes out of servers' pairs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

from poolctl.features.gateway.process.acceptor import Acceptor, ReturnedConnectionReceiver
from poolctl.features.gateway.process.passing import ConnectionSender
from poolctl.features.gateway.process.settings import ListenerSettings, ServerFacts
from poolctl.features.gateway.process.tls import CertificatesByListener
from poolctl.keeper import connection_handover, wire
from poolctl.keeper.connection_handover import Connection, Routed
from poolctl.routing.route import Route, Target
from tests.features.gateway import proxy_stage
from tests.features.gateway.proxy_stage import DEADLINE

# Serves these routes with settings of [gateway] and files in a directory; yields the port.
Serve = Callable[..., AbstractAsyncContextManager[int]]
HEAD = b"GET /v1 HTTP/1.1\r\nHost: users.example.com\r\n\r\n"


async def until(true: Callable[[], Any]) -> Any:
    """What the condition gives once it is true."""
    async with asyncio.timeout(DEADLINE):
        while not (found := true()):
            await asyncio.sleep(0.001)
        return found


class Pair:
    """The adoption pair of a server, with what a worker does with it."""

    def __init__(self) -> None:
        self.give, self._take = wire.pair()

    def take_now(self) -> Connection | None:
        """The next connection, None if there is none now."""
        try:
            return connection_handover.receive_connection(self._take)
        except BlockingIOError:
            return None

    async def take(self) -> Connection:
        taken: Connection = await until(self.take_now)
        return taken

    def fill(self) -> int:
        """Put in as much as there is room for; how many that were."""
        count = 0
        with socket.socket() as sock:
            try:
                while True:
                    wire.send(self.give, {"t": "none"}, [sock.fileno()])
                    count += 1
            except BlockingIOError:
                return count

    def empty(self) -> None:
        """Take and drop everything."""
        try:
            while received := wire.receive(self._take):
                for fd in received[1]:
                    os.close(fd)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close the workers' end."""
        self._take.close()


class Stage(proxy_stage.Stage):
    """A gateway with a listener, and servers that take connections."""

    def __init__(self, *, tls: bool = False, accept_proxy: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.edge.event = lambda kind, **data: self.events.append((kind, data))  # type: ignore[method-assign]
        self.edge.passing = ConnectionSender(self.edge.event, self.edge.counts)
        self.edge.certificates = CertificatesByListener()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.acceptor = Acceptor(
            self.edge, self.listener, ListenerSettings(bind="127.0.0.1:0", tls=tls, accept_proxy=accept_proxy)
        )
        self.back, take_end = wire.pair()
        self._back_end = take_end
        self._returned_connections = ReturnedConnectionReceiver(self.edge, take_end)
        self._sockets: list[socket.socket] = [self.back, take_end, self.listener]

    def server(self, name: str, *, tls: bool = False) -> Pair:
        pair = Pair()
        self.edge.passing.set_pair(name, pair.give, tls=tls)
        self._sockets.append(pair._take)
        return pair

    def route_to(self, *servers: str, **fields: Any) -> None:
        """The only route, which leads to these servers."""
        self.routes(app_route(*servers, **fields))
        self.apply(*servers)

    def apply(self, *servers: str) -> None:
        facts = {name: ServerFacts(name=name, state="running", ready=True) for name in servers}
        self.edge.backends.apply(list(self.edge.table), facts)

    async def connect(self, data: bytes = b"") -> socket.socket:
        """A client's connection to the listener, on which it has sent this."""
        sock = socket.socket()
        sock.setblocking(False)
        self._sockets.append(sock)
        async with asyncio.timeout(DEADLINE):
            await self.edge.loop.sock_connect(sock, self.listener.getsockname())
            if data:
                await self.edge.loop.sock_sendall(sock, data)
        return sock

    async def read(self, sock: socket.socket) -> bytes:
        """Everything that a client gets, to the end of its connection."""
        data = b""
        async with asyncio.timeout(DEADLINE):
            while piece := await self.edge.loop.sock_recv(sock, 65536):
                data += piece
        return data

    async def read_head(self, sock: socket.socket) -> bytes:
        data = b""
        async with asyncio.timeout(DEADLINE):
            while b"\r\n\r\n" not in data:
                piece = await self.edge.loop.sock_recv(sock, 65536)
                assert piece, data
                data += piece
        return data

    def give_back(self, sock: socket.socket, received: bytes = b"", hops: int = 0) -> None:
        """What a worker does with a connection whose next request is another's."""
        connection_handover.send_connection(
            self.back, sock.fileno(), routed=Routed("app", 1, hops, received, decided=False)
        )

    @property
    def waiting(self) -> int:
        return len(self.edge.passing.waiting)

    def close(self) -> None:
        self.acceptor.stop_receiving()
        self._returned_connections.stop_receiving()
        self.edge.passing.close()
        for sock in self._sockets:
            sock.close()
        super().close()


def app_route(*servers: str, **fields: Any) -> Route:
    return Route(**{"alias": "app", "to": tuple(Target(server=name) for name in servers), **fields})


def play(scene: Callable[[Stage], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run it with a stage on the loop that the gateway uses."""
    proxy_stage.play(scene, Stage, **settings)


@asynccontextmanager
async def own_engine(directory: Path, routes: list[Route], **settings: Any) -> AsyncIterator[int]:
    """The port of a gateway with these routes."""
    with closing(Stage(**settings)) as stage:
        stage.routes(*routes)
        stage.apply()
        yield stage.listener.getsockname()[1]
