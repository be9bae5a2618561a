"""Which backend gets a request: one verdict, the policy's choice, and a place in a queue."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostStates
from poolctl.features.gateway.process.backends.route_backends import (
    AVAILABLE,
    Backend,
    BackendVerdict,
    CanaryBackend,
    CanaryTurns,
    Lease,
    NoBackend,
    RequestOutcome,
    RouteBackends,
)
from poolctl.features.gateway.process.counts import Traffic, TrafficCounts
from poolctl.features.gateway.process.settings import Endpoint, ProbeState, ServerFacts
from poolctl.json_form import Table
from poolctl.routing.route import POLICIES, BreakerRule, Route, StreamRoute, Target, TrafficLimits
from poolctl.routing.route_health import RouteHealth
from poolctl.time_windows import until_text
from tests.features.gateway import passing_stage, proxy_stage
from tests.features.gateway.proxy_stage import ok
from tests.manual_clock import ManualClock
from tests.virtual_loop import VirtualLoop

URLS = ("http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80")


class Stage:
    """The backends of a gateway, with a clock that is moved by hand, and the events that they reported."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.events: list[tuple[str, Table]] = []
        self.hosts = HostStates(self.clock.monotonic, wall=self.clock.time)
        self.counts = TrafficCounts()
        self.backends = Backends(
            self.hosts,
            self.clock.monotonic,
            lambda kind, **data: self.events.append((kind, data)),
            self.counts,
            Random(1),
        )

    def route(self, *urls: str, **keys: object) -> RouteBackends:
        return self.backends.of(self.as_route(*urls, **keys))

    def as_route(self, *urls: str, **keys: object) -> Route:
        return Route(**{"alias": "web", "to": tuple(Target(url=url) for url in urls or URLS), **keys})  # type: ignore[arg-type]

    def available(self, host: str) -> BackendVerdict:
        return self.backends._backends[host].best_verdict(self.clock.monotonic())

    def row(self, host: str) -> Table:
        return next(row for row in self.backends.snapshot() if row["host"] == host)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def taken(found: Lease | NoBackend) -> Lease:
    assert isinstance(found, Lease), found
    return found


def refused(found: Lease | NoBackend) -> NoBackend:
    assert isinstance(found, NoBackend), found
    return found


def fail(route: RouteBackends, times: int = 1) -> None:
    for _ in range(times):
        taken(route.acquire("1.1.1.1")).release(RequestOutcome.FAILED)


def answer(route: RouteBackends, status: int, times: int) -> None:
    for _ in range(times):
        taken(route.acquire("1.1.1.1")).release(RequestOutcome.ANSWERED, 0.01, status)


def test_backends_are_used_in_turn(stage: Stage) -> None:
    route = stage.route()
    leases = [taken(route.acquire("1.1.1.1")) for _ in range(4)]
    assert [lease.backend.key for lease in leases] == [*URLS, URLS[0]]
    assert [lease.backend.in_flight for lease in leases] == [2, 1, 1, 2]
    for lease in leases:
        lease.release(RequestOutcome.ANSWERED, 0.01, 200)
    assert route.in_flight == 0


def test_second_release_of_a_lease_does_nothing(stage: Stage) -> None:
    route = stage.route(limit=TrafficLimits(concurrency=1))
    lease = taken(route.acquire("1.1.1.1"))
    for _ in range(3):
        lease.release(RequestOutcome.ANSWERED, 0.01, 200)
    assert lease.backend.in_flight == route.in_flight == 0
    taken(route.acquire("1.1.1.1"))
    refused(route.acquire("1.1.1.1"))


def test_backends_that_were_tried_are_not_chosen_again(stage: Stage) -> None:
    route = stage.route()
    tried: list[str] = []
    for _ in URLS:
        tried.append(taken(route.acquire("1.1.1.1", tried=tried)).backend.key)
    assert sorted(tried) == [*URLS]
    assert refused(route.acquire("1.1.1.1", tried=tried)).why == "every backend was tried"


def test_open_breaker_sends_requests_to_the_next_backend_and_then_refuses(stage: Stage) -> None:
    route = stage.route(*URLS[:2], policy="first", breaker=BreakerRule(failures=3, open_seconds=10))
    fail(route, 3)
    assert stage.events == [("breaker opened", {"host": URLS[0], "why": "3 failures"})]
    assert taken(route.acquire("1.1.1.1")).backend.key == URLS[1]
    health = route.healths()
    assert [health[url].status for url in URLS[:2]] == ["unhealthy", "unknown"]
    assert [health[url].detail for url in URLS[:2]] == [
        "breaker open: 3 failures, 10 s left", "it has not answered yet",
    ]  # fmt: skip
    fail(route, 3)
    answer = refused(route.acquire("1.1.1.1"))
    assert (answer.status, answer.retry_after_seconds, answer.may_wait) == (503, 10, False)
    assert str(answer) == "http://10.0.0.1:80: breaker open: 3 failures, 10 s left; and 1 more"
    stage.clock.advance(10)
    probe = taken(route.acquire("1.1.1.1"))
    assert (probe.backend.key, stage.row(URLS[0])["breaker"]) == (URLS[0], "half-open")
    probe.release(RequestOutcome.ANSWERED, 0.01, 200)
    assert stage.row(URLS[0])["breaker"] == "closed"
    assert route.healths()[URLS[0]].status == "healthy"
    assert stage.events[-1] == ("breaker closed", {"host": URLS[0], "why": "it answers again"})


@pytest.mark.parametrize(
    ("status", "opens"),
    [(500, False), (502, True), (503, True), (504, True), (501, False), (404, False), (429, True)],
)
def test_answers_open_the_breaker_only_if_the_backend_is_to_blame(
    stage: Stage, status: int, opens: bool
) -> None:
    route = stage.route(*URLS[:2], policy="first", breaker=BreakerRule(statuses=(429,)))
    answer(route, status, 5)
    assert stage.available(URLS[0]).ok is not opens


@pytest.mark.parametrize("status", [500, 503])
def test_answers_never_open_the_breaker_of_the_only_backend(stage: Stage, status: int) -> None:
    route = stage.route(URLS[0], breaker=BreakerRule(statuses=(500,)))
    answer(route, status, 100)
    assert stage.row(URLS[0])["breaker"] == "closed"
    fail(route, 5)
    assert stage.row(URLS[0])["breaker"] == "open"


@pytest.mark.parametrize(
    ("backends", "max_open", "most"),
    [(1, 1.0, 0), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (4, 1.0, 3), (4, 0.2, 0), (10, 0.3, 3), (4, 0.0, 0)],
)
def test_answers_open_at_most_a_share_of_a_routes_breakers(
    stage: Stage, backends: int, max_open: float, most: int
) -> None:
    urls = [f"http://10.0.0.{number}:80" for number in range(backends)]
    route = stage.route(*urls, breaker=BreakerRule(max_open=max_open))
    answer(route, 503, 50 * backends)
    assert [row["breaker"] for row in stage.backends.snapshot()].count("open") == most
    fail(route, 5 * (backends - most))
    assert [row["breaker"] for row in stage.backends.snapshot()].count("open") >= backends - most


@pytest.mark.parametrize("loss", ["disabled", "drained", "unreachable", "removed", "not ready"])
def test_backend_that_answers_with_errors_serves_again_when_it_is_the_last(stage: Stage, loss: str) -> None:
    route = server_route("a", "b", policy="first", mode="proxy")
    stage.backends.apply([route], {name: facts(name) for name in ("a", "b")})
    backends = stage.backends.of(route)
    answer(backends, 503, 5)
    assert (stage.row("a")["breaker"], stage.row("a")["available"]) == ("open", False)
    if loss == "disabled":
        stage.hosts.disable("b")
    elif loss == "drained":
        stage.hosts.drain("b")
    elif loss == "unreachable":
        fail(backends, 5)
    elif loss == "removed":
        stage.backends.apply(
            [server_route("a", policy="first", mode="proxy")], {name: facts(name) for name in ("a", "b")}
        )
    else:
        stage.backends.apply([route], {"a": facts("a"), "b": facts("b", "failed")})
    assert (stage.row("a")["breaker"], stage.row("a")["why"]) == ("closed", "")
    assert taken(backends.acquire("1.1.1.1")).backend.key == "a"


