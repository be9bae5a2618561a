"""Registered services: their keys, and the routes that follow from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolctl.config import Finding, ServerConfig, Tables, json_schema
from poolctl.features.gateway.routes import routes_of
from poolctl.features.gateway.table import GatewayConfig, RouteConfig
from poolctl.features.registration._service_routes import (
    RegisteredBackend,
    registration_of,
    with_registrations,
)
from poolctl.routing.route import ExcludedRoute, Route
from tests.config_files import told

WEB = ServerConfig(name="web", bind="127.0.0.1:8000", app="a:b")


def service(name: str = "users", url: str = "http://10.0.0.7:9000", **keys: Any) -> RegisteredBackend:
    given = {"weight": 1, "host": None, "path": None, "serving": True, **keys}
    return RegisteredBackend(name, url, **given)


def made(*services: RegisteredBackend, routes: tuple[RouteConfig, ...]) -> dict[str, Route | ExcludedRoute]:
    tables = Tables(gateway=GatewayConfig(), routes=routes)
    found = with_registrations(routes_of([WEB], tables), [WEB], tables, services)
    return {each.alias: each for each in found if isinstance(each, Route | ExcludedRoute)}


def targets(route: Any) -> list[str]:
    return [each.key for each in route.to]


def test_service_joins_the_targets_of_a_route_that_accepts_it() -> None:
    routes = (
        RouteConfig(alias="users", to=("web", "http://10.0.0.8:9000"), register=True, path="/users"),
        RouteConfig(alias="empty", register=True, path="/empty"),
    )
    again, failing = service(url="http://10.0.0.8:9000", weight=5), service(url="http://x:1", serving=False)
    found = made(service(weight=3), again, failing, routes=routes)
    assert targets(found["users"]) == ["web", "http://10.0.0.8:9000", "http://10.0.0.7:9000"]
    assert [each.weight for each in found["users"].to] == [1, 1, 3]  # type: ignore[union-attr]
    assert isinstance(found["empty"], Route), "it answers with 503, and not with 404"
    assert targets(found["empty"]) == []


def test_service_gets_a_route_of_its_own_by_a_host_or_a_path() -> None:
    first, second = service("own", path="/own"), service("own", "http://10.0.0.9:1")
    found = made(first, second, routes=(RouteConfig(to="web"),))
    own = found["own"]
    assert isinstance(own, Route)
    assert (own.host, own.path, own.provider, targets(own)) == (
        "",
        "/own",
        "registration",
        [first.url, second.url],
    )
    asleep = made(service("own", path="/own", serving=False), routes=())["own"]
    assert (isinstance(asleep, Route), targets(asleep)) == (True, [])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (service("web"), "accepts no registrations"),
        (service("own"), "no such route"),
        (service("own", host="web.example.com"), "taken by the route 'web'"),
        (service("own", host="web.example.com", path="/v1"), "taken by the route 'web'"),
        (service("own", host="*.example.org"), "taken by the route 'odd'"),
        (service("own", path="/posts"), ""),
        (service("own", host="other.example.com"), ""),
    ],
)  # fmt: skip
def test_service_takes_no_place_of_another_route(given: RegisteredBackend, reason: str) -> None:
    routes = (
        RouteConfig(alias="web", to="web", host="web.example.com"),
        RouteConfig(alias="odd", to="web", host="a*.example.org"),
        RouteConfig(alias="posts", to="web", path="/posts", methods=("POST",)),
    )
    found = made(given, routes=routes)[given.name]
    assert isinstance(found, ExcludedRoute) == bool(reason)
    assert reason in getattr(found, "reason", "")


def test_place_belongs_to_the_service_that_registered_first() -> None:
    first, second = service("first", path="/x"), service("second", path="/x")
    found = made(first, second, routes=())
    assert isinstance(found["first"], Route)
    assert "taken by the route 'first'" in getattr(found["second"], "reason", "")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"to": "web"}, ("to",)),
        ({"to": "tag:api"}, ("to",)),
        ({"to": "http://u:p@10.0.0.7:1"}, ("to",)),
        ({"to": "http://10.0.0.7:9000/v1"}, ("to",)),
        ({"name": "two words"}, ("name",)),
        ({"name": "x" * 201}, ("name",)),
        ({"ttl": -1}, ("ttl",)),
        ({"ttl": float("inf")}, ("ttl",)),
        ({"weight": 0}, ("weight",)),
        ({"path": "v1"}, ("path",)),
        ({"probe": {"exec": ["true"]}}, ("probe",)),
        ({"probe": {"http": "/", "body": "x"}}, ("probe",)),
        ({"probe": "health"}, ("probe", "http")),
        ({"port": 1}, ("port",)),
        ({"to": "unix:/run/a\x1b.sock"}, ("to",)),
        ({"to": "http://10.0.0.7\r\nX: y:80"}, ("to",)),
        ({"to": ["http://10.0.0.7:9000"]}, ("to",)),
    ],
)
def test_wrong_registration_is_a_finding_with_its_key(given: dict[str, Any], path: tuple[str, ...]) -> None:
    findings: list[Finding] = []
    table = {"name": "users", "to": "http://10.0.0.7:9000", **given}
    assert registration_of(table, findings) is None
    assert [each.path for each in findings] == [path]


def test_registration_has_the_forms_of_the_configuration() -> None:
    found = registration_of(
        {"name": "users", "to": "HTTP://10.0.0.7", "ttl": "1m30s", "probe": "/health"}, []
    )
    assert found is not None
    assert (found.to, found.ttl) == ("http://10.0.0.7:80", 90.0)
    assert found.probe is not None
    assert (found.probe.http, found.probe.fall_count_ko) == ("/health", 3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[route]]\nregister = true\n", "route[0].alias: 'alias' is missing"),
        (
            '[[route]]\nalias = "users"\n',
            "'to' is missing; add to = …, or register = true for services that register themselves",
        ),
        (
            '[[route]]\nalias = "users"\nregister = true\nmode = "pass"\n',
            'route[0].register: mode = "pass", and registered services are outside the pool',
        ),
        (
            '[gateway]\n[[server]]\nname = "a"\nbind = ":9001"\napp = "a:b"\nlabels = { "route.register" = "true" }\n',
            "the route of a server leads to that server",
        ),
    ],
)
def test_route_that_cannot_accept_services_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    found = told(tmp_path, text)
    assert problem in found
    assert found.count("\n") == 0


def test_route_that_accepts_services_is_written_and_described() -> None:
    route = RouteConfig(alias="users", register=True)
    assert route.to_dict()["register"] is True
    assert "register" not in RouteConfig(to="web").to_dict()
    schema = json_schema()["$defs"]["RouteConfig"]
    assert {"required": ["to"]} in schema["anyOf"]
    assert schema["properties"]["register"]["default"] is False
