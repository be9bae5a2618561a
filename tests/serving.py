"""A PoolServer on a loop of the test's own, and a client that sees every byte and every end of file."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import pytest
import uvicorn

from poolctl.keeper import connection_handover, wire
from poolctl.worker import tally
from poolctl.worker.serving.accepting import AdoptionPair
from poolctl.worker.serving.pool_server import PoolServer
from tests.asgi_apps import lifespan


def blank_page() -> memoryview:
    """A page for a worker's counts that no other process reads."""
    return memoryview(bytearray(tally.SIZE_BYTES)).cast("Q")


class Engine(NamedTuple):
    """Which event loop and which HTTP parser of uvicorn's serve."""

    loop: str
    http: str

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work` on a loop of this kind."""
        factory = uvicorn.Config("", loop=self.loop).get_loop_factory()  # type: ignore[arg-type]
        with asyncio.Runner(loop_factory=factory) as runner:
            try:
                return runner.run(asyncio.wait_for(work, 60))
            finally:
                runner.run(_hang_up())


# The engines without and with extras.
PLAIN, FAST = Engine("asyncio", "h11"), Engine("uvloop", "httptools")
# A test with an engine runs on its loop.
TWO_ENGINES: list[Any] = [pytest.param(each, marks=pytest.mark.loop(run=each.run)) for each in (PLAIN, FAST)]
# Further engines show behaviour that depends on one loop or one parser.
ENGINES: list[Any] = [
    *TWO_ENGINES,
    *(
        pytest.param(each, marks=(pytest.mark.loop(run=each.run), pytest.mark.slow))
        for each in (Engine("asyncio", "httptools"), Engine("uvloop", "h11"))
    ),
]


class App:
    """Answers `/` at once and `/slow` when `release` is set; records what happened."""

    def __init__(self) -> None:
        self.under_way = asyncio.Event()
        self.release = asyncio.Event()
        self.events: list[str] = []
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, self._recorded(send))
            return
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            self.under_way.set()
            while (message := await receive())["type"] != "websocket.disconnect":
                continue
            self.events.append(f"disconnect {message['code']}")
            return
        if scope["path"] == "/slow":
            self.under_way.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.events.append("cancelled")
                raise
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]},
        )
        await send({"type": "http.response.body", "body": b"ok"})

    def _recorded(self, send: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        async def record(message: Any) -> None:
            self.events.append(message["type"])
            await send(message)

        return record


async def until(condition: Callable[[], Any]) -> None:
    """Return when it is true; fails the test when it is not within 30 seconds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count: int = 50) -> None:
    """So many turns of the loop: what has been sent by now is read, and what follows from it at once has happened."""
    for _ in range(count):
        await asyncio.sleep(0)


async def leaving(server: PoolServer) -> None:
    """Return when the connections have been told of a drain or a stop."""
    server_state = server.server_state
    await until(lambda: server_state.draining or server_state.moves_to is not None)
    await turns()


class Served(NamedTuple):
    server: PoolServer
    app: Any
    port: int
    running: asyncio.Task[None]


def listener(where: int | str = 0) -> socket.socket:
    """As the pool makes them: not blocking, on a port (0: of the kernel's choice) or a path, TCP_NODELAY."""
    if isinstance(where, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(where)
        sock.listen()
        sock.setblocking(False)
        return sock
    sock = socket.create_server(("127.0.0.1", where))
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextlib.asynccontextmanager
async def served(
    engine: Engine,
    app: Any = None,
    *,
    config: Any = None,
    secure: ssl.SSLContext | None = None,
    listening: int | str = 0,
    **options: Any,
) -> AsyncIterator[Served]:
    """A server that is ready; ended at the end, however the test left it."""
    app = app or App()
    settings = {"http": engine.http, "loop": engine.loop, "log_config": None, "ws": "websockets-sansio"}
    made = uvicorn.Config(app, **settings | (config or {}))
    if secure is not None:
        made.load()
        made.ssl = secure
    server = PoolServer(made, **{"drain_seconds": 30.0, "stop_seconds": 10.0} | options)
    ready = asyncio.Event()
    with listener(listening) as sock:
        running = asyncio.ensure_future(server.run([sock], ready.set))
        waiting = asyncio.ensure_future(ready.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            waiting.cancel()
            running.result()
        try:
            port = sock.getsockname()[1] if isinstance(listening, int) else 0
            yield Served(server, app, port, running)
        finally:
            server.stop()
            with contextlib.suppress(BaseException):
                await asyncio.wait_for(running, 5)


_clients: list[Client] = []


async def _hang_up() -> None:
    for client in _clients:
        client.writer.close()
        with contextlib.suppress(Exception):
            await client.writer.wait_closed()
    _clients.clear()


class Client:
    """One connection; closed when the loop ends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        _clients.append(self)

    @classmethod
    async def connect(cls, port: int, secure: ssl.SSLContext | None = None) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=secure))

    async def send(self, path: str = "/", *headers: str) -> None:
        lines = [f"GET {path} HTTP/1.1", "host: test", *headers, "", ""]
        self.writer.write("\r\n".join(lines).encode())
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with names in lower case, and body of the next response."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, body

    async def get(self, path: str = "/", *headers: str) -> tuple[int, dict[str, str], bytes]:
        await self.send(path, *headers)
        return await self.answer()

    async def at_end(self) -> bool:
        """Whether the server closes the connection without another byte."""
        return await self.reader.read(1) == b""

    async def stays_open(self, seconds: float) -> bool:
        """Whether nothing at all arrives for so long."""
        try:
            await asyncio.wait_for(self.reader.read(1), seconds)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self.writer.close()


class Wire(asyncio.Transport):
    """A transport whose client has sent nothing that is unread."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"socket": sock, "sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 9)})
        self._loop = loop
        self.protocol: Any = None
        self.written = b""
        self.writes: list[bytes] = []  # each with more than nothing
        self.buffered = 0
        self.looked_at: list[float] = []  # when it was asked how much is in its buffer
        self.closed = self.aborted = self.at_eof = False
        self.reading = True
        self.pauses = 0

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data
        if data:
            self.writes.append(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.at_eof = True

    def get_write_buffer_size(self) -> int:
        self.looked_at.append(self._loop.time())
        return self.buffered

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False
        self.pauses += 1

    def resume_reading(self) -> None:
        self.reading = True


class Pair:
    """Both ends of an adoption pair, not blocking, as all workers of a server have them."""

    def __init__(self) -> None:
        self.give, self.take = wire.pair()
        self.give.setblocking(False)
        self.take.setblocking(False)
        self._made: list[AdoptionPair] = []

    def worker(self) -> AdoptionPair:
        """One worker's own descriptors of the pair."""
        give, take = (socket.socket(fileno=os.dup(end.fileno())) for end in (self.give, self.take))
        self._made.append(AdoptionPair(give, take))
        return self._made[-1]

    def hand_over(self, sock: socket.socket, until: float | None = None, *, asked: bool = False) -> None:
        with sock:
            limits = {} if until is None else {"until": until, "asked": asked}
            connection_handover.send_connection(self.give, sock.fileno(), limits)

    def fill(self) -> int:
        """Put messages into the pair until it takes no more; returns how many."""
        count = 0
        with socket.socket() as filler, contextlib.suppress(BlockingIOError):
            while True:
                wire.send(self.give, {"t": "filler"}, [filler.fileno()])
                count += 1
        return count

    def empty(self, count: int) -> None:
        """Take so many of these messages out."""
        for _ in range(count):
            received = wire.receive(self.take)
            assert received is not None
            os.close(received[1][0])

    def close(self) -> None:
        for end in (*itertools.chain(*self._made), self.give, self.take):
            end.close()


class Seat:
    """One worker's view of a page that all hold in this process; like PeerCounts, whose locks belong to a process."""

    announced_until = 0.0

    def __init__(self, page: dict[Seat, int | None], *, announced: bool = False) -> None:
        self.page = page
        self.always_announced = announced
        page[self] = None
        self.alone = False
        self.websockets = 0

    def publish(self, connections: int | None, websockets: int = 0) -> None:
        self.page[self] = connections
        self.websockets = websockets

    def others_websockets(self) -> list[int]:
        return [
            seat.websockets for seat, count in self.page.items() if seat is not self and count is not None
        ]

    def others(self) -> list[int]:
        return [count for seat, count in self.page.items() if seat is not self and count is not None]

    def announce_handover(self) -> None:
        Seat.announced_until = time.monotonic() + 0.05

    @property
    def handover_announced(self) -> bool:
        return self.always_announced or time.monotonic() < Seat.announced_until

    def close(self) -> None:
        self.page.pop(self, None)


async def accepted() -> tuple[Client, socket.socket]:
    """A client, and the other end of its connection, which nobody serves yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = await Client.connect(listener.getsockname()[1])
        sock, _ = listener.accept()
        return client, sock