def test_answers_open_no_breaker_that_another_route_cannot_do_without(stage: Stage) -> None:
    both = stage.route(*URLS[:2], policy="first")
    alone = stage.route(URLS[0], alias="alone")
    answer(both, 503, 20)
    taken(alone.acquire("1.1.1.1"))
    assert stage.row(URLS[0])["breaker"] == "closed"


def test_passed_connections_do_not_look_at_the_breaker_of_proxied_requests(stage: Stage) -> None:
    proxied, passed = server_route("a", alias="proxied", mode="proxy"), server_route("a")
    stage.backends.apply([proxied, passed], {"a": facts("a")})
    fail(stage.backends.of(proxied), 5)
    refused(stage.backends.of(proxied).acquire("1.1.1.1"))
    assert isinstance(stage.backends.of(passed).choose("1.1.1.1"), Backend)
    stage.hosts.disable("a")
    assert isinstance(stage.backends.of(passed).choose("1.1.1.1"), NoBackend)


def test_requests_of_clients_that_left_say_nothing_about_the_backend(stage: Stage) -> None:
    route = stage.route(URLS[0])
    for _ in range(10):
        taken(route.acquire("1.1.1.1")).release(RequestOutcome.CANCELLED)
    assert stage.available(URLS[0]).ok
    assert (stage.row(URLS[0])["requests"], stage.row(URLS[0])["errors"]) == (10, 0)


def test_disabled_host_is_passed_over_until_its_time_is_over(stage: Stage) -> None:
    route = stage.route(URLS[0])
    lease = taken(route.acquire("1.1.1.1"))
    stage.hosts.disable(URLS[0], 30)
    answer = refused(route.acquire("1.1.1.1"))
    assert (answer.retry_after_seconds, answer.may_wait) == (30, False)
    lease.release(RequestOutcome.ANSWERED, 0.1, 200)
    stage.clock.advance(30)
    taken(route.acquire("1.1.1.1"))


def test_draining_host_serves_only_clients_whose_cookie_names_it(stage: Stage) -> None:
    route = stage.route(*URLS[:2], policy="sticky", sticky_cookie="srv")
    first = taken(route.acquire("1.1.1.1"))
    assert first.backend.key == URLS[0]
    stage.hosts.drain(URLS[0])
    other = taken(route.acquire("1.1.1.1"))
    assert (other.backend.key, bool(other.cookie)) == (URLS[1], True)
    again = taken(route.acquire("1.1.1.1", first.cookie))
    assert (again.backend.key, again.cookie) == (URLS[0], "")
    stage.hosts.disable(URLS[0])
    assert taken(route.acquire("1.1.1.1", first.cookie)).backend.key == URLS[1]


def server_route(*names: str, **keys: object) -> Route:
    return Route(**{"alias": "api", "to": tuple(Target(server=name) for name in names), **keys})  # type: ignore[arg-type]


