"""What all sites have in common: their way to the supervisor, and errors."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from poolctl.control.answers import Result
from poolctl.control.control_server import ControlServer, Request
from poolctl.supervisor.launch import listen
from poolctl.web.site import SupervisorClient
from tests.unit.web.greeter import Greeter
from tests.virtual_loop import VirtualLoop


class Supervisor:
    """Answers each verb with `result`, and remembers the requests."""

    def __init__(self, listener: socket.socket) -> None:
        self.asked: list[Request] = []
        self.dies = False
        self.server = ControlServer(self._handle)
        self.server.replace_listener(listener)

    async def _handle(self, request: Request, progress: Any) -> object:
        self.asked.append(request)
        if self.dies:
            raise ConnectionAbortedError
        return Result(exit_code=4)


async def test_request_reaches_the_supervisor_with_its_options_and_the_address_of_the_client(
    short_path: Path,
) -> None:
    path = str(short_path / "control.sock")
    supervisor = Supervisor(listen(path))
    result = await SupervisorClient(path).ask("greet", {"word": "hello"}, "10.0.0.9")
    assert result["exit_code"] == 4
    (request,) = supervisor.asked
    assert (request.verb, request.uid) == ("greet", os.geteuid())
    assert request.body == {"options": {"word": "hello"}, "by": {"address": "10.0.0.9"}}
    await supervisor.server.close()


async def test_request_waits_for_the_next_supervisor(short_path: Path) -> None:
    path = str(short_path / "control.sock")
    listener = listen(path)  # the keeper holds it
    first = Supervisor(listener.dup())
    first.dies = True
    asking = asyncio.ensure_future(SupervisorClient(path).ask("greet", {}))
    async with asyncio.timeout(60):
        while not first.asked:
            await asyncio.sleep(0.001)
        await first.server.close()
        waiting = asyncio.ensure_future(SupervisorClient(path).ask("greet", {}))
        await asyncio.sleep(0.01)
        assert not asking.done()
        successor = Supervisor(listener.dup())
        assert [each["exit_code"] for each in await asyncio.gather(asking, waiting)] == [4, 4]
    await successor.server.close()
    listener.close()


def test_request_is_given_up_when_no_supervisor_comes_for_30_seconds(short_path: Path) -> None:
    asking = SupervisorClient(str(short_path / "control.sock")).ask("greet", {})
    with closing(VirtualLoop()) as loop:
        with pytest.raises(TimeoutError):
            loop.run_until_complete(asking)
        assert 30 <= loop.time() < 31


async def test_request_of_a_client_that_has_left_is_refused() -> None:
    site = Greeter(SupervisorClient("/nowhere"))
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "state": {"peer": None}}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await site.app(scope, receive, send)
    assert (sent[0]["status"], sent[1]["body"]) == (400, b"the client has left\n")
