"""The share of a server's requests that its canary gets: exact, and never more."""

from __future__ import annotations

import math
import re
from random import Random

import pytest

from poolctl.features.gateway.process.backends.route_backends import (
    Backend,
    CanaryBackend,
    CanaryTurns,
    RequestOutcome,
    RouteBackends,
)
from poolctl.features.gateway.process.counts import Traffic
from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.routing.route import POLICIES, BreakerRule, Limit, Route, Target
from tests.features.gateway import passing_stage, proxy_stage
from tests.features.gateway.proxy_stage import ok
from tests.features.gateway.test_backends import Stage, taken

SERVER = Target(server="web")
CANARY = "web (canary)"
REQUESTS = 2000


def facts(share: float = 0.1, **more: object) -> dict[str, ServerFacts]:
    found = {
        "name": "web", "bind": "127.0.0.1:9001", "state": "running", "ready": True,
        "canary": CANARY if share else "", "canary_bind": "127.0.0.1:9002", "canary_share": share,
    }  # fmt: skip
    return {"web": ServerFacts(**found | more)}


def routes(stage: Stage, *found: Route, share: float = 0.1) -> list[RouteBackends]:
    stage.backends.apply(found, facts(share))
    return [stage.backends.of(each) for each in found]


def served(route: RouteBackends, client: str = "1.1.1.1", cookie: str = "") -> str:
    """Which backend has answered a request."""
    lease = taken(route.acquire(client, cookie))
    lease.release(RequestOutcome.ANSWERED, 0.01, 200)
    return lease.backend.key


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("share", [0.01, 0.1, 1 / 3, 0.9])
def test_canary_has_never_had_more_than_its_share_whatever_the_policy(
    stage: Stage, policy: str, share: float
) -> None:
    one, other = routes(
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


def test_proxied_requests_reach_the_canary_in_its_share() -> None:
    async def scene(stage: proxy_stage.Stage) -> None:
        server, canary = await stage.backend(ok), await stage.backend(ok)
        stage.routes(Route(alias="app", to=(SERVER,), mode="proxy"))
        bind, canary_bind = (each.url.removeprefix("http://") for each in (server, canary))
        stage.edge.backends.apply(list(stage.edge.table), facts(bind=bind, canary_bind=canary_bind))
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
        stage.edge.backends.apply(None, facts(0.25))
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
        stage.edge.backends.apply(None, facts(0.9))
        for _ in range(20):
            await stage.connect(passing_stage.HEAD)
            (await pair.take()).close()

    passing_stage.play(scene)


def test_request_that_the_canary_failed_is_repeated_at_the_server_and_does_not_raise_its_share(
    stage: Stage,
) -> None:
    (route,) = routes(stage, Route(alias="one", to=(SERVER,), retries=2), share=0.5)
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
    (route,) = routes(stage, Route(alias="one", to=(SERVER,), breaker=rule), share=0.9)
    for _ in range(100):
        lease = taken(route.acquire("1.1.1.1"))
        failed = lease.backend.key == CANARY
        lease.release(RequestOutcome.ANSWERED, 0.01, 500 if failed else 200)
    assert not stage.events
    assert stage.backends.available("web").ok


def test_canary_is_under_the_limits_of_its_server(stage: Stage) -> None:
    (route,) = routes(stage, Route(alias="one", to=(SERVER,), backend_limit=Limit(concurrency=2)), share=0.5)
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
    (route,) = routes(stage, Route(alias="one", to=(SERVER,)), share=0.5)
    for _ in range(100):
        taken(route.acquire("1.1.1.1")).release(RequestOutcome.UNUSED)
    assert served(route) == "web"


def test_repeated_sequence_of_requests_reaches_the_canary_with_each_of_them() -> None:
    turns = CanaryTurns(0.1, Random(1))
    assert {number % 10 for number in range(1000) if turns.next()} == set(range(10))


def test_paths_have_their_shares_each_on_its_own() -> None:
    canary = CanaryBackend(Backend("web", Traffic(), True), facts(0.5)["web"])
    found = [(canary.requests.next(), canary.connections.next()) for _ in range(200)]
    for of_path in zip(*found, strict=True):
        assert sum(of_path) in (99, 100)


def test_sticky_clients_stay_where_they_are_and_their_requests_count_in_the_share(stage: Stage) -> None:
    (route,) = routes(stage, Route(alias="one", to=(SERVER,), sticky_cookie="c"), share=0.1)
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
    stage.backends.apply(None, facts(0))
    cookie = next(cookie for home, cookie in homes.values() if home == CANARY)
    lease = taken(route.acquire("1.1.1.1", cookie))
    assert (lease.backend.key, bool(lease.cookie)) == ("web", True)


def test_after_many_requests_of_sticky_clients_new_ones_do_not_all_come_to_the_canary(stage: Stage) -> None:
    (route,) = routes(stage, Route(alias="one", to=(SERVER,), sticky_cookie="c"), share=0.1)
    lease = taken(route.acquire("1.1.1.1"))
    lease.release(RequestOutcome.ANSWERED, 0.01, 200)
    for _ in range(500):
        served(route, cookie=lease.cookie)
    assert [served(route) for _ in range(10)].count(CANARY) <= 2


def test_canary_that_is_withdrawn_gets_no_further_request_and_another_begins_with_the_server(
    stage: Stage,
) -> None:
    (route,) = routes(stage, Route(alias="one", to=(SERVER,)), share=0.5)
    held = taken(route.acquire("1.1.1.1"))
    while held.backend.key != CANARY:
        held.release(RequestOutcome.ANSWERED, 0.01, 200)
        held = taken(route.acquire("1.1.1.1"))
    assert isinstance(held.backend, CanaryBackend)
    stage.backends.apply(None, facts(0))
    assert {served(route) for _ in range(10)} == {"web"}
    held.release(RequestOutcome.ANSWERED, 0.01, 200)
    stage.backends.apply(None, facts(0.5))
    assert served(route) == "web"
    assert {served(route) for _ in range(10)} == {"web", CANARY}
    assert re.fullmatch("[0-9a-f]{16}", held.backend.cookie)
