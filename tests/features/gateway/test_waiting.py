"""The queue of a route: first come, first served, bounded in number and time, and nothing is ever lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostManager
from poolctl.features.gateway.process.backends.route_backends import (
    Lease,
    NoBackend,
    RequestOutcome,
    RouteBackends,
)
from poolctl.routing.route import BreakerRule, Limit, Route, Target
from tests.virtual_loop import VirtualLoop

URLS = ("http://10.0.0.1:80", "http://10.0.0.2:80")
ONE_AT_ONCE = Limit(concurrency=1, queue=3, queue_seconds=5.0)


def as_route(*urls: str, **keys: object) -> Route:
    return Route(**{"alias": "web", "to": tuple(Target(url=url) for url in urls or URLS[:1]), **keys})  # type: ignore[arg-type]


class Stage:
    """Backends on a loop whose time passes at once."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.hosts = HostManager(self.loop.time, wall=self.loop.time)
        self.backends = Backends(self.hosts, self.loop.time, random=Random(1))

    def wait(self, route: RouteBackends, *tried: str) -> asyncio.Task[Lease]:
        """Begin to wait, and go as far as it goes at once."""
        task = self.loop.create_task(route.wait("10.1.1.1", tried=tried))
        self.loop.pass_time()
        return task


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.loop.close()


def refused(task: asyncio.Task[Lease]) -> str:
    failure = task.exception()
    assert isinstance(failure, NoBackend)
    assert failure.retry_after_seconds >= 1
    return failure.why


def test_waiting_requests_are_counted_by_route(stage: Stage) -> None:
    assert stage.backends.queues() == {}
    route = stage.backends.of(as_route(*URLS, limit=ONE_AT_ONCE))
    tasks = [stage.wait(route) for _ in range(3)]
    assert stage.backends.queues() == {"web": 2}
    tasks[0].result().release(RequestOutcome.ANSWERED, 0.1, 200)
    stage.loop.pass_time()
    assert stage.backends.queues() == {"web": 1}
    for task in tasks[1:]:
        task.cancel()
    stage.loop.pass_time()
    assert stage.backends.queues() == {}


def test_those_that_wait_get_their_turn_in_order(stage: Stage) -> None:
    route = stage.backends.of(as_route(limit=ONE_AT_ONCE))
    tasks = [stage.wait(route) for _ in range(4)]
    for at, task in enumerate(tasks):
        assert [each.done() for each in tasks] == [number <= at for number in range(4)]
        task.result().release(RequestOutcome.ANSWERED, 0.1, 200)
        stage.loop.pass_time()
    assert (route.in_flight, route.waiting) == (0, 0)


def test_full_queue_refuses_at_once(stage: Stage) -> None:
    route = stage.backends.of(as_route(limit=ONE_AT_ONCE))
    tasks = [stage.wait(route) for _ in range(5)]
    assert refused(tasks[4]) == "the queue is full"
    assert stage.loop.time() == 0.0
    for task in tasks[1:4]:
        task.cancel()
    stage.loop.pass_time()


def test_wait_ends_after_its_time(stage: Stage) -> None:
    route = stage.backends.of(as_route(limit=ONE_AT_ONCE))
    first, second = stage.wait(route), stage.wait(route)
    stage.loop.pass_time(4.9)
    assert not second.done()
    stage.loop.pass_time(0.2)
    assert refused(second) == "no place became free in time"
    assert (route.waiting, route.in_flight) == (0, 1)
    first.result().release(RequestOutcome.ANSWERED, 5.1, 200)


def test_client_that_goes_away_frees_its_place(stage: Stage) -> None:
    route = stage.backends.of(as_route(limit=ONE_AT_ONCE))
    first, second, third = (stage.wait(route) for _ in range(3))
    second.cancel()
    stage.loop.pass_time()
    assert route.waiting == 1
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    stage.loop.pass_time()
    assert isinstance(third.result(), Lease)


def test_client_that_goes_away_as_its_turn_comes_gives_the_place_to_the_next(stage: Stage) -> None:
    route = stage.backends.of(as_route(limit=ONE_AT_ONCE))
    first, second, third = (stage.wait(route) for _ in range(3))
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    second.cancel()  # its lease was granted and has not been received
    stage.loop.pass_time()
    assert second.cancelled()
    assert isinstance(third.result(), Lease)
    assert route.in_flight == 1


