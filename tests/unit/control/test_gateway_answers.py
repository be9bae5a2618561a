"""What answers about a gateway say of its routes: those that lead to a server, and those that are not served."""

from __future__ import annotations

from poolctl.control.gateway_answers import excluded_routes_for_host, routes_to_servers
from poolctl.control.server_answers import RouteToServer
from poolctl.routing.route import ExcludedRoute, Route, StreamRoute, Target


def test_routes_of_a_server_are_those_with_a_target_of_its_name_each_once() -> None:
    users, docs, other = Target(server="users"), Target(server="docs"), Target(url="http://10.0.0.7:80")
    found = routes_to_servers(
        [
            Route(alias="api", host="shop.example", path="/v1", to=(users, docs, users)),
            Route(alias="elsewhere", to=(other,)),
            StreamRoute(alias="db", bind="127.0.0.1:5432", protocol="tcp", to=(other, users)),
        ]
    )
    api = RouteToServer(alias="api", protocol="http", host="shop.example", path="/v1")
    stream = RouteToServer(alias="db", protocol="tcp", host="127.0.0.1:5432", path="")
    assert found == {"users": (api, stream), "docs": (api,)}


def test_excluded_routes_of_a_host_are_those_that_cover_it() -> None:
    routes = [
        ExcludedRoute(alias="every", reason="r"),
        ExcludedRoute(alias="same", reason="r", host="shop.example"),
        ExcludedRoute(alias="below", reason="r", host="*.example"),
        ExcludedRoute(alias="other", reason="r", host="docs.example"),
    ]
    assert [each.alias for each in excluded_routes_for_host("shop.example", routes)] == [
        "every",
        "same",
        "below",
    ]


def test_a_hundred_excluded_routes_are_the_most() -> None:
    many = [ExcludedRoute(alias=f"r{number}", reason="r") for number in range(103)]
    assert excluded_routes_for_host("shop.example", many) == tuple(many[:100])
