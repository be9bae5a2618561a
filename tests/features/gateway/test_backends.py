"""Which backend gets a request: one verdict, the policy's choice, and a place in a queue."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import pytest

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostManager
from poolctl.features.gateway.process.backends.route_backends import (
    Backend,
    Lease,
    NoBackend,
    RequestOutcome,
    RouteBackends,
)
from poolctl.features.gateway.process.counts import Counts
from poolctl.features.gateway.process.settings import ProbeState, ServerFacts
from poolctl.json_form import Table
from poolctl.routing.route import BreakerRule, Limit, Route, StreamRoute, Target
from tests.manual_clock import ManualClock

URLS = ("http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80")


class Stage:
    """The backends of a gateway, with a clock that is moved by hand, and the events that they reported."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.events: list[tuple[str, Table]] = []
        self.hosts = HostManager(self.clock.monotonic, wall=self.clock.time)
        self.counts = Counts()
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
    route = stage.route(limit=Limit(concurrency=1))
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
    fail(route, 3)
    answer = refused(route.acquire("1.1.1.1"))
    assert (answer.status, answer.retry_after_seconds, answer.may_wait) == (503, 10, False)
    assert str(answer) == "http://10.0.0.1:80: breaker open: 3 failures, 10 s left; and 1 more"
    stage.clock.advance(10)
    probe = taken(route.acquire("1.1.1.1"))
    assert (probe.backend.key, stage.row(URLS[0])["breaker"]) == (URLS[0], "half-open")
    probe.release(RequestOutcome.ANSWERED, 0.01, 200)
    assert stage.row(URLS[0])["breaker"] == "closed"
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
    assert stage.backends.available(URLS[0]).ok is not opens


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


def test_host_says_why_it_gets_nothing_and_nothing_once_it_does(stage: Stage) -> None:
    route = stage.route(URLS[0], breaker=BreakerRule(failures=5, open_seconds=10))
    stage.hosts.disable(URLS[0])
    stage.hosts.enable(URLS[0])
    assert stage.row(URLS[0])["why"] == ""
    fail(route, 5)
    stage.clock.advance(6)
    assert stage.row(URLS[0])["why"] == "breaker open: 5 failures, 4 s left"
    stage.clock.advance(4)
    assert stage.row(URLS[0])["why"] == "breaker open: 5 failures, the next request tries it"
    lease = taken(route.acquire("1.1.1.1"))
    assert stage.row(URLS[0])["why"] == "breaker half-open after 5 failures: a request tries it"
    lease.release(RequestOutcome.ANSWERED, 0.01, 200)
    assert stage.row(URLS[0])["why"] == ""


def test_requests_of_clients_that_left_say_nothing_about_the_backend(stage: Stage) -> None:
    route = stage.route(URLS[0])
    for _ in range(10):
        taken(route.acquire("1.1.1.1")).release(RequestOutcome.CANCELLED)
    assert stage.backends.available(URLS[0]).ok
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


def test_changed_route_keeps_the_state_of_the_backends_that_stay(stage: Stage) -> None:
    rule = BreakerRule(failures=1, open_seconds=60)
    before = stage.as_route(*URLS[:2], policy="first", breaker=rule, backend_limit=Limit(concurrency=2))
    stage.backends.apply([before], {})
    fail(stage.backends.of(before))
    lease = taken(stage.backends.of(before).acquire("1.1.1.1"))
    stage.hosts.disable(URLS[1], 0, "broken disk")
    changed = replace(
        before,
        to=tuple(Target(url=url) for url in URLS),
        breaker=replace(rule, failures=2),
        backend_limit=Limit(concurrency=1),
    )
    stage.backends.apply([changed], {})
    assert stage.row(URLS[0])["breaker"] == "open"
    assert (stage.row(URLS[1])["in_flight"], stage.row(URLS[1])["why"]) == (1, "broken disk")
    stage.hosts.enable(URLS[1])
    assert "limit" in stage.backends.available(URLS[1]).why
    lease.release(RequestOutcome.ANSWERED, 0.1, 200)
    assert stage.backends.available(URLS[1]).ok


def test_backends_that_no_route_leads_to_are_forgotten(stage: Stage) -> None:
    stage.backends.apply([stage.as_route()], {})
    stage.hosts.disable(URLS[0])
    stage.backends.apply([stage.as_route(URLS[1])], {})
    assert [row["host"] for row in stage.backends.snapshot()] == [URLS[1]]
    assert stage.hosts.records() == []