def test_newcomer_does_not_overtake_those_that_wait(stage: Stage) -> None:
    route = stage.backends.of(as_route(limit=ONE_AT_ONCE))
    first, second = stage.wait(route), stage.wait(route)
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    found = route.acquire("10.1.1.1")
    assert isinstance(found, NoBackend)
    stage.loop.pass_time()
    assert isinstance(second.result(), Lease)


def test_rate_lets_those_that_wait_through_in_time(stage: Stage) -> None:
    limit = Limit(requests_per_second=10, burst=1, queue=10, queue_seconds=5.0)
    route = stage.backends.of(as_route(limit=limit))
    tasks = [stage.wait(route) for _ in range(5)]
    for count in range(1, 6):
        assert sum(task.done() for task in tasks) == count
        stage.loop.pass_time(0.1)


def test_place_that_another_route_frees_is_used(stage: Stage) -> None:
    limit = Limit(concurrency=1, queue=3)
    one = stage.backends.of(as_route(alias="one", backend_limit=limit))
    other = stage.backends.of(as_route(alias="other", backend_limit=limit))
    first, second = stage.wait(one), stage.wait(other)
    assert not second.done()
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    stage.loop.pass_time()
    assert isinstance(second.result(), Lease)


def test_retry_that_waits_for_another_backend_does_not_hold_up_the_others(stage: Stage) -> None:
    route = stage.backends.of(as_route(*URLS, backend_limit=Limit(concurrency=1, queue=3)))
    first, _ = stage.wait(route), stage.wait(route)
    retry, newcomer = stage.wait(route, URLS[0]), stage.wait(route)
    assert not retry.done()
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    stage.loop.pass_time()
    assert (retry.done(), newcomer.result().backend.key) == (False, URLS[0])
    retry.cancel()
    stage.loop.pass_time()


def test_none_waits_for_a_backend_that_is_down(stage: Stage) -> None:
    rule = BreakerRule(failures=1, open_seconds=60.0)
    route = stage.backends.of(as_route(limit=ONE_AT_ONCE, breaker=rule))
    first, second = stage.wait(route), stage.wait(route)
    first.result().release(RequestOutcome.FAILED)
    stage.loop.pass_time()
    assert "breaker open" in refused(second)
    third = stage.wait(route)
    assert "breaker open" in refused(third)
    assert stage.loop.time() == 0.0


def test_removed_route_refuses_those_that_wait(stage: Stage) -> None:
    route = as_route(limit=ONE_AT_ONCE)
    stage.backends.apply([route], {})
    first, second = (stage.wait(stage.backends.of(route)) for _ in range(2))
    stage.backends.apply([], {})
    stage.loop.pass_time()
    assert refused(second) == "the route was removed"
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    stage.backends.apply([], {})
    assert stage.backends.snapshot() == []


def test_greater_limit_serves_those_that_wait_at_once(stage: Stage) -> None:
    route = as_route(limit=ONE_AT_ONCE)
    tasks = [stage.wait(stage.backends.of(route)) for _ in range(3)]
    stage.backends.apply([replace(route, limit=replace(ONE_AT_ONCE, concurrency=3))], {})
    stage.loop.pass_time()
    assert all(task.done() for task in tasks)