def facts(name: str, state: str = "running", **keys: object) -> ServerFacts:
    return ServerFacts(
        **{"name": name, "bind": "127.0.0.1:8001", "state": state, "ready": state == "running", **keys}
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("header", ["Host", "X-Host"])
def test_open_breaker_matters_only_where_connections_are_not_passed(stage: Stage, header: str) -> None:
    stage.hosts.configure(30.0, header)
    way = server_route("a", breaker=BreakerRule(failures=1))
    stage.backends.apply([way], {"a": facts("a")})
    fail(stage.backends.of(way))
    passes = header == "Host"
    assert stage.available("a").ok is passes
    assert stage.backends.of(way).healths()["a"].status == ("healthy" if passes else "unhealthy")


@pytest.mark.parametrize("state", ["stopped", "failed", "disabled", "draining", "stopping", "backoff"])
def test_server_that_does_not_serve_gets_no_request(stage: Stage, state: str) -> None:
    stage.backends.apply([server_route("a")], {"a": facts("a", state)})
    assert (
        str(refused(stage.backends.of(server_route("a")).acquire("1.1.1.1"))) == f"a: the server is {state}"
    )


def test_server_that_is_not_in_the_pool_gets_no_request(stage: Stage) -> None:
    answer = refused(stage.backends.of(server_route("a")).acquire("1.1.1.1"))
    assert str(answer) == "a: there is no such server"


def test_sleeping_server_is_woken_only_when_no_other_can_serve(stage: Stage) -> None:
    route = server_route("a", "b", "c")
    known = {"a": facts("a", "sleeping"), "b": facts("b", "starting"), "c": facts("c")}
    stage.backends.apply([route], known)
    assert {taken(stage.backends.of(route).acquire("1.1.1.1")).backend.key for _ in range(6)} == {"c"}
    stage.backends.apply([route], {**known, "c": facts("c", "failed")})
    assert {taken(stage.backends.of(route).acquire("1.1.1.1")).backend.key for _ in range(6)} == {"b"}
    stage.backends.apply([route], {**known, "b": facts("b", "failed"), "c": facts("c", "failed")})
    assert {taken(stage.backends.of(route).acquire("1.1.1.1")).backend.key for _ in range(6)} == {"a"}


def test_server_that_a_window_keeps_asleep_is_refused_until_its_end(stage: Stage) -> None:
    route, end = server_route("a", "b"), stage.clock.time() + 7200
    asleep = {"asleep_until": end}
    stage.backends.apply([route], {"a": facts("a", "sleeping", **asleep), "b": facts("b")})
    found = stage.backends.of(route)
    assert {taken(found.acquire("1.1.1.1")).backend.key for _ in range(3)} == {"b"}
    stage.backends.apply([route], {"a": facts("a", "sleeping", **asleep)})
    assert refused(found.acquire("1.1.1.1")).retry_after_seconds == 5, "the other one may come back"
    stage.hosts.disable("b", 3 * 3600)
    route = server_route("a")
    stage.backends.apply([route], {"a": facts("a", "sleeping", **asleep)})
    stage.clock.advance(3600.5)
    answer = refused(stage.backends.of(route).acquire("1.1.1.1"))
    assert answer.retry_after_seconds == 3600
    assert re.fullmatch(r"a: kept asleep until .*\d\d:\d\d", str(answer))
    assert stage.row("a")["why"] == str(answer)[3:]
    stage.backends.apply([route], {"a": facts("a", "sleeping", asleep_until=0.0)})
    answer = refused(stage.backends.of(route).acquire("1.1.1.1"))
    assert (str(answer), answer.retry_after_seconds) == ("a: kept asleep", 86400)
    stage.backends.apply([route], {"a": facts("a", "sleeping")})
    taken(stage.backends.of(route).acquire("1.1.1.1"))


def test_retry_after_is_the_time_for_which_a_host_is_still_disabled(stage: Stage) -> None:
    route = stage.route(URLS[0])
    stage.hosts.disable(URLS[0], 30)
    stage.clock.advance(20)
    assert refused(route.acquire("1.1.1.1")).retry_after_seconds == 10


def test_server_that_becomes_ready_is_tried_although_its_breaker_is_open(stage: Stage) -> None:
    route = server_route("a", breaker=BreakerRule(failures=1, open_seconds=1000))
    stage.backends.apply([route], {"a": facts("a")})
    fail(stage.backends.of(route))
    refused(stage.backends.of(route).acquire("1.1.1.1"))
    stage.backends.apply([route], {"a": facts("a", "starting")})
    stage.backends.apply([route], {"a": facts("a")})
    taken(stage.backends.of(route).acquire("1.1.1.1"))


def test_routes_with_the_same_rule_share_a_breaker_and_others_do_not(stage: Stage) -> None:
    rule = BreakerRule(failures=1)
    one, same = stage.route(URLS[0], breaker=rule), stage.route(URLS[0], alias="same", breaker=rule)
    other = stage.route(URLS[0], alias="other", breaker=BreakerRule(failures=2))
    fail(one)
    refused(same.acquire("1.1.1.1"))
    taken(other.acquire("1.1.1.1"))


def test_rate_of_a_route_is_halved_while_its_backends_are_unwell(stage: Stage) -> None:
    route = server_route("a", limit=TrafficLimits(requests_per_second=10))
    for health, expected in (("ok", 10), ("warn", 5), ("ok", 10)):
        stage.backends.apply([route], {"a": facts("a", health=health)})
        stage.clock.advance(10)
        served = sum(isinstance(stage.backends.of(route).acquire("1.1.1.1"), Lease) for _ in range(20))
        assert served == expected


def test_lasting_connection_proves_its_backend_at_its_beginning(stage: Stage) -> None:
    route = StreamRoute(
        alias="db", bind="0.0.0.0:1", to=(Target(url="10.0.0.9:5432"),), breaker=BreakerRule(failures=1)
    )
    backends = stage.backends.of(route)
    fail(backends)
    stage.clock.advance(10)
    lease = taken(backends.acquire("1.1.1.1"))
    refused(backends.acquire("1.1.1.1"))
    lease.record_long_lived_accepted()
    taken(backends.acquire("1.1.1.1"))
    lease.release(RequestOutcome.FAILED)
    refused(backends.acquire("1.1.1.1"))


def test_passed_connections_count_for_least_connections_until_their_number_is_reported(stage: Stage) -> None:
    passed: list[str] = []
    stage.backends.on_passed = lambda: passed.append("one")
    route = server_route("a", "b", policy="least-connections")
    stage.backends.apply([route], {name: facts(name) for name in ("a", "b")})
    backends = stage.backends.of(route)
    for _ in range(4):
        taken(backends.acquire("1.1.1.1")).release(RequestOutcome.PASSED)
    assert ([each.load for each in backends.members], len(passed)) == ([2, 2], 4)
    assert stage.row("a")["requests"] == 0
    assert stage.backends.servers_balanced_by_load == ["a", "b"]
    stage.backends.set_worker_connections({"a": 9, "b": 0, "gone": 5})
    assert taken(backends.acquire("1.1.1.1")).backend.key == "b"
    assert stage.backends.servers_balanced_by_load == ["a"]


def test_passed_connections_of_other_policies_are_not_counted(stage: Stage) -> None:
    stage.backends.on_passed = lambda: pytest.fail("nothing has to be asked for")
    route = server_route("a")
    stage.backends.apply([route], {"a": facts("a")})
    taken(stage.backends.of(route).acquire("1.1.1.1")).release(RequestOutcome.PASSED)
    assert stage.backends.of(route).members[0].load == 0


def test_backend_for_a_passed_connection_is_chosen_by_the_policy_and_holds_nothing(stage: Stage) -> None:
    route = server_route("a", "b", policy="least-connections")
    stage.backends.apply([route], {name: facts(name) for name in ("a", "b")})
    backends = stage.backends.of(route)
    for _ in range(4):
        chosen = backends.choose("1.1.1.1")
        assert isinstance(chosen, Backend)
        backends.count_handover(chosen)
    assert [each.load for each in backends.members] == [2, 2]
    assert (backends.in_flight, stage.row("a")["requests"]) == (0, 0)
    stage.hosts.disable("a", 7)
    for _ in range(3):
        chosen = backends.choose("1.1.1.1")
        assert isinstance(chosen, Backend)
        assert chosen.key == "b"
    stage.hosts.disable("b", 3)
    refused = backends.choose("1.1.1.1")
    assert isinstance(refused, NoBackend)
    assert refused.retry_after_seconds == 3
    stage.clock.advance(3)
    assert isinstance(backends.choose("1.1.1.1"), Backend), "its time is over"


def test_server_without_an_address_gets_no_request(stage: Stage) -> None:
    stage.backends.apply([server_route("a")], {"a": facts("a", bind="process:a")})
    answer = refused(stage.backends.of(server_route("a")).acquire("1.1.1.1"))
    assert str(answer) == "a: it has no address to connect to"


TWO_URLS = ("http://10.0.0.1:80", "http://10.0.0.2:80")


ONE_AT_ONCE = TrafficLimits(concurrency=1, queue=3, queue_seconds=5.0)


def as_route(*urls: str, **keys: object) -> Route:
    return Route(**{"alias": "web", "to": tuple(Target(url=url) for url in urls or TWO_URLS[:1]), **keys})  # type: ignore[arg-type]


class Queue:
    """Backends on a loop whose time passes at once."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.hosts = HostStates(self.loop.time, wall=self.loop.time)
        self.backends = Backends(self.hosts, self.loop.time, random=Random(1))

    def wait(self, route: RouteBackends, *tried: str) -> asyncio.Task[Lease]:
        """Begin to wait, and go as far as it goes at once."""
        task = self.loop.create_task(route.wait("10.1.1.1", tried=tried))
        self.loop.pass_time()
        return task


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue()
    yield made
    made.loop.close()


def refusal(task: asyncio.Task[Lease]) -> str:
    failure = task.exception()
    assert isinstance(failure, NoBackend)
    assert failure.retry_after_seconds >= 1
    return failure.why


def test_waiting_requests_are_counted_by_route(queue: Queue) -> None:
    assert queue.backends.queued_by_route() == {}
    route = queue.backends.of(as_route(*TWO_URLS, limit=ONE_AT_ONCE))
    tasks = [queue.wait(route) for _ in range(3)]
    assert queue.backends.queued_by_route() == {"web": 2}
    tasks[0].result().release(RequestOutcome.ANSWERED, 0.1, 200)
    queue.loop.pass_time()
    assert queue.backends.queued_by_route() == {"web": 1}
    for task in tasks[1:]:
        task.cancel()
    queue.loop.pass_time()
    assert queue.backends.queued_by_route() == {}


def test_those_that_wait_get_their_turn_in_order(queue: Queue) -> None:
    route = queue.backends.of(as_route(limit=ONE_AT_ONCE))
    tasks = [queue.wait(route) for _ in range(4)]
    for at, task in enumerate(tasks):
        assert [each.done() for each in tasks] == [number <= at for number in range(4)]
        task.result().release(RequestOutcome.ANSWERED, 0.1, 200)
        queue.loop.pass_time()
    assert (route.in_flight, route.waiting) == (0, 0)


def test_full_queue_refuses_at_once(queue: Queue) -> None:
    route = queue.backends.of(as_route(limit=ONE_AT_ONCE))
    tasks = [queue.wait(route) for _ in range(5)]
    assert refusal(tasks[4]) == "the queue is full"
    assert queue.loop.time() == 0.0
    for task in tasks[1:4]:
        task.cancel()
    queue.loop.pass_time()


def test_wait_ends_after_its_time(queue: Queue) -> None:
    route = queue.backends.of(as_route(limit=ONE_AT_ONCE))
    first, second = queue.wait(route), queue.wait(route)
    queue.loop.pass_time(4.9)
    assert not second.done()
    queue.loop.pass_time(0.2)
    assert refusal(second) == "no place became free in time"
    assert (route.waiting, route.in_flight) == (0, 1)
    first.result().release(RequestOutcome.ANSWERED, 5.1, 200)


def test_client_that_goes_away_frees_its_place(queue: Queue) -> None:
    route = queue.backends.of(as_route(limit=ONE_AT_ONCE))
    first, second, third = (queue.wait(route) for _ in range(3))
    second.cancel()
    queue.loop.pass_time()
    assert route.waiting == 1
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    queue.loop.pass_time()
    assert isinstance(third.result(), Lease)


def test_client_that_goes_away_as_its_turn_comes_gives_the_place_to_the_next(queue: Queue) -> None:
    route = queue.backends.of(as_route(limit=ONE_AT_ONCE))
    first, second, third = (queue.wait(route) for _ in range(3))
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    second.cancel()  # its lease was granted and has not been received
    queue.loop.pass_time()
    assert second.cancelled()
    assert isinstance(third.result(), Lease)
    assert route.in_flight == 1


def test_client_that_has_just_gone_away_is_passed_over(queue: Queue) -> None:
    route = queue.backends.of(as_route(limit=ONE_AT_ONCE))
    first, second, third = (queue.wait(route) for _ in range(3))
    second.cancel()
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    assert (route.waiting, route.in_flight) == (0, 1)
    queue.loop.pass_time()
    assert isinstance(third.result(), Lease)


def test_newcomer_does_not_overtake_those_that_wait(queue: Queue) -> None:
    route = queue.backends.of(as_route(limit=ONE_AT_ONCE))
    first, second = queue.wait(route), queue.wait(route)
    assert seen(route.acquire("10.1.1.1")) == ("others wait already", 5, True, None)
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    refused(route.acquire("10.1.1.1"))
    queue.loop.pass_time()
    assert isinstance(second.result(), Lease)


def test_rate_lets_those_that_wait_through_in_time(queue: Queue) -> None:
    limit = TrafficLimits(requests_per_second=10, burst=1, queue=10, queue_seconds=5.0)
    route = queue.backends.of(as_route(limit=limit))
    tasks = [queue.wait(route) for _ in range(5)]
    for count in range(1, 6):
        assert sum(task.done() for task in tasks) == count
        queue.loop.pass_time(0.1)


def test_place_that_another_route_frees_is_used(queue: Queue) -> None:
    limit = TrafficLimits(concurrency=1, queue=3)
    one = queue.backends.of(as_route(alias="one", backend_limit=limit))
    other = queue.backends.of(as_route(alias="other", backend_limit=limit))
    first, second, third = queue.wait(one), queue.wait(other), queue.wait(other)
    second.cancel()
    queue.loop.pass_time()
    assert not third.done()
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    queue.loop.pass_time()
    assert isinstance(third.result(), Lease)


def test_backend_that_accepts_a_long_request_after_its_failures_serves_those_that_wait(queue: Queue) -> None:
    limit, rule = (
        TrafficLimits(concurrency=2, queue=3, queue_seconds=60.0),
        BreakerRule(failures=1, open_seconds=5.0),
    )
    route = queue.backends.of(as_route(*TWO_URLS, policy="first", backend_limit=limit, breaker=rule))
    taken(route.acquire("10.1.1.1")).release(RequestOutcome.FAILED)
    others = [taken(route.acquire("10.1.1.1")) for _ in range(2)]
    assert {each.backend.key for each in others} == {TWO_URLS[1]}
    queue.loop.pass_time(5.0)
    probe, waiting = taken(route.acquire("10.1.1.1")), queue.wait(route)
    assert (probe.backend.key, waiting.done()) == (TWO_URLS[0], False)
    probe.record_long_lived_accepted(101)
    queue.loop.pass_time()
    assert waiting.result().backend.key == TWO_URLS[0]


def test_retry_that_waits_for_another_backend_does_not_hold_up_the_others(queue: Queue) -> None:
    route = queue.backends.of(as_route(*TWO_URLS, backend_limit=TrafficLimits(concurrency=1, queue=3)))
    first, _ = queue.wait(route), queue.wait(route)
    retry, newcomer = queue.wait(route, TWO_URLS[0]), queue.wait(route)
    assert not retry.done()
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    queue.loop.pass_time()
    assert (retry.done(), newcomer.result().backend.key) == (False, TWO_URLS[0])
    retry.cancel()
    queue.loop.pass_time()


def test_none_waits_for_a_backend_that_is_down(queue: Queue) -> None:
    rule = BreakerRule(failures=1, open_seconds=60.0)
    route = queue.backends.of(as_route(limit=ONE_AT_ONCE, breaker=rule))
    first, second = queue.wait(route), queue.wait(route)
    first.result().release(RequestOutcome.FAILED)
    queue.loop.pass_time()
    assert "breaker open" in refusal(second)
    third = queue.wait(route)
    assert "breaker open" in refusal(third)
    assert queue.loop.time() == 0.0


def test_removed_route_refuses_those_that_wait(queue: Queue) -> None:
    route = as_route(limit=ONE_AT_ONCE)
    queue.backends.apply([route], {})
    first, second = (queue.wait(queue.backends.of(route)) for _ in range(2))
    found = queue.backends.of(route)
    queue.backends.apply([], {})
    assert found.waiting == 0
    queue.loop.pass_time()
    assert refusal(second) == "the route was removed"
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    queue.backends.apply([], {})
    assert queue.backends.snapshot() == []


def test_place_that_a_removed_backend_frees_is_used(queue: Queue) -> None:
    route = as_route(*TWO_URLS, limit=ONE_AT_ONCE)
    queue.backends.apply([route], {})
    first, second = (queue.wait(queue.backends.of(route)) for _ in range(2))
    queue.backends.apply([replace(route, to=route.to[1:])], {})
    queue.loop.pass_time()
    assert (first.result().backend.key, second.done()) == (TWO_URLS[0], False)
    first.result().release(RequestOutcome.ANSWERED, 0.1, 200)
    queue.loop.pass_time()
    assert second.result().backend.key == TWO_URLS[1]


def test_greater_limit_serves_those_that_wait_at_once(queue: Queue) -> None:
    route = as_route(limit=ONE_AT_ONCE)
    tasks = [queue.wait(queue.backends.of(route)) for _ in range(3)]
    queue.backends.apply([replace(route, limit=replace(ONE_AT_ONCE, concurrency=3))], {})
    queue.loop.pass_time()
    assert all(task.done() for task in tasks)


class Machine(RuleBasedStateMachine):
    """Random histories of two routes that share two backends, with limits, a queue, breakers and changing hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue()
        self.tasks: dict[str, list[asyncio.Task[Lease]]] = {"one": [], "two": []}
        self.leases: list[tuple[str, Lease]] = []

    @initialize(
        of_route=st.integers(0, 3), of_backend=st.integers(1, 2), queue=st.integers(1, 4), policy=st.sampled_from(
            ["round-robin", "least-connections", "ip-hash", "first"]
        )
    )  # fmt: skip
    def begin(self, of_route: int, of_backend: int, queue: int, policy: str) -> None:
        self.limit = TrafficLimits(concurrency=of_route, queue=queue, queue_seconds=5.0)
        self.of_backend = TrafficLimits(concurrency=of_backend)
        self.rule = BreakerRule(failures=2, rate=0.0, open_seconds=10.0)
        self.policy = policy
        self.apply()

    def apply(self) -> None:
        keys = {"limit": self.limit, "backend_limit": self.of_backend, "breaker": self.rule}
        self.routes = [
            as_route(*TWO_URLS, alias=alias, policy=self.policy, **keys) for alias in ("one", "two")
        ]
        self.queue.backends.apply(self.routes, {})

    def of(self, alias: str) -> RouteBackends:
        return self.queue.backends.of(next(route for route in self.routes if route.alias == alias))

    def settle(self, seconds: float = 0.0) -> None:
        """Let things happen; take the leases that were granted, in the order of the requests."""
        self.queue.loop.pass_time(seconds)
        for alias, tasks in self.tasks.items():
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                if not task.cancelled() and task.exception() is None:
                    self.leases.append((alias, task.result()))
                elif not task.cancelled():
                    assert isinstance(task.exception(), NoBackend)

    @rule(alias=st.sampled_from(["one", "two"]), tried=st.sampled_from([(), (), TWO_URLS[:1], TWO_URLS[1:]]))
    def request(self, alias: str, tried: tuple[str, ...]) -> None:
        self.tasks[alias].append(self.queue.wait(self.of(alias), *tried))
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

    @rule(host=st.sampled_from(TWO_URLS), order=st.sampled_from(["disable", "enable", "drain"]))
    def order(self, host: str, order: str) -> None:
        getattr(self.queue.hosts, order)(host)
        self.settle()

    @rule(concurrency=st.integers(0, 3), of_backend=st.integers(1, 2))
    def reload(self, concurrency: int, of_backend: int) -> None:
        self.limit = replace(self.limit, concurrency=concurrency)
        self.of_backend = TrafficLimits(concurrency=of_backend)
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
        for row in self.queue.backends.snapshot():
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
                free = [each for each in route.members if each.verdict(self.queue.loop.time()).ok]
                # A retry may wait for the one that it has not tried.
                assert full or len(free) < 2

    def teardown(self) -> None:
        for tasks in self.tasks.values():
            for task in tasks:
                task.cancel()
        for _, lease in self.leases:
            lease.release(RequestOutcome.ANSWERED, 0.1, 200)
        self.queue.loop.pass_time()
        self.settle()
        for _, lease in self.leases:
            lease.release(RequestOutcome.ANSWERED, 0.1, 200)
        self.queue.loop.pass_time(100.0)
        rows = self.queue.backends.snapshot()
        self.queue.loop.close()
        assert all(row["in_flight"] == row["waiting"] == 0 for row in rows)


TestQueue = Machine.TestCase


SERVER = Target(server="web")


CANARY = "web (canary)"


REQUESTS = 2000


def facts_of_canary(share: float = 0.1, **more: object) -> dict[str, ServerFacts]:
    found = {
        "name": "web", "bind": "127.0.0.1:9001", "state": "running", "ready": True,
        "canary": CANARY if share else "", "canary_bind": "127.0.0.1:9002", "canary_share": share,
    }  # fmt: skip
    return {"web": ServerFacts(**found | more)}


def shared_routes(stage: Stage, *found: Route, share: float = 0.1) -> list[RouteBackends]:
    stage.backends.apply(found, facts_of_canary(share))
    return [stage.backends.of(each) for each in found]


def served(route: RouteBackends, client: str = "1.1.1.1", cookie: str = "") -> str:
    """Which backend has answered a request."""
    lease = taken(route.acquire(client, cookie))
    lease.release(RequestOutcome.ANSWERED, 0.01, 200)
    return lease.backend.key


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("share", [0.01, 0.1, 1 / 3, 0.9])
def test_canary_has_never_had_more_than_its_share_whatever_the_policy(
    stage: Stage, policy: str, share: float
) -> None:
    one, other = shared_routes(
        stage,
        Route(alias="one", to=(SERVER, Target(url="http://10.0.0.1:80")), policy=policy),
        Route(alias="other", to=(SERVER,), policy=policy),
        share=share,
    )
    of_server = of_canary = 0
    for number in range(REQUESTS):
        found = served((one, other)[number % 2], f"10.1.{number % 7}.{number % 250}")
        of_server += "web" in found
        of_canary += found == CANARY
        most = math.floor(share * of_server + 1e-6)
        assert most - 1 <= of_canary <= most
    assert of_canary >= share * REQUESTS / 2 - 2


@pytest.mark.slow
def test_proxied_requests_reach_the_canary_in_its_share() -> None:
    async def scene(stage: proxy_stage.Stage) -> None:
        server, canary = await stage.backend(ok), await stage.backend(ok)
        stage.routes(Route(alias="app", to=(SERVER,), mode="proxy"))
        bind, canary_bind = (each.url.removeprefix("http://") for each in (server, canary))
        stage.edge.backends.apply(list(stage.edge.table), facts_of_canary(bind=bind, canary_bind=canary_bind))
        wire = await stage.client()
        for _ in range(REQUESTS // 100):
            await wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
            for _ in range(100):
                await wire.response()
        assert len(canary.heads) in (REQUESTS // 10 - 1, REQUESTS // 10)
        assert len(server.heads) + len(canary.heads) == REQUESTS
        (row,) = stage.edge.backends.snapshot()
        assert (row["host"], row["requests"], row["errors"], row["in_flight"]) == ("web", REQUESTS, 0, 0)

    proxy_stage.play(scene)


def test_new_connections_are_passed_to_the_canary_in_its_share() -> None:
    async def scene(stage: passing_stage.Stage) -> None:
        pairs = stage.server("web"), stage.server(CANARY)
        stage.route_to("web")
        stage.edge.backends.apply(None, facts_of_canary(0.25))
        had = [0, 0]

        def take() -> bool:
            """Whether a connection has come out of one of the pairs."""
            for at, pair in enumerate(pairs):
                if (found := pair.take_now()) is not None:
                    had[at] += 1
                    found.close()
                    return True
            return False

        for number in range(1, 101):
            client = await stage.connect(passing_stage.HEAD)
            await passing_stage.until(take)
            client.close()
            assert sum(had) == number
            assert number // 4 - 1 <= had[1] <= number // 4

    passing_stage.play(scene)


def test_connections_go_to_the_server_while_the_canary_has_no_pair_of_their_kind() -> None:
    async def scene(stage: passing_stage.Stage) -> None:
        pair = stage.server("web")
        stage.route_to("web")
        stage.edge.backends.apply(None, facts_of_canary(0.9))
        for _ in range(20):
            await stage.connect(passing_stage.HEAD)
            (await pair.take()).close()

    passing_stage.play(scene)


def test_request_that_the_canary_failed_is_repeated_at_the_server_and_does_not_raise_its_share(
    stage: Stage,
) -> None:
    (route,) = shared_routes(stage, Route(alias="one", to=(SERVER,), retries=2), share=0.5)
    canaries = repeated = 0
    for _ in range(100):
        lease = taken(route.acquire("1.1.1.1"))
        if lease.backend.key == CANARY:
            canaries += 1
            lease.release(RequestOutcome.FAILED)
            lease = taken(route.acquire("1.1.1.1", "", [CANARY]))
            assert lease.backend.key == "web"
            repeated += 1
        lease.release(RequestOutcome.ANSWERED, 0.01, 200)
    assert canaries == repeated
    assert canaries in (49, 50)


def test_failures_of_the_canary_do_not_open_the_breaker_of_the_server(stage: Stage) -> None:
    rule = BreakerRule(failures=3, rate=0.0)
    (route,) = shared_routes(stage, Route(alias="one", to=(SERVER,), breaker=rule), share=0.9)
    for _ in range(100):
        lease = taken(route.acquire("1.1.1.1"))
        failed = lease.backend.key == CANARY
        lease.release(RequestOutcome.ANSWERED, 0.01, 500 if failed else 200)
    assert not stage.events
    assert stage.available("web").ok


def test_canary_is_under_the_limits_of_its_server(stage: Stage) -> None:
    (route,) = shared_routes(
        stage, Route(alias="one", to=(SERVER,), backend_limit=TrafficLimits(concurrency=2)), share=0.5
    )
    lease = taken(route.acquire("1.1.1.1"))
    while lease.backend.key != CANARY:
        lease.release(RequestOutcome.ANSWERED, 0.01, 200)
        lease = taken(route.acquire("1.1.1.1"))
    leases = [lease, taken(route.acquire("1.1.1.1"))]
    assert "limit" in repr(route.acquire("1.1.1.1"))
    assert stage.row("web")["in_flight"] == 2
    for each in leases:
        each.release(RequestOutcome.ANSWERED, 0.01, 200)
    assert stage.row("web")["in_flight"] == 0


def test_request_that_was_not_sent_does_not_count(stage: Stage) -> None:
    (route,) = shared_routes(stage, Route(alias="one", to=(SERVER,)), share=0.5)
    for _ in range(100):
        taken(route.acquire("1.1.1.1")).release(RequestOutcome.UNUSED)
    assert served(route) == "web"


def test_repeated_sequence_of_requests_reaches_the_canary_with_each_of_them() -> None:
    turns = CanaryTurns(0.1, Random(1))
    assert {number % 10 for number in range(1000) if turns.next()} == set(range(10))


def test_paths_have_their_shares_each_on_its_own() -> None:
    canary = CanaryBackend(Backend("web", Traffic(), True), facts_of_canary(0.5)["web"])
    found = [(canary.requests.next(), canary.connections.next()) for _ in range(200)]
    for of_path in zip(*found, strict=True):
        assert sum(of_path) in (99, 100)


def test_sticky_clients_stay_where_they_are_and_their_requests_count_in_the_share(stage: Stage) -> None:
    (route,) = shared_routes(stage, Route(alias="one", to=(SERVER,), sticky_cookie="c"), share=0.1)
    homes: dict[str, tuple[str, str]] = {}
    count = {"web": 0, CANARY: 0}
    for number in range(300):
        lease = taken(route.acquire("1.1.1.1"))
        lease.release(RequestOutcome.ANSWERED, 0.01, 200)
        count[lease.backend.key] += 1
        homes[f"client {number}"] = lease.backend.key, lease.cookie
        assert lease.cookie
        for _ in range(9):
            assert served(route, cookie=lease.cookie) == lease.backend.key
            count[lease.backend.key] += 1
    assert {home for home, _ in homes.values()} == {"web", CANARY}
    assert 0.05 * 3000 <= count[CANARY] <= 0.1 * 3000 + 10
    # When it is over, its clients go to the server, and are sent its cookie.
    stage.backends.apply(None, facts_of_canary(0))
    cookie = next(cookie for home, cookie in homes.values() if home == CANARY)
    lease = taken(route.acquire("1.1.1.1", cookie))
    assert (lease.backend.key, bool(lease.cookie)) == ("web", True)


def test_after_many_requests_of_sticky_clients_new_ones_do_not_all_come_to_the_canary(stage: Stage) -> None:
    (route,) = shared_routes(stage, Route(alias="one", to=(SERVER,), sticky_cookie="c"), share=0.1)
    lease = taken(route.acquire("1.1.1.1"))
    lease.release(RequestOutcome.ANSWERED, 0.01, 200)
    for _ in range(500):
        served(route, cookie=lease.cookie)
    assert [served(route) for _ in range(10)].count(CANARY) <= 2


def test_canary_that_is_withdrawn_gets_no_further_request_and_another_begins_with_the_server(
    stage: Stage,
) -> None:
    (route,) = shared_routes(stage, Route(alias="one", to=(SERVER,)), share=0.5)
    held = taken(route.acquire("1.1.1.1"))
    while held.backend.key != CANARY:
        held.release(RequestOutcome.ANSWERED, 0.01, 200)
        held = taken(route.acquire("1.1.1.1"))
    assert isinstance(held.backend, CanaryBackend)
    stage.backends.apply(None, facts_of_canary(0))
    assert {served(route) for _ in range(10)} == {"web"}
    held.release(RequestOutcome.ANSWERED, 0.01, 200)
    stage.backends.apply(None, facts_of_canary(0.5))
    assert served(route) == "web"
    assert {served(route) for _ in range(10)} == {"web", CANARY}
    assert re.fullmatch("[0-9a-f]{16}", held.backend.cookie)


@pytest.mark.parametrize(
    ("state", "by_command"),
    [
        ("stopped", True),
        ("disabled", True),
        ("draining", True),
        ("failed", False),
        ("stopping", False),
        ("backoff", False),
    ],
)
def test_verdict_on_a_server_that_does_not_serve_says_whether_a_command_caused_it(
    stage: Stage, state: str, by_command: bool
) -> None:
    stage.backends.apply([server_route("a")], {"a": facts("a", state)})
    assert stage.available("a") == BackendVerdict(False, f"the server is {state}", 5.0, by_command=by_command)


def test_verdict_on_a_server_that_runs_and_is_not_ready(stage: Stage) -> None:
    stage.backends.apply([server_route("a")], {"a": facts("a", ready=False)})
    assert stage.available("a") == BackendVerdict(False, "the server is not ready", 5.0)
    stage.backends.apply(None, {"a": facts("a")})
    assert stage.available("a") == AVAILABLE


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({}, "there is no such server"),
        ({"a": facts("a", bind="process:a")}, "it has no address to connect to"),
    ],
)
def test_verdict_on_a_server_that_cannot_be_reached(
    stage: Stage, known: dict[str, ServerFacts], why: str
) -> None:
    stage.backends.apply([server_route("a")], known)
    assert stage.available("a") == BackendVerdict(False, why, 5.0)


@pytest.mark.parametrize("seconds", [30.0, 0.0])
def test_verdict_on_a_disabled_host_has_the_end_of_its_time(stage: Stage, seconds: float) -> None:
    stage.clock.advance(100)
    stage.route(URLS[0])
    stage.hosts.disable(URLS[0], seconds)
    verdict = stage.available(URLS[0])
    assert verdict == BackendVerdict(
        False,
        "disabled by request",
        5.0,
        by_time=seconds > 0,
        until=100.0 + seconds if seconds else 0.0,
        by_command=True,
    )
    assert verdict.remaining_seconds(110.0) == (20.0 if seconds else 5.0)
    assert verdict.remaining_seconds(131.0) == (0.0 if seconds else 5.0)


def test_verdict_on_a_draining_host(stage: Stage) -> None:
    stage.route(URLS[0])
    stage.hosts.drain(URLS[0])
    assert stage.available(URLS[0]) == BackendVerdict(False, "drained by request", 5.0, by_command=True)
    stage.backends.record_probe(ProbeState(host=URLS[0], why="no answer"))
    assert stage.available(URLS[0]) == BackendVerdict(False, "no answer", 5.0)


def test_verdict_on_a_server_that_is_kept_asleep_has_the_end_of_that_time(stage: Stage) -> None:
    stage.clock.advance(100)
    route, end = server_route("a"), stage.clock.time() + 7200
    stage.backends.apply([route], {"a": facts("a", "sleeping", asleep_until=end)})
    why = f"kept asleep {until_text(end, stage.clock.time())}"
    assert stage.available("a") == BackendVerdict(False, why, 86_400.0, until=7300.0, by_command=True)
    stage.backends.apply([route], {"a": facts("a", "sleeping", asleep_until=0.0)})
    assert stage.available("a") == BackendVerdict(False, "kept asleep", 86_400.0, by_command=True)


def test_verdict_of_a_host_is_the_best_of_its_routes(stage: Stage) -> None:
    strict = stage.route(URLS[0], backend_limit=TrafficLimits(concurrency=1))
    taken(strict.acquire("1.1.1.1"))
    assert stage.available(URLS[0]) == BackendVerdict(False, "its limit is reached", 1.0, True)
    broken = stage.route(URLS[0], alias="broken", breaker=BreakerRule(failures=1))
    fail(broken)
    assert stage.available(URLS[0]) == BackendVerdict(False, "its limit is reached", 1.0, True)
    stage.route(URLS[0], alias="free")
    assert stage.available(URLS[0]) == AVAILABLE


def test_health_of_each_backend_on_a_route(stage: Stage) -> None:
    route = server_route("a", "b", "c", "d", "e", "f", mode="proxy", breaker=BreakerRule(failures=1))
    known = {
        "a": facts("a"),
        "b": facts("b", "starting"),
        "c": facts("c", "sleeping"),
        "d": facts("d", "failed"),
        "e": facts("e", "stopped"),
        "f": facts("f", "backoff"),
    }
    stage.backends.apply([route], known)
    backends = stage.backends.of(route)
    assert backends.healths() == {
        "a": RouteHealth(status="healthy"),
        "b": RouteHealth(status="starting"),
        "c": RouteHealth(status="napping"),
        "d": RouteHealth(status="error", detail="the server is failed"),
        "e": RouteHealth(status="unknown", detail="the server is stopped"),
        "f": RouteHealth(status="unhealthy", detail="the server is backoff"),
    }
    fail(backends)
    assert backends.healths()["a"] == RouteHealth(
        status="unhealthy", detail="breaker open: 1 failure, 10 s left"
    )


def test_backends_and_routes_are_shown_with_their_state(stage: Stage) -> None:
    route = stage.route(URLS[0], limit=TrafficLimits(concurrency=1), breaker=BreakerRule(failures=1))
    taken(route.acquire("1.1.1.1"))
    assert repr(route) == "<RouteBackends web: 1 in flight, 0 wait>"
    backend = route.members[0].backend
    assert repr(backend) == f"<Backend {URLS[0]}: breaker closed, 1 in flight>"
    stage.hosts.disable(URLS[0], 0)
    assert repr(backend) == f"<Backend {URLS[0]}: disabled by request, 1 in flight>"
    assert repr(Backend("other", Traffic(), True)) == "<Backend other: breaker closed, 0 in flight>"


def test_worst_breaker_of_a_host_is_the_one_that_is_shown(stage: Stage) -> None:
    one = stage.route(URLS[0], breaker=BreakerRule(failures=1, open_seconds=10))
    other = stage.route(URLS[0], alias="other", breaker=BreakerRule(failures=1, open_seconds=20))
    assert stage.row(URLS[0])["breaker"] == "closed"
    fail(one)
    fail(other)
    stage.clock.advance(10)
    lease = taken(one.acquire("1.1.1.1"))
    assert stage.row(URLS[0])["breaker"] == "open"
    stage.clock.advance(10)
    lease.release(RequestOutcome.ANSWERED, 0.1, 200)
    taken(other.acquire("1.1.1.1"))
    assert stage.row(URLS[0])["breaker"] == "half-open"


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 1.1, 2.0])
@pytest.mark.parametrize("by_time", [False, True])
def test_refusal_tells_the_client_whole_seconds_and_the_queue_exact_ones(
    seconds: float, by_time: bool
) -> None:
    refused = NoBackend("why", seconds, may_wait=by_time, by_time=by_time)
    whole = {0.0: 1, 0.2: 1, 1.0: 1, 1.1: 2, 2.0: 2}[seconds]
    assert (str(refused), refused.why, refused.status) == ("why", "why", 503)
    assert (refused.retry_after_seconds, refused.may_wait) == (whole, by_time)
    assert refused.next_try_seconds == (seconds if by_time else None)


