"""The registry of routes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from poolctl.routing.registry import Registry, RoutePool
from poolctl.routing.route import FILE, REGISTRATION, SERVER, ExcludedRoute, Route, StreamRoute


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.http.add(Route(alias="users", host="Users.Example.com", provider=SERVER))
    registry.http.add(Route(alias="api.example.com", path="/v1"))
    registry.stream.add(StreamRoute(alias="db", bind="0.0.0.0:5432"))
    registry.excluded.add(ExcludedRoute(alias="old", reason="disabled", provider=REGISTRATION))
    return registry


def test_registry_counts_and_lists_active_and_all_routes(registry: Registry) -> None:
    assert (registry.num_active, registry.num_all, len(registry.http)) == (3, 4, 2)
    assert [route.alias for route in registry.iter_active()] == ["users", "api.example.com", "db"]
    assert [route.alias for route in registry.iter_all()] == ["users", "api.example.com", "db", "old"]
    assert repr(registry) == "<Registry of 3 routes, 1 excluded>"
    assert repr(registry.http) == "<HTTPRoutePool of 2 routes>"


def test_registry_gets_http_then_stream_and_never_excluded_routes(registry: Registry) -> None:
    registry.stream.add(StreamRoute(alias="users", bind="0.0.0.0:1"))
    assert registry.get("users") is registry.http.get("users")
    assert registry.get("db") is registry.stream.get("db")
    assert registry.get("old") is None
    assert registry.excluded.get("old") is not None
    assert "old" in registry.excluded


def test_route_is_found_by_alias_or_by_exactly_its_host(registry: Registry) -> None:
    users, api = registry.http.get("users"), registry.http.get("api.example.com")
    assert registry.get_http_route_or_exact("users", "elsewhere") is users
    assert registry.get_http_route_or_exact("unknown", "users.example.com:8080") is users
    assert registry.get_http_route_or_exact("unknown", "api.example.com") is api
    assert registry.get_http_route_or_exact("unknown", "example.com") is None
    assert registry.get_http_route_or_exact("db", "db") is None


def test_replaced_and_removed_routes_are_no_longer_found_by_their_host(registry: Registry) -> None:
    second = Route(alias="second", host="users.example.com", path="/2")
    registry.http.add(second)
    registry.http.add(Route(alias="users", host="people.example.com"))
    assert registry.http.get_by_host("users.example.com") is second
    assert [route.alias for route in registry.http] == ["users", "api.example.com", "second"]
    assert registry.http.remove("second") is second
    assert registry.http.remove("second") is None
    assert registry.http.get_by_host("users.example.com") is None
    assert registry.http.get_by_host("people.example.com") is registry.http.get("users")


def test_routes_are_grouped_by_their_provider(registry: Registry) -> None:
    grouped = {
        provider: [route.alias for route in routes] for provider, routes in registry.by_provider().items()
    }
    assert grouped == {SERVER: ["users"], FILE: ["api.example.com", "db"], REGISTRATION: ["old"]}


def test_cleared_registry_is_empty(registry: Registry) -> None:
    registry.clear()
    assert (registry.num_all, list(registry.iter_all()), registry.by_provider()) == (0, [], {})
    assert registry.http.get_by_host("users.example.com") is None


def test_iteration_is_over_the_routes_of_its_beginning(registry: Registry) -> None:
    seen = []
    for route in registry.http:
        registry.http.remove(route.alias)
        registry.http.add(Route(alias=f"new-{route.alias}"))
        seen.append(route.alias)
    assert seen == ["users", "api.example.com"]


def test_threads_change_the_registry_while_others_read_it() -> None:
    registry, failures, writing = Registry(), [], threading.Event()
    writing.set()

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def write(number: int) -> None:
        for turn in range(400):
            alias = f"{number}-{turn % 20}"
            registry.http.add(Route(alias=alias, host=f"h{turn % 3}"))
            registry.stream.add(StreamRoute(alias=alias, bind=alias))
            if turn % 2:
                registry.http.remove(alias)
            if turn % 100 == 99:
                registry.stream.clear()

    def read() -> None:
        while writing.is_set():
            routes = list(registry.iter_all())
            assert all(route.alias for route in routes)
            found = registry.http.get_by_host("h1")
            assert found is None or found.host == "h1"
            assert registry.by_provider().keys() <= {FILE}

    readers = [guarded(read) for _ in range(2)]
    writers = [guarded(lambda number=n: write(number)) for n in range(3)]  # type: ignore[misc]
    for thread in writers:
        thread.join()
    writing.clear()
    for thread in readers:
        thread.join()
    assert failures == []
    of_each = {f"{number}-{turn}" for number in range(3) for turn in range(0, 20, 2)}
    assert {route.alias for route in registry.http} == of_each
    assert isinstance(registry.stream, RoutePool)
    assert len(registry.stream) == 0 or {route.alias for route in registry.stream} <= {
        f"{n}-{t}" for n in range(3) for t in range(20)
    }
