"""Sleeping servers behind a gateway: a connection that is passed to one wakes it, once, and is answered."""

from __future__ import annotations

import http.client
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.gateway.conftest import GatewayPool

pytestmark = pytest.mark.unmeasured

# Answers with the port of its client, as it sees it, and with the number of the request.
APP = """
count = 0

async def app(scope, receive, send):
    global count
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "text": message["text"]})
        await receive()
        return
    count += 1
    body = b"%d %d" % (scope["client"][1], count)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def sleeper(gateway: GatewayPool) -> GatewayPool:
    """Both servers are asleep, and fall asleep again at once."""
    gateway.pool.write("wakeful.py", APP)
    gateway.write(extra="scale = { min = 0, idle = 0.2 }")
    text = (gateway.pool.directory / "pool.toml").read_text().replace("tests.load.apps:app", "wakeful:app")
    gateway.pool.write("pool.toml", text)
    gateway.pool.ok("start")
    gateway.until(lambda: "gateway started" in gateway.pool.ok("events").stdout)
    return gateway


def state(gateway: GatewayPool, name: str = "one") -> str:
    return str(gateway.pool.items()[name]["state"])


def wakes(gateway: GatewayPool, name: str = "one") -> int:
    lines = gateway.pool.ok("events", name).stdout.splitlines()
    return sum("sleeping → starting" in line for line in lines)


def test_connection_that_is_passed_to_a_sleeping_server_wakes_it_and_is_answered(
    sleeper: GatewayPool,
) -> None:
    for _ in range(3):
        sleeper.until(lambda: state(sleeper) == "sleeping")
        connection = http.client.HTTPConnection("127.0.0.1", sleeper.port, timeout=20)
        connection.request("POST", "/one", b"x" * 1000)
        port, count = connection.getresponse().read().split()
        own = connection.sock.getsockname()[1]
        connection.close()
        assert (int(port), int(count)) == (own, 1)


def test_many_requests_at_once_wake_it_once_and_each_is_answered_once(sleeper: GatewayPool) -> None:
    before = wakes(sleeper)
    with ThreadPoolExecutor(16) as pool:
        bodies = [reply.body for reply in pool.map(lambda _: sleeper.get("/one"), range(16))]
    assert sorted(int(body.split()[1]) for body in bodies) == list(range(1, 17))
    assert wakes(sleeper) == before + 1


def test_half_a_head_and_a_closed_connection_wake_no_server(sleeper: GatewayPool) -> None:
    with socket.create_connection(("127.0.0.1", sleeper.port)) as half:
        half.sendall(b"GET /one HTTP/1.1\r\nHost: a\r\n")
        socket.create_connection(("127.0.0.1", sleeper.port)).close()
        assert sleeper.get("/three").status == 404
        assert state(sleeper) == "sleeping"
        half.sendall(b"\r\n")
        half.settimeout(20)
        assert half.recv(100).startswith(b"HTTP/1.1 200")


def test_websocket_wakes_a_server(sleeper: GatewayPool) -> None:
    with socket.create_connection(("127.0.0.1", sleeper.port), timeout=20) as sock:
        sock.sendall(
            b"GET /one HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        file = sock.makefile("rb")
        assert file.readline().startswith(b"HTTP/1.1 101")
        while file.readline().strip():
            pass
        sock.sendall(b"\x81\x82\0\0\0\0hi")
        assert file.read(4) == b"\x81\x02hi"
        file.close()


def test_server_that_gets_a_route_while_it_sleeps_is_woken_through_it(sleeper: GatewayPool) -> None:
    text = (sleeper.pool.directory / "pool.toml").read_text()
    sleeper.pool.write("pool.toml", text.replace('path = "/one"', 'path = "/none"'))
    sleeper.pool.ok("reload")
    sleeper.pool.write("pool.toml", text)
    sleeper.pool.ok("reload")
    sleeper.until(lambda: sleeper.get("/one").status == 200)
