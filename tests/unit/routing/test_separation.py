"""Which routes keep their connections in the gateway, by the users of servers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.http.messages import canonical_head
from poolctl.json_form import from_json, to_json
from poolctl.routing.decision import passable_match, passable_tls_host_match
from poolctl.routing.route import (
    PROXY,
    Header,
    Redirect,
    Route,
    Target,
    TrafficLimits,
    passable,
    proxy_reason,
)
from poolctl.routing.route_table import RouteTable, write_table
from poolctl.routing.separation import (
    KeepableConnections,
    TlsKeepPermission,
    kept_connections,
    routes_for_workers,
    with_passing_disabled,
    with_separation_reasons,
)
from tests.examples import examples

USERS = {"a": "ann", "a2": "ann", "b": "bob"}


def route(alias: str, *to: str, **fields: object) -> Route:
    targets = tuple(Target(url=each) if ":" in each else Target(server=each) for each in to)
    return Route(alias=alias, to=targets, **fields)


def passed(routes: list[Route], users: dict[str, str], *, tls: bool = False) -> list[str]:
    """The aliases of the routes that pass connections."""
    return [each.alias for each in with_separation_reasons(routes, users) if passable(each, tls=tls)]


ANY = route("any", "a")
CASES = {
    "another user's server": ([ANY, route("b", "b", path="/b")], []),
    "the same user's servers": ([ANY, route("a2", "a2", path="/b")], ["any", "a2"]),
    "a URL": ([ANY, route("url", "http://10.0.0.7:9000", path="/b")], []),
    "a route without a backend": ([ANY, route("none", path="/b")], []),
    "services that register": ([ANY, route("register", path="/b", registers=True)], []),
    "services that register beside a server": ([route("any", "a", registers=True)], []),
    "no route, as all have hosts": ([route("host", "a", host="a.example.com")], []),
    "no route, as all have paths": ([route("path", "a", path="/a")], []),
    "no route, as the last one has a method": ([route("get", "a", methods=("GET",))], []),
    "no route, as the last one has a header": ([route("key", "a", headers=(Header(name="x-key"),))], []),
    "a route with conditions before one for all": ([ANY, route("get", "a2", methods=("GET",))], ["any"]),
    "a route that the proxy serves": ([ANY, route("b", "b", path="/b", mode="proxy")], []),
    "servers of two users behind one route": ([route("any", "a", "b")], []),
}


@pytest.mark.parametrize("case", list(CASES))
def test_route_passes_only_if_all_requests_on_the_listener_are_for_one_user(case: str) -> None:
    routes, expected = CASES[case]
    assert passed(routes, USERS) == expected


@pytest.mark.parametrize("case", list(CASES))
def test_pool_with_one_user_passes_whatever_has_no_other_reason(case: str) -> None:
    routes, _ = CASES[case]
    one = dict.fromkeys(USERS, "ann")
    assert passed(routes, one) == [each.alias for each in routes if passable(each)]


def test_reason_of_earlier_users_is_gone_once_there_is_one_user() -> None:
    routes = [ANY, route("b", "b", path="/b")]
    assert (
        with_separation_reasons(with_separation_reasons(routes, USERS), dict.fromkeys(USERS, "ann")) == routes
    )


def test_route_within_tls_passes_when_other_hosts_have_other_users() -> None:
    routes = [route("a", "a", host="a.example.com"), route("b", "b", host="b.example.com")]
    assert passed(routes, USERS) == []
    assert passed(routes, USERS, tls=True) == ["a", "b"]
    assert passed([route("both", "a", "b", host="a.example.com")], USERS, tls=True) == []


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ((route("b", "b", path="/b"),), "a (ann) would get later requests of its clients for b (bob)"),
        (
            (route("url", "http://10.0.0.7:9000", path="/b"),),
            "a (ann) would get later requests of its clients for http://10.0.0.7:9000",
        ),
        (
            (route("new", path="/b"),),
            "a (ann) would get later requests of its clients for the route new, which has no backend",
        ),
    ],
)
def test_reason_names_the_server_and_what_it_would_get_requests_for(
    others: tuple[Route, ...], reason: str
) -> None:
    assert proxy_reason(with_separation_reasons([ANY, *others], USERS)[0]) == reason


def test_reason_of_a_route_to_two_users_names_a_server_of_each() -> None:
    (both,) = with_separation_reasons([route("any", "a", "a2", "b")], USERS)
    assert proxy_reason(both) == "it leads to a (ann) and b (bob), which run as different users"
    assert proxy_reason(both, tls=True) == proxy_reason(both)


def test_order_of_routes_decides_nothing() -> None:
    routes = [ANY, route("a2", "a2", host="x.example.com"), route("b", "b", path="/b")]
    for order in itertools.permutations(routes):
        assert passed(list(order), USERS) == []
        assert passed([each for each in order if each.alias != "b"], USERS) == [
            each.alias for each in order if each.alias != "b"
        ]


def kept(*routes: Route, users: dict[str, str] = USERS, secure: Collection[str] = ()) -> KeepableConnections:
    return kept_connections(with_separation_reasons(routes, users), users, secure)


ONE_USER = dict.fromkeys(USERS, "ann")
B = route("b", "b", path="/b")
CHANGES = {
    "another user's route": ([ANY], USERS, [ANY, B], USERS, {"a"}),
    "a URL": ([ANY], USERS, [ANY, route("url", "http://x:1", path="/b")], USERS, {"a"}),
    "no route for all any more": ([ANY], USERS, [route("any", "a", path="/a")], USERS, {"a"}),
    "another user of its server": ([ANY], USERS, [ANY], {**USERS, "a": "bob"}, {"a"}),
    "a second user in the pool": ([ANY, B], ONE_USER, [ANY, B], USERS, {"a", "b"}),
    "a second user without a route": ([ANY], ONE_USER, [ANY], USERS, set()),
    "a route of the same user": ([ANY], USERS, [ANY, route("a2", "a2", path="/b")], USERS, set()),
    "the first user's route, where nothing is kept": ([B, ANY], USERS, [ANY], USERS, set()),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CHANGES))
def test_change_ends_kept_connections_only_if_later_requests_may_lead_elsewhere(case: str) -> None:
    before, users, after, users_after, ended = CHANGES[case]
    assert (
        kept(*before, users=users).servers_to_disconnect(kept(*after, users=users_after), users_after)
        == ended
    )


A_HOST = route("a", "a", host="a.example.com")
HOSTS = {
    "another host": ([A_HOST], [A_HOST, route("b", "b", host="b.example.com")], set()),
    "a path of the host": ([A_HOST], [A_HOST, route("b", "b", host="a.example.com", path="/b")], {"a"}),
    "another server's host": ([A_HOST], [replace(A_HOST, to=(Target(server="b"),))], {"a"}),
    "a host that is gone": ([A_HOST], [], {"a"}),
    "a host within a domain": (
        [route("a", "a", host="*.example.com")],
        [route("a", "a", host="*.example.com"), route("b", "b", host="b.example.com")],
        {"a"},
    ),
    "a domain around the host": ([A_HOST], [A_HOST, route("b", "b", host="*.example.com")], set()),
    "a host as before": (
        [route("a", "a", host="*.example.com"), route("b", "b", host="b.example.com")],
        [route("a", "a", host="*.example.com"), route("b", "b", host="b.example.com"), route("a2", "a2", host="x.org")],
        set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(HOSTS))
def test_change_of_a_host_ends_what_a_server_has_kept_within_tls(case: str) -> None:
    before, after, ended = HOSTS[case]
    secure = set(USERS)
    assert kept(*before, secure=secure).servers_to_disconnect(kept(*after, secure=secure), USERS) == ended
    one_user = kept(*before, users=ONE_USER, secure=secure)
    assert one_user.servers_to_disconnect(kept(*after, users=ONE_USER, secure=secure), ONE_USER) == set()


def test_connections_of_a_route_that_is_gone_count_until_they_are_ended() -> None:
    first = kept(route("any", "a"))
    second = kept(route("any", "a2")).with_earlier(first, USERS)
    third = kept(route("any", "a2"), route("b", "b", path="/b"))
    assert second.servers_to_disconnect(third, USERS) == {"a", "a2"}
    assert second.without({"a", "a2"}).servers_to_disconnect(third, USERS) == set()
    assert second.with_earlier(second, {"a2": "ann"}).servers == ("a2",)


def test_kept_connections_are_read_as_they_were_written() -> None:
    found = kept(A_HOST, secure={"a"})
    assert found.hosts
    assert from_json(KeepableConnections, to_json(found)) == found


def test_route_to_an_ending_server_passes_nothing() -> None:
    first, second = with_passing_disabled([ANY, route("b", "b")], {"a"})
    assert not passable(first)
    assert not passable(first, tls=True)
    assert passable(second)


_TARGETS = [("a",), ("a2",), ("b",), ("a", "a2"), ("a", "b"), ("http://x:1",), ()]
_TABLES = st.lists(
    st.fixed_dictionaries(
        {
            "to": st.sampled_from(_TARGETS),
            "host": st.sampled_from(["", "a.test", "*.test", "a"]),
            "path": st.sampled_from(["/", "/x", "/x/y"]),
            "methods": st.sampled_from([(), ("GET",)]),
            "headers": st.sampled_from([(), (Header(name="x-key"),)]),
            "mode": st.sampled_from(["auto", "proxy"]),
        }
    ),
    max_size=5,
)
_USERS = st.sampled_from([USERS, dict.fromkeys(USERS, "ann"), {**USERS, "a2": "bob"}])
_HOSTS, _PATHS = ["a.test", "b.test", "a", "x.org"], ["/", "/x", "/x/y", "/z"]
_REQUESTS = list(itertools.product(_HOSTS, _PATHS, ["GET", "POST"], [{}, {"x-key": ""}]))


@pytest.mark.slow
@examples(400)
@given(fields=_TABLES, users=_USERS)
def test_no_request_after_a_passed_one_is_for_another_user(
    fields: list[dict[str, Any]], users: dict[str, str]
) -> None:
    routes = [
        route(str(n), *each["to"], **{k: v for k, v in each.items() if k != "to"})
        for n, each in enumerate(fields)
    ]
    fd = write_table(with_separation_reasons(routes, users), 1)
    table = RouteTable(fd)
    os.close(fd)
    several = len(set(users.values())) > 1
    passed: set[str] = set()
    reached: set[str] = set()
    for host, path, method, headers in _REQUESTS:
        match = table.find(host, path, method, headers)
        targets = match.route.to if match else ()
        reached |= {users.get(each.server, "") for each in targets} or {""}
        if match is not None and match.passes:
            passed |= {users[each] for each in match.servers}
        within = passable_tls_host_match(host, table)
        if within is not None and several:
            assert len({users[each] for each in within.servers}) == 1
    table.close()
    assert not (passed and several) or passed == reached


SECRET = "s3cret"
TO_A, TO_B = Target(server="a"), Target(server="b")
URL = Target(url=f"http://{SECRET}.internal:9000")


def file_of(routes: list[Route]) -> bytes:
    fd = write_table(routes, 1)
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def test_table_of_workers_holds_no_headers_urls_or_limits() -> None:
    added = Header(name="authorization", value=f"Bearer {SECRET}")
    routes = [
        Route(alias="added", host="a.test", to=(TO_A,), add_headers=(added,)),
        Route(alias="condition", host="b.test", to=(TO_A,), headers=(Header(name="x-key", value=SECRET),)),
        Route(alias="host", host="c.test", to=(TO_A,), host_header=SECRET, sticky_cookie=SECRET),
        Route(alias="url", host="d.test", to=(URL, TO_A), limit=TrafficLimits(concurrency=7)),
        Route(alias="plain", host="e.test", to=(TO_A,), other_user=SECRET),
        Route(alias="moved", host="f.test", to=(TO_A,), redirect=Redirect(to=f"https://{SECRET}")),
    ]
    assert SECRET.encode() in file_of(routes)
    shown = routes_for_workers(routes)
    assert SECRET.encode() not in file_of(shown)
    assert [(each.alias, each.host, each.mode, each.to) for each in shown] == [
        (each.alias, each.host, PROXY, (TO_A,)) for each in routes
    ]
    assert b"x-key" in file_of(shown)


def test_workers_of_one_user_among_several_get_the_routes_to_its_servers_alone() -> None:
    routes = [
        Route(alias="a", host="a.test", to=(TO_A,)),
        Route(alias="b", host="b.test", to=(TO_B,)),
        Route(alias="both", host="both.test", to=(TO_A, TO_B)),
        Route(alias="url", to=(URL,)),
    ]
    assert [(each.alias, each.to) for each in routes_for_workers(routes, {"a"})] == [
        ("a", (TO_A,)),
        ("both", (TO_A,)),
    ]
    assert [each.alias for each in routes_for_workers(routes)] == ["a", "b", "both", "url"]


def test_route_that_says_no_more_is_the_same() -> None:
    route = Route(alias="a", host="a.test", path="/v1", to=(TO_A, TO_B))
    assert routes_for_workers([route]) == [route]


_ROUTES = st.lists(
    st.fixed_dictionaries(
        {
            "host": st.sampled_from(["", "a.test", "*.test", "a"]),
            "path": st.sampled_from(["/", "/x", "/x/y"]),
            "to": st.sampled_from([(TO_A,), (TO_B,), (TO_A, TO_B), (URL,), (URL, TO_A)]),
            "methods": st.sampled_from([(), ("GET",), ("POST",)]),
            "headers": st.sampled_from([(), (Header(name="x-key", value="1"),)]),
            "retries": st.sampled_from([0, 1]),
            "mode": st.sampled_from(["auto", "pass", "proxy"]),
            "redirect": st.sampled_from([None, None, Redirect(to="https"), Redirect(to="https://b.test")]),
            "allow": st.sampled_from([(), ("10.0.0.0/8",)]),
        }
    ),
    max_size=6,
)


@pytest.mark.slow
@examples(200)
@given(
    fields=_ROUTES,
    host=st.sampled_from(["a.test", "b.test", "a", "x.org"]),
    path=st.sampled_from(["/", "/x/1"]),
)
def test_workers_decide_by_their_table_as_the_gateway_does(
    fields: list[dict[str, Any]], host: str, path: str
) -> None:
    routes = [Route(alias=str(number), **each) for number, each in enumerate(fields)]
    head = canonical_head(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert head is not None
    found = []
    for each in (routes, routes_for_workers(routes)):
        fd = write_table(each, 1)
        table = RouteTable(fd)
        os.close(fd)
        match = passable_match(head, table)
        decided = match and (match.route.alias, match.servers, match.route.allow)
        found.append(decided)
        table.close()
    assert found[0] == found[1]


def test_earlier_connections_count_while_their_server_has_the_same_user() -> None:
    earlier = KeepableConnections(
        user="a",
        servers=("web", "gone"),
        hosts=(
            TlsKeepPermission(host="one", server="web", user="a"),
            TlsKeepPermission(host="two", server="db", user="b"),
            TlsKeepPermission(host="three", server="web", user="a", others=("b",)),
        ),
    )
    now = KeepableConnections(
        user="a", servers=("new",), hosts=(TlsKeepPermission(host="one", server="web", user="c"),)
    )
    users = {"web": "a", "new": "a", "db": "other"}
    merged = now.with_earlier(earlier, users)
    assert merged.servers == ("new", "web")
    assert merged.hosts == (now.hosts[0], earlier.hosts[2])
    assert replace(now, user="b").with_earlier(earlier, users).servers == ("new",)
    left = merged.without(["web"])
    assert (left.user, left.servers, left.hosts) == ("a", ("new",), ())
