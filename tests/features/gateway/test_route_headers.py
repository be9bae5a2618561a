"""Headers that routes add, set and remove: the same requests and responses with every engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from poolctl.routing.route import BreakerRule, Header, Route, Target
from tests.features.gateway.passing_stage import Serve, own_engine
from tests.features.gateway.proxy_stage import DEADLINE, Backend, Wire

Fields = list[tuple[str, str]]


class Case(NamedTuple):
    """Keys of a route, what a client sends, and what of it arrives: fields whose names begin with x."""

    keys: dict[str, Any]
    sent: Fields
    arrives: Fields


def headers(**given: str) -> tuple[Header, ...]:
    return tuple(Header(name=name.replace("_", "-"), value=value) for name, value in given.items())


CASES = {
    "added behind the client's own": Case(
        {"add_headers": headers(x_a="1")}, [("X-A", "mine")], [("x-a", "mine"), ("x-a", "1")]
    ),
    "set instead of the client's own": Case(
        {"set_headers": headers(x_a="1")},
        [("X-A", "mine"), ("x-a", "again"), ("X-B", "2")],
        [("x-b", "2"), ("x-a", "1")],
    ),
    "set without one": Case({"set_headers": headers(x_a="1")}, [], [("x-a", "1")]),
    "set under names that CGI reads alike": Case(
        {"set_headers": headers(x_a_b="1")},
        [("X_A_B", "mine"), ("x-a_B", "mine"), ("X-A-Bc", "other"), ("X-A", "other")],
        [("x-a-bc", "other"), ("x-a", "other"), ("x-a-b", "1")],
    ),
    "set under a name with an underscore": Case(
        {"set_headers": (Header(name="x_a", value="1"),)}, [("X-A", "mine"), ("X_a", "mine")], [("x_a", "1")]
    ),
    "removed": Case(
        {"remove_headers": ("x-a", "x.b")},
        [("X-A", "1"), ("x_a", "2"), ("X.B", "3"), ("X-B", "4")],
        [("x-b", "4")],
    ),
    "removed, then added": Case(
        {"remove_headers": ("x-a",), "add_headers": headers(x_a="1")}, [("X-A", "mine")], [("x-a", "1")]
    ),
    "values are taken as they are": Case(
        {"set_headers": headers(x_a="100% 'a' \"b\" ${HOME} \\1")}, [], [("x-a", "100% 'a' \"b\" ${HOME} \\1")]
    ),
    "what is reported of the client": Case(
        {"set_headers": headers(x_forwarded_proto="https"), "remove_headers": ("x-forwarded-for",)},
        [("X-Forwarded-For", "1.1.1.1"), ("X_Forwarded_Proto", "http")],
        [("x-forwarded-proto", "https")],
    ),
}  # fmt: skip
KEYS = headers(strict_transport_security="max-age=1", access_control_allow_origin="*", x_api="100%")


async def answering(backend: Backend, wire: Wire) -> None:
    while True:
        await backend.request(wire)
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Api: own\r\nSTRICT-transport-security: max-age=0\r\n"
            b"Access-Control-Allow-Methods: GET\r\nSet-Cookie: a=b\r\n\r\nok"
        )


async def exchange(port: int, sent: Fields) -> Fields:
    """The fields of the response."""
    wire = Wire(*await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), DEADLINE))
    with closing(wire):
        await wire.send(
            "\r\n".join(
                ["GET / HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in sent), "", ""]
            ).encode()
        )
        return fields((await wire.response())[0])


def fields(head: bytes) -> Fields:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]


@asynccontextmanager
async def before_backend(
    engine: Serve, directory: Path, keys: dict[str, Any], *, running: bool = True
) -> AsyncIterator[tuple[int, Backend]]:
    """The port of this engine, and the backend of its only route."""
    backend = await Backend(answering).start()
    if not running:
        backend.close()
    try:
        rule = BreakerRule(failures=0, rate=0.0)
        route = Route(**{"alias": "a", "to": (Target(url=backend.url),), "breaker": rule, **keys})
        async with engine(directory, [route]) as port:
            yield port, backend
    finally:
        backend.close()


@pytest.fixture
def engine() -> Serve:
    """The gateway itself; features run the tests with engines of theirs."""
    return own_engine


@pytest.mark.parametrize("name", CASES)
def test_backend_gets_the_headers_that_the_route_wants(engine: Serve, tmp_path: Path, name: str) -> None:
    keys, sent, arrives = CASES[name]

    async def work() -> None:
        async with before_backend(engine, tmp_path, keys) as (port, backend):
            await exchange(port, sent)
            reported = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}
            reported -= {each for each, _ in arrives}
            found = [each for each in fields(backend.heads[0]) if each[0].startswith("x")]
            if "x-forwarded-for" in keys.get("remove_headers", ()):
                assert "x-forwarded-for" not in dict(found)
            assert sorted(each for each in found if each[0] not in reported) == sorted(arrives)
            order = [value for field, value in found if field == "x-a"]
            assert order == [value for field, value in arrives if field == "x-a"]

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


def test_response_has_the_headers_of_the_route_instead_of_the_backends(engine: Serve, tmp_path: Path) -> None:
    async def work() -> None:
        async with before_backend(engine, tmp_path, {"response_headers": KEYS}) as (port, _):
            for _ in range(2):
                found = await exchange(port, [])
                assert sorted(found) == [
                    ("access-control-allow-methods", "GET"),
                    ("access-control-allow-origin", "*"),
                    ("content-length", "2"),
                    ("set-cookie", "a=b"),
                    ("strict-transport-security", "max-age=1"),
                    ("x-api", "100%"),
                ]

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


def test_response_of_the_gateway_itself_has_the_headers_of_the_route(engine: Serve, tmp_path: Path) -> None:
    async def work() -> None:
        async with before_backend(engine, tmp_path, {"response_headers": KEYS}, running=False) as (port, _):
            found = dict(await exchange(port, []))
            assert found.keys() > {each.name for each in KEYS}
            assert found["x-api"] == "100%"

    asyncio.run(asyncio.wait_for(work(), DEADLINE))
