"""The route table: what a request finds in it, and how the file in memory is read."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.routing.route import (
    HTTPS,
    ExcludedRoute,
    Header,
    Redirect,
    Route,
    StreamRoute,
    Target,
    Timeouts,
    TrafficLimits,
)
from poolctl.routing.route_table import SEALS, RouteTable, TableError, write_table
from tests.steps import steps_of

WEB = (Target(server="web"),)


@pytest.fixture
def table() -> Callable[..., RouteTable]:
    def write(*routes: Route, generation: int = 1) -> RouteTable:
        fd = write_table(routes, generation)
        try:
            return RouteTable(fd)
        finally:
            os.close(fd)

    return write


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
        host: match and match.alias
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
    exact, rest = routes
    assert routes.find("users.example.com", "/v1/a") == rest
    assert routes.find("users.example.com", "/v1/a", headers={"x-beta": "1"}) == exact
    assert routes.find("users.example.com", "/v2") == rest


def test_path_with_several_readings_takes_a_route_only_if_all_of_them_do(
    table: Callable[..., RouteTable],
) -> None:
    routes = table(
        route("rest"), route("admin", path="/admin"), route("post", path="/admin/x", methods=("POST",))
    )
    for path in ("/public%2Fadmin", "/a/b", "/public;v=1/admin", "/public//admin"):
        match = routes.find("", path)
        assert match is not None
        assert match.alias == "rest"
    for path in ("//admin", "/admin%2Fx", "/;x/admin", "/admin;x/y"):
        assert routes.find("", path) is None
    one_reading_depends_on_the_method = routes.find("", "/admin/x;v=1")
    assert one_reading_depends_on_the_method is not None
    assert one_reading_depends_on_the_method.alias == "admin"


def test_readers_keep_the_old_table_when_there_is_a_new_one(table: Callable[..., RouteTable]) -> None:
    old, new = table(route("old"), generation=1), table(route("new"), route("more", host="x"), generation=2)
    assert [(each.generation, len(each), [r.alias for r in each]) for each in (old, new)] == [
        (1, 1, ["old"]),
        (2, 2, ["new", "more"]),
    ]


def test_route_comes_back_from_the_table_as_it_was_given(table: Callable[..., RouteTable]) -> None:
    given = route(
        "users",
        host="Users.Example.com",
        path="/v1/",
        methods=("GET",),
        headers=(Header(name="x", value="ä\x80"),),
        limit=TrafficLimits(concurrency=3),
        timeouts=Timeouts(connect=1.5),
        waiting_page=True,
    )
    routes = table(given)
    assert list(routes) == [given]
    assert (routes.get("users"), routes.get("orders"), routes.get("user")) == (given, None, None)


@pytest.mark.parametrize("alias", ['a"b', "a\nhb", 'a", "host": "b', "ä", "{}", "h", "\\"])
def test_routes_are_found_by_any_alias(table: Callable[..., RouteTable], alias: str) -> None:
    given = route(alias), route("other", host="b"), route(f"{alias}x")
    routes = table(*given)
    assert [*routes] == [*given]
    assert [routes.get(each.alias) for each in given] == [*given]
    assert routes.get("b") is None


def test_two_routes_of_one_alias_are_refused() -> None:
    with pytest.raises(ValueError, match="two routes have the same alias"):
        write_table([route("web"), route("web", host="x")], 1)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}\n", b"[]\n", b'{"generation": 1, "h": "x", "s": 0, "x": 0}\n']
)
def test_damaged_table_is_refused(content: bytes) -> None:
    fd = os.memfd_create("damaged", os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        with pytest.raises(TableError, match="holds no route table"):
            RouteTable(fd)
    finally:
        os.close(fd)


def test_nothing_but_a_sealed_file_in_memory_is_a_table(tmp_path: Path) -> None:
    whole = write_table([route("a")], 1)
    path = tmp_path / "table"
    path.write_bytes(os.pread(whole, 100_000, 0))
    with path.open("rb") as file, pytest.raises(TableError, match="not sealed"):
        RouteTable(file.fileno())
    with pytest.raises(OSError, match="not permitted"):
        os.truncate(whole, 8)
    os.close(whole)


@pytest.mark.slow
def test_opening_a_table_makes_no_objects_of_its_routes() -> None:
    fd = write_table([route(f"{n}", host=f"h{n}.x") for n in range(3000)], 1)
    RouteTable(fd).get("1")  # how routes are decoded is found out once
    gc.collect()
    before = len(gc.get_objects())
    routes = RouteTable(fd)
    found = routes.get("7")
    made = len(gc.get_objects()) - before
    assert made < 100
    assert found is not None
    assert found.host == "h7.x"
    os.close(fd)


def test_request_is_a_get_without_tls_unless_it_says_otherwise(table: Callable[..., RouteTable]) -> None:
    upgrade = Route(alias="upgrade", redirect=Redirect(to=HTTPS))
    routes = table(route("gets", path="/a", methods=("GET",)), upgrade)
    gets, _ = routes
    assert routes.find("a.test", "/a") == gets
    assert routes.find("a.test", "/b") == upgrade
    assert routes.find("a.test", "/b", secure=True) is None


def stream(alias: str, port: int) -> StreamRoute:
    return StreamRoute(alias=alias, bind=f"0.0.0.0:{port}", to=WEB)


def test_streams_and_excluded_routes_are_kept_in_order_and_the_first_of_an_alias_counts() -> None:
    excluded = [ExcludedRoute(alias="a", reason="x"), ExcludedRoute(alias="b", reason="y")]
    streams = [stream("z", 1), stream("db", 2), stream("db", 3)]
    fd = write_table([route("db")], 7, streams=streams, excluded=[*excluded, excluded[0]])
    routes = RouteTable(fd)
    os.close(fd)
    assert [*routes.streams()] == streams[:2]
    assert [*routes.excluded()] == excluded
    assert (len(routes), routes.num_streams, routes.num_excluded, routes.generation) == (1, 2, 2, 7)
    assert [routes.get_stream(alias) for alias in ("db", "z", "a")] == [streams[1], streams[0], None]
    assert [routes.get_excluded(alias) for alias in ("a", "b", "db")] == [*excluded, None]
    assert routes.find("", "/") == route("db")


def test_empty_table_finds_nothing(table: Callable[..., RouteTable]) -> None:
    routes = table()
    assert (len(routes), [*routes], [*routes.streams()], [*routes.excluded()]) == (0, [], [], [])
    assert (routes.num_streams, routes.num_excluded) == (0, 0)
    assert [routes.find(host, "/a") for host in ("", "users", "a.test")] == [None] * 3
    assert (routes.get("a"), routes.get_by_host("a.test")) == (None, None)


def test_routes_of_a_host_are_found_by_their_paths(table: Callable[..., RouteTable]) -> None:
    given = [route("elsewhere", host="b.test")]
    given += [route(f"{n}", host="a.test", path=f"/{n}/x") for n in range(40)]
    given += [route("rest", host="a.test")]
    routes = table(*given)
    for each in given[1:]:
        assert routes.find("a.test", each.path) == each
    assert routes.find("a.test", "/0/x/y/z") == given[1]
    assert routes.find("a.test", "/0/xy") == given[-1]
    assert routes.get_by_host("A.test:80") == given[1]
    assert routes.get_by_host("c.test") is None


@pytest.mark.parametrize(
    ("host", "alias"),
    [
        ("example.com", "top"),
        ("a.example.com", "domain"),
        ("b.a.example.com", "domain"),
        ("eu.example.com", "domain"),
        ("a.eu.example.com", "longer"),
        ("a.b.c.eu.example.com", "longer"),
        (".example.com", "any"),
        ("a.com", "top"),
        ("com", "any"),
        ("example.org", "any"),
        ("10.0.0.1", "any"),
        ("[::1]", "any"),
        ("10.example.org", "label"),
        ("10", "any"),
        ("users", "users"),
    ],
)
def test_longest_domain_above_a_host_is_found(
    table: Callable[..., RouteTable], host: str, alias: str
) -> None:
    routes = table(
        route("any"),
        route("top", host="*.com"),
        route("domain", host="*.example.com"),
        route("longer", host="*.eu.example.com"),
        route("numbers", host="*.0.0.1"),
        route("label", host="10"),
        route("users", host="users"),
    )
    match = routes.find(host, "/")
    assert match is not None
    assert match.alias == alias


@pytest.mark.parametrize(
    ("host", "alias"),
    [
        ("us.example.com", None),
        ("us1.example.com", "us"),
        ("us-west.example.com", "us-west"),
        ("us-west-1.example.com", "us-west"),
        ("us-east.example.com", "us"),
        ("u.s.example.com", None),
        ("us1.example.org", "org"),
        ("xus1.example.org", None),
        ("aXb", None),
        ("axbxc", "abc"),
        ("abc", None),
        ("axbc", None),
        ("", None),
        ("c", None),
    ],
)
def test_patterns_with_most_literal_characters_are_tried_first(
    table: Callable[..., RouteTable], host: str, alias: str | None
) -> None:
    routes = table(
        route("us", host="us*.example.com"),
        route("us-west", host="us-we*.example.com"),
        route("org", host="us*.example.org"),
        route("abc", host="a*b*c"),
        route("axc", host="axx*c"),
    )
    match = routes.find(host, "/")
    assert (match and match.alias) == alias


def test_patterns_of_one_prefix_and_suffix_keep_their_order(table: Callable[..., RouteTable]) -> None:
    routes = table(route("one", host="a*b*c"), route("more", host="a*bb*c"), route("other", host="a*d*c"))
    found = {host: routes.find(host, "/") for host in ("axbbxc", "axbxc", "axdxbxc", "axdxc", "axec")}
    assert {host: match and match.alias for host, match in found.items()} == {
        "axbbxc": "more", "axbxc": "one", "axdxbxc": "one", "axdxc": "other", "axec": None,
    }  # fmt: skip


def test_finding_the_route_of_a_host_costs_the_same_with_a_thousand_other_hosts(
    table: Callable[..., RouteTable],
) -> None:
    def others(count: int) -> list[Route]:
        return [route(f"r{number}", host=f"{number}.test") for number in range(count)]

    wanted = [route("web", host="web.test"), route("any")]
    small, large = table(*others(10), *wanted), table(*others(1000), *wanted)
    for host, alias in (("web.test", "web"), ("other.test", "any"), ("a." * 10_000 + "test", "any")):
        assert [each.alias for each in (small.find(host, "/"), large.find(host, "/")) if each] == [alias] * 2
        assert steps_of(lambda: large.find(host, "/")) < 1.5 * steps_of(lambda: small.find(host, "/"))  # noqa: B023
    assert steps_of(lambda: large.get_by_host("web.test")) < 1.5 * steps_of(
        lambda: small.get_by_host("web.test")
    )