def seen(found: Lease | NoBackend) -> tuple[str, int, bool, float | None]:
    """What a refused request learns."""
    answer = refused(found)
    return answer.why, answer.retry_after_seconds, answer.may_wait, answer.next_try_seconds


@pytest.mark.parametrize("queue", [0, 1])
def test_full_route_refuses_or_lets_wait_for_the_end_of_another_request(stage: Stage, queue: int) -> None:
    route = stage.route(limit=TrafficLimits(concurrency=2, queue=queue))
    first = taken(route.acquire("1.1.1.1"))
    taken(route.acquire("1.1.1.1"))
    assert seen(route.acquire("1.1.1.1")) == ("the route's limit is reached", 1, queue > 0, None)
    first.release(RequestOutcome.CANCELLED)
    taken(route.acquire("1.1.1.1"))
    refused(route.acquire("1.1.1.1"))


@pytest.mark.parametrize("queue", [0, 1])
def test_rate_of_a_route_says_when_the_next_request_may_begin(stage: Stage, queue: int) -> None:
    route = stage.route(limit=TrafficLimits(requests_per_second=0.25, burst=1, queue=queue))
    taken(route.acquire("1.1.1.1"))
    stage.clock.advance(0.5)
    assert seen(route.acquire("1.1.1.1")) == ("the route's limit is reached", 4, queue > 0, 3.5)
    stage.clock.advance(3.5)
    taken(route.acquire("1.1.1.1"))


