"""Backends that fail, over real sockets: clients get the next backend or 503 with Retry-After, in bounded time.

Time is moved by hand: for breakers and hosts by the test, for timeouts by the backend that lets a request wait.
So a slow machine fails no request, and no test sleeps. A response that never came would end a test at the stage's own
deadline.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostStates
from poolctl.routing.route import BreakerRule, Route, Target, TrafficLimits
from tests.features.gateway.proxy_stage import DEADLINE, Backend, Stage, Wire, ok, play, route
from tests.manual_clock import ManualClock
from tests.ports import claim_port

pytestmark = pytest.mark.integration

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc"
OPEN_SECONDS = 60.0
BREAKER = BreakerRule(failures=2, rate=0.0, open_seconds=OPEN_SECONDS)
WAIT_SECONDS = 1000.0  # longer than any timeout of a request


class Failures(Stage):
    """A gateway whose breakers and hosts have a clock of their own, and that remembers its events."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.clock = ManualClock()
        self.events: list[tuple[str, str]] = []
        self.edge.hosts = HostStates(self.clock.monotonic, wall=self.clock.time)
        self.edge.backends = Backends(
            self.edge.hosts,
            self.clock.monotonic,
            lambda kind, **data: self.events.append((kind, data["host"])),
            self.edge.counts,
        )

    async def backend(self, *args: Any, **keys: Any) -> Backend:
        made = await super().backend(*args, **keys)
        made.keep_waiting = self._keep_waiting  # type: ignore[attr-defined]
        return made

    def _keep_waiting(self) -> None:
        """Let all requests wait for longer than their timeouts."""
        for client in [*self.edge.pool.clients]:
            client._timer.deadline -= WAIT_SECONDS  # type: ignore[attr-defined]
            client._timer._on_loop_timer()  # type: ignore[attr-defined]

    async def ask(self, request: bytes = GET) -> tuple[int, bytes, dict[str, str]]:
        """The status, the body and the fields of the response to one request on a connection of its own."""
        client = await self.client()
        await client.send(request)
        head, body = await client.response()
        client.close()
        status, *fields = head.decode().strip().split("\r\n")
        return int(status.split()[1]), body, dict(field.lower().split(": ", 1) for field in fields)

    async def statuses(self, count: int, request: bytes = GET) -> Counter[int]:
        """How often which status came."""
        return Counter([(await self.ask(request))[0] for _ in range(count)])

    def row(self, backend: Backend) -> dict[str, Any]:
        return next(row for row in self.edge.backends.snapshot() if row["host"] == backend.url)


async def hang(backend: Backend, wire: Wire) -> None:
    """Take the request, and never answer."""
    await backend.request(wire)
    backend.keep_waiting()  # type: ignore[attr-defined]
    await wire.rest()


async def stall(backend: Backend, wire: Wire) -> None:
    """Take the request, and do not answer yet."""
    await backend.request(wire)
    await wire.rest()


async def reset(backend: Backend, wire: Wire) -> None:
    """End the connection instead of answering."""
    await backend.request(wire)
    wire.reset()


