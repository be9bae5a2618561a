"""The metrics of a gateway, from what its process reports."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from poolctl.features.gateway.process.counts import TIMEOUT, Counts
from poolctl.features.gateway.supervision import gateway_metrics
from poolctl.features.gateway.supervision.computed_routes import RouteSet
from poolctl.features.gateway.supervision.gateway_metrics import GatewaySnapshot, families
from poolctl.json_form import Table, to_json
from poolctl.monitor.metrics import render
from poolctl.routing.route import ExcludedRoute, Route, Target
from poolctl.routing.route_health import UNHEALTHY, RouteHealth
from poolctl.routing.route_report import HostReport
from poolctl.worker import tally

ROUTES = RouteSet(
    http=(
        Route(alias="api", to=(Target(server="api"),)),
        Route(alias="out", to=(Target(url="http://10.0.0.7:9000"),)),
    ),
    excluded=(ExcludedRoute(alias="odd", reason="no host"),),
)


HEALTHS = {"out": RouteHealth(status=UNHEALTHY)}


def report(*hosts: HostReport) -> Table:
    counts = Counts()
    for status in (200, 503):
        for traffic in (counts.route("out"), counts.backend("http://10.0.0.7:9000")):
            traffic.began()
            traffic.answered(status, 0.02)
    counts.route("out").began()
    counts.route("out").failed(TIMEOUT)
    counts.route("out").bytes_out = 7
    counts.refused("404")
    stream = {"accepted": 5, "open": 2, "failed": 1, "refused": 1, "bytes_in": 10, "bytes_out": 20}
    return {
        "counts": counts.snapshot(),
        "hosts": [to_json(each) for each in hosts],
        "streams": {"db": stream},
        "queued": {"api": 3},
        "queues": {"out": 2},
        "connections": 4,
        "waiting": 6,
        "evicted": 8,
    }


def values(snapshot: GatewaySnapshot) -> dict[tuple[str, ...], float]:
    text = render(families(snapshot), openmetrics=True)
    return {
        (sample.name.removeprefix("poolctl_"), *sample.labels.values()): sample.value
        for family in openmetrics_families(text)
        for sample in family.samples
    }


def test_routes_streams_and_hosts_have_their_figures() -> None:
    out = "http://10.0.0.7:9000"
    hosts = (
        HostReport(host="api", state="draining", connections=1),
        HostReport(host=out, breaker="half-open", health="unhealthy"),
    )
    found = values(
        GatewaySnapshot(report(*hosts), 2, 17, ROUTES, {"api": 9}, {tally.route_mark("api"): 6}, HEALTHS)
    )
    expected = {
        ("gateway_up",): 1,
        ("gateway_restarts_total",): 2,
        ("gateway_table_generation",): 17,
        ("gateway_routes", "pass"): 1,
        ("gateway_routes", "proxy"): 1,
        ("gateway_routes", "excluded"): 1,
        ("gateway_connections_waiting",): 6,
        ("gateway_connections_queued",): 3,
        ("gateway_evicted_connections_total",): 8,
        ("gateway_refused_total", "404"): 1,
        ("route_requests_total", "out"): 3,
        ("route_passed_requests_total", "api"): 6,
        ("route_responses_total", "out", "5xx"): 1,
        ("route_request_errors_total", "out", "timeout"): 1,
        ("route_request_errors_total", "out", "refused"): 0,
        ("route_request_duration_seconds_count", "out"): 2,
        ("route_sent_bytes_total", "out"): 7,
        ("route_requests_waiting", "out"): 2,
        ("stream_connections_total", "db"): 5,
        ("stream_errors_total", "db"): 2,
        ("route_health", "out", "unhealthy"): 1,
        ("route_health", "out", "healthy"): 0,
        ("host_health", "api", "unknown"): 1,
        ("host_health", out, "unhealthy"): 1,
        ("host_state", "api", "draining"): 1,
        ("host_connections", "api"): 9,
        ("host_breaker", out, "half-open"): 1,
        ("host_breaker", out, "open"): 0,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert [key[0] for key in found if key[0].startswith("route_") and "api" in key] == [
        "route_passed_requests_total"
    ], "it was never proxied"


def test_gateway_that_does_not_answer_is_down() -> None:
    found = values(GatewaySnapshot(None, 1, 17, ROUTES, {}, {}, {}))
    assert found["gateway_up",] == 0
    assert found["gateway_restarts_total",] == 1
    assert not [key for key in found if key[0].startswith(("route_request", "host_", "gateway_connections"))]


def test_metrics_of_more_hosts_than_the_limit_are_omitted_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_metrics, "MOST_LABELLED", 2)
    hosts = [HostReport(host=f"http://10.0.0.{number}") for number in range(5)]
    found = values(GatewaySnapshot(report(*hosts), 0, 1, ROUTES, {}, {}, {}))
    assert [key[1] for key in found if key[0] == "host_available"] == ["http://10.0.0.0", "http://10.0.0.1"]
    assert found["gateway_omitted", "hosts"] == 3
    assert found["gateway_omitted", "routes"] == 0