def test_routes_with_the_same_rule_share_a_breaker_and_others_do_not(stage: Stage) -> None:
    rule = BreakerRule(failures=1)
    one, same = stage.route(URLS[0], breaker=rule), stage.route(URLS[0], alias="same", breaker=rule)
    other = stage.route(URLS[0], alias="other", breaker=BreakerRule(failures=2))
    fail(one)
    refused(same.acquire("1.1.1.1"))
    taken(other.acquire("1.1.1.1"))


def test_rate_of_a_route_is_halved_while_its_backends_are_unwell(stage: Stage) -> None:
    route = server_route("a", limit=Limit(requests_per_second=10))
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
    lease.connected()
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
    assert stage.backends.by_load == ["a", "b"]
    stage.backends.hold({"a": 9, "b": 0, "gone": 5})
    assert taken(backends.acquire("1.1.1.1")).backend.key == "b"
    assert stage.backends.by_load == ["a"]


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
        backends.passed(chosen)
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


def test_weight_of_a_server_multiplies_that_of_its_targets(stage: Stage) -> None:
    route = server_route("a", "b")
    stage.backends.apply([route], {"a": facts("a"), "b": facts("b")})
    lease = taken(stage.backends.of(route).acquire("1.1.1.1"))
    stage.backends.apply(None, {"a": facts("a", weight=3), "b": facts("b")})
    found = [taken(stage.backends.of(route).acquire("1.1.1.1")).backend.key for _ in range(8)]
    assert (found.count("a"), found.count("b")) == (6, 2)
    assert lease.backend.in_flight == 7, "what is in flight stays"


def test_repeated_facts_and_routes_change_nothing(stage: Stage) -> None:
    route = server_route("a", "b", policy="least-connections")
    for _ in range(3):
        stage.backends.apply(
            [server_route("a", "b", policy="least-connections")], {"a": facts("a"), "b": facts("b")}
        )
        taken(stage.backends.of(route).acquire("1.1.1.1")).release(RequestOutcome.PASSED)
    assert sorted(member.load for member in stage.backends.of(route).members) == [1, 2]


def test_report_of_a_host_shows_its_connections_and_routes(stage: Stage) -> None:
    route = server_route("a")
    stage.backends.apply([route], {"a": facts("a")})
    taken(stage.backends.of(route).acquire("1.1.1.1"))
    stage.backends.of(route).members[0].backend.open_connections = 4
    row = stage.row("a")
    assert (row["connections"], row["in_flight"], row["routes"]) == (4, 1, ["api"])
    assert repr(stage.backends.of(route).members[0].backend) == "<Backend a: breaker closed, 1 in flight>"


def test_server_without_an_address_gets_no_request(stage: Stage) -> None:
    stage.backends.apply([server_route("a")], {"a": facts("a", bind="process:a")})
    answer = refused(stage.backends.of(server_route("a")).acquire("1.1.1.1"))
    assert str(answer) == "a: it has no address to connect to"


def test_url_whose_probe_fails_gets_no_request_until_it_answers(stage: Stage) -> None:
    stage.backends.probed(ProbeState(host=URLS[0], why="GET /up: status 503"))
    route = stage.route(*URLS[:2], policy="first")
    assert taken(route.acquire("1.1.1.1")).backend.key == URLS[1]
    row = stage.row(URLS[0])
    assert (row["available"], row["health"], row["why"]) == (False, "unhealthy", "GET /up: status 503")
    stage.backends.probed(ProbeState(host=URLS[0], answered=True))
    assert taken(route.acquire("1.1.1.1")).backend.key == URLS[0]
    assert stage.row(URLS[0])["health"] == "healthy", "it has answered, although no request has"
    stage.backends.probed(ProbeState(host=URLS[0], why="no connection"))
    stage.backends.forget_probes()
    assert taken(route.acquire("1.1.1.1")).backend.key == URLS[0]


def test_probe_that_succeeds_again_lets_an_open_breaker_be_tried(stage: Stage) -> None:
    route = stage.route(URLS[0], breaker=BreakerRule(failures=1, open_seconds=1000))
    fail(route)
    stage.backends.probed(ProbeState(host=URLS[0], why="no connection"))
    refused(route.acquire("1.1.1.1"))
    stage.backends.probed(ProbeState(host=URLS[0], answered=True))
    taken(route.acquire("1.1.1.1"))
