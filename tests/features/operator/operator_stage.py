"""An operator in this process, which answers as its script says, and a loop whose time a test moves forward."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any

from poolctl.features.operator.client import OperatorClient, OperatorSettings
from tests.asyncio_server import hang_up, start_server
from tests.deadline import until

DEADLINE = 30.0
OK, REFUSE, RESET, GARBAGE, HANG, HALF = "200", "500", "reset", "garbage", "hang", "half"
# The wire form of KubeElasti's operator.
ANSWER = b'{"message":"Request received successfully!"}'
MODES = {
    OK: b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(ANSWER), ANSWER),
    REFUSE: b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    GARBAGE: b"220 mail.example.com ESMTP\r\n",
    HALF: b"HTTP/1.1 200 O",
}


class MovedLoop(asyncio.SelectorEventLoop):
    """Its time passes as usual, and by leaps. Sockets are real."""

    moved_seconds = 0.0

    def time(self) -> float:
        return time.monotonic() + self.moved_seconds

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self.run_until_complete(self._whole(work))
        finally:
            self.close()

    async def _whole(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)  # requests that were cancelled
            for _ in range(3):  # iterations of the loop in which closed connections end
                await asyncio.sleep(0)


class Operator:
    """`mode` is how it treats the next requests; `received` are the bodies of those that it has read."""

    def __init__(self) -> None:
        self.mode = OK
        self.heads: list[bytes] = []
        self.received: list[dict[str, Any]] = []
        self.confirmed: dict[str, int] = {}
        self.now = self.most = 0  # concurrent requests, now and at most
        self.changed = asyncio.Condition()
        self.release = asyncio.Event()
        self.conversations: set[asyncio.Task[None] | None] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def serving(self, path: str = "", **more: Any) -> AsyncIterator[Operator]:
        if path:
            server: asyncio.Server = await start_server(self._serve, path)
        else:
            server = await start_server(self._serve, "127.0.0.1", 0, **more)
            self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.release.set()
            await asyncio.gather(*filter(None, self.conversations))
            await hang_up(server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.conversations.add(asyncio.current_task())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._converse(reader, writer)
        finally:
            self.now -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.conversations.discard(asyncio.current_task())

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body, mode = json.loads(await reader.readexactly(size)), self.mode
        self.heads.append(head)
        self.received.append(body)
        if mode == OK:
            service = body["svc"]
            self.confirmed[service] = self.confirmed.get(service, 0) + body["count"]
        async with self.changed:
            self.changed.notify_all()
        if mode == HANG:
            await self.release.wait()
        elif mode == RESET:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
        else:
            writer.write(MODES[mode])
            await writer.drain()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds, which requests to this operator bring about."""
        async with self.changed, asyncio.timeout(DEADLINE):
            await self.changed.wait_for(condition)


class Client:
    """An OperatorClient with its reports; `settle` waits for a state of it."""

    def __init__(self, operator: Operator, directory: str = "", **settings: Any) -> None:
        self.reports: list[tuple[str, str, str]] = []
        self._operator = operator
        made = OperatorSettings(**{"url": operator.url, "namespace": "shop", **settings})
        self.client = OperatorClient(
            made, directory, report=lambda *report: self.reports.append(report), random=Random(1)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.reports]

    async def settle(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Return when the condition holds of the client's snapshot."""
        await until(lambda: condition(self.client.snapshot()))

    async def idle(self) -> None:
        """Return when no request is in progress: the test's task and those of the operator are the only ones."""
        await self.settle(
            lambda _: asyncio.all_tasks() <= {asyncio.current_task(), *self._operator.conversations}
        )

    async def delivered(self, count: int) -> None:
        await self.settle(lambda state: state["delivered"] == count)

    async def failed(self, service: str) -> None:
        """Return when the latest report of the service has failed."""
        await self.settle(lambda state: service in state["failing"])
        await self.idle()


async def move(seconds: float) -> None:
    """Let so much time pass at once."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, MovedLoop)
    loop.moved_seconds += seconds
    await asyncio.sleep(0)