class Machine(RuleBasedStateMachine):
    """Random histories of two routes that share two backends, with limits, a queue, breakers and changing hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.tasks: dict[str, list[asyncio.Task[Lease]]] = {"one": [], "two": []}
        self.leases: list[tuple[str, Lease]] = []

    @initialize(
        of_route=st.integers(0, 3), of_backend=st.integers(1, 2), queue=st.integers(1, 4), policy=st.sampled_from(
            ["round-robin", "least-connections", "ip-hash", "first"]
        )
    )  # fmt: skip
    def begin(self, of_route: int, of_backend: int, queue: int, policy: str) -> None:
        self.limit = Limit(concurrency=of_route, queue=queue, queue_seconds=5.0)
        self.of_backend = Limit(concurrency=of_backend)
        self.rule = BreakerRule(failures=2, rate=0.0, open_seconds=10.0)
        self.policy = policy
        self.apply()

    def apply(self) -> None:
        keys = {"limit": self.limit, "backend_limit": self.of_backend, "breaker": self.rule}
        self.routes = [as_route(*URLS, alias=alias, policy=self.policy, **keys) for alias in ("one", "two")]
        self.stage.backends.apply(self.routes, {})

    def of(self, alias: str) -> RouteBackends:
        return self.stage.backends.of(next(route for route in self.routes if route.alias == alias))

    def settle(self, seconds: float = 0.0) -> None:
        """Let things happen; take the leases that were granted, in the order of the requests."""
        self.stage.loop.pass_time(seconds)
        for alias, tasks in self.tasks.items():
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                if not task.cancelled() and task.exception() is None:
                    self.leases.append((alias, task.result()))
                elif not task.cancelled():
                    assert isinstance(task.exception(), NoBackend)

    @rule(alias=st.sampled_from(["one", "two"]), tried=st.sampled_from([(), (), URLS[:1], URLS[1:]]))
    def request(self, alias: str, tried: tuple[str, ...]) -> None:
        self.tasks[alias].append(self.stage.wait(self.of(alias), *tried))
        self.settle()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), outcome=st.sampled_from([*RequestOutcome]), quick=st.booleans())
    def finish(self, data: st.DataObject, outcome: RequestOutcome, quick: bool) -> None:
        _, lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release(outcome, 0.1, 200)
        if not quick:
            self.settle()

    @rule(data=st.data(), alias=st.sampled_from(["one", "two"]), settled=st.booleans())
    def leave(self, data: st.DataObject, alias: str, settled: bool) -> None:
        tasks = self.tasks[alias]
        if tasks:
            data.draw(st.sampled_from(tasks)).cancel()
        if settled:
            self.settle()

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.settle(seconds)

    @rule(host=st.sampled_from(URLS), order=st.sampled_from(["disable", "enable", "drain"]))
    def order(self, host: str, order: str) -> None:
        getattr(self.stage.hosts, order)(host)
        self.settle()

    @rule(concurrency=st.integers(0, 3), of_backend=st.integers(1, 2))
    def reload(self, concurrency: int, of_backend: int) -> None:
        self.limit = replace(self.limit, concurrency=concurrency)
        self.of_backend = Limit(concurrency=of_backend)
        self.lowered = True
        self.apply()
        self.settle()

    lowered = False

    @invariant()
    def what_is_in_flight_is_what_was_granted(self) -> None:
        if not hasattr(self, "routes"):
            return
        self.settle()
        for alias in ("one", "two"):
            route, held = self.of(alias), [lease for each, lease in self.leases if each == alias]
            assert route.in_flight == len(held)
            assert route.waiting == len(self.tasks[alias])
            assert route.waiting <= self.limit.queue
            if self.limit.concurrency and not self.lowered:
                assert len(held) <= self.limit.concurrency
        for row in self.stage.backends.snapshot():
            held = [lease for _, lease in self.leases if lease.backend.key == row["host"]]
            assert row["in_flight"] == len(held)
            assert self.lowered or len(held) <= self.of_backend.concurrency

    @invariant()
    def none_waits_while_there_is_a_place(self) -> None:
        if not hasattr(self, "routes"):
            return
        for alias in ("one", "two"):
            route = self.of(alias)
            if self.tasks[alias]:
                full = 0 < self.limit.concurrency <= route.in_flight
                free = [each for each in route.members if each.verdict(self.stage.loop.time()).ok]
                # A retry may wait for the one that it has not tried.
                assert full or len(free) < 2

    def teardown(self) -> None:
        for tasks in self.tasks.values():
            for task in tasks:
                task.cancel()
        for _, lease in self.leases:
            lease.release(RequestOutcome.ANSWERED, 0.1, 200)
        self.stage.loop.pass_time()
        self.settle()
        for _, lease in self.leases:
            lease.release(RequestOutcome.ANSWERED, 0.1, 200)
        self.stage.loop.pass_time(100.0)
        rows = self.stage.backends.snapshot()
        self.stage.loop.close()
        assert all(row["in_flight"] == row["waiting"] == 0 for row in rows)


TestMachine = Machine.TestCase
