"""Sleeping servers behind a gateway: a request wakes one, once, and is answered."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from tests import leaving_clients
from tests.features.gateway.conftest import ROUTES, GatewayPool
from tests.ports import claim_port

pytestmark = pytest.mark.integration

# Answers with the number of the request.
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
    if scope["path"].endswith("/long"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    body = b"%d" % count
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


COUNTED = r'poolctl_requests_total\{[^}]*"one"[^}]*\} %d\n'


def start(
    gateway: GatewayPool, routes: str = ROUTES, idle_seconds: float = 0.2, app: str = "wakeful:app"
) -> None:
    gateway.pool.write("wakeful.py", APP)
    gateway.write(routes, extra=f"scale = {{ min = 0, idle = {idle_seconds} }}")
    text = (gateway.pool.directory / "pool.toml").read_text().replace("tests.load.apps:app", app)
    gateway.pool.write("pool.toml", text)
    gateway.pool.ok("start")
    gateway.until(lambda: "gateway started" in gateway.pool.ok("events").stdout)


@pytest.fixture
def sleeper(gateway: GatewayPool) -> GatewayPool:
    """Both servers are asleep, and fall asleep again at once."""
    start(gateway)
    return gateway


def state(gateway: GatewayPool, name: str = "one") -> str:
    return str(gateway.pool.items()[name]["state"])


def states(gateway: GatewayPool) -> set[str]:
    return {str(item["state"]) for item in gateway.pool.items().values()}


def wakes(gateway: GatewayPool, name: str = "one") -> int:
    lines = gateway.pool.ok("events", name).stdout.splitlines()
    return sum("sleeping → starting" in line for line in lines)


@pytest.mark.capability
def test_request_wakes_a_sleeping_server_and_is_answered_by_it(sleeper: GatewayPool) -> None:
    for _ in range(3):
        sleeper.until(lambda: state(sleeper) == "sleeping")
        assert request(sleeper, "POST", "/one") == 1


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")


def test_many_requests_at_once_wake_it_once_and_each_is_answered_and_counted_once(
    gateway: GatewayPool,
) -> None:
    start(gateway, idle_seconds=60)
    gateway.until(lambda: states(gateway) == {"sleeping"})
    methods = METHODS * 4
    with ThreadPoolExecutor(len(methods)) as pool:
        counts = [*pool.map(lambda method: request(gateway, method, "/one"), methods)]
    assert sorted(counts) == list(range(1, len(methods) + 1))
    assert wakes(gateway) == 1
    gateway.until(lambda: re.search(COUNTED % len(methods), gateway.pool.ok("metrics").stdout))


def request(gateway: GatewayPool, method: str, path: str) -> int:
    """The number that the server has given to the request."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.request(method, path, b"" if method == "GET" else b"x" * 1000)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200
    return int(body)


def test_probes_wake_no_server_and_a_browser_gets_a_page_until_its_server_is_ready(
    gateway: GatewayPool,
) -> None:
    routes = ROUTES.replace('path = "/one"', 'path = "/one"\nprobe_responses = ["/one/health"]')
    start(gateway, routes.replace('path = "/two"', 'path = "/two"\nwaiting_page = true'), idle_seconds=60)
    gateway.until(lambda: gateway.get("/one/health").status == 200)
    assert gateway.get("/one/health").body == b"sleeping\n"
    assert gateway.get("/one/favicon.ico").status == 404
    assert (state(gateway), wakes(gateway)) == ("sleeping", 0)
    gateway.until(lambda: gateway.get("/two/favicon.ico").status == 404)
    page = gateway.get("/two", accept="text/html")
    assert (page.status, page.headers["cache-control"]) == (503, "no-store")
    gateway.until(lambda: gateway.get("/two", accept="text/html").status == 200)
    assert wakes(gateway, "two") == 1
    # One that is awake answers by itself.
    assert gateway.get("/one").body == b"1"
    gateway.until(lambda: gateway.get("/one/health").body != b"sleeping\n")


def test_request_whose_client_leaves_during_the_wake_is_not_executed(gateway: GatewayPool) -> None:
    gateway.pool.write("leaving.py", leaving_clients.APP)
    start(gateway, idle_seconds=60, app="leaving:app")
    gateway.until(lambda: states(gateway) == {"sleeping"})
    clients = [
        (leave, leaving_clients.post(gateway.port, f"/one/{leave.__name__}"))
        for leave in leaving_clients.WAYS_TO_LEAVE
    ]
    gateway.until(lambda: state(gateway) == "starting")
    with leaving_clients.post(gateway.port, "/one/stays") as stays:
        for leave, client in clients:
            leave(client)
        # By then the gateway has seen that they have left.
        assert gateway.get("/three").status == 404
        gateway.pool.write("go", "")
        assert stays.recv(12) == b"HTTP/1.1 200"
    for _, client in clients:
        client.close()
    gateway.pool.ok("stop")
    assert (gateway.pool.directory / "requests").read_text() == "/one/stays\n"


