"""Answers about servers as JSON documents, with the fields that are left out."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.control.server_answers import (
    HealthReportItem,
    LiveOverrides,
    RouteToServer,
    ServerStats,
    StatsHistory,
    WorkerStats,
)
from poolctl.json_form import from_json, to_json


@pytest.mark.parametrize(
    ("figures", "members"),
    [
        ({}, {}),
        ({"uptime_seconds": 0.0}, {"uptime_seconds": 0.0, "latency_seconds": None}),
        ({"uptime_seconds": 3.0, "latency_seconds": 0.01, "detail": ""}, {"uptime_seconds": 3.0,
         "latency_seconds": 0.01, "detail": ""}),
        ({"detail": "no connection"}, {"detail": "no connection"}),
    ],
)  # fmt: skip
def test_health_has_a_latency_in_each_depth_that_shows_figures(
    figures: dict[str, Any], members: dict[str, Any]
) -> None:
    report = HealthReportItem(name="users", kind="route", status="healthy", **figures)
    assert to_json(report) == {"name": "users", "kind": "route", "status": "healthy", **members}


def test_live_changes_are_those_that_were_made() -> None:
    assert to_json(LiveOverrides()) == {}
    assert to_json(LiveOverrides(workers=0, disabled=False)) == {"workers": 0, "disabled": False}


def test_errors_per_second_are_there_on_request_only() -> None:
    history, figures = from_json(StatsHistory, {}), from_json(ServerStats, {})
    assert "errors_per_second" not in to_json(history)
    assert "errors_per_second" not in to_json(figures)
    asked = from_json(ServerStats, {"errors_per_second": 0.5, "history": {"errors_per_second": [0.5, None]}})
    assert to_json(asked)["errors_per_second"] == 0.5
    assert to_json(asked)["history"]["errors_per_second"] == [0.5, None]


def test_worker_that_counts_nothing_has_no_counts() -> None:
    worker = from_json(WorkerStats, {"id": "web.1", "pid": 7, "phase": "ready", "memory_bytes": 5})
    assert to_json(worker) == {
        "id": "web.1", "pid": 7, "phase": "ready", "memory_bytes": 5, "cpu_percent": None, "loop_lag_seconds": None,
    }  # fmt: skip


def test_route_of_another_version_is_read_without_members_that_it_lacks() -> None:
    assert from_json(RouteToServer, {"alias": "a", "protocol": "http", "later": 1}) == RouteToServer(
        alias="a", protocol="http", host="", path=""
    )
