"""A process of the pool answers its supervisor, and ends with it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from poolctl.keeper import wire
from poolctl.runners.process_link import PING
from poolctl.runners.supervised_process import SupervisedProcess
from tests import descriptors


class Supervised(SupervisedProcess):
    """Records its orders."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.orders: list[wire.Message] = []
        self.events: list[str] = []

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        self.orders.append(message)
        for fd in fds:
            os.close(fd)

    def on_link_lost(self) -> None:
        self.events.append("lost")
        super().on_link_lost()

    async def end_service(self) -> None:
        await super().end_service()
        self.events.append("finished")


class Stage:
    """A process that runs in this loop, and the supervisor's end of its link."""

    def __init__(self) -> None:
        self.supervisor, theirs = wire.pair()
        self.process = Supervised(theirs.detach())
        self.running = asyncio.ensure_future(self.process.serve_supervisor())

    async def close(self) -> None:
        self.process.over.set()
        await self.running
        self.supervisor.close()


async def message(sock: socket.socket) -> tuple[wire.Message, list[int]] | None:
    """The next message on this socket; None at its end."""
    async with asyncio.timeout(30):
        while True:
            try:
                return wire.receive(sock)
            except BlockingIOError:
                await asyncio.sleep(0)
            except ConnectionError:
                return None


pytestmark = pytest.mark.loop(run=descriptors.run)


async def test_orders_are_performed_in_order_and_confirmed_until_the_process_is_ended() -> None:
    stage = Stage()
    wire.send(stage.supervisor, PING)
    assert await message(stage.supervisor) == ({"t": "pong"}, [])
    wire.send(stage.supervisor, {"t": "first"}, [stage.supervisor.fileno()])
    wire.send(stage.supervisor, {"t": "second"})
    wire.send(stage.supervisor, {"t": "performed", "id": 7})
    assert await message(stage.supervisor) == ({"t": "performed", "id": 7}, [])
    assert stage.process.orders == [{"t": "first"}, {"t": "second"}]
    assert not stage.running.done()
    wire.send(stage.supervisor, {"t": "end"})
    await asyncio.wait_for(stage.running, 30)
    assert stage.process.events == ["finished"]
    assert await message(stage.supervisor) is None
    await stage.close()


async def test_sigterm_ends_the_process_and_sigint_does_not() -> None:
    stage = Stage()
    wire.send(stage.supervisor, PING)
    await message(stage.supervisor)
    os.kill(os.getpid(), signal.SIGINT)
    wire.send(stage.supervisor, PING)
    assert await message(stage.supervisor) is not None
    assert not stage.running.done()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(stage.running, 30)
    await stage.close()


async def test_process_ends_with_keeper_and_supervisor() -> None:
    stage = Stage()
    stage.supervisor.close()
    await asyncio.wait_for(stage.running, 30)
    assert stage.process.events == ["lost", "finished"]
    await stage.close()
