"""The route of a request in its ASGI scope, and as headers."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.routing import Route as StarletteRoute

import poolctl
from poolctl.gateway import routes
from poolctl.gateway.routes import Route, RouteTable, Target, try_get_route, with_route, write_table
from poolctl.json_form import from_json
from poolctl.routing.context import authenticated_alias, context_value

USERS = Route(alias="users", to=(Target(server="users"), Target(server="spare")), host="users.example.com")
UPSTREAM = {
    "name": routes.upstream_name,
    "scheme": routes.upstream_scheme,
    "host": routes.upstream_host,
    "port": routes.upstream_port,
    "host_port": routes.upstream_host_port,
    "addr": routes.upstream_addr,
    "url": routes.upstream_url,
}


def upstream(scope: dict[str, Any]) -> dict[str, object]:
    return {name: ask(scope) for name, ask in UPSTREAM.items()}


@pytest.mark.parametrize(
    "scope", [{}, {"type": "http", "extensions": None}, {"extensions": {"poolctl.route": {}}}]
)
def test_scope_without_a_route_answers_nothing(scope: dict[str, Any]) -> None:
    assert try_get_route(scope) is None
    assert upstream(scope) == {
        "name": "", "scheme": "", "host": "", "port": None, "host_port": "", "addr": "", "url": "",
    }  # fmt: skip


def test_scope_carries_route_and_backend_and_the_original_stays_as_it_was() -> None:
    original = {"type": "http", "extensions": {"http.response.push": {}}}
    scope = with_route(original, USERS, name="spare", url="http://127.0.0.1:8082")
    assert original == {"type": "http", "extensions": {"http.response.push": {}}}
    assert try_get_route(scope) is USERS
    assert scope["extensions"].keys() == {"http.response.push", "poolctl.route"}
    assert upstream(scope) == {
        "name": "spare", "scheme": "http", "host": "127.0.0.1", "port": 8082, "host_port": "127.0.0.1:8082",
        "addr": "127.0.0.1:8082", "url": "http://127.0.0.1:8082",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "host_port", "addr"),
    [
        ("https://example.com", "https", "example.com", 443, "example.com:443", "example.com:443"),
        ("http://example.com", "http", "example.com", 80, "example.com:80", "example.com:80"),
        ("http://[::1]:81", "http", "::1", 81, "[::1]:81", "[::1]:81"),
        ("unix:/run/a.sock", "http", "", None, "", "unix:/run/a.sock"),
        ("http://h:99999", "", "", None, "", ""),
        ("http://[::1", "", "", None, "", ""),
    ],
)
def test_parts_of_the_backend_follow_from_its_url(
    url: str, scheme: str, host: str, port: int | None, host_port: str, addr: str
) -> None:
    scope = with_route({}, Route(alias="far", to=(Target(url=url),)))
    assert upstream(scope) == {
        "name": "far", "scheme": scheme, "host": host, "port": port, "host_port": host_port, "addr": addr, "url": url,
    }  # fmt: skip


def test_route_of_one_server_names_it() -> None:
    assert routes.upstream_name(with_route({}, Route(alias="a", to=(Target(server="users"),)))) == "users"
    assert routes.upstream_name(with_route({}, USERS)) == ""


def test_route_goes_through_middleware_and_mounted_applications() -> None:
    async def show(request: Request) -> PlainTextResponse:
        route = try_get_route(request.scope)
        return PlainTextResponse(f"{route and route.alias} {routes.upstream_name(request.scope)}")

    async def passing_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    inner = Starlette(
        routes=[StarletteRoute("/show", show)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=passing_on)],
    )
    app = Starlette(routes=[Mount("/a", routes=[Mount("/b", app=inner)])])
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/a/b/show",
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(with_route(scope, USERS, name="spare"), receive, send))
    assert b"".join(each.get("body", b"") for each in sent) == b"users spare"


def test_routes_are_there_in_an_interpreter_without_poolctl() -> None:
    """As `bootstrap` starts workers: the package itself is importable, its neighbours are not."""
    package = Path(poolctl.__file__).parent.parent
    program = (
        f"import sys; sys.path.insert(0, {str(package)!r}); import poolctl; del sys.path[0]\n"
        "from poolctl.gateway.routes import Route, try_get_route, with_route\n"
        "print(try_get_route(with_route({}, Route(alias='users'))).alias)\n"
        "print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'__main__'})"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("users\n{'poolctl'}\n", "")


def test_route_of_another_copy_of_the_module_is_understood() -> None:
    spec = importlib.util.find_spec("poolctl.routing.route")
    assert spec is not None
    copy = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    # Its classes' annotations are looked up by the module's name.
    own = sys.modules[spec.name]
    sys.modules[spec.name] = copy
    try:
        spec.loader.exec_module(copy)
        other = copy.Route(alias="users", to=(copy.Target(server="users"),))
        scope = with_route({}, other)
        assert not isinstance(scope["extensions"]["poolctl.route"]["route"], Route)
        text = other.to_json()
    finally:
        sys.modules[spec.name] = own
    assert (
        try_get_route(scope) == Route(alias="users", to=(Target(server="users"),)) == from_json(Route, text)
    )


def test_parts_of_the_context_that_a_later_version_adds_are_ignored() -> None:
    scope = with_route({}, USERS, name="users")
    scope["extensions"]["poolctl.route"]["more"] = 1
    assert try_get_route(scope) is USERS
    assert routes.upstream_name(scope) == "users"


def test_application_finds_the_table_in_force_in_the_scope() -> None:
    tables: list[RouteTable] = []
    for generation in (1, 2):
        fd = write_table([USERS], generation)
        tables.append(RouteTable(fd))
        os.close(fd)
    context = routes.extension(USERS, name="users", table=lambda: tables[-1])
    scope = {"extensions": {routes.EXTENSION: context}}
    found = routes.try_get_table(scope)
    assert found is not None
    assert (found.generation, [each.alias for each in found]) == (2, ["users"])
    assert routes.upstream_name(scope) == "users"
    assert routes.try_get_table(with_route({}, USERS)) is None
    assert routes.try_get_table({}) is None
    registry = routes.registry_of(scope)
    assert (registry.get("users"), registry.num_all, registry.generation) == (USERS, 1, 2)
    assert routes.registry_of({}).num_all == 0


@pytest.mark.parametrize(
    ("to", "name", "url"),
    [
        ((Target(server="web"),), "web", ""),
        ((Target(url="http://10.0.0.7:80"),), "r", "http://10.0.0.7:80"),
        ((Target(server="web"), Target(server="db")), "", ""),
        ((), "", ""),
    ],
)
def test_only_target_of_a_route_is_its_backend_unless_another_is_named(
    to: tuple[Target, ...], name: str, url: str
) -> None:
    route = Route(alias="r", to=to)
    for scope in (with_route({}, route), {"extensions": {routes.EXTENSION: routes.extension(route)}}):
        assert (routes.upstream_name(scope), routes.upstream_url(scope)) == (name, url)
    other = with_route({}, route, name="other", url="http://b:1")
    assert (routes.upstream_name(other), routes.upstream_url(other)) == ("other", "http://b:1")


def test_alias_for_workers_is_read_with_their_key_only() -> None:
    name = context_value("api:canary", "key", "üsers 100%")
    assert re.fullmatch(r"[A-Za-z0-9_.:-]+", name), "HAProxy accepts it as the name of a server"
    value = name.encode()
    assert authenticated_alias(value, "key") == "üsers 100%"
    assert authenticated_alias(value, "other") is None
    assert authenticated_alias(context_value("api", "", "users").encode(), "") is None
    assert authenticated_alias(b"api", "key") is None
