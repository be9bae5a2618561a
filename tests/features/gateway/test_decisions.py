"""`routes explain` and the real program choose the same route, for random tables and requests."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.routing.match import explain, normal_host
from poolctl.routing.normal_path import normal_path
from poolctl.routing.route import Redirect, Route
from tests.examples import examples
from tests.features.gateway.test_haproxy_configuration import haproxy
from tests.unit.routing.test_match import HEADERS, HOSTS, METHODS, PATHS, tables

DEADLINE = 60.0
MORE_HOSTS = ["C.B.A.:8080", "y.b.a", "h3.example", "H3.example.", "192.0.2.1", "[::1]:80"]
MORE_PATHS = [
    "/@v%2fw", "/v/https://w", "/v;x%2Fw/x", "/v/..%2fw", "/x//v", "/v%5cw", "/;/v", "/v/;..",
    "/%76", "/v/./w", "/v/../w/x", "/v/w/..", "/V", "/v?w=/w", "/v%", "/v/%77/%78", "/v/%00", "/v\\w", "/~v", "/%7ev",
]  # fmt: skip
REQUESTS = list(product(HOSTS + MORE_HOSTS, PATHS + MORE_PATHS, METHODS, HEADERS))
Request = tuple[str, str, str, dict[str, str]]

requests = st.integers(0, 100_000).map(lambda seed: Random(seed).sample(REQUESTS, 40))
# Without conditions all routes are looked up in a map, but for those with a "*" within their host.
mapped_tables = tables.map(lambda table: [replace(each, methods=(), headers=()) for each in table])
any_table = st.one_of(tables, mapped_tables)


async def decided(port: int, request: Request) -> str:
    """The alias of the route that the program has taken, to which it redirects; else the status of its answer."""
    host, path, method, headers = request
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {path} HTTP/1.1", "Connection: close", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head = (await reader.read()).partition(b"\r\n\r\n")[0].decode()
    writer.close()
    _, found, location = head.lower().partition("location: https://")
    return location.split("/")[0] if found else head.split()[1]


def explained(routes: Sequence[Route], request: Request) -> str:
    host, path, method, headers = request
    normal = normal_path(path.partition("?")[0])
    if normal is None:
        return "400"
    steps = explain(routes, normal_host(host), normal, method, headers)
    return next((step.route.alias for step in steps if step.matched), "404")


async def decide_alike(routes: list[Route], asked: Sequence[Request]) -> None:
    answering = [replace(each, to=(), redirect=Redirect(to=f"https://{each.alias}/")) for each in routes]
    with tempfile.TemporaryDirectory() as directory:
        async with haproxy(Path(directory), answering) as port:
            for request in asked:
                found, wanted = await decided(port, request), explained(routes, request)
                assert found == wanted, (request, [*routes])


@pytest.mark.capability
@given(any_table, requests)
@examples(40)
def test_haproxy_decides_as_it_is_explained(routes: list[Route], asked: list[Request]) -> None:
    asyncio.run(asyncio.wait_for(decide_alike(routes, asked), DEADLINE))


@pytest.mark.slow
@pytest.mark.timeout(600)
@given(any_table, requests)
@examples(80)
def test_haproxy_decides_as_it_is_explained_for_many_tables(
    routes: list[Route], asked: list[Request]
) -> None:
    asyncio.run(asyncio.wait_for(decide_alike(routes, asked), DEADLINE))
