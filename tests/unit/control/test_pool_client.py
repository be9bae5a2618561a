"""A service that registers from Python: its heartbeats, and its end."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from poolctl.control.client import Client, NoSupervisor
from poolctl.control.pool_client import PoolClient
from poolctl.errors import PoolParamError
from tests.deadline import wait_until


class Pool(PoolClient):
    """Keeps the requests; `away` fails them."""

    def __init__(self) -> None:
        super().__init__(Client("/nowhere"))
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.away = False
        self.items: list[dict[str, Any]] = []

    def _ask(self, verb: str, *given: Any) -> dict[str, Any]:
        self.asked.append((verb, given[3] if len(given) > 3 else {}))
        if self.away:
            raise NoSupervisor
        return {"items": self.items}


def test_service_sends_heartbeats_within_its_block_and_unregisters_at_the_end() -> None:
    pool = Pool()
    threads = threading.active_count()
    with pool.register("users", "http://10.0.0.7:9000", ttl=0.003, path="/users"):
        wait_until(lambda: len(pool.asked) > 3)
        pool.away = True  # another supervisor is starting
        seen = len(pool.asked)
        wait_until(lambda: len(pool.asked) > seen + 2)
    first, *_, last = pool.asked
    options = {"name": "users", "to": "http://10.0.0.7:9000", "weight": 1, "ttl": 0.003, "path": "/users"}
    assert first == ("register", options)
    assert {verb for verb, _ in pool.asked[:-1]} == {"register"}
    assert last == ("unregister", {"name": "users", "to": "http://10.0.0.7:9000"})
    assert threading.active_count() == threads


def test_service_without_a_time_to_live_has_no_thread() -> None:
    pool = Pool()
    threads = threading.active_count()
    with pool.register("users", "unix:app.sock") as service:
        assert threading.active_count() == threads
        assert repr(service) == f"<RegisteredAs users unix:{os.path.abspath('app.sock')}>"
    assert [verb for verb, _ in pool.asked] == ["register", "unregister"]


def test_wrong_time_to_live_and_refused_service_are_errors() -> None:
    pool = Pool()
    with pytest.raises(PoolParamError, match="ttl"):
        pool.register("users", "http://10.0.0.7:9000", ttl="soon")
    pool.away = True
    with pytest.raises(NoSupervisor):
        pool.register("users", "http://10.0.0.7:9000")


def test_unregistering_names_one_url_or_all() -> None:
    pool = Pool()
    assert pool.unregister("users", "http://10.0.0.7:9000") == {"items": []}
    pool.unregister("users")
    assert [options["to"] for _, options in pool.asked] == ["http://10.0.0.7:9000", ""]


def test_orders_for_hosts() -> None:
    pool = Pool()
    pool.disable_host("users", "orders", for_seconds="1m")
    pool.disable_host("users")
    pool.enable_host("users")
    pool.drain_host("orders")
    assert pool.asked == [
        ("host", {"op": "disable", "hosts": ["users", "orders"], "for": 60.0}),
        ("host", {"op": "disable", "hosts": ["users"], "for": None}),
        ("host", {"op": "enable", "hosts": ["users"], "for": None}),
        ("host", {"op": "drain", "hosts": ["orders"], "for": None}),
    ]
    with pytest.raises(PoolParamError, match="for_seconds"):
        pool.disable_host("users", for_seconds=-1)


def test_routes_and_hosts_are_documents() -> None:
    pool = Pool()
    pool.items = [{"alias": "users"}]
    assert pool.routes()["items"] == pool.hosts()["items"] == pool.items
    assert pool.asked == [("routes", {}), ("hosts", {})]
    assert repr(pool) == "<Pool /nowhere>"


def test_health_is_asked_for_as_deep_as_it_is_needed() -> None:
    pool = Pool()
    pool.items = [{"name": "users", "kind": "route", "status": "healthy", "uptime_seconds": 3.0}]
    for ask in (pool.health_info, pool.health_info_without_detail):
        assert ask() == {"users": {"status": "healthy", "uptime_seconds": 3.0}}
    assert pool.health_info_simple(routes=True) == {"users": "healthy"}
    assert [options for _, options in pool.asked] == [
        {"depth": "full", "routes": False}, {"depth": "summary", "routes": False}, {"depth": "simple", "routes": True},
    ]  # fmt: skip
