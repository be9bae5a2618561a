"""A connection that the gateway passes on: served by workers themselves, whatever its later requests are for."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

from tests.features.gateway.conftest import GatewayPool

pytestmark = pytest.mark.integration

APP = """
import json, os
from poolctl.gateway.routes import try_get_route, upstream_name, upstream_url

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    route = try_get_route(scope)
    found = {
        "route": route and route.alias,
        "upstream": [upstream_name(scope), upstream_url(scope)],
        "client": scope["client"],
        "pid": os.getpid(),
    }
    body = json.dumps(found).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


def ask(sock: socket.socket, path: str) -> dict[str, object]:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: example.com\r\n\r\n".encode())
    with sock.makefile("rb") as reader:
        head = {}
        assert b" 200 " in (line := reader.readline()), line
        while line := reader.readline().strip():
            name, _, value = line.partition(b":")
            head[name.lower()] = value
        found: dict[str, object] = json.loads(reader.read(int(head[b"content-length"])))
        return found


def start(gateway: GatewayPool) -> None:
    (gateway.pool.directory / "seen.py").write_text(APP)
    gateway.write()
    text = (gateway.pool.directory / "pool.toml").read_text().replace("tests.load.apps:app", "seen:app")
    gateway.pool.write("pool.toml", text)
    gateway.pool.ok("start")
    gateway.until(gateway.process)


def connect(gateway: GatewayPool) -> socket.socket:
    """A connection that was passed; before the workers have the table, servers are proxied."""
    sock = socket.create_connection(("127.0.0.1", gateway.port), 60)
    # The client is the gateway while it proxies.
    address = list(sock.getsockname())
    gateway.until(lambda: [ask(sock, path)["client"] for path in ("/two", "/one")] == [address] * 2)
    return sock


@pytest.mark.capability
def test_one_connection_is_served_by_the_workers_of_two_routes_in_turn(gateway: GatewayPool) -> None:
    start(gateway)
    pids = {item["name"]: item["pids"] for item in gateway.pool.ok("list", "-o", "json").json["items"]}
    with connect(gateway) as sock:
        address = list(sock.getsockname())
        for name in ("one", "two", "two", "one"):
            found = ask(sock, f"/{name}/x")
            assert found["client"] == address
            assert found["pid"] in pids[name]
            assert found["route"] == name
            assert found["upstream"] == [name, f"http://127.0.0.1:{gateway.ports[name]}"]
        gateway.pool.ok("restart", "one")
        found = ask(sock, "/one/y")
        assert (found["route"], found["client"]) == ("one", address)
        assert found["pid"] not in pids["one"]
        assert ask(sock, "/two/y")["pid"] in pids["two"]


@pytest.mark.heavy_variants
@pytest.mark.parametrize("leave", ["stop", "remove"])
def test_connections_outlive_the_server_that_had_their_last_request(gateway: GatewayPool, leave: str) -> None:
    start(gateway)
    with contextlib.ExitStack() as stack:
        kept, ended = [[stack.enter_context(connect(gateway)) for _ in range(4)] for _ in range(2)]
        gateway.pool.ok(leave, "one")
        for sock in kept:
            assert ask(sock, "/two")["route"] == "two"
        for sock in ended:
            sock.sendall(b"GET /one HTTP/1.1\r\nHost: example.com\r\n\r\n")
            assert sock.recv(65536).split()[1] in ((b"404", b"503") if leave == "remove" else (b"503",))