async def trickle_head(backend: Backend, wire: Wire) -> None:
    """A head that never ends, in small parts."""
    await backend.request(wire)
    for part in (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", b"X: "):
        await wire.send(part)
        await asyncio.sleep(0.01)
    backend.keep_waiting()  # type: ignore[attr-defined]
    await wire.rest()


async def trickle_body(backend: Backend, wire: Wire) -> None:
    """A body that never ends, in small parts."""
    await backend.request(wire)
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(3):
        await wire.send(b"x")
        await asyncio.sleep(0.01)
    backend.keep_waiting()  # type: ignore[attr-defined]
    await wire.rest()


async def error(backend: Backend, wire: Wire) -> None:
    """Answer 500."""
    while True:
        await backend.request(wire)
        await wire.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\nbad")


async def die(backend: Backend, wire: Wire) -> None:
    """End the connection in the middle of the response."""
    await backend.request(wire)
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    wire.reset()


async def nonsense(backend: Backend, wire: Wire) -> None:
    """Answer in no protocol that is known."""
    await backend.request(wire)
    await wire.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def run(scene: Any) -> None:
    play(scene, Failures)


@pytest.mark.parametrize("script", [hang, reset, trickle_head, nonsense])
def test_backend_that_fails_is_replaced_by_the_next_one_and_then_left_alone(script: Any) -> None:
    async def scene(stage: Failures) -> None:
        bad, good = await stage.backend(script), await stage.backend(ok)
        stage.routes(route(bad, good, policy="first", retries=1, breaker=BREAKER))
        assert await stage.statuses(6) == {200: 6}
        assert len(bad.heads) == 2, "after two failures it gets no request"
        assert stage.events == [("breaker opened", bad.url)]
        assert (stage.row(bad)["breaker"], stage.row(bad)["errors"]) == ("open", 2)
        assert stage.row(good)["errors"] == 0

    run(scene)


@pytest.mark.parametrize("script", [hang, reset, trickle_head, nonsense])
def test_only_backend_that_fails_is_an_error_and_then_503_with_retry_after(script: Any) -> None:
    async def scene(stage: Failures) -> None:
        bad = await stage.route(script, breaker=BREAKER)
        assert set(await stage.statuses(2)) <= {502, 504}
        stage.clock.advance(10)
        for _ in range(3):
            status, _, fields = await stage.ask()
            assert (status, fields["retry-after"]) == (503, str(int(OPEN_SECONDS) - 10))
        assert len(bad.heads) == 2

    run(scene)


@pytest.mark.parametrize("retries", [0, 1])
def test_backend_that_refuses_connections_is_replaced_by_the_next_one(retries: int) -> None:
    async def scene(stage: Failures) -> None:
        good = await stage.backend(ok)
        gone = f"http://127.0.0.1:{claim_port()}"
        targets = (Target(url=gone), Target(url=good.url))
        stage.routes(Route(alias="app", to=targets, policy="first", retries=retries, breaker=BREAKER))
        assert await stage.statuses(5) == {200: 5}
        assert await stage.statuses(5, POST) == {200: 5}, "what was not sent may be sent to another"
        assert stage.events == [("breaker opened", gone)]

    run(scene)


def test_all_backends_gone_is_503_with_retry_after() -> None:
    async def scene(stage: Failures) -> None:
        targets = tuple(Target(url=f"http://127.0.0.1:{claim_port()}") for _ in range(2))
        stage.routes(Route(alias="app", to=targets, retries=1, breaker=BREAKER))
        await stage.statuses(2)
        for _ in range(3):
            status, body, fields = await stage.ask()
            assert (status, fields["retry-after"]) == (503, str(int(OPEN_SECONDS)))
            assert body == b"503 Service Unavailable\n"
        assert [kind for kind, _ in stage.events] == ["breaker opened"] * 2

    run(scene)


def test_request_that_may_have_had_an_effect_is_not_sent_twice() -> None:
    async def scene(stage: Failures) -> None:
        bad, good = await stage.backend(reset), await stage.backend(ok)
        stage.routes(route(bad, good, policy="first", retries=3, breaker=BREAKER))
        assert await stage.statuses(2, POST) == {502: 2}
        assert (len(bad.heads), len(good.heads)) == (2, 0)
        assert await stage.statuses(2, POST) == {200: 2}, "the breaker is open"

    run(scene)


def test_answers_of_500_open_the_breaker_of_a_route_that_names_them() -> None:
    async def scene(stage: Failures) -> None:
        bad, good = await stage.backend(error), await stage.backend(ok)
        stage.routes(route(bad, good, policy="first", breaker=replace(BREAKER, statuses=(500,))))
        assert [(await stage.ask())[:2] for _ in range(4)] == [(500, b"bad")] * 2 + [(200, b"hello")] * 2
        assert stage.events == [("breaker opened", bad.url)]

    run(scene)


def test_application_that_answers_with_errors_is_served_to_everyone_while_it_is_the_only_backend() -> None:
    async def scene(stage: Failures) -> None:
        bad = await stage.route(error, breaker=replace(BREAKER, statuses=(500,)))
        assert await stage.statuses(50) == {500: 50}
        assert (len(bad.heads), stage.events) == (50, [])

    run(scene)


@pytest.mark.parametrize("script", [die, trickle_body])
def test_response_that_stops_in_the_middle_is_cut_off_and_counts_as_a_failure(script: Any) -> None:
    async def scene(stage: Failures) -> None:
        bad, good = await stage.backend(script), await stage.backend(ok)
        limits = {"idle": 0.0, "total": WAIT_SECONDS / 2}
        stage.routes(route(bad, good, policy="first", retries=3, timeouts=limits, breaker=BREAKER))
        for _ in range(2):
            client = await stage.client()
            await client.send(GET)
            assert (await client.head()).startswith(b"HTTP/1.1 200 OK")
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.exactly(1000)
        assert stage.events == [("breaker opened", bad.url)]
        assert await stage.statuses(3) == {200: 3}

    run(scene)


def test_backend_that_comes_back_is_probed_once_and_then_has_its_share() -> None:
    async def scene(stage: Failures) -> None:
        failing, good = await stage.backend(reset), await stage.backend(ok)
        stage.routes(route(failing, good, retries=1, breaker=BREAKER))
        await stage.statuses(6)
        stage.clock.advance(OPEN_SECONDS)
        before = len(failing.heads)
        assert await stage.statuses(6) == {200: 6}
        assert len(failing.heads) == before + 1, "one probe, which failed"
        failing.script = ok
        stage.clock.advance(OPEN_SECONDS)
        assert await stage.statuses(10) == {200: 10}
        assert len(failing.heads) == before + 1 + 5
        assert stage.events[-1] == ("breaker closed", failing.url)

    run(scene)


def test_probe_that_hangs_holds_up_no_other_client() -> None:
    async def scene(stage: Failures) -> None:
        bad, good = await stage.backend(reset), await stage.backend(ok)
        stage.routes(route(bad, good, policy="first", retries=1, breaker=BREAKER))
        await stage.statuses(3)
        bad.script = stall
        stage.clock.advance(OPEN_SECONDS)
        probe = await stage.client()
        await probe.send(GET)
        while len(bad.heads) < 3:
            await asyncio.sleep(0.001)
        assert await stage.statuses(5) == {200: 5}
        assert len(bad.heads) == 3
        probe.close()
        while stage.row(bad)["in_flight"]:
            await asyncio.sleep(0.001)
        assert stage.row(bad)["breaker"] == "half-open", "a client that leaves says nothing about the backend"

    run(scene)


def test_clients_beyond_the_limit_wait_and_those_beyond_the_queue_are_refused() -> None:
    async def scene(stage: Failures) -> None:
        free = asyncio.Event()

        async def slow(backend: Backend, wire: Wire) -> None:
            while True:
                await backend.request(wire)
                await free.wait()
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        bad = await stage.route(slow, limit=TrafficLimits(concurrency=2, queue=3, queue_seconds=DEADLINE))
        route = stage.edge.backends.of(stage.edge.table.by_alias("app").route)
        clients = []
        for number in range(5):
            clients.append(await stage.client())
            await clients[-1].send(GET)
            while route.in_flight + route.waiting <= number:
                await asyncio.sleep(0.001)
        assert (route.in_flight, route.waiting) == (2, 3)
        status, _, fields = await stage.ask()
        assert (status, int(fields["retry-after"]) >= 1) == (503, True)
        clients.pop(3).close()
        while route.waiting == 3:
            await asyncio.sleep(0.001)
        free.set()
        assert [(await client.response())[1] for client in clients] == [b"ok"] * 4
        assert (len(bad.heads), route.in_flight, route.waiting) == (4, 0, 0)

    run(scene)


def test_disabled_host_gets_no_request_until_its_time_is_over() -> None:
    async def scene(stage: Failures) -> None:
        one, other = await stage.backend(ok), await stage.backend(ok)
        stage.routes(route(one, other))
        stage.edge.hosts.disable(one.url, 30)
        assert await stage.statuses(4) == {200: 4}
        assert (len(one.heads), len(other.heads)) == (0, 4)
        stage.edge.hosts.disable(other.url, 20)
        status, _, fields = await stage.ask()
        assert (status, fields["retry-after"]) == (503, "20")
        stage.clock.advance(30)
        assert await stage.statuses(4) == {200: 4}
        assert (len(one.heads), len(other.heads)) == (2, 6)

    run(scene)


def test_draining_host_keeps_the_clients_that_it_has() -> None:
    async def scene(stage: Failures) -> None:
        one, other = await stage.backend(ok), await stage.backend(ok)
        stage.routes(route(one, other, policy="sticky", sticky_cookie="srv"))
        _, _, fields = await stage.ask()
        cookie = fields["set-cookie"].partition(";")[0]
        stage.edge.hosts.drain(one.url)
        known = f"GET / HTTP/1.1\r\nHost: a.example\r\nCookie: x=1; {cookie}\r\n\r\n".encode()
        for request in (known, GET, known, GET):
            assert (await stage.ask(request))[0] == 200
        assert (len(one.heads), len(other.heads)) == (3, 2)

    run(scene)


def test_load_on_failing_backends_loses_no_request() -> None:
    async def scene(stage: Failures) -> None:
        scripts = (ok, reset, error, nonsense)
        backends = [await stage.backend(script) for script in scripts]
        breaker = replace(BREAKER, failures=1, statuses=(500,), max_open=1.0)
        stage.routes(route(*backends, retries=4, breaker=breaker))
        found: Counter[int] = Counter()

        async def client() -> None:
            for _ in range(10):
                found[(await stage.ask())[0]] += 1

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(client() for _ in range(10)))
        assert found.total() == 100
        assert set(found) <= {200, 500}
        assert found[500] <= 10, "one for each client at most: the first one opens the breaker"
        rows = stage.edge.backends.snapshot()
        assert [row["in_flight"] for row in rows] == [0] * 4
        assert [row["breaker"] for row in rows] == ["closed", *["open"] * 3]

    run(scene)
