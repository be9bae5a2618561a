"""A kept connection closes when it has been quiet since its last response."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from poolctl.worker.serving.accepting import protocol_factory
from poolctl.worker.serving.connection_state import PoolServerState
from poolctl.worker.serving.pool_server import connection_class
from tests.asgi_apps import hello
from tests.virtual_loop import VirtualLoop

pytest.importorskip("httptools")

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport whose client has sent nothing that is unread."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock, "sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 9)})
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def resume_reading(self) -> None:
        """There is nothing to read."""


class Kept:
    """A connection on a loop whose time passes at once."""

    def __init__(self, sock: socket.socket) -> None:
        self.loop = VirtualLoop()
        self.wire = Wire(sock)
        config = uvicorn.Config(hello, http="httptools", timeout_keep_alive=75, log_config=None)
        config.load()
        config.http_protocol_class = connection_class(config.http_protocol_class)  # type: ignore[arg-type]
        self.loop.run_until_complete(self._connect(config))

    async def _connect(self, config: uvicorn.Config) -> None:
        self.protocol: Any = protocol_factory(config, PoolServerState(), {})()
        self.protocol.connection_made(self.wire)

    def ask(self, data: bytes = REQUEST) -> None:
        self.loop.call_soon(self.protocol.data_received, data)
        self.loop.pass_time()

    @property
    def timer(self) -> asyncio.TimerHandle | None:
        timer: asyncio.TimerHandle | None = self.protocol.timeout_keep_alive_task
        return timer

    def close(self) -> None:
        self.protocol.connection_lost(None)
        self.loop.pass_time(1)
        self.loop.close()


@pytest.fixture
def kept() -> Iterator[Kept]:
    ours, clients = socket.socketpair()
    made = Kept(ours)
    yield made
    made.close()
    ours.close()
    clients.close()


def test_connection_closes_when_the_last_response_is_as_old_as_the_timeout(kept: Kept) -> None:
    kept.ask()
    kept.loop.pass_time(50)
    kept.ask()
    kept.loop.pass_time(74)
    assert not kept.wire.closed
    kept.loop.pass_time(2)
    assert kept.wire.closed


def test_lingering_connection_closes_sooner(kept: Kept) -> None:
    kept.ask()
    kept.protocol.linger()
    kept.loop.pass_time(1)
    assert not kept.wire.closed
    kept.loop.pass_time(2)
    assert kept.wire.closed


def test_connection_that_stays_has_its_full_time_again(kept: Kept) -> None:
    kept.ask()
    kept.protocol.linger()
    kept.protocol.stay()
    kept.loop.pass_time(74)
    assert not kept.wire.closed


def test_incomplete_head_is_not_cut_by_the_timer(kept: Kept) -> None:
    kept.ask()
    kept.loop.pass_time(74)
    kept.ask(REQUEST[:10])
    kept.loop.pass_time(2)
    assert not kept.wire.closed
    assert kept.timer is None
    kept.ask(REQUEST[10:])
    assert kept.wire.written.count(b"HTTP/1.1 200") == 2
    assert kept.timer is not None


def test_lost_connection_leaves_no_timer(kept: Kept) -> None:
    kept.ask()
    kept.protocol.connection_lost(OSError())
    assert kept.timer is None
