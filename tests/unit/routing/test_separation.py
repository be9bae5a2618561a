"""Which routes keep their connections in the gateway, by the users of servers."""

from __future__ import annotations

import itertools

import pytest

from poolctl.routing.route import Header, Route, Target, passable, proxy_reason
from poolctl.routing.separation import separated

USERS = {"a": "ann", "a2": "ann", "b": "bob"}


def route(alias: str, *to: str, **fields: object) -> Route:
    targets = tuple(Target(url=each) if ":" in each else Target(server=each) for each in to)
    return Route(alias=alias, to=targets, **fields)


def passed(routes: list[Route], users: dict[str, str], *, tls: bool = False) -> list[str]:
    """The aliases of the routes that pass connections."""
    return [each.alias for each in separated(routes, users) if passable(each, tls=tls)]


ANY = route("any", "a")
CASES = {
    "another user's server": ([ANY, route("b", "b", path="/b")], []),
    "the same user's servers": ([ANY, route("a2", "a2", path="/b")], ["any", "a2"]),
    "a URL": ([ANY, route("url", "http://10.0.0.7:9000", path="/b")], []),
    "a route without a backend yet": ([ANY, route("register", path="/b")], []),
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
    assert separated(separated(routes, USERS), dict.fromkeys(USERS, "ann")) == routes


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
    assert proxy_reason(separated([ANY, *others], USERS)[0]) == reason


def test_reason_of_a_route_to_two_users_names_a_server_of_each() -> None:
    (both,) = separated([route("any", "a", "a2", "b")], USERS)
    assert proxy_reason(both) == "it leads to a (ann) and b (bob), which run as different users"
    assert proxy_reason(both, tls=True) == proxy_reason(both)


def test_order_of_routes_decides_nothing() -> None:
    routes = [ANY, route("a2", "a2", host="x.example.com"), route("b", "b", path="/b")]
    for order in itertools.permutations(routes):
        assert passed(list(order), USERS) == []
        assert passed([each for each in order if each.alias != "b"], USERS) == [
            each.alias for each in order if each.alias != "b"
        ]