def test_open_breaker_says_when_the_next_request_may_try_it_unless_one_does(stage: Stage) -> None:
    route = stage.route(URLS[0], breaker=BreakerRule(failures=1, open_seconds=9.5))
    fail(route)
    stage.clock.advance(1.25)
    assert seen(route.acquire("1.1.1.1"))[1:] == (9, False, 8.25)
    stage.clock.advance(8.25)
    taken(route.acquire("1.1.1.1"))
    assert seen(route.acquire("1.1.1.1"))[2:] == (False, None)


@pytest.mark.parametrize("queue", [0, 1])
def test_full_backends_refuse_or_let_wait(stage: Stage, queue: int) -> None:
    route = stage.route(*URLS[:2], backend_limit=TrafficLimits(concurrency=1, queue=queue))
    for _ in range(2):
        taken(route.acquire("1.1.1.1"))
    why = f"{URLS[0]}: its limit is reached; and 1 more"
    assert seen(route.acquire("1.1.1.1")) == (why, 1, queue > 0, None)
    assert seen(route.acquire("1.1.1.1", tried=URLS[:1])) == (
        f"{URLS[1]}: its limit is reached", 1, queue > 0, None,
    )  # fmt: skip
    assert seen(route.acquire("1.1.1.1", tried=URLS[:2])) == ("every backend was tried", 5, False, None)


