"""Servers of several users behind one gateway: no worker gets a request for another user's server."""

from __future__ import annotations

import http.client
from contextlib import closing

import pytest

from tests.deadline import wait_until
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = [pytest.mark.slow, pytest.mark.integration]

# Answers a request with its name, and keeps the connection for itself: what follows on it never reaches uvicorn.
EVIL = """
import asyncio
class Thief(asyncio.Protocol):
    def connection_made(self, transport): pass
    def data_received(self, data):
        with open("stolen", "ab") as file:
            file.write(data)
        self.transport.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 6\\r\\n\\r\\nstolen")
async def app(scope, receive, send):
    thief = Thief()
    thief.transport = receive.__self__.transport.transport
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"evil"})
    thief.transport.set_protocol(thief)
"""
GOOD = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"good"})
"""
GATEWAY = """
[gateway]
bind = "127.0.0.1:{port}"
"""
GOODS_ROUTE = """
[[route]]
to = "good"
path = "/good"
"""
EVILS_ROUTE = """
[[route]]
to = "evil"
"""
SERVERS = """
[[server]]
name = "good"
bind = "127.0.0.1:{good}"
app = "good:app"
user = "{user}"
[[server]]
name = "evil"
bind = "127.0.0.1:{evil}"
app = "evil:app"
user = "nobody"
drain_timeout = "1s"
"""


class TwoUsers:
    """A pool of root's with the servers `good` and `evil`; the latter runs as nobody and steals connections."""

    def __init__(self, pool: RealPool) -> None:
        self.pool = pool
        self.port, self.good, self.evil = claim_port(), claim_port(), claim_port()
        pool.open_to_all()
        pool.write("good.py", GOOD)
        pool.write("evil.py", EVIL)
        stolen = pool.write("stolen", "")
        stolen.chmod(0o666)

    def write(self, routes: str, user: str = "root") -> None:
        """`user` is good's."""
        servers = SERVERS.format(good=self.good, evil=self.evil, user=user)
        self.pool.write("pool.toml", GATEWAY.format(port=self.port) + routes + servers)

    @property
    def stolen(self) -> str:
        """What evil has read from the connections that it kept."""
        return (self.pool.directory / "stolen").read_text()


@pytest.fixture
def users(real_pool: RealPool) -> TwoUsers:
    return TwoUsers(real_pool)


def ask(connection: http.client.HTTPConnection, path: str) -> str:
    """The body of the answer on this connection, which is opened again if it was closed."""
    headers = {"Authorization": "Bearer secret"} if path == "/good" else {}
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().read().decode("latin-1")
    except (http.client.HTTPException, OSError):
        connection.close()
        connection.request("GET", path, headers=headers)
        return connection.getresponse().read().decode("latin-1")


def test_worker_gets_no_later_request_for_another_users_server(users: TwoUsers) -> None:
    users.write(GOODS_ROUTE + EVILS_ROUTE)
    users.pool.ok("start")
    for _ in range(5):
        with closing(http.client.HTTPConnection("127.0.0.1", users.port, timeout=60)) as client:
            for _ in range(2):
                # The latter on a connection of the gateway's own.
                assert ask(client, "/") in ("evil", "stolen")
                assert ask(client, "/good") == "good"
    assert "secret" not in users.stolen


SPY = """
import gc
async def app(scope, receive, send):
    tables = [repr(vars(each)).encode() for each in gc.get_objects() if type(each).__name__ == "RouteTable"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"".join(tables)})
"""
SECRETS = """
[[route]]
to = "good"
path = "/good"
headers = { X-Key = "key-of-good" }
add_headers = { Authorization = "Bearer ${TOKEN}" }
[[route]]
alias = "inner"
to = "http://internal.example:9000"
host = "inner.example.com"
"""


@pytest.mark.heavy_variants
@pytest.mark.parametrize("user", ["root", "nobody"])
def test_table_of_a_worker_has_no_secret_of_the_routes(users: TwoUsers, user: str) -> None:
    users.pool.write("evil.py", SPY)
    users.pool.env["TOKEN"] = "token-of-good"
    users.write(SECRETS + EVILS_ROUTE, user=user)
    users.pool.ok("start")
    with closing(http.client.HTTPConnection("127.0.0.1", users.evil, timeout=60)) as client:
        known = wait_until(lambda: '"evil"' in (text := ask(client, "/")) and text)
    assert "internal" not in known
    assert "of-good" not in known
    assert ('"good"' in known) is (user == "nobody")
