"""Requests that servers read differently: none becomes a request that its route forbids.

The cases are those of this repository's tables, and with `make conformance` those of public collections (see
tests/conformance_collections.py). Each is also sent with a forbidden request behind it, which it may swallow as its
body, or which may become part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence

import pytest

from tests.conformance_collections import COLLECTIONS, Collection, TabledCollections
from tests.environments import need_gateway
from tests.http_corpus import REQUESTS, SMUGGLED
from tests.http_get import get
from tests.ports import claim_port

from .conftest import GatewayPool

pytestmark = pytest.mark.integration

# A request for /admin leaves a file.
APP = """
import pathlib

async def app(scope, receive, send):
    if scope["type"] != "http":
        while scope["type"] == "lifespan":
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                break
        return
    if "admin" in scope["path"]:
        pathlib.Path("admin").touch()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""
FILE = """
[gateway]
bind = "127.0.0.1:{port}"
[[route]]
to = "web"
[[route]]
to = "web"
alias = "admin"
path = "/admin"
allow = ["192.0.2.0/24"]
[[server]]
name = "web"
bind = "127.0.0.1:{own}"
app = "attacked:app"
http = {{ implementation = "{parser}" }}
"""
AT_ONCE = 150
# When no more answers are expected. Too short a time hides a smuggled request, and makes no test fail.
QUIET_SECONDS = 0.3


async def send(port: int, data: bytes, places: asyncio.Semaphore) -> None:
    """Send these bytes, and return when everything is answered."""
    async with places:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(data)
            while True:
                async with asyncio.timeout(QUIET_SECONDS):
                    if not await reader.read(65536):
                        break
        writer.close()


async def send_all(port: int, requests: Sequence[bytes]) -> None:
    places = asyncio.Semaphore(AT_ONCE)
    await asyncio.gather(*(send(port, data, places) for each in requests for data in (each, each + SMUGGLED)))


def check(gateway: GatewayPool, parser: str, requests: Sequence[bytes]) -> None:
    need_gateway()
    own, reached = claim_port(), gateway.pool.directory / "admin"
    gateway.pool.write("attacked.py", APP)
    gateway.pool.write("pool.toml", FILE.format(port=gateway.port, own=own, parser=parser))
    gateway.pool.ok("start")
    gateway.until(lambda: get(gateway.port, "/").status == 200)
    assert get(gateway.port, "/admin").status == 403
    asyncio.run(send_all(gateway.port, requests))
    assert not reached.exists()
    assert get(gateway.port, "/").status == get(own, "/admin").status == 200
    assert reached.exists(), "the worker's own port is not the gateway's"


def status_of(port: int, head: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(head + b"\r\n\r\n")
        return sock.recv(4096).split()[1]


def test_request_without_a_host_or_of_an_unknown_version_is_refused(gateway: GatewayPool) -> None:
    gateway.start()
    wanted = {
        b"GET /one HTTP/1.1": b"400",
        b"GET /one HTTP/1.2\r\nHost: a": b"505",
        b"GET /one HTTP/2.0\r\nHost: a": b"505",
        b"GET /one HTTP/1.0": b"200",
    }
    assert {head: status_of(gateway.port, head) for head in wanted} == wanted


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_no_request_reaches_a_server_that_its_route_forbids(gateway: GatewayPool, parser: str) -> None:
    check(gateway, parser, [case.data for case in REQUESTS])


@pytest.mark.heavy_variants
@pytest.mark.parametrize("collection", COLLECTIONS)
@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_no_request_of_a_collection_reaches_a_server_that_its_route_forbids(
    gateway: GatewayPool, parser: str, collection: Collection | TabledCollections
) -> None:
    check(gateway, parser, [case.data for case in collection.cases()])
