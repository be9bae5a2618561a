"""The metrics of a gateway, from what its process reports."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from poolctl.features.gateway.process.counts import TIMEOUT, TrafficCounts
from poolctl.features.gateway.supervision import gateway_metrics
from poolctl.features.gateway.supervision.computed_routes import RouteSet
from poolctl.features.gateway.supervision.gateway_metrics import GatewaySnapshot, families
from poolctl.json_form import Table, to_json
from poolctl.monitor.metrics import Family, render
from poolctl.routing.route import ExcludedRoute, Route, StreamRoute, Target
from poolctl.routing.route_health import UNHEALTHY, RouteHealth
from poolctl.routing.route_report import BackendReport
from poolctl.worker import tally

ROUTES = RouteSet(
    http=(
        Route(alias="api", to=(Target(server="api"),)),
        Route(alias="out", to=(Target(url="http://10.0.0.7:9000"),)),
    ),
    excluded=(ExcludedRoute(alias="odd", reason="no host"),),
)


HEALTHS = {"out": RouteHealth(status=UNHEALTHY)}


def report(*hosts: BackendReport) -> Table:
    counts = TrafficCounts()
    for status in (200, 503):
        for traffic in (counts.route("out"), counts.backend("http://10.0.0.7:9000")):
            traffic.count_start()
            traffic.count_response(status, 0.02)
    counts.route("out").count_start()
    counts.route("out").count_failure(TIMEOUT)
    counts.route("out").bytes_in, counts.route("out").bytes_out = 3, 7
    counts.backend("http://10.0.0.7:9000").count_disconnect()
    counts.count_refusal("404")
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
    return values_to_mask(families(snapshot))


def values_to_mask(found: list[Family]) -> dict[tuple[str, ...], float]:
    text = render(found, openmetrics=True)
    return {
        (sample.name.removeprefix("poolctl_"), *sample.labels.values()): sample.value
        for family in openmetrics_families(text)
        for sample in family.samples
    }


def test_routes_streams_and_hosts_have_their_figures() -> None:
    out = "http://10.0.0.7:9000"
    hosts = (
        BackendReport(host="api", state="draining", connections=1),
        BackendReport(host=out, breaker="half-open", health="unhealthy"),
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


def test_routes_are_counted_by_the_way_that_their_connections_take() -> None:
    passed = [Route(alias=name, to=(Target(server="api"),)) for name in ("more", "most")]
    routes = ROUTES._replace(
        http=(*ROUTES.http, *passed),
        streams=(StreamRoute(alias="db", bind=":1"), StreamRoute(alias="dns", bind=":2")),
        excluded=(),
    )
    found = values(GatewaySnapshot(None, 0, 1, routes, {}, {}, {}))
    ways = {way: found["gateway_routes", way] for way in ("pass", "proxy", "stream", "excluded")}
    assert ways == {"pass": 3, "proxy": 1, "stream": 2, "excluded": 0}


WHOLE = GatewaySnapshot(
    report(
        BackendReport(host="api", state="draining", available=False, connections=1, in_flight=2, waiting=3, requests=4),
        BackendReport(host="http://10.0.0.7:9000", breaker="half-open", health="unhealthy", connections=5),
        BackendReport(host="http://10.0.0.8:9000"),
    ),
    2, 17,
    ROUTES._replace(streams=(StreamRoute(alias="db", bind=":1"), StreamRoute(alias="dns", bind=":2"))),
    {"api": 9}, {tally.route_mark("api"): 6}, HEALTHS,
)  # fmt: skip


def test_all_metrics_have_their_names_labels_and_values() -> None:
    assert WHOLE.report is not None
    WHOLE.report["streams"]["dns"] = {
        "opened": 6, "open": 3, "failed": 2, "bytes_in": 11, "bytes_out": 21,
    }  # fmt: skip
    text = render(families(WHOLE), openmetrics=True)
    assert text == Path(__file__).with_name("gateway_metrics.txt").read_text()


class Manager:
    """A gateway whose process answers with its report, or not."""

    def __init__(self, answer: Table | None) -> None:
        self.restarts = 2
        self.routes = SimpleNamespace(generation=17, routes=ROUTES)
        self.reports = SimpleNamespace(count_worker_connections={"api": 9, "gone": 4}.get)
        self._answer = answer

    async def try_fetch_report(self) -> Table | None:
        return self._answer


class Part:
    """The part of a feature that has metrics of its own, from what its part in the process reports."""

    def gateway_metrics(self, parts: Table) -> list[Family]:
        family = Family("poolctl_part", "gauge", "Of a part.")
        for name, number in parts.items():
            family.add(number, name=name)
        return [family]


def metrics(answer: Table | None) -> dict[tuple[str, ...], float]:
    manager: Any = Manager(answer)
    core: Any = SimpleNamespace(entries={"api": None})
    part: Any = Part()
    passed = {tally.route_mark("api"): 6}
    return values_to_mask(
        asyncio.run(gateway_metrics.gateway_metrics(manager, core, passed, HEALTHS, [part]))
    )


def test_metrics_are_those_of_the_process_and_of_the_parts_of_features() -> None:
    hosts = BackendReport(host="api", connections=1), BackendReport(host="gone", connections=2)
    answer = report(*hosts)
    found = metrics({**answer, "parts": {"cache": 5}})
    assert found.pop(("part", "cache")) == 5
    del answer["counts"]["refused"]["404"]
    assert found.pop(("gateway_refused_total", "404")) == 1
    assert metrics(answer)["gateway_refused_total", "404"] == 0
    passed = {tally.route_mark("api"): 6}
    found["gateway_refused_total", "404"] = 0
    assert found == values(GatewaySnapshot(answer, 2, 17, ROUTES, {"api": 9}, passed, HEALTHS))


def test_metrics_of_a_process_that_does_not_answer_are_those_of_its_supervisor() -> None:
    passed = {tally.route_mark("api"): 6}
    assert metrics(None) == values(GatewaySnapshot(None, 2, 17, ROUTES, {}, passed, HEALTHS))


def test_gateway_that_does_not_answer_is_down() -> None:
    found = values(GatewaySnapshot(None, 1, 17, ROUTES, {}, {}, {}))
    assert found["gateway_up",] == 0
    assert found["gateway_restarts_total",] == 1
    assert not [
        key for key in found if key[0].startswith(("route_or_refuse_request", "host_", "gateway_connections"))
    ]


def test_metrics_of_more_hosts_than_the_limit_are_omitted_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_metrics, "MOST_LABELLED", 2)
    hosts = [BackendReport(host=f"http://10.0.0.{number}") for number in range(5)]
    found = values(GatewaySnapshot(report(*hosts), 0, 1, ROUTES, {}, {}, {}))
    assert [key[1] for key in found if key[0] == "host_available"] == ["http://10.0.0.0", "http://10.0.0.1"]
    assert found["gateway_omitted", "hosts"] == 3
    assert found["gateway_omitted", "routes"] == found["gateway_omitted", "streams"] == 0
    monkeypatch.setattr(gateway_metrics, "MOST_LABELLED", 0)
    found = values(GatewaySnapshot(report(*hosts), 0, 1, ROUTES, {}, {tally.route_mark("api"): 6}, HEALTHS))
    assert {kind: found["gateway_omitted", kind] for kind in ("routes", "streams", "hosts")} == {
        "routes": 1, "streams": 1, "hosts": 5,
    }  # fmt: skip
    assert not [key for key in found if key[0].startswith(("route_", "stream_", "host_"))]
