"""The route table: what a request finds in it, and how the file in memory is read."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.routing import route_table
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
from poolctl.routing.route_table import ENTRY, HEADER, Match, RouteTable, TableError, depth_of, write_table
from tests.examples import examples

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


def test_host_with_routes_of_two_patterns_is_whole_to_neither(table: Callable[..., RouteTable]) -> None:
    routes = table(route("users", host="users.example.com", path="/v1"), route("rest"))
    first, later = routes.find("users.example.com", "/v1"), routes.find("users.example.com", "/")
    assert first is not None
    assert later is not None
    assert not first.whole_host
    assert (later.route.alias, later.passes, later.whole_host) == ("rest", True, False)
    elsewhere = routes.find("orders.example.com", "/")
    assert elsewhere is not None
    assert elsewhere.whole_host


def test_path_with_several_readings_takes_a_route_only_if_all_of_them_do(
    table: Callable[..., RouteTable],
) -> None:
    routes = table(
        route("rest"), route("admin", path="/admin"), route("post", path="/admin/x", methods=("POST",))
    )
    for path in ("/public%2Fadmin", "/a/b", "/public;v=1/admin", "/public//admin"):
        match = routes.find("", path)
        assert match is not None
        assert (match.route.alias, match.passes) == ("rest", True)
    for path in ("//admin", "/admin%2Fx", "/;x/admin", "/admin;x/y"):
        assert routes.find("", path) is None
    one_reading_depends_on_the_method = routes.find("", "/admin/x;v=1")
    assert one_reading_depends_on_the_method is not None
    assert one_reading_depends_on_the_method.route.alias == "admin"
    assert not one_reading_depends_on_the_method.passes


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
    match = routes.by_alias("users")
    assert match is not None
    assert match == Match(given, False, False, frozenset({"web"}))
    assert (routes.get("users"), routes.get("orders")) == (given, None)
    assert routes.by_alias("orders") is None


def test_two_routes_of_one_alias_are_refused() -> None:
    with pytest.raises(ValueError, match="two routes have the alias web"):
        write_table([route("web"), route("web", host="x")], 1)


@pytest.mark.slow
def test_more_hosts_and_paths_than_are_kept_decoded_are_found(table: Callable[..., RouteTable]) -> None:
    fd = write_table([route(f"{n}", host=f"h{n % 50}.x", path=f"/{n}") for n in range(2500)], 1)
    routes = RouteTable(fd, cached=8)
    os.close(fd)
    try:
        for number in [*range(2500), *range(100)]:
            match = routes.find(f"h{number % 50}.x", f"/{number}/a")
            assert match is not None
            assert match.route.alias == str(number)
        assert routes.find("h1.x", "/2") is None
    finally:
        routes.close()


def with_slots(content: bytes, count: int) -> bytes:
    """The table with another number of slots, which are empty."""
    magic, generation, routes, end, _, _ = HEADER.unpack_from(content)
    head = HEADER.pack(magic, generation, routes, end, count, end + count * 8)
    return head + content[HEADER.size : end] + bytes(count * 8)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: content[:20], "a route table of 20 bytes is cut off"),
        (lambda content: content[:47], "a route table of 47 bytes is cut off"),
        (lambda content: content[:48], "the route table has 48 bytes instead of"),
        (lambda content: with_slots(content, 0), "bytes instead of"),
        (lambda content: with_slots(content, 3), "bytes instead of"),
        (lambda content: content[:-8], "bytes instead of"),
        (lambda content: content + bytes(8), "bytes instead of"),
        (lambda content: b"x" + content[1:], "holds no route table"),
        (lambda content: b"", "a route table of 0 bytes is cut off"),
    ],
)
def test_damaged_table_is_refused(damage: Callable[[bytes], bytes], problem: str) -> None:
    whole = write_table([route("a")], 1)
    content = damage(os.pread(whole, 100_000, 0))
    os.close(whole)
    fd = os.memfd_create("damaged", os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        with pytest.raises(TableError, match=problem):
            RouteTable(fd)
        assert "memfd:damaged" not in Path("/proc/self/maps").read_text()
    finally:
        os.close(fd)


def test_nothing_but_a_sealed_file_in_memory_is_a_table(tmp_path: Path) -> None:
    """A file that shrinks while it is mapped would kill the process (SIGBUS)."""
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
    gc.collect()
    before = len(gc.get_objects())
    routes = RouteTable(fd)
    match = routes.find("h7.x", "/")
    assert len(gc.get_objects()) - before < 100
    assert match is not None
    assert match.route.alias == "7"
    routes.close()
    os.close(fd)


def test_match_stays_valid_after_its_table_is_closed() -> None:
    fd = write_table([route("users")], 1)
    routes = RouteTable(fd)
    os.close(fd)
    match = routes.find("", "/")
    routes.close()
    assert match is not None
    assert (match.route.alias, match.servers) == ("users", {"web"})


def test_threads_read_one_table_at_the_same_time() -> None:
    fd = write_table([route(f"{n}", host=f"h{n % 40}.x", path=f"/{n}") for n in range(400)], 1)
    routes, failures = RouteTable(fd, cached=4), []
    os.close(fd)

    def read(start: int) -> None:
        for number in [*range(start, 400), *range(start)]:
            match = routes.find(f"h{number % 40}.x", f"/{number}/a")
            if match is None or match.route.alias != str(number):
                failures.append(number)

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    routes.close()
    assert failures == []


@given(st.integers(0, 2**32), st.integers(1, 40))
@examples(60)
def test_damage_that_nothing_announces_raises_and_never_hangs(seed: int, places: int) -> None:
    whole = write_table([route(f"{n}", host=f"h{n}.x", path=f"/{n % 3}") for n in range(12)], 1)
    content, chance = bytearray(os.pread(whole, 100_000, 0)), Random(seed)
    os.close(whole)
    for _ in range(places):
        content[chance.randrange(48, len(content))] = chance.randrange(256)  # the header stays
    fd = os.memfd_create("damaged", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    routes = RouteTable(fd)
    os.close(fd)
    for number in range(12):
        with contextlib.suppress(Exception):
            routes.find(f"h{number}.x", "/1/a")
            routes.by_alias(str(number))
    routes.close()


def test_hosts_longer_than_names_can_be_are_found_and_not_kept(table: Callable[..., RouteTable]) -> None:
    routes = table(route("rest"))
    gc.collect()
    tracemalloc.start()
    for number in range(50):
        assert routes.find(f"{number}{'a.' * 50_000}x", "/") is not None
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000


def test_request_is_a_get_without_tls_unless_it_says_otherwise(table: Callable[..., RouteTable]) -> None:
    upgrade = Route(alias="upgrade", redirect=Redirect(to=HTTPS))
    routes = table(route("gets", path="/a", methods=("GET",)), upgrade)
    found = routes.find("a.test", "/a")
    assert found is not None
    assert found.route.alias == "gets"
    plain = routes.find("a.test", "/b")
    assert plain is not None
    assert plain.route.alias == "upgrade"
    assert routes.find("a.test", "/b", secure=True) is None


def stream(alias: str, port: int) -> StreamRoute:
    return StreamRoute(alias=alias, bind=f"0.0.0.0:{port}", to=WEB)


def test_streams_and_excluded_routes_are_kept_in_order_and_the_first_of_an_alias_counts() -> None:
    excluded = [ExcludedRoute(alias="a", reason="x"), ExcludedRoute(alias="b", reason="y")]
    streams = [stream("z", 1), stream("db", 2), stream("db", 3)]
    fd = write_table([route("db")], 7, streams=streams, excluded=[*excluded, excluded[0]])
    with contextlib.closing(RouteTable(fd)) as routes:
        os.close(fd)
        assert [*routes.streams()] == streams[:2]
        assert [*routes.excluded()] == excluded
        assert (len(routes), routes.num_streams, routes.num_excluded, routes.generation) == (1, 2, 2, 7)
        assert [routes.get_stream(alias) for alias in ("db", "z", "a")] == [streams[1], streams[0], None]
        assert [routes.get_excluded(alias) for alias in ("a", "b", "db")] == [*excluded, None]
        assert routes.find("", "/") == Match(route("db"), True, True, frozenset({"web"}))


def test_empty_table_finds_nothing(table: Callable[..., RouteTable]) -> None:
    routes = table()
    assert (len(routes), [*routes], [*routes.streams()], [*routes.excluded()]) == (0, [], [], [])
    assert (routes.num_streams, routes.num_excluded) == (0, 0)
    assert [routes.find(host, "/a") for host in ("", "users", "a.test")] == [None] * 3
    assert (routes.get("a"), routes.by_alias("a"), routes.get_by_host("a.test")) == (None, None, None)


def test_half_of_the_slots_at_least_are_empty() -> None:
    found = []
    for count in range(5):
        fd = write_table([route(f"{n}", path=f"/{n}") for n in range(count)], 1)
        found.append(HEADER.unpack(os.pread(fd, HEADER.size, 0))[4])
        os.close(fd)
    assert found == [2, 8, 8, 16, 16], "for 1, 3, 4, 5 and 6 entries"


def test_table_that_is_too_large_for_its_offsets_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = [route("a"), route("b", host="b.test")]
    fd = write_table(routes, 1)
    size = os.fstat(fd).st_size
    os.close(fd)
    monkeypatch.setattr(route_table, "MOST_BYTES", size)
    os.close(write_table(routes, 1))
    monkeypatch.setattr(route_table, "MOST_BYTES", size - 1)
    with pytest.raises(ValueError, match="the routes are more than a table can hold"):
        write_table(routes, 1)


@pytest.mark.parametrize("paths", [1, 32, 33, 100])
def test_routes_of_a_host_are_found_however_many_paths_it_has(
    table: Callable[..., RouteTable], paths: int
) -> None:
    given = [route("elsewhere", host="b.test")]
    given += [route(f"{n}", host="a.test", path=f"/{n}/x") for n in range(paths)]
    given += [route("rest", host="a.test")]
    routes = table(*given)
    servers = frozenset({"web"})
    for each in given[1:]:
        assert routes.find("a.test", each.path) == Match(each, True, False, servers)
        assert routes.find("a.test", each.path) is routes.find("a.test", each.path)
    assert routes.find("a.test", "/0/x/y/z") == Match(given[1], True, False, servers)
    assert routes.find("a.test", "/0/xy") == Match(given[-1], True, False, servers)
    assert routes.get_by_host("A.test:80") == given[1]
    assert routes.get_by_host("c.test") is None


@pytest.mark.parametrize(("paths", "apart"), [(32, False), (33, True)])
def test_paths_have_entries_of_their_own_if_a_host_has_many(paths: int, apart: bool) -> None:
    fd = write_table([route(f"{n}", path=f"/{n}") for n in range(paths)], 1)
    content = os.pread(fd, 1_000_000, 0)
    os.close(fd)
    assert len(re.findall(rb"\0/\d+\[", content)) == (paths if apart else 0)


@pytest.mark.parametrize(
    ("paths", "depth"), [(["/"], 0), (["/a"], 1), (["/", "/a"], 1), (["/a/b", "/", "/c"], 2)]
)
def test_depth_of_paths_is_their_greatest_number_of_segments(paths: list[str], depth: int) -> None:
    assert depth_of(paths) == depth


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
    assert match.route.alias == alias


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
    assert (match and match.route.alias) == alias


def test_patterns_of_one_prefix_and_suffix_keep_their_order(table: Callable[..., RouteTable]) -> None:
    routes = table(route("one", host="a*b*c"), route("more", host="a*bb*c"), route("other", host="a*d*c"))
    found = {host: routes.find(host, "/") for host in ("axbbxc", "axbxc", "axdxbxc", "axdxc", "axec")}
    assert {host: match and match.route.alias for host, match in found.items()} == {
        "axbbxc": "more", "axbxc": "one", "axdxbxc": "one", "axdxc": "other", "axec": None,
    }  # fmt: skip


def test_host_with_two_paths_belongs_to_no_route_as_a_whole(table: Callable[..., RouteTable]) -> None:
    routes = table(route("rest"), route("v1", path="/v1"))
    servers = frozenset({"web"})
    assert routes.find("a.test", "/") == Match(route("rest"), True, False, servers)
    assert routes.find("a.test", "/v1") == Match(route("v1", path="/v1"), True, False, servers)


def test_host_belongs_to_its_route_although_plain_requests_are_redirected(
    table: Callable[..., RouteTable],
) -> None:
    upgrade = Route(alias="upgrade", redirect=Redirect(to=HTTPS))
    routes = table(route("rest"), upgrade)
    assert routes.find("a.test", "/", secure=True) == Match(route("rest"), True, True, frozenset({"web"}))
    plain = routes.find("a.test", "/")
    assert plain is not None
    assert (plain.route, plain.passes, plain.servers) == (upgrade, False, frozenset())


def test_names_with_the_same_hash_are_told_apart(table: Callable[..., RouteTable]) -> None:
    names = ("plumless", "buckeroo")  # they have one CRC-32
    routes = table(*(route(name, host=name) for name in names))
    for name in names:
        match = routes.find(name, "/")
        assert match is not None
        assert match.route == routes.get(name) == route(name, host=name)


def changed(content: bytes, at: int, new: bytes) -> int:
    """A descriptor of the table with other bytes at one place."""
    fd = os.memfd_create("changed", os.MFD_ALLOW_SEALING)
    os.write(fd, content[:at] + new + content[at + len(new) :])
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, route_table.SEALS)
    return fd


def test_entry_that_goes_beyond_the_end_is_not_read() -> None:
    whole = write_table([route("a")], 1)
    content = os.pread(whole, 100_000, 0)
    os.close(whole)
    last = content.rindex(b"!{") - ENTRY.size
    name, size = ENTRY.unpack_from(content, last)
    fd = changed(content, last, ENTRY.pack(name, size + 1))
    with contextlib.closing(RouteTable(fd)) as routes:
        os.close(fd)
        with pytest.raises(TableError, match="an entry of the route table goes beyond its end"):
            routes.find("", "/")
        assert routes.get("a") == route("a")


def test_table_without_its_root_is_damaged() -> None:
    whole = write_table([route("a")], 1)
    content = os.pread(whole, 100_000, 0)
    os.close(whole)
    fd = changed(content, content.rindex(b"!{"), b"?")
    with contextlib.closing(RouteTable(fd)) as routes:
        os.close(fd)
        with pytest.raises(TableError, match="the route table has no root"):
            routes.find("", "/")


def test_closed_table_is_no_longer_in_memory() -> None:
    fd = write_table([route("a")], 1)
    routes = RouteTable(fd)
    os.close(fd)
    assert "memfd:poolctl-routes" in Path("/proc/self/maps").read_text()
    before = Path("/proc/self/maps").read_text().count("memfd:poolctl-routes")
    routes.close()
    assert Path("/proc/self/maps").read_text().count("memfd:poolctl-routes") == before - 1


@pytest.mark.parametrize("many", ["unknown hosts", "hosts with routes", "paths of one host"])
def test_no_more_is_kept_decoded_than_the_table_may(many: str) -> None:
    if many == "paths of one host":
        given = [route(f"{n}", host="h.x", path=f"/{n}") for n in range(150)]
        requests = [("h.x", f"/{n}") for n in range(150)]
    elif many == "hosts with routes":
        given = [route(f"{n}", host=f"h{n}.x") for n in range(150)]
        requests = [(f"h{n}.x", "/") for n in range(150)]
    else:
        given = [route("a", host="a.x")]
        requests = [(f"h{n}.x", "/") for n in range(1000)]
    fd = write_table(given, 1)
    with contextlib.closing(RouteTable(fd, cached=8)) as routes:
        os.close(fd)
        routes.find("x", "/")
        gc.collect()
        tracemalloc.start()
        for host, path in requests:
            routes.find(host, path)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert kept < (10_000 if many == "unknown hosts" else 100_000)
