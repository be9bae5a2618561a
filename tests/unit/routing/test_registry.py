"""The registry of routes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from poolctl.routing.registry import Registry, RoutePool, TableRegistry
from poolctl.routing.route import FILE, REGISTRATION, SERVER, ExcludedRoute, Route, StreamRoute
from poolctl.routing.route_table import RouteTable, write_table


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


@pytest.fixture
def tables() -> list[RouteTable]:
    return []


def written(tables: list[RouteTable], registry: Registry, generation: int = 1) -> TableRegistry:
    """The registry of a table of these routes, which is the one in force until another one is written."""
    fd = write_table(registry.http, generation, streams=registry.stream, excluded=registry.excluded)
    tables.append(RouteTable(fd))
    os.close(fd)
    return TableRegistry(lambda: tables[-1])


def test_registry_of_a_table_answers_as_the_one_that_it_was_written_from(
    registry: Registry, tables: list[RouteTable]
) -> None:
    registry.http.add(Route(alias="second", host="users.example.com", path="/2"))
    for number in range(40):
        registry.http.add(Route(alias=f"many{number}", host="many", path=f"/{number}"))
    registry.stream.add(StreamRoute(alias="users", bind="0.0.0.0:1"))
    read = written(tables, registry)
    assert [*read.iter_all()] == [*registry.iter_all()]
    assert [*read.iter_active()] == [*registry.iter_active()]
    assert (read.num_active, read.num_all, len(read.stream), len(read.excluded)) == (45, 46, 2, 1)
    assert read.by_provider() == registry.by_provider()
    for alias in ("users", "db", "old", "many7", "unknown"):
        assert read.get(alias) == registry.get(alias)
        assert read.stream.get(alias) == registry.stream.get(alias)
        assert read.excluded.get(alias) == registry.excluded.get(alias)
        assert (alias in read.http) == (alias in registry.http)
        for host in ("users.example.com:8080", "api.example.com", "many", "example.com", "db"):
            assert read.get_http_route_or_exact(alias, host) == registry.get_http_route_or_exact(alias, host)
    assert repr(read) == "<TableRegistry of 45 routes, 1 excluded>"
    assert repr(read.http) == "<HTTPTableRoutes of 43 routes>"


def test_registry_of_a_table_follows_the_one_in_force_and_its_snapshot_does_not(
    registry: Registry, tables: list[RouteTable]
) -> None:
    read = written(tables, registry)
    before, listed = read.snapshot(), read.iter_all()
    assert next(listed) == registry.http.get("users")
    registry.clear()
    registry.http.add(Route(alias="new"))
    written(tables, registry, 2)
    assert ([each.alias for each in read.iter_all()], read.generation, read.get("users")) == (
        ["new"],
        2,
        None,
    )
    assert (before.generation, before.num_all, before.get("new")) == (1, 4, None)
    assert [each.alias for each in listed] == ["api.example.com", "db", "old"]


def test_registry_without_a_table_is_empty() -> None:
    read = TableRegistry(lambda: None)
    assert (read.num_all, [*read.iter_all()], read.by_provider(), read.generation) == (0, [], {}, 0)
    assert (read.get("a"), read.get_http_route_or_exact("a", "b"), "a" in read.excluded) == (
        None,
        None,
        False,
    )


def test_first_of_several_excluded_routes_with_one_alias_counts(
    registry: Registry, tables: list[RouteTable]
) -> None:
    twice = [ExcludedRoute(alias="old", reason="first"), ExcludedRoute(alias="old", reason="second")]
    fd = write_table((), 1, excluded=twice)
    tables.append(RouteTable(fd))
    os.close(fd)
    assert ([*tables[0].excluded()], tables[0].num_excluded) == (twice[:1], 1)
