"""The route table: what a request finds in it, and how the file in memory is read."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.routing.route import HTTPS, Header, Limit, Redirect, Route, Target, Timeouts
from poolctl.routing.route_table import RouteTable, TableError, write_table
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
        limit=Limit(concurrency=3),
        timeouts=Timeouts(connect=1.5),
        waiting_page=True,
    )
    routes = table(given)
    assert list(routes) == [given]
    match = routes.by_alias("users")
    assert match is not None
    assert (match.route, match.servers, match.passes) == (given, {"web"}, False)
    assert routes.by_alias("orders") is None


def test_two_routes_of_one_alias_are_refused() -> None:
    with pytest.raises(ValueError, match="two routes have the alias web"):
        write_table([route("web"), route("web", host="x")], 1)


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


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: content[:20], "a route table of 20 bytes is cut off"),
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


def test_candidates_are_all_routes_of_a_small_table_and_the_covering_ones_of_a_large_one(
    table: Callable[..., RouteTable],
) -> None:
    others = [route(f"{n}", host=f"h{n}.x") for n in range(50)]
    routes = table(
        *others, route("v1", path="/v1"), route("rest"), route("post", path="/v1", methods=("POST",))
    )
    assert len(routes.candidates("h1.x", "/v1")) == 53
    assert [each.alias for each in routes.candidates("h1.x", "/v1", most=52)] == ["1", "post", "v1", "rest"]
    assert [each.alias for each in routes.candidates("h.x", "/v2;/..;", most=52)] == ["rest"]


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
