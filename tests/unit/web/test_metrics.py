"""The site of [metrics]: its paths, its forms, and who may ask for what."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address
from typing import Any

import pytest
from starlette.requests import Request

from poolctl.routing.route_health import DEPTHS, ERROR, RouteHealth
from poolctl.web import metrics
from poolctl.web.bearer_tokens import Peer, Refused
from poolctl.web.metrics import TEXT, MetricsSite, health_by_name
from tests.manual_clock import ManualClock
from tests.unit.core.ordered_core import run
from tests.unit.supervisor.test_pool_metrics import WELL, Figures
from tests.unit.web.greeter import Answer, Direct, served


class Pages:
    """The site of a pool with these figures; `ask` is a client."""

    def __init__(self, figures: Figures) -> None:
        self.figures = figures
        verbs = {"metrics": figures.metrics.verb, "health": figures.health.answer_health_verb}
        self.clock = ManualClock()
        self.site = MetricsSite(Direct(verbs), self.clock)
        self.site.configure({"path": "/figures"})

    async def ask(self, path: str, method: str = "GET", **fields: str) -> Answer:
        async with served(self.site) as client:
            return await client(path, method, **fields)


async def test_metrics_are_served_at_their_path() -> None:
    pages = Pages(Figures())
    status, fields, body = await pages.ask("/figures")
    assert (status, fields["content-type"]) == (200, TEXT)
    assert 'poolctl_build_info{pool="shop"' in body
    status, fields, body = await pages.ask("/figures", "HEAD")
    assert (status, body) == (200, "")
    assert (await pages.ask("http://pool.example/figures?x"))[0] == 200
    assert kind_and_body(await pages.ask("/metrics")) == (
        404,
        "text/plain",
        "the metrics are at /figures\n",
    )
    assert (await pages.ask("/figur%65s"))[0] == 404
    status, fields, body = await pages.ask("/figures", "POST")
    assert (status, fields["allow"], fields["content-type"], body) == (
        405,
        "GET, HEAD",
        "text/plain",
        "only GET\n",
    )
    status, fields, _ = await pages.ask("/health")
    assert (status, fields["content-type"], fields["cache-control"]) == (
        503,
        "application/json",
        "no-store",
    )
    pages.site.configure({"path": "/health"})
    assert "poolctl_build_info" in (await pages.ask("/health"))[2]


def kind_and_body(answer: Answer) -> tuple[int, str, str]:
    status, fields, body = answer
    return status, fields["content-type"], body


async def test_health_is_served_in_three_depths_and_its_status_is_for_a_load_balancer() -> None:
    figures = Figures()
    routes = figures.routes
    pages = Pages(figures)
    await figures.desk.ask("start")
    routes.found = {"users": WELL}
    status, _, body = await pages.ask("/health")
    assert (status, json.loads(body)) == (200, {"users": "healthy", "web": "healthy", "api": "healthy"})
    pages.clock.advance(1)
    routes.found = {"users": WELL, "old": RouteHealth(status=ERROR, detail="why")}
    assert (await pages.ask("/health"))[0] == 503
    status, _, body = await pages.ask("/health/summary")
    assert status == 503
    found = json.loads(body)
    assert found["users"] == {"status": "healthy", "uptime_seconds": 3.0, "latency_seconds": 0.01}
    assert found["old"] == {"status": "error", "uptime_seconds": 0.0, "latency_seconds": None}
    full = json.loads((await pages.ask("/health/full"))[2])
    assert full["old"] == {**found["old"], "detail": "why"}
    assert (await pages.ask("/health/other"))[0] == 404


async def test_health_is_reported_as_the_supervisor_knows_it() -> None:
    figures = Figures()
    figures.routes.found = {"users": WELL, "web": RouteHealth(status=ERROR, detail="why")}
    snapshot = await figures.health.health()
    for depth in DEPTHS:
        supervisor = Direct({"health": figures.health.answer_health_verb})
        result = await supervisor.ask("health", {"depth": depth})
        assert health_by_name(result, depth) == snapshot.in_depth(depth)


async def test_clients_that_ask_at_the_same_time_get_the_same_answer() -> None:
    figures = Figures()
    pages = Pages(figures)
    async with served(pages.site) as client:
        texts = {body for _, _, body in await asyncio.gather(*(client("/figures") for _ in range(3)))}
        assert (len(texts), figures.asked) == (1, 1)
        pages.clock.advance(metrics.FRESH_SECONDS)
        await client("/figures")
    assert figures.asked == 2


def test_supervisor_that_does_not_answer_is_a_503() -> None:
    class Silent(Direct):
        async def ask(self, *given: Any, **more: Any) -> Any:
            raise TimeoutError

    async def work() -> None:
        site = MetricsSite(Silent({}))
        site.configure({"path": "/figures"})
        async with served(site) as client:
            assert kind_and_body(await client("/figures")) == (
                503,
                "text/plain",
                "the supervisor does not answer\n",
            )

    run(work())


def test_detailed_health_is_refused_to_other_machines() -> None:
    peer = Peer(ip_address("10.0.0.9"), "10.0.0.9")

    async def work() -> None:
        site = Pages(Figures()).site
        scope = {"type": "http", "method": "GET", "headers": []}
        full, summary = (
            Request({**scope, "raw_path": b"/health/" + depth}) for depth in (b"full", b"summary")
        )
        with pytest.raises(Refused, match="clients of this machine alone: see /health/summary") as caught:
            await site.answer(full, peer)
        assert caught.value.status == 403
        assert (await site.answer(summary, peer)).status_code == 503

    run(work())
