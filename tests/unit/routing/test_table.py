"""The route table: what a request finds in it, and how the file in memory is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from poolctl.routing.route import Header, Route, Target
from poolctl.routing.table import RouteTable, TableError, write_table

WEB = (Target(server="web"),)


@pytest.fixture
def table() -> Iterator[Callable[..., RouteTable]]:
    opened: list[RouteTable] = []

    def write(*routes: Route, generation: int = 1) -> RouteTable:
        fd = write_table(routes, generation)
        opened.append(RouteTable(fd))
        os.close(fd)
        return opened[-1]

    yield write
    for each in opened:
        each.close()


def route(alias: str, **fields: object) -> Route:
    return Route(**{"alias": alias, "to": WEB, **fields})  # type: ignore[arg-type]


def test_table_finds_the_most_exact_host(table: Callable[..., RouteTable]) -> None:
    routes = table(
        route("any"),
        route("pattern", host="us*.example.com"),
        route("domain", host="*.example.com"),
        route("label", host="users"),
        route("exact", host="users.example.com"),
    )
    found = {
        host: match and match.route.alias
        for host in (
            "users.example.com",
            "users.example.org",
            "orders.example.com",
            "usx.example.com",
            "",
            "10.0.0.1",
        )
        for match in [routes.find(host, "/")]
    }
    assert found == {
        "users.example.com": "exact",
        "users.example.org": "label",
        "orders.example.com": "domain",
        "usx.example.com": "domain",
        "": "any",
        "10.0.0.1": "any",
    }


def test_table_leaves_a_request_that_no_route_of_a_host_takes_to_the_next_tier(
    table: Callable[..., RouteTable],
) -> None:
    routes = table(
        route("exact", host="users.example.com", path="/v1", headers=(Header(name="x-beta"),)),
        route("rest"),
    )
    match = routes.find("users.example.com", "/v1/a")
    assert match is not None
    assert (match.route.alias, match.passes) == ("rest", False)
    beta = routes.find("users.example.com", "/v1/a", headers={"x-beta": "1"})
    assert beta is not None
    assert beta.route.alias == "exact"
    other = routes.find("users.example.com", "/v2")
    assert other is not None
    assert (other.passes, other.whole_host) == (True, False)


def test_truncated_table_is_refused() -> None:
    fd = os.memfd_create("cut", os.MFD_ALLOW_SEALING)
    whole = write_table([route("a")], 1)
    try:
        os.write(fd, os.pread(whole, 90, 0))
        with pytest.raises(TableError, match="not sealed"):
            RouteTable(fd)
    finally:
        os.close(fd)
        os.close(whole)
