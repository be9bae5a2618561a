"""One verdict on a route, from the gateway's choice to every place where it is shown: all combinations."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from poolctl.features.gateway.process.backends.route_backends import (
    Backend,
    Lease,
    RequestOutcome,
    RouteBackends,
)
from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.features.gateway.supervision.computed_routes import RouteSet
from poolctl.features.gateway.supervision.gateway_metrics import GatewaySnapshot, families
from poolctl.monitor.metrics import render
from poolctl.routing.route import BreakerRule, Route, Target
from poolctl.routing.route_health import STATUSES, RouteHealth
from poolctl.selection.selector import Selector
from poolctl.supervisor.observers.pool_metrics import HealthReporter
from poolctl.supervisor.verbs.verb import Call
from tests.features.gateway.test_gateway_statistics import RoutePool
from tests.unit.core.ordered_core import run
from tests.unit.supervisor.desk import Desk

URL = "http://10.0.0.7:9000"
RULE = BreakerRule(failures=1, open_seconds=10)
ORDERED = "active", "disabled", "draining"
BREAKERS = "closed", "open", "pause is over", "half-open"
# What becomes of a server that is active, and whose breaker is closed.
SERVERS = {
    "ready": "healthy",
    "not ready": "unhealthy",
    "starting": "starting",
    "sleeping": "napping",
    "kept asleep": "unknown",
    "backoff": "unhealthy",
    "failed": "error",
    "stopped": "unknown",
    "disabled": "unknown",
    "draining": "unknown",
    "absent": "unhealthy",
}


class Case(NamedTuple):
    """One combination."""

    target: str  # the state of a server, or whether a URL has answered
    ordered: str
    breaker: str
    passes: bool

    @property
    def is_url(self) -> bool:
        return self.target.startswith("URL")

    @property
    def expected(self) -> str:
        own = {**SERVERS, "URL": "unknown", "URL that has answered": "healthy"}[self.target]
        down = {"not ready", "kept asleep", "backoff", "failed", "stopped", "disabled", "draining", "absent"}
        if self.ordered == "disabled" or (self.ordered == "draining" and self.target not in down):
            return "unknown"
        if self.target in down:
            return own
        return "unhealthy" if self.breaker != "closed" and not self.passes else own


def cases() -> Iterator[Case]:
    for target, ordered, breaker, passes in itertools.product(SERVERS, ORDERED, BREAKERS, (True, False)):
        yield Case(target, ordered, breaker, passes)
    for target, ordered, breaker in itertools.product(("URL", "URL that has answered"), ORDERED, BREAKERS):
        yield Case(target, ordered, breaker, False)


def stage_of(case: Case) -> tuple[RoutePool, Route, RouteBackends]:
    """The gateway's backends, which have come into this state by what happens to them."""
    key = URL if case.is_url else "web"
    to = (Target(url=URL),) if case.is_url else (Target(server="web"),)
    route = Route(alias="shop", path="/shop", to=to, mode="auto" if case.passes else "proxy", breaker=RULE)
    stage = RoutePool(route)
    backends = stage.backends.of(route)
    if case.target == "URL that has answered":
        request(backends, RequestOutcome.ANSWERED)
    if case.breaker != "closed":
        request(backends, RequestOutcome.FAILED)
    if case.breaker in ("pause is over", "half-open"):
        stage.clock.advance(10)
    if case.breaker == "half-open":
        assert isinstance(backends.acquire("1.1.1.1"), Lease)
    if case.target in SERVERS and case.target != "ready":
        stage.backends.apply(None, {} if case.target == "absent" else {"web": facts(case.target)})
    if case.ordered == "disabled":
        stage.hosts.disable(key, 0)
    elif case.ordered == "draining":
        stage.hosts.drain(key)
    return stage, route, backends


def facts(state: str) -> ServerFacts:
    known = {"not ready": "running", "kept asleep": "sleeping"}.get(state, state)
    until = 0.0 if state == "kept asleep" else None
    return ServerFacts(name="web", bind="127.0.0.1:9001", state=known, ready=False, asleep_until=until)


def request(backends: RouteBackends, outcome: RequestOutcome) -> None:
    lease = backends.acquire("1.1.1.1")
    assert isinstance(lease, Lease)
    lease.release(outcome, 0.01, 200)


class Routes:
    """The health of one route, for the observers."""

    def __init__(self, health: RouteHealth) -> None:
        self._health = health

    async def healths(self) -> dict[str, RouteHealth]:
        return {"shop": self._health}


@pytest.mark.parametrize("case", [*cases()], ids=str)
def test_choice_routes_health_hosts_and_metrics_agree(case: Case) -> None:
    stage, route, backends = stage_of(case)
    try:
        shown = stage.report(route)
        health = stage.health(route)
        host = stage.backends.snapshot()[0]
        assert (shown.state, health.status, host["health"]) == (case.expected,) * 3
        assert bool(health.detail) is (case.expected not in ("healthy", "napping", "starting"))

        found = backends.choose("1.1.1.1") if case.passes else backends.acquire("1.1.1.1")
        chosen = isinstance(found, (Backend, Lease))
        if health.status in ("healthy", "napping", "starting"):
            assert chosen
        elif chosen:
            assert case.target == "URL" or case.breaker == "pause is over", "tried, and not known to serve"
        assert host["available"] is chosen or case.breaker == "pause is over"

        async def work() -> None:
            observed = HealthReporter(Desk().core, Routes(health).healths)
            answer = await observed.answer_health_verb(Call(Selector(), {}, lambda line: None))
            serves = case.expected in ("healthy", "napping")
            assert (answer.exit_code, (await observed.health()).serves) == (0 if serves else 3, serves)

        run(work())
        assert metrics(stage, health) == {case.expected}
    finally:
        os.close(stage.table.fileno())


def metrics(stage: RoutePool, health: RouteHealth) -> set[str]:
    """The statuses that the metrics show of route and host."""
    report: dict[str, Any] = {"counts": stage.counts.snapshot(), "hosts": stage.backends.snapshot()}
    snapshot = GatewaySnapshot(report, 0, 1, RouteSet(), {}, {}, {"shop": health})
    lines = render(families(snapshot), openmetrics=True).splitlines()
    return {
        status
        for status in STATUSES
        for line in lines
        if line.startswith(("poolctl_route_health{", "poolctl_host_health{"))
        and f'status="{status}"' in line
        and line.endswith(" 1")
    }


def test_route_is_as_good_as_its_best_backend_in_every_pair() -> None:
    pairs = list(itertools.product(SERVERS, SERVERS))
    for one, other in pairs:
        route = Route(alias="shop", to=(Target(server="one"), Target(server="other")), mode="proxy")
        stage = RoutePool(route)
        try:
            made = {"one": one, "other": other}
            found = {
                name: replace(facts(state), name=name, ready=state == "ready")
                for name, state in made.items()
                if state != "absent"
            }
            stage.backends.apply(
                None,
                {
                    name: replace(each, state="running") if each.ready else each
                    for name, each in found.items()
                },
            )
            best = min((SERVERS[one], SERVERS[other]), key=STATUSES.index)
            assert stage.report(route).state == best, (one, other)
        finally:
            os.close(stage.table.fileno())
