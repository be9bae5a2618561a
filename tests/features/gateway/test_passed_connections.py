"""Connections that the gateway has passed to real workers, plain ones and TLS, and what its death does to them."""

from __future__ import annotations

import http.client
import socket
import ssl
from contextlib import ExitStack, closing

import pytest

from tests.certificates import certificate
from tests.features.gateway.conftest import GatewayPool
from tests.features.gateway.test_orphaned_gateway import ways
from tests.ports import claim_port

pytestmark = pytest.mark.integration

APP = """
import os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    host, port = scope["client"]
    text = f"{os.environ['NAME']} {host}:{port} {scope['scheme']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})
"""
POOL = """
[gateway]
bind = ["127.0.0.1:{plain}", {{ bind = "127.0.0.1:{tls}", tls = true }}]
[[route]]
to = "one"
path = "/one"
[[route]]
to = "two"
path = "/two"
[[route]]
to = "safe"
host = "safe.example.com"
[[server]]
name = "one"
bind = "127.0.0.1:{one}"
app = "seen:app"
env = {{ NAME = "one" }}
[[server]]
name = "two"
bind = "127.0.0.1:{two}"
app = "seen:app"
env = {{ NAME = "two" }}
[[server]]
name = "safe"
bind = "127.0.0.1:{safe}"
app = "seen:app"
env = {{ NAME = "safe" }}
tls = {{ cert = "safe.example.com.pem", key = "safe.example.com.key" }}
"""


TWO = """
[gateway]
bind = "127.0.0.1:{port}"
[[route]]
to = ["one", "two"]
policy = "first"
[[server]]
name = "one"
bind = "127.0.0.1:{one}"
app = "seen:app"
env = {{ NAME = "one" }}
[[server]]
name = "two"
bind = "127.0.0.1:{two}"
app = "seen:app"
env = {{ NAME = "two" }}
"""


class TlsClient:
    """A TLS connection whose ClientHello is sent in so many segments."""

    def __init__(self, port: int, pieces: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="safe.example.com")
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        hello = self._outgoing.read()
        step = -(-len(hello) // pieces)
        for at in range(0, len(hello), step):
            self.sock.sendall(hello[at : at + step])
        self._until_done(self._tls.do_handshake)

    def get(self) -> str:
        """The body of the answer to a request."""
        self._tls.write(b"GET / HTTP/1.1\r\nHost: safe.example.com\r\n\r\n")
        data = b""
        while b" https" not in data:
            data += self._until_done(self._tls.read) or b""
        return data.rpartition(b"\r\n\r\n")[2].decode()

    def _until_done(self, step: object) -> bytes | None:
        while True:
            try:
                found = step()  # type: ignore[operator]
            except ssl.SSLWantReadError:
                self.sock.sendall(self._outgoing.read())
                received = self.sock.recv(65536)
                assert received, "the connection was closed"
                self._incoming.write(received)
            else:
                self.sock.sendall(self._outgoing.read())
                return found  # type: ignore[no-any-return]

    def close(self) -> None:
        self.sock.close()


class PlainClient:
    """A keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.connect()
        self.sock = self._connection.sock

    def get(self, path: str) -> str:
        self._connection.request("GET", path)
        return self._connection.getresponse().read().decode()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def passing(gateway: GatewayPool) -> tuple[GatewayPool, int]:
    """A pool, and the port for TLS."""
    tls = claim_port()
    gateway.pool.write("seen.py", APP)
    certificate(gateway.pool.directory, "safe.example.com")
    gateway.pool.write(
        "pool.toml", POOL.format(plain=gateway.port, tls=tls, safe=claim_port(), **gateway.ports)
    )
    gateway.pool.ok("start")
    gateway.until(gateway.process)
    # Before the workers have the table, servers are proxied.
    gateway.until(lambda: ways(gateway) == ["pass"] * 3)
    return gateway, tls


def test_killed_gateway_loses_no_connection_that_it_has_passed(passing: tuple[GatewayPool, int]) -> None:
    gateway, tls = passing
    with ExitStack() as open_ones:
        plain = open_ones.enter_context(closing(PlainClient(gateway.port)))
        other = open_ones.enter_context(closing(PlainClient(gateway.port)))
        secure = [open_ones.enter_context(closing(TlsClient(tls, pieces))) for pieces in (1, 2, 60)]
        address = f"127.0.0.1:{plain.sock.getsockname()[1]}"
        assert plain.get("/one") == f"one {address} http"
        # The worker gives the connection back, and it goes on to the other one.
        assert plain.get("/two") == f"two {address} http"
        assert other.get("/two").startswith("two ")
        for each in secure:
            assert each.get() == f"safe 127.0.0.1:{each.sock.getsockname()[1]} https"
        killed = gateway.until(gateway.process)
        gateway.kill(killed)
        assert plain.get("/two") == f"two {address} http"
        for each in secure:
            assert each.get().startswith("safe ")
        assert gateway.until(gateway.process) != killed
        # Its successor takes back what workers give.
        assert plain.get("/one") == f"one {address} http"
        with closing(TlsClient(tls, 3)) as late:
            assert late.get().startswith("safe ")


@pytest.mark.heavy_variants
@pytest.mark.parametrize("action", ["disable", "drain"])
def test_host_without_traffic_gives_passed_connections_back_between_two_requests(
    gateway: GatewayPool, action: str
) -> None:
    gateway.pool.write("seen.py", APP)
    gateway.pool.write("pool.toml", TWO.format(port=gateway.port, **gateway.ports))
    gateway.pool.ok("start")
    with closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)) as client:

        def served_by() -> str:
            client.request("GET", "/name")
            return client.getresponse().read().decode().split()[0]

        assert [served_by() for _ in range(3)] == ["one"] * 3
        said = gateway.pool.ok("backends", action, "one")
        assert "until" in said.stdout
        sock = client.sock
        assert [served_by() for _ in range(3)] == ["two"] * 3
        gateway.pool.ok("backends", "enable", "one")
        gateway.pool.ok("backends", action, "two")
        assert [served_by() for _ in range(3)] == ["one"] * 3
        assert client.sock is sock, "the client has noticed nothing"
        gateway.pool.ok("backends", action, "one")
        client.request("GET", "/name")
        assert client.getresponse().status == 503
    refused = gateway.pool.run("health", "--routes", "-o", "json")
    assert (refused.code, [each["status"] for each in refused.json["items"]]) == (3, ["unknown"])
    whole = gateway.pool.run("health", "--depth", "simple")
    assert whole.code == 3
    assert [line.split() for line in whole.stdout.splitlines()] == [
        ["NAME", "KIND", "STATUS"], ["one", "route", "unknown"],
        ["one", "(server)", "server", "healthy"], ["two", "server", "healthy"],
    ]  # fmt: skip
    status = gateway.pool.ok("status")
    assert "the route one is unknown (" in status.stderr
    assert [each["health"] for each in gateway.pool.ok("backends", "-o", "json").json["items"]] == [
        "unknown"
    ] * 2
    assert gateway.pool.ok("routes", "-o", "alias,state").stdout.split() == ["one", "unknown"]
