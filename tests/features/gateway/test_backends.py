"""The backends of all routes: kept over changes of routes and servers, and what they report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolctl.features.gateway.process.backends.route_backends import (
    RequestOutcome,
)
from poolctl.features.gateway.process.settings import ProbeState
from poolctl.routing.route import BreakerRule, StreamRoute, Target, TrafficLimits
from tests.features.gateway.test_route_backends import (
    URLS,
    Stage,
    facts,
    fail,
    refused,
    server_route,
    taken,
)


@pytest.fixture
def stage() -> Stage:
    return Stage()


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


def test_changed_route_keeps_the_state_of_the_backends_that_stay(stage: Stage) -> None:
    rule = BreakerRule(failures=1, open_seconds=60)
    before = stage.as_route(
        *URLS[:2], policy="first", breaker=rule, backend_limit=TrafficLimits(concurrency=2)
    )
    stage.backends.apply([before], {})
    fail(stage.backends.of(before))
    lease = taken(stage.backends.of(before).acquire("1.1.1.1"))
    stage.hosts.disable(URLS[1], 0)
    changed = replace(
        before,
        to=tuple(Target(url=url) for url in URLS),
        breaker=replace(rule, failures=2),
        backend_limit=TrafficLimits(concurrency=1),
    )
    stage.backends.apply([changed], {})
    assert stage.row(URLS[0])["breaker"] == "open"
    assert (stage.row(URLS[1])["in_flight"], stage.row(URLS[1])["why"]) == (1, "disabled by request")
    stage.hosts.enable(URLS[1])
    assert "limit" in stage.available(URLS[1]).why
    lease.release(RequestOutcome.ANSWERED, 0.1, 200)
    assert stage.available(URLS[1]).ok


def test_backends_that_no_route_leads_to_are_forgotten(stage: Stage) -> None:
    stage.backends.apply([stage.as_route()], {})
    stage.hosts.disable(URLS[0])
    stage.backends.apply([stage.as_route(URLS[1])], {})
    assert [row["host"] for row in stage.backends.snapshot()] == [URLS[1]]
    assert stage.hosts.records() == []


def test_aliases_are_those_of_http_routes_that_were_applied_or_used(stage: Stage) -> None:
    stream = StreamRoute(alias="db", bind="127.0.0.1:1", to=(Target(url="127.0.0.1:9"),))
    applied, used = stage.as_route(URLS[0], alias="applied"), stage.as_route(URLS[1], alias="used")
    stage.backends.apply([applied, stream], {})
    assert stage.backends.aliases == ["applied"]
    stage.backends.of(used)
    assert stage.backends.aliases == ["applied", "used"]


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


def test_url_whose_probe_fails_gets_no_request_until_it_answers(stage: Stage) -> None:
    stage.backends.record_probe(ProbeState(host=URLS[0], why="GET /up: status 503"))
    route = stage.route(*URLS[:2], policy="first")
    assert taken(route.acquire("1.1.1.1")).backend.key == URLS[1]
    row = stage.row(URLS[0])
    assert (row["available"], row["health"], row["why"]) == (False, "unhealthy", "GET /up: status 503")
    stage.backends.record_probe(ProbeState(host=URLS[0], answered=True))
    assert taken(route.acquire("1.1.1.1")).backend.key == URLS[0]
    assert stage.row(URLS[0])["health"] == "healthy", "it has answered, although no request has"
    stage.backends.record_probe(ProbeState(host=URLS[0], why="no connection"))
    stage.backends.forget_probes()
    assert taken(route.acquire("1.1.1.1")).backend.key == URLS[0]


def test_probe_that_succeeds_again_lets_an_open_breaker_be_tried(stage: Stage) -> None:
    route = stage.route(URLS[0], breaker=BreakerRule(failures=1, open_seconds=1000))
    fail(route)
    stage.backends.record_probe(ProbeState(host=URLS[0], why="no connection"))
    refused(route.acquire("1.1.1.1"))
    stage.backends.record_probe(ProbeState(host=URLS[0], answered=True))
    taken(route.acquire("1.1.1.1"))


def test_backend_that_another_program_cannot_reach_gets_nothing_until_it_does(stage: Stage) -> None:
    route = stage.route(*URLS[:2])

    def judge(*down: str, is_stream: bool = False) -> list[tuple[bool, str, str]]:
        stage.backends.apply_external_proxy_verdicts("HAProxy", "web", down, URLS[1:], is_stream=is_stream)
        rows = [stage.row(url) for url in URLS[:2]]
        return [(row["available"], row["health"], row["why"]) for row in rows]

    up, unknown = (True, "healthy", ""), (True, "unknown", "")
    assert judge(URLS[0], is_stream=True) == [unknown, unknown], "no stream has this name"
    for _ in range(2):
        assert judge(URLS[0]) == [(False, "unhealthy", "breaker open: HAProxy cannot reach it"), up]
        stage.clock.advance(1e6)
    assert taken(route.acquire("1.1.1.1")).backend.key == URLS[1]
    for _ in range(2):
        assert judge() == [unknown, up]
    assert [(kind, data["host"], data["why"]) for kind, data in stage.events] == [
        ("breaker opened", URLS[0], "HAProxy cannot reach it"),
        ("breaker closed", URLS[0], "HAProxy reaches it again"),
    ]


def test_requests_in_flight_are_those_that_another_program_counts(stage: Stage) -> None:
    stage.route(*URLS[:2])
    stage.backends.set_in_flight({URLS[0]: 3, "http://gone": 1})
    assert [stage.row(url)["in_flight"] for url in URLS[:2]] == [3, 0]
    stage.backends.set_in_flight({URLS[1]: 2})
    assert [stage.row(url)["in_flight"] for url in URLS[:2]] == [0, 2]
