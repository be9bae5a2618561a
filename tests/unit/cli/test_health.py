"""`poolctl health`: the health of routes or servers, as a table and for scripts."""

from __future__ import annotations

from tests.stand_in import always

from .conftest import Command, Supervised

USERS = {
    "name": "users",
    "kind": "route",
    "status": "healthy",
    "uptime_seconds": 75.2,
    "latency_seconds": 0.0042,
    "detail": "",
}
OLD = {
    "name": "old",
    "kind": "server",
    "status": "error",
    "uptime_seconds": 0.0,
    "latency_seconds": None,
    "detail": "exited with status 3",
}


def test_table_shows_each_status_with_its_detail(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(USERS, OLD)) as requests:
        head, users, old = poolctl("health").out.splitlines()
    assert head.split() == ["NAME", "KIND", "STATUS", "UPTIME", "LATENCY", "DETAIL"]
    assert users.split()[:5] == ["users", "route", "healthy", "1m15s", "4.2ms"]
    assert old.endswith("exited with status 3")
    assert [body["options"]["depth"] for verb, body in requests if verb == "health"] == ["full"]


def test_depth_is_asked_for_and_a_wrong_one_is_a_usage_error(
    poolctl: Command, supervised: Supervised
) -> None:
    with supervised(always({"name": "users", "kind": "route", "status": "healthy"})) as requests:
        assert poolctl("health", "--depth", "simple").out.splitlines()[1].split() == [
            "users",
            "route",
            "healthy",
        ]
        found = poolctl("health", "--depth", "simple", "-o", "json").json["items"]
        wrong = poolctl("health", "--depth", "deep")
    assert found == [{"name": "users", "kind": "route", "status": "healthy"}]
    assert (wrong.code, "full, summary, simple" in wrong.err) == (2, True)
    assert {body["options"]["depth"] for verb, body in requests if verb == "health"} == {"simple"}


def test_routes_alone_are_asked_for_and_a_latency_that_was_not_measured_is_null(
    poolctl: Command, supervised: Supervised
) -> None:
    with supervised(always(OLD)) as requests:
        (found,) = poolctl("health", "--routes", "-o", "json").json["items"]
        poolctl("health")
    assert found == OLD
    assert [body["options"]["routes"] for verb, body in requests if verb == "health"] == [True, False]