def test_rates_of_backends_say_when_the_first_of_them_has_room(stage: Stage) -> None:
    route = stage.route(*URLS[:2], backend_limit=TrafficLimits(requests_per_second=0.25, burst=1, queue=1))
    taken(route.acquire("1.1.1.1"))
    stage.clock.advance(0.5)
    taken(route.acquire("1.1.1.1"))
    why = f"{URLS[0]}: its limit is reached; and 1 more"
    assert seen(route.acquire("1.1.1.1")) == (why, 4, True, 3.5)
    stage.clock.advance(0.5)
    stage.hosts.disable(URLS[1], 2.0)
    assert seen(route.acquire("1.1.1.1")) == (why, 2, True, 2.0)
    stage.hosts.disable(URLS[1], 0)
    assert seen(route.acquire("1.1.1.1")) == (why, 3, True, 3.0), "an event is not waited for by time"


def test_route_without_a_backend_refuses(stage: Stage) -> None:
    route = stage.backends.of(Route(alias="none", to=()))
    assert seen(route.acquire("1.1.1.1")) == ("the route has no backend", 5, False, None)


@pytest.mark.parametrize(
    ("status", "proves"), [(200, True), (101, True), (500, True), (503, False), (429, False)]
)
def test_beginning_of_a_response_proves_its_backend_unless_its_status_is_a_failure(
    stage: Stage, status: int, proves: bool
) -> None:
    route = stage.route(URLS[0], breaker=BreakerRule(failures=1, open_seconds=10, statuses=(429,)))
    fail(route)
    stage.clock.advance(10)
    lease = taken(route.acquire("1.1.1.1"))
    lease.record_long_lived_accepted(status)
    assert stage.row(URLS[0])["breaker"] == ("closed" if proves else "half-open")
    assert route.healths()[URLS[0]].status == ("healthy" if proves else "unhealthy")
    lease.release(RequestOutcome.CANCELLED)
    lease.record_long_lived_accepted(200)
    assert stage.row(URLS[0])["breaker"] == ("closed" if proves else "half-open")


