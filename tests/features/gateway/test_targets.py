"""The targets of routes: which get requests, and what their breakers change."""

from __future__ import annotations

import asyncio

import pytest

from poolctl.features.gateway.target import MachineState, TargetState
from poolctl.features.gateway.target import Target as FoundTarget
from poolctl.routing.route import BreakerRule, Route, StreamRoute, Target
from poolctl.routing.route_report import BackendReport

from .scripted_haproxy import FiguresStage, server

A, B, C = "http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80"
RULE = BreakerRule(failures=3, rate=0.0, open_seconds=10.0, probes=2, max_open=0.5)
READY, STARTING, SLEEPING, DRAINING, STOPPED, DOWN, FAILED = TargetState


def route(*targets: str, alias: str = "shop", rule: BreakerRule = RULE) -> Route:
    found = (Target(url=each) if "://" in each else Target(server=each) for each in targets)
    return Route(alias=alias, to=tuple(found), breaker=rule)


def serving(stage: FiguresStage, on: Route | StreamRoute) -> list[str]:
    """The targets that serve the route; "N:" begins those that get at most N requests at once."""
    found = stage.found(on).items()
    return [f"{each.probes}:{key}" if each.probes else key for key, each in found if each.serves]


def report(stage: FiguresStage, host: str) -> BackendReport:
    (found,) = (each for each in stage.figures.backends() if each.host == host)
    return found


def fail(stage: FiguresStage, on: Route | StreamRoute, *targets: str) -> None:
    """Let each of the targets fail often enough in turn."""
    for target in targets:
        stage.count(on, target, stot=3, eresp=3)
        stage.read_now()


def lose(stage: FiguresStage, on: Route | StreamRoute, *targets: str) -> None:
    for target in targets:
        stage.count(on, target, wredis=1)
        stage.read_now()


@pytest.mark.parametrize(
    ("one", "two", "used"),
    [
        (None, None, []),
        (READY, READY, ["one", "two"]),
        (READY, STARTING, ["one"]),
        (SLEEPING, STARTING, ["two"]),
        (SLEEPING, STOPPED, ["one"]),
        (DOWN, FAILED, []),
    ],
)
def test_ready_servers_come_before_starting_and_those_before_sleeping_ones(
    one: TargetState | None, two: TargetState | None, used: list[str]
) -> None:
    both = route("one", "two")
    stage = FiguresStage(both)
    stage.servers |= {name: server(each) for name, each in (("one", one), ("two", two)) if each is not None}
    assert serving(stage, both) == used


class Incomparable(Route):
    def __eq__(self, other: object) -> bool:
        raise AssertionError("ten thousand routes to one server are fifty million comparisons")

    __hash__ = Route.__hash__


def test_routes_to_one_server_are_not_compared_with_each_other() -> None:
    routes = [Incomparable(alias=alias, to=(Target(server="one"),) * 2) for alias in ("a", "b")]
    assert [each.routes for each in FiguresStage(*routes).targets.reports({}, {})] == [("a", "b")]


def test_urls_are_used_unless_a_probe_a_machine_or_a_command_says_otherwise() -> None:
    all_ = route(A, B, C)
    stage = FiguresStage(all_)
    assert serving(stage, all_) == [A, B, C]
    stage.targets.probed = {A: FoundTarget(DOWN, "status 503")}
    stage.targets.machines = {B: MachineState(state=MachineState.STOPPED)}
    assert serving(stage, all_) == [C]
    stage.hosts.drain(C)
    assert (serving(stage, all_), stage.found(all_)[C].state) == ([B], DRAINING)
    stage.hosts.disable(B)
    assert serving(stage, all_) == []
    assert [each.state for each in stage.found(all_).values()] == [DOWN, STOPPED, DRAINING]


