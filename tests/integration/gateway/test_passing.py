"""A connection that the gateway passes on: served by workers themselves, whatever its later requests are for."""

from __future__ import annotations

import json
import socket

import pytest

from tests.integration.gateway.conftest import GatewayPool

pytestmark = pytest.mark.unmeasured

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


def test_one_connection_is_served_by_the_workers_of_two_routes_in_turn(gateway: GatewayPool) -> None:
    (gateway.pool.directory / "seen.py").write_text(APP)
    gateway.write()
    text = (gateway.pool.directory / "pool.toml").read_text().replace("tests.load.apps:app", "seen:app")
    gateway.pool.write("pool.toml", text)
    gateway.pool.ok("start")
    gateway.until(gateway.process)
    pids = {item["name"]: item["pids"] for item in gateway.pool.ok("list", "-o", "json").json["items"]}
    with socket.create_connection(("127.0.0.1", gateway.port), 20) as sock:
        # Until its workers have the table, a server is proxied: the client is the gateway then.
        address = list(sock.getsockname())
        gateway.until(lambda: [ask(sock, path)["client"] for path in ("/one", "/two")] == [address] * 2)
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