def test_one_of_two_probes_that_has_begun_is_not_counted_again_at_its_end(stage: Stage) -> None:
    route = stage.route(URLS[0], breaker=BreakerRule(failures=1, open_seconds=10, probes=2))
    fail(route)
    stage.clock.advance(10)
    first, second = taken(route.acquire("1.1.1.1")), taken(route.acquire("1.1.1.1"))
    first.record_long_lived_accepted(200)
    first.release(RequestOutcome.ANSWERED, 0.1, 200)
    assert stage.row(URLS[0])["breaker"] == "half-open"
    second.record_long_lived_accepted(200)
    assert stage.row(URLS[0])["breaker"] == "closed"
    second.release(RequestOutcome.FAILED)
    assert stage.row(URLS[0])["breaker"] == "open", (
        "what happens after the probe counts for the closed breaker"
    )


def test_breaker_continues_under_a_new_rule_unless_another_route_uses_it(stage: Stage) -> None:
    rule = BreakerRule(failures=1, open_seconds=10)
    one, other = (stage.as_route(URLS[0], alias=alias, breaker=rule) for alias in ("one", "other"))
    stage.backends.apply([one, other], {})
    fail(stage.backends.of(one))
    changed = replace(one, breaker=replace(rule, failures=2))
    stage.backends.apply([changed, other], {})
    taken(stage.backends.of(changed).acquire("1.1.1.1")).release(RequestOutcome.FAILED)
    refused(stage.backends.of(other).acquire("1.1.1.1"))
    fail(stage.backends.of(changed))
    again = replace(one, breaker=replace(rule, failures=3))
    stage.backends.apply([again, other], {})
    refused(stage.backends.of(again).acquire("1.1.1.1"))
    stage.backends.apply([replace(again, breaker=rule), other], {})
    refused(stage.backends.of(other).acquire("1.1.1.1"))


def test_limit_of_backends_continues_under_a_new_value_unless_another_route_uses_it(stage: Stage) -> None:
    one, other = (
        stage.as_route(URLS[0], alias=alias, backend_limit=TrafficLimits(concurrency=1))
        for alias in ("one", "other")
    )
    stage.backends.apply([one, other], {})
    held = taken(stage.backends.of(one).acquire("1.1.1.1"))
    changed = replace(one, backend_limit=TrafficLimits(concurrency=2))
    stage.backends.apply([changed, other], {})
    leases = [taken(stage.backends.of(changed).acquire("1.1.1.1")) for _ in range(2)]
    refused(stage.backends.of(changed).acquire("1.1.1.1"))
    refused(stage.backends.of(other).acquire("1.1.1.1"))
    again = replace(one, backend_limit=TrafficLimits(concurrency=3))
    stage.backends.apply([again, other], {})
    leases.append(taken(stage.backends.of(again).acquire("1.1.1.1")))
    refused(stage.backends.of(again).acquire("1.1.1.1"))
    for lease in (held, *leases):
        lease.release(RequestOutcome.ANSWERED, 0.1, 200)
    assert stage.row(URLS[0])["in_flight"] == 0
    for _ in range(3):
        taken(stage.backends.of(again).acquire("1.1.1.1"))
    refused(stage.backends.of(again).acquire("1.1.1.1"))


def test_limit_of_a_route_that_is_new_counts_the_requests_in_flight(stage: Stage) -> None:
    route = stage.as_route(URLS[0])
    stage.backends.apply([route], {})
    leases = [taken(stage.backends.of(route).acquire("1.1.1.1")) for _ in range(2)]
    limited = replace(route, limit=TrafficLimits(concurrency=3))
    stage.backends.apply([limited], {})
    found = stage.backends.of(limited)
    leases.append(taken(found.acquire("1.1.1.1")))
    refused(found.acquire("1.1.1.1"))
    stage.backends.apply([route], {})
    leases.append(taken(found.acquire("1.1.1.1")))
    for lease in leases:
        lease.release(RequestOutcome.ANSWERED, 0.1, 200)
    assert found.in_flight == 0


