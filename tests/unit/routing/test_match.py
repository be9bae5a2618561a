"""The table against a matcher that is simple enough to be right: random routes, random requests."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.routing.match import explain, wildcard_covers_host
from poolctl.routing.normal_path import readings
from poolctl.routing.route import HTTPS, Header, Redirect, Route, Target
from poolctl.routing.route_table import RouteTable, write_table
from tests.examples import examples

# Few of each, so that several routes cover a request; half of the tables are about one host.
HOSTS = ["c.b.a", "c.b.a", "x.b.a", "c", "xb.b.a", "10.0.0.1", "[::1]", ""]
# fmt: off
PATTERNS = [
    "",
    "*",
    "c",
    "C.b.a",
    "*.b.a",
    "*.a",
    "*b.*",
    "c*a",
    "c.*.a",
    "*.*.a",
    "x",
    "b.a",
    "x.b.a.",
    "*.1",
    "10.0.*",
    "[::1]",
]
OVERLAPPING = [PATTERNS, PATTERNS[:10], PATTERNS[:4], PATTERNS[6:10], [""]]
PATHS = ["/", "/v", "/v/w", "/v/w/x", "/vw", "/v/w/", "/w", "/v%2Fw", "//v", "/v//w", "/v;p/w", "/w/v;p"]
METHODS = ["GET", "POST"]
HEADERS: list[dict[str, str]] = [{}, {"h": "1"}, {"h": "2", "i": "3"}, {"i": "3"}]
TARGETS = [(Target(server="s"),), (Target(server="s"), Target(server="t")), (Target(url="http://h:1"),)]

conditions = st.sampled_from(
    [(), (), (), (Header(name="h"),), (Header(name="h", value="1"), Header(name="i"))]
)


def route_fields(patterns: list[str]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries(
    {
        "host": st.sampled_from(patterns),
        "path": st.sampled_from(["/", "/", "/v", "/v/", "/v/w", "/v/w/x", "/w"]),
        "methods": st.sampled_from([(), (), (), ("GET",), ("GET", "POST"), ("PUT",)]),
        "headers": conditions,
        "to": st.sampled_from(TARGETS),
        "retries": st.sampled_from([0, 0, 0, 1]),
    }
)  # fmt: skip


def routes_of(fields: list[Mapping[str, object]]) -> list[Route]:
    return [Route(alias=f"r{number}", **each) for number, each in enumerate(fields)]  # type: ignore[arg-type]


tables = (
    st.sampled_from(OVERLAPPING)
    .flatmap(lambda patterns: st.lists(route_fields(patterns), min_size=2, max_size=10))
    .map(routes_of)
)
REQUESTS = list(product(HOSTS, PATHS, METHODS, HEADERS))
requests = st.integers(0, 1000).map(lambda seed: Random(seed).sample(REQUESTS, 40))


def rank_of_host(pattern: str, host: str) -> tuple[int, int] | None:
    """Tier, and what is compared within it; None if the pattern does not cover the host."""
    pattern = pattern.lower().removesuffix(".")
    named = host and not re.fullmatch(r"[\d.]+|\[.*\]", host)
    if pattern in ("", "*"):
        return 5, 0
    if re.fullmatch(r"\*\.[^*]+", pattern):
        return (3, -len(pattern)) if named and host.endswith(pattern[1:]) else None
    if "*" in pattern:
        covers = re.fullmatch(".+".join(map(re.escape, pattern.split("*"))), host)
        return (4, -len(pattern.replace("*", ""))) if covers else None
    if re.fullmatch(r"[a-z]+", pattern):
        return (2, 0) if named and host.split(".")[0] == pattern else None
    return (1, 0) if host == pattern else None


def segments(path: str) -> list[str]:
    return path.rstrip("/").split("/")[1:]


def takes(route: Route, path: str, method: str, headers: Mapping[str, str]) -> bool:
    prefix = segments(route.path)
    return (
        path.split("/")[1 : len(prefix) + 1] == prefix
        and (not route.methods or method in route.methods)
        and all(each.name in headers and each.value in ("", headers[each.name]) for each in route.headers)
    )


def naive(routes: list[Route], host: str, path: str, method: str, headers: Mapping[str, str]) -> Route | None:
    """The route by its rank: tier, pattern, path, conditions, order."""
    ranked = []
    for number, route in enumerate(routes):
        rank = rank_of_host(route.host, host)
        if rank is None or not takes(route, path, method, headers):
            continue
        pattern = route.host.lower().removesuffix(".")
        first = next(n for n, each in enumerate(routes) if each.host.lower().removesuffix(".") == pattern)
        order = first if rank[0] == 4 else 0
        ranked.append(
            (rank, order, -len(segments(route.path)), not route.methods, -len(route.headers), number, route)
        )
    return min(ranked)[-1] if ranked else None


def expected(
    routes: list[Route], host: str, path: str, method: str, headers: Mapping[str, str]
) -> Route | None:
    found = [naive(routes, host, reading, method, headers) for reading in readings(path)]
    return found[0] if all(each is found[0] for each in found) else None


@examples(150)
@given(tables, requests)
def test_table_and_explanation_take_the_route_of_the_naive_matcher(
    routes: list[Route], asked: list[tuple[str, str, str, dict[str, str]]]
) -> None:
    fd = write_table(routes, 1)
    table = RouteTable(fd)
    os.close(fd)
    for number, request in enumerate(asked):
        wanted = expected(routes, *request)
        assert table.find(*request) == wanted
        if number % 8 == 0:
            explained = [step.route for step in explain(routes, *request) if step.matched]
            assert explained == ([wanted] if wanted else [])


def test_explained_request_is_a_get_without_tls_unless_it_says_otherwise() -> None:
    routes = [
        Route(alias="gets", path="/a", to=(Target(server="web"),), methods=("GET",)),
        Route(alias="upgrade", redirect=Redirect(to=HTTPS)),
    ]

    def matched(path: str, **more: bool) -> list[str]:
        return [step.route.alias for step in explain(routes, "a.test", path, **more) if step.matched]

    assert matched("/a") == ["gets"]
    assert matched("/b") == ["upgrade"]
    assert matched("/b", secure=True) == []


def test_reason_of_a_match_names_the_host_by_its_kind_and_the_path() -> None:
    web = (Target(server="web"),)
    hosts = "a.test", "a", "*.test", "a.*", ""
    found = {
        host: step.why
        for host in hosts
        for step in explain([Route(alias="r", host=host, path="/p", to=web)], "a.test", "/p/x")
    }
    assert found == {
        "a.test": "host a.test (exact), path /p",
        "a": "host a (first label), path /p",
        "*.test": "host *.test (domain), path /p",
        "a.*": "host a.* (pattern), path /p",
        "": "any host, path /p",
    }


@pytest.mark.parametrize(
    ("pattern", "host", "covers"),
    [
        ("a*a", "a", False),
        ("a*a", "aa", False),
        ("a*a", "aba", True),
        ("a*b*c", "abbc", False),
        ("a*b*c", "axbxc", True),
        ("*", "", False),
    ],
)
def test_each_star_of_a_pattern_stands_for_at_least_one_character(
    pattern: str, host: str, covers: bool
) -> None:
    assert wildcard_covers_host(pattern, host) is covers


def test_reason_of_a_route_that_does_not_match_names_what_the_request_lacks() -> None:
    web = (Target(server="web"),)
    routes = [
        Route(alias="host", host="b.test", to=web),
        Route(alias="path", path="/b", to=web),
        Route(alias="upgrade", redirect=Redirect(to=HTTPS)),
    ]
    found = {step.route.alias: step.why for step in explain(routes, "a.test", "/a", secure=True)}
    assert found == {
        "host": "its host is b.test",
        "path": "its path is /b",
        "upgrade": "it redirects requests without TLS",
    }


def test_reason_of_a_route_behind_the_match_names_what_decided() -> None:
    web = (Target(server="web"),)
    routes = [
        Route(alias="any", to=web),
        Route(alias="short", host="a.test", to=web),
        Route(alias="plain", host="a.test", path="/p", to=web),
        Route(alias="taken", host="a.test", path="/p", to=web, methods=("GET",)),
        Route(alias="later", host="a.test", path="/p/", to=web, methods=("GET",)),
    ]
    found = {step.route.alias: step.why for step in explain(routes, "a.test", "/p/x")}
    assert found == {
        "taken": "host a.test (exact), path /p",
        "later": "taken comes first: it stands earlier in the file",
        "plain": "taken comes first: it has more conditions",
        "short": "taken comes first: its path is longer",
        "any": "taken comes first: its host is more specific",
    }
    patterns = [Route(alias=alias, host=host, to=web) for alias, host in (("one", "a*"), ("two", "*t"))]
    assert explain(patterns, "a.test", "/")[1].why == "one comes first: it stands earlier in the file"


@pytest.mark.parametrize(
    ("paths", "asked", "alias", "why"),
    [
        (["/v/w"], "/v//w", "/v/w", "read as /v/w, as some backends do, it would match"),
        (["/v/"], "/v;p/w", "/v/", "read as /v/w, as some backends do, it would match"),
        (["/v//w", "/v/w"], "/v//w", "/v//w", "read as /v/w, as some backends do, /v/w would match"),
        (["/v//w"], "/v//w", "/v//w", "read as /v/w, as some backends do, no route would match"),
    ],
)
def test_path_that_backends_read_differently_matches_no_route_and_the_reason_names_the_reading(
    paths: list[str], asked: str, alias: str, why: str
) -> None:
    routes = [Route(alias=path, path=path, to=(Target(server="web"),)) for path in paths]
    steps = explain(routes, "a.test", asked)
    assert not any(step.matched for step in steps)
    assert {step.route.alias: step.why for step in steps}[alias] == why