def test_targets_whose_machine_is_not_known_yet_wait_and_others_come_first() -> None:
    both = route(A, B)
    stage = FiguresStage(both)
    stage.targets.unknown = {A}
    assert (serving(stage, both), stage.found(both)[A].state) == ([B], STARTING)
    stage.targets.probed = {B: FoundTarget(DOWN, "status 503")}
    stage.hosts.drain(B)
    assert (serving(stage, both), stage.found(both)[B].state) == ([A], DOWN), (
        "a drained one that fails is down"
    )


def test_half_open_target_is_tested_only_if_no_other_is_more_ready() -> None:
    both = route("one", "two")
    stage = FiguresStage(both)
    stage.servers |= {"one": server(), "two": server()}
    fail(stage, both, "one")
    stage.clock.advance(10)
    stage.read_now()
    assert serving(stage, both) == ["2:one", "two"]
    stage.servers["one"] = server(SLEEPING)
    assert serving(stage, both) == ["two"]
    stage.servers |= {"one": server(), "two": server(STOPPED)}
    assert serving(stage, both) == ["one"], "without a limit, as no other serves"


def test_unreachable_target_is_open_at_once_then_tested_then_used_again() -> None:
    both = route(A, B)
    stage = FiguresStage(both)
    lose(stage, both, A)
    assert (serving(stage, both), stage.changes) == ([B], 1)
    found = report(stage, A)
    assert (found.breaker, found.available, found.health) == ("open", False, "unhealthy")
    stage.clock.advance(10)
    stage.read_now()
    assert (serving(stage, both), stage.changes) == ([f"2:{A}", B], 2)
    assert (report(stage, A).breaker, report(stage, A).available) == ("half-open", True)
    stage.count(both, A, stot=2, hrsp_2xx=2)
    stage.read_now()
    assert (serving(stage, both), stage.changes) == ([A, B], 3)
    assert (report(stage, A).breaker, report(stage, A).health, report(stage, A).why) == (
        "closed",
        "healthy",
        "",
    )


def test_last_target_gets_requests_whatever_its_breaker_says() -> None:
    both = route(A, B)
    stage = FiguresStage(both)
    lose(stage, both, A, B)
    assert serving(stage, both) == [A, B]
    assert (report(stage, A).breaker, report(stage, A).available) == ("open", True)
    stage.hosts.disable(B)
    assert serving(stage, both) == [A]
    stage.count(both, A, stot=1, hrsp_2xx=1)
    stage.read_now()
    assert report(stage, A).breaker == "closed"


def test_failing_targets_are_taken_out_up_to_the_share_of_the_rule() -> None:
    all_ = route(A, B, C)
    stage = FiguresStage(all_)
    fail(stage, all_, A, B, C)
    assert serving(stage, all_) == [B, C], "one of three is less than half of them"
    every = BreakerRule(failures=3, rate=0.0, max_open=1.0)
    stage.set_routes(all_ := route(A, B, C, rule=every))
    fail(stage, all_, B, C)
    assert serving(stage, all_) == [C], "but never the last one"


def test_breaker_of_one_route_does_not_matter_to_another() -> None:
    first, second = route(A, B), route(A, B, alias="other")
    stage = FiguresStage(first, second)
    fail(stage, first, A)
    assert (serving(stage, first), serving(stage, second)) == ([B], [A, B])
    assert (report(stage, A).breaker, report(stage, A).available) == ("open", True)


def test_stream_has_breakers_like_a_route() -> None:
    db = StreamRoute(
        alias="db", bind=":1", to=(Target(url="10.0.0.1:1"), Target(url="10.0.0.2:1")), breaker=RULE
    )
    stage = FiguresStage(db)
    lose(stage, db, "10.0.0.1:1")
    assert serving(stage, db) == ["10.0.0.2:1"]


def test_servers_of_the_pool_are_unreachable_if_their_supervisor_says_so() -> None:
    both = route("one", "two")
    stage = FiguresStage(both)
    stage.servers |= {"one": server(), "two": server()}
    lose(stage, both, "one")
    assert report(stage, "one").breaker == "closed"
    fail(stage, both, "one")
    assert serving(stage, both) == ["two"]
    stage.servers["one"] = server(ready_at=stage.clock.monotonic() + 1)
    stage.read_now()
    assert serving(stage, both) == ["one", "two"], "a new worker is ready"
    assert [kind for kind, _, _ in stage.events] == ["breaker opened", "breaker closed"]