@pytest.mark.heavy
def test_half_a_head_and_a_closed_connection_wake_no_server(sleeper: GatewayPool) -> None:
    with socket.create_connection(("127.0.0.1", sleeper.port)) as half:
        half.sendall(b"GET /one HTTP/1.1\r\nHost: a\r\n")
        socket.create_connection(("127.0.0.1", sleeper.port)).close()
        assert sleeper.get("/three").status == 404
        assert state(sleeper) == "sleeping"
        half.sendall(b"\r\n")
        half.settimeout(60)
        assert half.recv(100).startswith(b"HTTP/1.1 200")


@contextlib.contextmanager
def open_websocket(port: int, path: str) -> Iterator[socket.socket]:
    """An open WebSocket, through which a message went both ways."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock, sock.makefile("rb") as file:
        sock.sendall(
            b"GET %b HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            % path.encode()
        )
        assert file.readline().startswith(b"HTTP/1.1 101")
        while file.readline().strip():
            pass
        sock.sendall(b"\x81\x82\0\0\0\0hi")
        assert file.read(4) == b"\x81\x02hi"
        yield sock


@contextlib.contextmanager
def long_response(port: int, path: str) -> Iterator[None]:
    """A response of which the beginning has been received."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock, sock.makefile("rb") as file:
        sock.sendall(b"GET %b/long HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
        while b"begun" not in file.readline():
            pass
        yield


def test_server_is_woken_and_stays_awake_for_whatever_is_open_through_the_gateway(
    gateway: GatewayPool,
) -> None:
    stream = claim_port()
    route = f'[[stream]]\nbind = "127.0.0.1:{stream}"\nto = "two"\n'
    start(gateway, ROUTES + route)
    for kind, port, path, name in (
        (open_websocket, gateway.port, "/one", "one"),
        (open_websocket, gateway.port, "/two", "two"),
        (long_response, gateway.port, "/one", "one"),
        (long_response, gateway.port, "/two", "two"),
        (open_websocket, stream, "/two", "two"),
        (long_response, stream, "/two", "two"),
    ):
        gateway.until(lambda: states(gateway) == {"sleeping"})
        other = {"one": "two", "two": "one"}[name]
        with kind(port, path):
            # The other one has the same time until it sleeps.
            request(gateway, "GET", f"/{other}")
            gateway.until(lambda other=other: state(gateway, other) == "sleeping")
            assert state(gateway, name) == "running"


@pytest.mark.heavy
def test_server_that_gets_a_route_while_it_sleeps_is_woken_through_it(sleeper: GatewayPool) -> None:
    text = (sleeper.pool.directory / "pool.toml").read_text()
    sleeper.pool.write("pool.toml", text.replace('path = "/one"', 'path = "/none"'))
    sleeper.pool.ok("reload")
    sleeper.pool.write("pool.toml", text)
    sleeper.pool.ok("reload")
    sleeper.until(lambda: sleeper.get("/one").status == 200)


@pytest.mark.heavy
def test_server_that_a_window_keeps_asleep_is_refused_until_its_end(gateway: GatewayPool) -> None:
    start(gateway, idle_seconds=60)
    assert gateway.get("/one").status == gateway.get("/two").status == 200
    text = (gateway.pool.directory / "pool.toml").read_text()
    # The whole of each day but one, which is more than a week away.
    away = datetime.now(UTC) + timedelta(days=9)
    window = f'asleep = ["* * * {_all_but(away.month, 1, 12)} *", "* * {_all_but(away.day, 1, 31)} * *"]'
    gateway.pool.write("pool.toml", text.replace("idle = 60", f'idle = 60, timezone = "UTC", {window}'))
    gateway.pool.ok("reload")
    gateway.until(lambda: states(gateway) == {"sleeping"})
    for path in ("/one", "/two"):
        gateway.until(lambda path=path: gateway.get(path).status == 503)
    gateway.until(lambda: refuses(gateway.ports["one"]))
    assert "asleep until 20" in gateway.pool.ok("list").stdout
    gateway.pool.write("pool.toml", text)
    gateway.pool.ok("reload")
    for path in ("/one", "/two"):
        gateway.until(lambda path=path: gateway.get(path).status == 200)


def refuses(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def _all_but(number: int, least: int, most: int) -> str:
    """A field of cron's for the other numbers."""
    return ",".join(str(each) for each in range(least, most + 1) if each != number)
