"""Servers of several users behind one gateway: no worker gets a request for another user's server."""

from __future__ import annotations

import http.client
import json
from contextlib import closing

import pytest

from tests.certificates import certificate
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
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"evil"})
    thief = Thief()
    thief.transport = receive.__self__.transport.transport
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

    def events(self) -> list[dict[str, str]]:
        """What has happened in the pool."""
        lines = self.pool.ok("events", "-o", "json", "-n", "all").stdout.splitlines()
        return [json.loads(line) for line in lines]

    def ways(self) -> dict[str, tuple[str, str]]:
        """How each route's connections get to the server, and why."""
        rows = self.pool.ok("routes", "-o", "json").json["items"]
        return {each["alias"]: (each["way"], each["why"]) for each in rows}

    def wait_until_passed(self) -> None:
        """Wait until connections of every route are passed: before its workers have the table, a server is proxied."""
        wait_until(lambda: {way for way, _ in self.ways().values()} == {"pass"})


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
                assert ask(client, "/") in (
                    "evil",
                    "stolen",
                )  # the latter on a connection of the gateway's own
                assert ask(client, "/good") == "good"
    assert "secret" not in users.stolen
    assert users.ways() == {
        "good": ("proxy", "good (root) would get later requests of its clients for evil (nobody)"),
        "evil": ("proxy", "evil (nobody) would get later requests of its clients for good (root)"),
    }


def test_pool_with_one_user_passes_everything(users: TwoUsers) -> None:
    users.write(GOODS_ROUTE + EVILS_ROUTE, user="nobody")
    users.pool.ok("start")
    users.wait_until_passed()


def test_connection_kept_by_a_worker_ends_before_another_users_route_is_in_force(users: TwoUsers) -> None:
    users.write(EVILS_ROUTE)
    users.pool.ok("start")
    users.wait_until_passed()
    with closing(http.client.HTTPConnection("127.0.0.1", users.port, timeout=60)) as client:
        assert ask(client, "/") == "evil"
        assert ask(client, "/") == "stolen"
        users.write(GOODS_ROUTE + EVILS_ROUTE)
        users.pool.ok("reload")
        assert ask(client, "/good") == "good"
    assert "secret" not in users.stolen
    assert {each[0] for each in users.ways().values()} == {"proxy"}
    (event,) = [each for each in users.events() if each["event"] == "passed connections ended"]
    assert (
        event["message"]
        == "evil: connections that the gateway has passed are ended, as servers of other users follow"
    )


# Keeps a duplicate of each connection, and copies what comes on it; otherwise it does as it should.
SILENT = """
import os, socket, threading, time
kept = []
def copy():
    while True:
        for sock in list(kept):
            try:
                data = sock.recv(65536, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                continue
            with open("stolen", "ab") as file:
                file.write(data)
        time.sleep(0.001)
def duplicate(client):
    for fd in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(fd))) as sock:
                if sock.getpeername()[:2] == tuple(client):
                    kept.append(sock.dup())
        except OSError:
            pass
async def app(scope, receive, send):
    duplicate(scope["client"])
    if len(kept) == 1:
        threading.Thread(target=copy, daemon=True).start()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"evil"})
"""


def test_duplicate_of_a_connection_that_was_given_back_reads_nothing_more(users: TwoUsers) -> None:
    users.pool.write("evil.py", SILENT)
    users.write(EVILS_ROUTE)
    users.pool.ok("start")
    clients = [http.client.HTTPConnection("127.0.0.1", users.port, timeout=60) for _ in range(20)]
    try:
        assert {ask(client, "/") for client in clients} == {"evil"}
        users.write(GOODS_ROUTE + EVILS_ROUTE)
        users.pool.ok("reload")
        assert {ask(client, "/good") for client in clients} == {"good"}
    finally:
        for client in clients:
            client.close()
    assert "secret" not in users.stolen


def test_connection_kept_by_a_worker_ends_when_its_server_gets_another_user(users: TwoUsers) -> None:
    users.write(GOODS_ROUTE + EVILS_ROUTE, user="nobody")
    users.pool.ok("start")
    with closing(http.client.HTTPConnection("127.0.0.1", users.port, timeout=60)) as client:
        assert ask(client, "/") == "evil"
        users.write(GOODS_ROUTE + EVILS_ROUTE)
        users.pool.ok("reload")
        assert ask(client, "/good") == "good"
    assert "secret" not in users.stolen


def test_connection_kept_by_a_worker_ends_before_a_service_registers(users: TwoUsers) -> None:
    users.write(EVILS_ROUTE)
    users.pool.ok("start")
    with closing(http.client.HTTPConnection("127.0.0.1", users.port, timeout=60)) as client:
        assert ask(client, "/") == "evil"
        url = f"http://127.0.0.1:{users.good}"
        users.pool.ok("register", "good", "--to", url, "--path", "/good")
        assert ask(client, "/good") == "good"
    assert "secret" not in users.stolen


# Answers with what its process has mapped of the route table.
SPY = """
import ctypes
def mapped():
    with open("/proc/self/maps") as lines:
        for line in lines:
            if "memfd:poolctl-routes" in line:
                begin, end = (int(each, 16) for each in line.split()[0].split("-"))
                yield ctypes.string_at(begin, end - begin)
async def app(scope, receive, send):
    body = b"".join(mapped())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
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
        mapped = wait_until(lambda: '"evil"' in (text := ask(client, "/")) and text)
    assert "internal" not in mapped
    assert "of-good" not in mapped
    assert ('"good"' in mapped) is (user == "nobody")


def test_servers_with_hosts_and_certificates_of_their_own_get_their_connections(users: TwoUsers) -> None:
    routes = "".join(f'[[route]]\nto = "{name}"\nhost = "{name}.example.com"\n' for name in ("good", "evil"))
    certificate(users.pool.directory, "own")
    users.write(routes)
    file = users.pool.directory / "pool.toml"
    text = file.read_text().replace('user = "', 'tls = { cert = "own.pem", key = "own.key" }\nuser = "')
    file.write_text(
        text.replace(f'"127.0.0.1:{users.port}"', f'{{ bind = "127.0.0.1:{users.port}", tls = true }}')
    )
    users.pool.ok("start")
    users.wait_until_passed()