def test_what_is_known_of_a_target_is_forgotten_while_it_gets_no_requests_for_another_reason() -> None:
    both = route(A, B)
    stage = FiguresStage(both)
    lose(stage, both, A)
    stage.hosts.disable(A)
    stage.read_now()
    stage.hosts.enable(A)
    assert serving(stage, both) == [A, B]


def test_breakers_of_routes_that_stay_are_kept_with_the_new_rule() -> None:
    both = route(A, B)
    stage = FiguresStage(both)
    lose(stage, both, A)
    stage.set_routes(both := route(A, B, rule=BreakerRule(open_seconds=2.0, failures=3)))
    assert serving(stage, both) == [B]
    stage.clock.advance(2)
    stage.read_now()
    assert serving(stage, both) == [f"1:{A}", B]
    stage.set_routes(route(B))
    stage.set_routes(both)
    assert serving(stage, both) == [A, B]


async def test_open_breaker_and_its_reason_are_recorded_once() -> None:
    # Nothing listens there, and the pool itself finds out what HAProxy does not say.
    nowhere, both = "http://127.0.0.1:1", route("http://127.0.0.1:1", B)
    stage = FiguresStage(both)
    stage.count(both, nowhere, wredis=1)
    await stage.read()
    async with asyncio.timeout(30):
        while not stage.events:
            await asyncio.sleep(0)
    why = "no connection can be made: Connection refused"
    assert stage.events == [("breaker opened", nowhere, why)]
    assert report(stage, nowhere).why == f"breaker open: {why}, 10 s left"
    for _ in range(2):
        stage.clock.advance(10)
        await stage.read()
        stage.count(both, nowhere, wredis=1)
        await stage.read()
    assert report(stage, nowhere).why == f"breaker open: {why}, 10 s left"
    assert len(stage.events) == 1


def test_url_is_healthy_once_it_has_answered_well() -> None:
    one = route(A)
    stage = FiguresStage(one)
    found = stage.found(one)[A].health
    assert (found.status, found.detail) == ("unknown", "it has not answered yet")
    stage.count(one, A, stot=2, hrsp_5xx=1, bad=1, eresp=1)
    stage.read_now()
    found = stage.found(one)[A].health
    assert (found.status, found.detail) == ("unhealthy", "all its requests have failed so far")
    assert report(stage, A).errors == 2
    stage.count(one, A, stot=1, hrsp_4xx=1)
    stage.read_now()
    assert stage.found(one)[A].health.status == "healthy"


def test_url_whose_host_name_has_no_address_gets_no_requests() -> None:
    nowhere, named = "http://shop.invalid:8080", route("http://shop.invalid:8080", A)
    stage = FiguresStage(named)
    stage.targets.unresolved = {"shop.invalid"}
    assert serving(stage, named) == [A]
    assert report(stage, nowhere).why == "no address is found for shop.invalid"
    stage.targets.unresolved = ()
    assert serving(stage, named) == [nowhere, A]


def test_report_of_a_target_has_its_figures_on_all_of_its_routes() -> None:
    first, second = route(A), route(A, alias="other")
    stage = FiguresStage(first, second)
    for each in (first, second):
        stage.count(each, A, stot=4, hrsp_2xx=3, hrsp_5xx=1, scur=2)
        stage.count(each, qcur=3)
    stage.hosts.disable(A, 0)
    stage.read_now()
    found = report(stage, A)
    assert (found.routes, found.requests, found.errors) == (("shop", "other"), 8, 2)
    assert (found.in_flight, found.connections, found.waiting) == (4, 4, 6)
    assert (found.state, found.available, found.why) == ("disabled", False, "disabled by request")
