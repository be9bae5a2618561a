"""Counts of routes and backends, which add up with those of workers."""

from __future__ import annotations

import pytest

from poolctl.features.gateway.process.counts import REFUSED, TLS, TrafficCounts
from poolctl.worker import tally


def test_proxied_requests_add_up_with_those_of_a_worker() -> None:
    traffic = TrafficCounts().route("web")
    for status, seconds in ((200, 0.0004), (204, 0.003), (503, 20.0)):
        traffic.count_start()
        traffic.count_response(status, seconds)
    traffic.count_start()
    traffic.count_failure("timeout")
    traffic.count_start()
    traffic.count_disconnect()
    traffic.count_start()
    worker = [0] * tally.COUNTED
    worker[tally.STARTED] = worker[tally.STATUS + 2] = worker[tally.BUCKETS] = 10
    tally.add(worker, traffic.slots)
    assert (worker[tally.STARTED], worker[tally.STATUS + 2], worker[tally.STATUS + 5]) == (16, 12, 1)
    assert (tally.responses(worker), tally.in_flight(worker)) == (13, 1)
    buckets = worker[tally.BUCKETS : tally.COUNTED]
    assert [bucket for bucket, count in enumerate(buckets) if count] == [0, 1, 4, 15]
    assert (traffic.requests, traffic.failures, traffic.errors) == (6, 2, {"timeout": 1})


def test_latency_at_a_bound_belongs_to_its_bucket() -> None:
    traffic = TrafficCounts().backend("a")
    traffic.count_response(200, 0.001)
    assert traffic.slots[tally.BUCKETS + tally.BOUNDS_NS.index(1_000_000)] == 1


@pytest.mark.parametrize(
    ("status", "at"), [(99, None), (100, 1), (199, 1), (200, 2), (599, 5), (600, None), (0, None)]
)
def test_answer_is_counted_by_the_class_of_its_status_and_with_its_latency(
    status: int, at: int | None
) -> None:
    traffic = TrafficCounts().backend("a")
    traffic.count_response(status, 0.25)
    traffic.count_response(status, 0.5)
    assert traffic.slots[tally.STATUS + 1 : tally.STATUS + 6] == [2 * (each == at) for each in range(1, 6)]
    assert traffic.slots[tally.LATENCY_NS] == 750_000_000
    assert sum(traffic.slots[tally.BUCKETS :]) == 2


def test_refused_requests_are_errors_of_their_route_or_counted_by_their_status() -> None:
    counts = TrafficCounts()
    for code, alias in (("503", "web"), ("404", ""), ("404", ""), (TLS, "")):
        counts.count_refusal(code, alias)
    web = counts.route("web")
    assert (web.requests, web.failures, web.errors) == (1, 1, {REFUSED: 1})
    assert counts.snapshot()["refused"] == {"404": 2, TLS: 1}


def test_total_of_all_routes_never_falls() -> None:
    counts = TrafficCounts()
    for alias in ("users", "orders"):
        counts.route(alias).count_start()
        counts.route(alias).count_response(200, 0.001)
    before = counts.total()
    counts.count_refusal("503", "users")
    counts.count_refusal("404")
    before = counts.total()
    counts.retain_only(["orders"], [])
    assert counts.total() == before
    assert counts.route_and_other_refusals == (1, 1)
    counts.count_refusal("503", "orders")
    counts.count_refusal("404", times=3)
    assert counts.route_and_other_refusals == (2, 4)
    assert (before[tally.STARTED], tally.responses(before)) == (3, 2)


def test_snapshot_names_routes_and_backends_and_forgets_those_that_are_gone() -> None:
    counts = TrafficCounts()
    for alias in ("web", "old"):
        counts.route(alias).count_start()
    counts.backend("users").bytes_in += 5
    assert counts.route("web") is counts.route("web")
    counts.retain_only(["web"], ["users"])
    found = counts.snapshot()
    assert (list(found["routes"]), list(found["backends"])) == (["web"], ["users"])
    assert found["backends"]["users"]["bytes_in"] == 5


def test_new_counts_are_all_zero() -> None:
    counts = TrafficCounts()
    counts.route("web")
    nothing = {"slots": [0] * tally.COUNTED, "errors": {}, "bytes_in": 0, "bytes_out": 0}
    assert counts.snapshot() == {"refused": {}, "routes": {"web": nothing}, "backends": {}}
    assert (counts.total(), counts.route_and_other_refusals) == ([0] * tally.COUNTED, (0, 0))


def test_backend_and_route_that_come_back_begin_at_zero_and_refusals_stay() -> None:
    counts = TrafficCounts()
    for alias in ("web", "plain"):
        counts.route(alias).count_start()
    counts.count_refusal("503", "web")
    counts.backend("users").count_start()
    counts.retain_only([], [])
    assert counts.route_and_other_refusals == (1, 0)
    assert (counts.backend("users").requests, counts.route("web").requests) == (0, 0)
    assert counts.total()[tally.STARTED] == 3