def test_rate_of_a_route_falls_with_the_share_of_its_backends_that_warn(stage: Stage) -> None:
    route = server_route("a", "b", limit=TrafficLimits(requests_per_second=8))
    for healths, expected in ((("ok", "ok"), 8), (("ok", "warn"), 6), (("warn", "warn"), 4)):
        known = {name: facts(name, health=health) for name, health in zip("ab", healths, strict=True)}
        stage.backends.apply([route], known)
        stage.clock.advance(10)
        found = stage.backends.of(route)
        assert sum(isinstance(found.acquire("1.1.1.1"), Lease) for _ in range(20)) == expected


def test_rate_of_a_backend_is_halved_while_it_warns(stage: Stage) -> None:
    route = server_route("a", backend_limit=TrafficLimits(requests_per_second=8))
    for health, expected in (("warn", 4), ("ok", 8), ("warn", 4)):
        stage.backends.apply([route], {"a": facts("a", health=health)})
        stage.clock.advance(10)
        found = stage.backends.of(route)
        assert sum(isinstance(found.acquire("1.1.1.1"), Lease) for _ in range(20)) == expected
    one_more = server_route("a", alias="more", backend_limit=TrafficLimits(requests_per_second=6))
    stage.backends.apply([route, one_more], {"a": facts("a", health="warn")})
    found = stage.backends.of(one_more)
    assert sum(isinstance(found.acquire("1.1.1.1"), Lease) for _ in range(20)) == 3


def test_stream_has_only_a_maximum_number_of_connections(stage: Stage) -> None:
    target = (Target(url="10.0.0.9:5432"),)
    limited = stage.backends.of(StreamRoute(alias="db", bind="0.0.0.0:1", to=target, max_connections=2))
    for _ in range(2):
        taken(limited.acquire("1.1.1.1"))
    assert seen(limited.acquire("1.1.1.1")) == ("the route's limit is reached", 1, False, None)
    free = stage.backends.of(StreamRoute(alias="free", bind="0.0.0.0:2", to=target, max_connections=0))
    for _ in range(100):
        taken(free.acquire("1.1.1.1"))


def test_canary_gets_its_first_request_when_a_whole_one_is_due() -> None:
    turns = CanaryTurns(0.5, Random(1))
    found = [turns.next() for _ in range(20)]
    assert not found[0]
    assert all(sum(found[:count]) in (count // 2, count // 2 - 1) for count in range(2, 21))


def test_turn_of_a_canary_that_was_not_sent_is_given_again() -> None:
    turns = CanaryTurns(1.0, Random(1))
    assert turns.next()
    turns.undo(of_canary=True)
    assert [turns.next() for _ in range(5)] == [True] * 5
    turns.undo(of_canary=False)
    assert not turns.next()
    assert turns.next()


def test_requests_of_clients_that_stay_with_the_canary_use_up_its_turns() -> None:
    turns = CanaryTurns(1.0, Random(1))
    turns.count_kept_on_server()
    turns.count_kept_on_server()
    turns.count_kept_on_server()
    assert turns.next()
    for _ in range(3):
        turns.count_kept_on_canary()
    assert [turns.next() for _ in range(3)] == [True] * 3


def test_canary_is_kept_while_its_facts_stay_the_same(stage: Stage) -> None:
    route = Route(alias="one", to=(SERVER,))
    stage.backends.apply([route], facts_of_canary(0.5, context_key="secret"))
    backend = stage.backends.of(route).members[0].backend
    canary = backend.canary
    assert canary is not None
    assert (canary.key, canary.name, backend.name, canary.context_key) == (CANARY, "web", "web", "secret")
    assert canary.endpoint == Endpoint("tcp", "127.0.0.1", 9002)
    stage.backends.apply(None, facts_of_canary(0.5, context_key="secret", health="warn"))
    assert backend.canary is canary
    for change in ({"canary_bind": "127.0.0.1:9003"}, {"canary": "web (other)"}, {"canary_share": 0.25}):
        stage.backends.apply(None, facts_of_canary(0.5, **change))
        assert backend.canary is not canary
        canary = backend.canary
    stage.backends.apply(None, {})
    assert backend.canary is None


def test_context_key_of_a_server_is_the_one_that_was_last_reported(stage: Stage) -> None:
    route = server_route("a")
    for known, key in (({"a": facts("a", context_key="one")}, "one"), ({"a": facts("a")}, ""), ({}, "")):
        stage.backends.apply([route], known)
        assert stage.backends.of(route).members[0].backend.context_key == key


def test_limits_of_clients_are_kept_until_they_change(stage: Stage) -> None:
    limit = TrafficLimits(concurrency=1)
    route = stage.as_route(client_limit=limit)
    found = stage.backends.of(route)
    clients = found.clients
    assert clients is not None
    assert clients.limit == limit
    stage.backends.apply([replace(route, retries=1)], {})
    assert found.clients is clients
    stage.backends.apply([replace(route, client_limit=TrafficLimits(concurrency=2))], {})
    assert found.clients is not None
    assert found.clients.limit == TrafficLimits(concurrency=2)
    stage.backends.apply([replace(route, client_limit=None)], {})
    assert found.clients is None


def test_cookie_of_one_servers_canary_does_not_lead_to_another_server(stage: Stage) -> None:
    route = server_route("a", "b", policy="first", sticky_cookie="c")
    known = {
        name: facts(name, canary=f"{name} (canary)", canary_bind="127.0.0.1:9002", canary_share=0.5)
        for name in ("a", "b")
    }
    stage.backends.apply([route], known)
    backends = stage.backends.of(route)
    canary = backends.members[1].backend.canary
    assert canary is not None
    for _ in range(3):
        lease = taken(backends.acquire("1.1.1.1", canary.cookie))
        assert (lease.backend, lease.cookie) == (canary, "")
    assert taken(backends.acquire("1.1.1.1", "unknown")).backend.key.startswith("a")


def test_url_without_a_port_gets_no_request(stage: Stage) -> None:
    route = stage.route("tcp://10.0.0.1")
    assert seen(route.acquire("1.1.1.1")) == (
        "tcp://10.0.0.1: 'tcp://10.0.0.1' names no host and port", 5, False, None,
    )  # fmt: skip
    backend = route.members[0].backend
    backend.set_rank(1, None)
    backend.update_blocked(stage.hosts)
    assert (backend.rank, backend.blocked is None) == (0, False)


def test_probe_of_an_open_breaker_that_a_client_abandons_is_left_to_the_next_request(stage: Stage) -> None:
    route = stage.route(URLS[0], breaker=BreakerRule(failures=1, open_seconds=10))
    fail(route)
    stage.clock.advance(10)
    probe = taken(route.acquire("1.1.1.1"))
    assert "half-open" in refused(route.acquire("1.1.1.1")).why
    probe.release(RequestOutcome.CANCELLED)
    taken(route.acquire("1.1.1.1")).release(RequestOutcome.ANSWERED, 0.1, 200)
    assert stage.row(URLS[0])["breaker"] == "closed"


def test_open_breaker_of_a_route_that_no_longer_leads_to_a_backend_is_forgotten(stage: Stage) -> None:
    one = stage.as_route(URLS[0], alias="one", breaker=BreakerRule(failures=1))
    other = stage.as_route(URLS[0], alias="other", breaker=BreakerRule(failures=2))
    stage.backends.apply([one, other], {})
    fail(stage.backends.of(one))
    backend = stage.backends.of(one).members[0].backend
    assert backend.breaker_why(0.0) == "breaker open: 1 failure, 10 s left"
    stage.backends.apply([other], {})
    assert (stage.row(URLS[0])["breaker"], backend.breaker_why(0.0)) == ("closed", "")
    assert [*backend.members] == [stage.backends.of(other)]


def test_url_is_healthy_once_a_probe_or_a_request_was_answered(stage: Stage) -> None:
    route = stage.route(*URLS[:2])
    unknown = RouteHealth(status="unknown", detail="it has not answered yet")
    assert route.healths() == dict.fromkeys(URLS[:2], unknown)
    stage.backends.record_probe(ProbeState(host=URLS[0], answered=True))
    stage.backends.record_probe(ProbeState(host=URLS[0]))
    taken(route.acquire("1.1.1.1", tried=URLS[:1])).release(RequestOutcome.ANSWERED, 0.1, 503)
    assert route.healths() == {URLS[0]: RouteHealth(status="healthy"), URLS[1]: unknown}
    taken(route.acquire("1.1.1.1", tried=URLS[:1])).release(RequestOutcome.ANSWERED, 0.1, 200)
    assert route.healths()[URLS[1]] == RouteHealth(status="healthy")
