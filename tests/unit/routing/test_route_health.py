"""The health of routes."""

from __future__ import annotations

import pytest

from poolctl.gateway.routes import (
    STATUSES,
    RouteHealth,
    health_info,
    health_info_simple,
    health_info_without_detail,
    route_health,
    server_health,
)
from poolctl.routing.route_health import DEPTHS, health_at_depth


@pytest.mark.parametrize(
    ("state", "health", "ready", "status"),
    [
        ("running", "ok", True, "healthy"),
        ("running", "unknown", True, "healthy"),
        ("running", "warn", True, "healthy"),
        ("running", "ko", True, "unhealthy"),
        ("running", "ko", False, "unhealthy"),
        ("starting", "unknown", False, "starting"),
        ("sleeping", "unknown", False, "napping"),
        ("failed", "unknown", False, "error"),
        ("draining", "ok", False, "unknown"),
        ("backoff", "ko", False, "unhealthy"),
        ("stopped", "unknown", False, "unhealthy"),
        ("", "", False, "unknown"),
    ],
)
def test_server_state_and_probes_make_the_status(state: str, health: str, ready: bool, status: str) -> None:
    assert server_health(state, health, ready=ready).status == status


def test_route_is_as_healthy_as_its_best_backend() -> None:
    good = server_health("running", "ok", ready=True, uptime_seconds=3.5, latency_seconds=0.01)
    bad = server_health("failed", "ko", ready=False, why="exited with status 3")
    asleep = server_health("sleeping", "unknown", ready=False)
    assert route_health([bad, good]) is good
    assert route_health([bad, asleep]) is asleep
    assert route_health([]) == RouteHealth()


def test_health_is_shown_in_three_degrees_of_detail() -> None:
    healths = {
        "users": RouteHealth(status="healthy", uptime_seconds=3.5, latency_seconds=0.01),
        "orders": RouteHealth(status="error", detail="exited with status 3"),
    }
    assert health_info(healths)["orders"] == {
        "status": "error", "uptime_seconds": 0.0, "latency_seconds": None, "detail": "exited with status 3",
    }  # fmt: skip
    assert health_info_without_detail(healths)["users"] == {
        "status": "healthy", "uptime_seconds": 3.5, "latency_seconds": 0.01,
    }  # fmt: skip
    assert all("detail" not in each for each in health_info_without_detail(healths).values())
    assert health_info_simple(healths) == {"users": "healthy", "orders": "error"}


def test_depth_of_a_health_page_is_full_simple_or_a_summary() -> None:
    healths = {"users": RouteHealth(status="error", detail="exited with status 3")}
    found = {depth: health_at_depth(healths, depth) for depth in DEPTHS}
    assert found == {
        "full": health_info(healths),
        "summary": health_info_without_detail(healths),
        "simple": health_info_simple(healths),
    }


def test_only_healthy_and_napping_routes_serve() -> None:
    serving = {each for each in STATUSES if RouteHealth(status=each).serves}
    assert serving == {"healthy", "napping"}


def test_route_is_unknown_only_where_all_its_backends_are() -> None:
    unknown, broken = RouteHealth(), RouteHealth(status="unhealthy")
    assert route_health([unknown, broken]) is broken
    assert route_health([unknown, RouteHealth()]).status == "unknown"


def test_route_is_at_rest_without_a_fault_only_where_all_its_backends_are() -> None:
    resting, unknown, broken = RouteHealth(at_rest=True), RouteHealth(), RouteHealth(status="unhealthy")
    assert not route_health([resting, resting]).is_faulty
    for other in (unknown, broken):
        assert route_health([resting, other]).is_faulty
        assert route_health([other, resting]).is_faulty
    assert not route_health([resting, RouteHealth(status="healthy")]).is_faulty
    assert "at_rest" not in health_info({"a": resting})["a"]


def test_unknown_health_serves_nothing() -> None:
    assert health_info({"a": RouteHealth()}) == {
        "a": {"status": "unknown", "uptime_seconds": 0.0, "latency_seconds": None, "detail": ""}
    }
    assert server_health("running", "ok", ready=True) == RouteHealth(status="healthy")
