"""The metrics of a gateway, from HAProxy's counters and the states of routes and hosts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from poolctl.features.gateway.supervision import metrics
from poolctl.features.gateway.supervision.route_tables import RouteSet
from poolctl.monitor.metrics import Family, render
from poolctl.routing.route import ExcludedRoute, Route, StreamRoute, Target
from poolctl.routing.route_health import UNHEALTHY, RouteHealth

from .scripted_haproxy import FiguresStage, server

OUT_URL = "http://10.0.0.7:9000"
API = Route(alias="api", to=(Target(server="api"),))
OUT = Route(alias="out", to=(Target(url=OUT_URL),))
DB = StreamRoute(alias="db", bind=":1", to=(Target(url="10.0.0.7:1"),))


class Part:
    """The part of a feature that has metrics of its own."""

    def gateway_metrics(self) -> list[Family]:
        family = Family("poolctl_part", "gauge", "Of a part.")
        family.add(5, name="cache")
        return [family]


class Stage:
    """A gateway that has served requests of two routes and connections of a stream."""

    def __init__(self, *more: Route | StreamRoute) -> None:
        self.healths = {"out": RouteHealth(status=UNHEALTHY)}
        self.stage = stage = FiguresStage(API, OUT, DB, *more)
        for each in more:
            stage.count(each, stot=1)
        stage.servers["api"] = server()
        stage.hosts.drain("api")
        stage.haproxy.count("gateway", "FRONTEND", scur=4)
        stage.count_unrouted(1)
        stage.count(API, "api", stot=6, hrsp_2xx=6, scur=2)
        stage.count(API, stot=6, hrsp_2xx=6, qcur=2)
        stage.count(OUT, OUT_URL, stot=3, hrsp_2xx=1, hrsp_5xx=1, eresp=1, cli_abrt=1)
        stage.count(OUT, stot=4, hrsp_2xx=1, hrsp_5xx=3, eresp=1, cli_abrt=1, econ=1, bin=3, bout=7)
        stage.haproxy.count("stream:db", "FRONTEND", scur=2)
        stage.count(DB, "10.0.0.7:1", stot=5, econ=1, bin=10, bout=20)
        stage.count(DB, stot=5, econ=2, bin=10, bout=20)
        excluded = (ExcludedRoute(alias="odd", reason="no host"),)
        routes = RouteSet(http=(API, OUT), streams=(DB,), excluded=excluded)
        self.manager: Any = SimpleNamespace(
            restarts=2, routes=SimpleNamespace(generation=17, routes=routes), figures=stage.figures,
            counts=stage.counts,
        )  # fmt: skip

    def families(self) -> list[Family]:
        part: Any = Part()
        answered = self.stage.read_now()
        hosts = self.stage.figures.backends()
        return [*metrics.gateway_metrics(self.manager, hosts, self.healths, [part], answered=answered)]

    def values(self) -> dict[tuple[str, ...], float]:
        text = render(self.families())
        return {
            (sample.name.removeprefix("poolctl_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def test_all_metrics_have_their_names_labels_and_values() -> None:
    text = render(Stage().families())
    assert text == Path(__file__).with_name("gateway_metrics.txt").read_text()


def test_routes_streams_and_hosts_have_their_figures() -> None:
    found = Stage().values()
    expected = {
        ("gateway_up",): 1,
        ("gateway_restarts_total",): 2,
        ("gateway_table_generation",): 17,
        ("gateway_connections",): 6,
        ("gateway_routes", "http"): 2,
        ("gateway_routes", "stream"): 1,
        ("gateway_routes", "excluded"): 1,
        ("gateway_refused_total", "404"): 1,
        ("route_requests_total", "out"): 4,
        ("route_responses_total", "out", "5xx"): 3,
        ("route_request_errors_total", "out", "response"): 1,
        ("route_request_errors_total", "out", "refused"): 1,
        ("route_request_errors_total", "out", "disconnected"): 1,
        ("route_sent_bytes_total", "out"): 7,
        ("route_requests_waiting", "api"): 2,
        ("stream_connections_total", "db"): 5,
        ("stream_open_connections", "db"): 2,
        ("stream_errors_total", "db"): 2,
        ("stream_received_bytes_total", "db"): 10,
        ("route_health", "out", "unhealthy"): 1,
        ("route_health", "out", "healthy"): 0,
        ("host_health", "api", "unknown"): 1,
        ("host_state", "api", "draining"): 1,
        ("host_requests_in_flight", "api"): 2,
        ("host_breaker", OUT_URL, "closed"): 1,
        ("host_breaker", OUT_URL, "open"): 0,
        ("part", "cache"): 5,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_gateway_that_does_not_answer_is_down_and_keeps_its_counts() -> None:
    stage = Stage()
    stage.values()
    stage.stage.haproxy.hung = True
    found = stage.values()
    assert (found["gateway_up",], found["route_requests_total", "out"]) == (0, 4)
    assert ("gateway_connections",) not in found


@pytest.mark.slow
def test_metrics_of_more_routes_streams_and_hosts_than_the_limit_are_omitted_and_counted() -> None:
    to = [(Target(url=f"http://10.0.0.8:{port}"),) for port in range(1, 1001)]
    stage = Stage(
        *(Route(alias=f"r{number}", to=each) for number, each in enumerate(to)),
        *(StreamRoute(alias=f"s{number}", bind=f":{number}", to=DB.to) for number in range(2, 1002)),
    )
    stage.healths = {f"r{number}": RouteHealth(status=UNHEALTHY) for number in range(1001)}
    found = stage.values()
    counts = Counter(key[0] for key in found if key[2:] in ((), ("healthy",)))
    for name in ("route_requests_total", "route_health", "stream_connections_total", "host_available"):
        assert counts[name] == 1000, name
    omitted = {kind: found["gateway_omitted", kind] for kind in ("routes", "streams", "hosts")}
    assert omitted == {"routes": 2, "streams": 1, "hosts": 3}
