"""Requests to a URL whose machine is stopped: they wait for its start, which the supervisor is asked for."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from poolctl.features.gateway.process import machines
from poolctl.features.gateway.process.settings import MachineState
from poolctl.json_form import to_json
from poolctl.routing.route import Route, Target
from tests.features.gateway import proxy_stage
from tests.features.gateway.passing_stage import until
from tests.features.gateway.proxy_stage import Backend, Wire, ok

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Stage(proxy_stage.Stage):
    """A machine whose service has an address that nothing listens on yet. `asked` are the wakes for the supervisor."""

    def begin(self, **fields: Any) -> None:
        self._server: asyncio.AbstractServer | None = None
        self._reserved = socket.socket()
        self._reserved.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._reserved.getsockname()[1]}"
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.edge.wake = self._wake
        self.answers = self.reports = self.woken = 0
        self.routes(Route(alias="app", to=(Target(url=self.url),), **fields))

    def _wake(self, url: str) -> None:
        """Once for each report; the process does it once a second."""
        if self.woken != self.reports:
            self.woken = self.reports
            self.asked.put_nowait(url)

    def report(self, state: str, **fields: Any) -> None:
        self.reports += 1
        found = MachineState(**{"host": self.url, "state": state, "start_seconds": 60.0, **fields})
        self.edge.update_machine(to_json(replace(found, answers=self.answers)))

    def answer(self, state: str, **fields: Any) -> None:
        """Report it as the answer to a wake."""
        self.answers += 1
        self.report(state, **fields)

    async def listen(self) -> None:
        """The service accepts connections from now on."""
        self.service = Backend(ok)
        self._server = await asyncio.start_server(self.service._connected, sock=self._reserved.dup())

    async def ask(self, request: bytes = GET) -> Wire:
        wire = await self.client()
        await wire.send(request)
        return wire

    def close(self) -> None:
        super().close()
        self._reserved.close()
        if self._server is not None:
            self._server.close()


def play(steps: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    proxy_stage.play(steps, Stage)


def test_requests_wait_until_the_machine_runs_and_its_service_accepts() -> None:
    async def steps(stage: Stage) -> None:
        stage.begin()
        stage.report("stopped")
        wires = [await stage.ask() for _ in range(3)]
        assert await stage.asked.get() == stage.url
        # The time for connecting is the machine's.
        clients: set[Any] = stage.edge.pool.clients  # type: ignore[assignment]
        await until(lambda: [each._timer.deadline for each in clients] == 3 * [math.inf])
        stage.report("starting")
        stage.answer("running")
        await stage.listen()
        for wire in wires:
            assert await wire.response() == (
                b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\n",
                b"hello",
            )
        counts = stage.edge.counts.route("app")
        assert (counts.requests, counts.failures) == (3, 0)

    play(steps)


def test_machine_that_was_stopped_unseen_is_started_when_its_connection_fails() -> None:
    async def steps(stage: Stage) -> None:
        stage.begin()
        stage.report("running")
        wire = await stage.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        assert await stage.asked.get() == stage.url
        stage.report("starting")
        stage.answer("running")
        await stage.listen()
        assert (await wire.response())[1] == b"hello"
        assert stage.edge.counts.backend(stage.url).failures == 0

    play(steps)


@pytest.mark.parametrize("state", ["running", "unknown"])
def test_machine_that_runs_and_refuses_connections_is_a_failed_backend(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(machines, "_HOLDS_SECONDS", 3600.0)

    async def steps(stage: Stage) -> None:
        stage.begin()
        stage.report("running")
        wire = await stage.ask()
        await stage.asked.get()
        stage.answer(state)
        assert (await wire.response())[0].startswith(b"HTTP/1.1 502 ")
        # The answer holds for a moment: the next request does not wait for another one.
        assert (await (await stage.ask()).response())[0].startswith(b"HTTP/1.1 502 ")
        assert stage.asked.empty()
        assert stage.edge.counts.backend(stage.url).failures == 2

    play(steps)


def test_supervisor_that_does_not_answer_delays_the_failure_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_ANSWER_SECONDS", 0.05)

    async def steps(stage: Stage) -> None:
        stage.begin()
        stage.report("running")
        assert (await (await stage.ask()).response())[0].startswith(b"HTTP/1.1 502 ")

    play(steps)


def test_failed_start_is_refused_with_the_time_of_the_next_one() -> None:
    async def steps(stage: Stage) -> None:
        stage.begin()
        stage.report("stopped")
        wire = await stage.ask()
        await stage.asked.get()
        stage.answer("failed", why="the container 101 could not be started: no space", retry_seconds=30.0)
        head, _ = await wire.response()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 30\r\n" in head
        head, _ = await (await stage.ask()).response()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert stage.asked.empty()
        (host,) = stage.edge.backends.snapshot()
        assert (host["available"], host["why"]) == (False, "the container 101 could not be started: no space")
        # After that time the supervisor reports it as stopped again.
        stage.report("stopped")
        await stage.ask()
        assert await stage.asked.get() == stage.url

    play(steps)


@pytest.mark.parametrize("state", ["stopped", "starting", "running"])
def test_wait_is_bounded(state: str) -> None:
    async def steps(stage: Stage) -> None:
        stage.begin()
        stage.report("stopped", start_seconds=0.1)
        wire = await stage.ask()
        await stage.asked.get()
        if state != "stopped":
            stage.report(state, start_seconds=0.1)
        head, _ = await wire.response()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 5\r\n" in head

    play(steps)


def test_another_backend_is_preferred_to_one_whose_machine_is_stopped() -> None:
    async def steps(stage: Stage) -> None:
        stage.begin()
        other = await stage.backend(ok)
        stage.routes(Route(alias="app", to=(Target(url=stage.url), Target(url=other.url))))
        stage.report("stopped")
        for _ in range(4):
            assert (await (await stage.ask()).response())[1] == b"hello"
        assert stage.asked.empty()

    play(steps)


def test_idle_connections_into_a_stopped_machine_are_closed() -> None:
    async def steps(stage: Stage) -> None:
        stage.begin()
        await stage.listen()
        stage.report("running")
        assert (await (await stage.ask()).response())[1] == b"hello"
        stage.report("stopped")
        wire = await stage.ask()
        await stage.asked.get()
        stage.answer("running")
        assert (await wire.response())[1] == b"hello"
        assert stage.service.connections == 2

    play(steps)


def test_probes_and_browsers_are_answered_as_for_a_sleeping_server() -> None:
    async def steps(stage: Stage) -> None:
        stage.begin(probe_responses=("/health",), waiting_page=True)
        stage.report("stopped")
        head, body = await (await stage.ask(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")).response()
        assert (head.startswith(b"HTTP/1.1 200 "), body) == (True, b"sleeping\n")
        assert stage.asked.empty()
        head, body = await (
            await stage.ask(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n")
        ).response()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Starting" in body
        assert await stage.asked.get() == stage.url

    play(steps)


@pytest.mark.parametrize("drop", [True, False])
def test_machine_that_is_not_known_any_more_is_connected_to(drop: bool) -> None:
    async def steps(stage: Stage) -> None:
        stage.begin()
        stage.report("stopped")
        wire = await stage.ask()
        await stage.asked.get()
        await stage.listen()
        if drop:
            stage.report("")
        else:
            stage.edge.machines.clear()
        assert (await wire.response())[1] == b"hello"
        assert (await (await stage.ask()).response())[1] == b"hello"
        assert stage.asked.empty()

    play(steps)


def test_request_that_waits_has_the_machine_started_by_the_next_supervisor() -> None:
    async def steps(stage: Stage) -> None:
        stage.begin()
        stage.report("starting")
        wire = await stage.ask()
        assert await stage.asked.get() == stage.url
        stage.edge.machines.clear()
        stage.report("stopped")
        assert await stage.asked.get() == stage.url
        stage.answer("running")
        await stage.listen()
        assert (await wire.response())[1] == b"hello"

    play(steps)


def test_client_that_leaves_ends_its_wait() -> None:
    async def steps(stage: Stage) -> None:
        stage.begin()
        stage.report("stopped")
        wire = await stage.ask()
        await stage.asked.get()
        (host,) = stage.edge.backends.snapshot()
        assert host["in_flight"] == 1
        wire.reset()
        while host["in_flight"]:
            await asyncio.sleep(0.001)
            (host,) = stage.edge.backends.snapshot()

    play(steps)
