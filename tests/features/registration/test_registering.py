"""Services that register with a real pool: routed to at once, and out of the route table when they are silent."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from typing import Any

import pytest

from poolctl.clock import PING_SECONDS
from poolctl.control.client import Client
from poolctl.control.pool_client import PoolClient
from tests.certificates import certificate
from tests.features.gateway.conftest import GatewayPool
from tests.features.gateway.other_machine import backend
from tests.http_get import get
from tests.ports import claim_port
from tests.processes import freeze
from tests.programs import program


def curl(socket: str, verb: str, **options: object) -> Any:
    """The answer to a request as docs/gateway.md has it."""
    body = json.dumps({"options": options})
    command = [program("curl"), "-sS", "--unix-socket", socket, "-d", body, f"http://pool/v1/{verb}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)["result"]


@pytest.mark.capability
def test_service_registers_is_silent_returns_and_leaves_with_an_audit_trail(gateway: GatewayPool) -> None:
    pool = gateway.pool
    metrics = claim_port()
    head = f'[metrics]\nbind = "127.0.0.1:{metrics}"\n[gateway]\nbind = "127.0.0.1:{gateway.port}"\n'
    with backend(b"first") as first, backend(b"second") as second:
        pool.write("pool.toml", f'{head}[[route]]\nalias = "users"\nregister = true\n')
        pool.ok("start")
        (found,) = pool.runtime.rglob("control.sock")
        client, socket = PoolClient(Client(str(found))), str(found)
        users = f"http://127.0.0.1:{first}"

        def registered() -> Any:
            (route,) = (each for each in client.routes()["items"] if each["alias"] == "users")
            return route["registrations"][0]

        assert gateway.get("/").status == 503
        haproxy = gateway.until(gateway.process)
        (answer,) = curl(socket, "register", name="users", to=users, ttl="60s")["items"]
        assert (answer["state"], answer["ttl_seconds"]) == ("serving", 60.0)
        assert gateway.get("/").body == b"first"
        assert client.health_info_simple() == {"users": "healthy"}
        assert (get(metrics, "/health").status, get(metrics, "/health").json()) == (200, {"users": "healthy"})
        # The last heartbeat.
        assert curl(socket, "register", name="users", to=users, ttl="100ms")["exit_code"] == 0
        gateway.until(lambda: gateway.get("/").status == 503)
        assert registered()["state"] == "silent"
        assert client.health_info()["users"]["detail"] == "no heartbeat for 100ms"
        gateway.until(lambda: get(metrics, "/health").status == 503)
        (host,) = client.hosts()["items"]
        assert (host["host"], host["available"], host["why"]) == (users, False, "no heartbeat for 100ms")
        assert 'poolctl_gateway_registrations{state="silent"} 1' in client.metrics()
        assert curl(socket, "register", name="users", to=users, ttl="10m")["exit_code"] == 0
        assert gateway.get("/").body == b"first"
        assert gateway.process() == haproxy, "no other one is needed for that"
        # Another supervisor goes on with it.
        supervisor = pool.info()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        gateway.until(lambda: pool.info()["supervisor_pid"] != supervisor)
        assert gateway.get("/").body == b"first"
        assert gateway.process() == haproxy
        assert 300 < registered()["left_seconds"] < 600
        # A route of its own, which must not be another one's place.
        url = f"http://127.0.0.1:{second}"
        done = pool.run("register", "reports", "--to", url, "--path", "/")
        assert (done.code, "is taken by the route 'users'" in done.stderr) == (8, True), done
        assert pool.run("register", "reports", "--to", url).code == 4
        with client.register("reports", url, host="reports.example.com", ttl=60):
            assert gateway.get("/", Host="reports.example.com").body == b"second"
        assert gateway.get("/", Host="reports.example.com").body == b"first"
        done = pool.ok("unregister", "users", "--to", users)
        assert done.stdout == f"users: {users} is unregistered\n"
        assert gateway.get("/").status == 503
        trail = [each for each in client.events(lines=200) if each["event"].startswith("backend ")]
    own = f"reports {url}"
    assert [(each["kind"], each["event"], each["message"]) for each in trail] == [
        ("audit", "backend registered", f"users {users}"),
        ("audit", "backend changed", f"users {users}"),
        ("pool", "backend expired", f"users {users}"),
        ("audit", "backend recovered", f"users {users}"),
        ("audit", "backend registered", own),
        ("audit", "backend unregistered", own),
        ("audit", "backend unregistered", f"users {users}"),
    ]
    assert [each["by"]["command"] for each in trail if each["kind"] == "audit"][:3] == ["curl"] * 3
    assert trail[2]["cause"] == "no heartbeat for 100ms"


@pytest.mark.heavy
@pytest.mark.slow
def test_services_and_their_probes_outlast_a_stop_of_the_pool(gateway: GatewayPool) -> None:
    pool = gateway.pool
    head = f'[gateway]\nbind = "127.0.0.1:{gateway.port}"\n'
    pool.write("pool.toml", f'{head}[[route]]\nalias = "users"\nregister = true\n')
    pool.ok("start")
    (found,) = pool.runtime.rglob("control.sock")
    client = PoolClient(Client(str(found)))
    with backend(b"first") as first:
        users = f"http://127.0.0.1:{first}"
        pool.ok("register", "users", "--to", users, "--probe", "/", "--ttl", "10m")
        gateway.until(lambda: gateway.get("/").status == 200)
        pool.ok("stop")
        pool.ok("start")
        gateway.until(lambda: gateway.get("/").body == b"first")
        # A heartbeat that names no probe.
        pool.ok("register", "users", "--to", users, "--ttl", "10m")
    gateway.until(lambda: gateway.get("/").status == 503)

    def registered() -> Any:
        (route,) = (each for each in client.routes()["items"] if each["alias"] == "users")
        return route["registrations"][0]

    # Out after one failed probe, which comes within 5 seconds and takes at most 2.
    gateway.until(lambda: registered()["state"] == "failing")
    pool.ok("stop")
    pool.ok("start")
    assert (registered()["state"], registered()["probe"]) == ("starting", "/")
    pool.ok("unregister", "users")
    pool.ok("stop")
    pool.ok("start")
    assert gateway.get("/").status == 503
    assert "registrations" not in pool.ok("routes", "-o", "json").json["items"][0]


@pytest.mark.slow
def test_own_sockets_and_addresses_are_no_targets(gateway: GatewayPool) -> None:
    pool = gateway.pool
    metrics = claim_port()
    head = f'[metrics]\nbind = "127.0.0.1:{metrics}"\n[gateway]\nbind = "127.0.0.1:{gateway.port}"\n'
    pool.write("pool.toml", f'{head}[[route]]\nalias = "users"\nregister = true\n')
    pool.ok("start")
    (control,) = pool.runtime.rglob("control.sock")
    for url in (f"unix:{control}", f"http://127.0.0.1:{metrics}", f"http://localhost:{gateway.port}"):
        done = pool.run("register", "users", "--to", url)
        assert (done.code, "own" in done.stderr or "itself" in done.stderr) == (5, True), done
        assert "name the service's own address" in done.stderr
    done = pool.run("register", "users", "--to", "http://169.254.169.254")
    assert (done.code, "is a link-local address" in done.stderr) == (5, True), done


@pytest.mark.slow
def test_service_elsewhere_registers_over_tls_with_its_token_and_is_recorded(gateway: GatewayPool) -> None:
    pool = gateway.pool
    port = claim_port()
    cert, key = certificate(pool.directory)
    pool.env |= {"REG_TOKEN": "0123456789abcdef", "OTHER_TOKEN": "fedcba9876543210"}
    table = (
        f'[registration]\nbind = "0.0.0.0:{port}"\ntls = {{ cert = "{cert}", key = "{key}" }}\n'
        '[[registration.client]]\ntoken_env = "REG_TOKEN"\nroutes = ["users"]\nallow = ["127.0.0.0/8"]\n'
        '[[registration.client]]\nname = "other"\ntoken_env = "OTHER_TOKEN"\nroutes = ["users"]\n'
    )
    routes = (
        '[[route]]\nalias = "users"\nregister = true\n[[route]]\nalias = "web"\npath = "/web"\nto = "one"\n'
    )
    gateway.write(table + routes)
    text = (pool.directory / "pool.toml").read_text()
    (pool.directory / "seen.py").write_text(ENVIRONMENT_APP)
    pool.write("pool.toml", text.replace("tests.load.apps:app", "seen:app"))
    pool.ok("start")

    def ask(verb: str, token: str, **options: object) -> tuple[int, Any]:
        command = [
            program("curl"), "-sS", "--cacert", str(cert), "-H", f"Authorization: Bearer {token}",
            "-w", "\n%{http_code}", "-d", json.dumps({"options": options}), f"https://localhost:{port}/v1/{verb}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body)

    with backend(b"first") as first:
        users = f"http://127.0.0.1:{first}"
        assert ask("register", "guess", name="users", to=users)[0] == 401
        status, answer = ask("register", pool.env["REG_TOKEN"], name="users", to=users)
        assert (status, answer["result"]["items"][0]["ttl_seconds"]) == (200, 60.0)
        assert gateway.get("/").body == b"first"
        # Neither another client, nor another route, nor an address of the pool.
        assert ask("register", pool.env["OTHER_TOKEN"], name="users", to=users)[0] == 409
        assert ask("unregister", pool.env["OTHER_TOKEN"], name="users")[0] == 404
        assert ask("register", pool.env["REG_TOKEN"], name="web", to=users)[0] == 403
        own = f"http://127.0.0.1:{port}"
        status, answer = ask("register", pool.env["REG_TOKEN"], name="users", to=own)
        assert (status, "the pool's own [registration]" in answer["result"]["errors"][0]["message"]) == (
            400,
            True,
        )
        # It is the same service for the next supervisor, which serves the address as well.
        supervisor = pool.info()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        gateway.until(lambda: pool.info()["supervisor_pid"] != supervisor)
        assert ask("unregister", pool.env["OTHER_TOKEN"], name="users")[0] == 404
        assert ask("unregister", pool.env["REG_TOKEN"], name="users")[0] == 200
        assert gateway.get("/").status == 503
    assert gateway.get("/web").body == b"[]", "a server has no token"
    events = pool.ok("events", "-n", "200").stdout
    assert f"users {users}: registered  [REG_TOKEN, registration 127.0.0.1]" in events, events
    assert "registrations refused, the last one from 127.0.0.1" in events
    # Without the table nothing listens there.
    pool.write("pool.toml", text.replace(table, ""))
    pool.ok("reload")
    connect = [program("curl"), "-sk", f"https://localhost:{port}/"]
    gateway.until(lambda: subprocess.run(connect, check=False).returncode == 7)


class Registering:
    """A pool at whose address of [registration] a service registers for two seconds."""

    def __init__(self, gateway: GatewayPool) -> None:
        self.gateway = gateway
        self.pool = gateway.pool
        self._port = claim_port()
        self.pool.env |= {"REG_TOKEN": "0123456789abcdef"}
        gateway.write(
            f'[registration]\nbind = "127.0.0.1:{self._port}"\n'
            '[[registration.client]]\ntoken_env = "REG_TOKEN"\nroutes = ["users"]\n'
            '[[route]]\nalias = "users"\nregister = true\n'
        )
        self.pool.ok("start")
        (found,) = self.pool.runtime.rglob("control.sock")
        self._client = PoolClient(Client(str(found)))

    def heartbeat(self) -> int:
        """The status of the answer."""
        body = json.dumps({"options": {"name": "users", "to": "http://10.0.0.7:9000", "ttl": "2s"}})
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", "/v1/register", body, {"Authorization": "Bearer 0123456789abcdef"})
            return connection.getresponse().status
        finally:
            connection.close()

    def state(self) -> str:
        (route,) = (each for each in self._client.routes()["items"] if each["alias"] == "users")
        return str(route["registrations"][0]["state"])

    def process(self) -> int:
        """The pid of the process that serves the address."""
        found = [pid for pid, line in self.pool.processes().items() if line.endswith("bootstrap.py web")]
        return found[0] if len(found) == 1 else 0


@pytest.mark.slow
def test_service_outlasts_a_process_that_takes_no_heartbeats_for_longer_than_its_time_to_live(
    gateway: GatewayPool,
) -> None:
    pool = Registering(gateway)
    process = gateway.until(pool.process)
    # It is asked at each multiple of this time, and killed if it has been stopped for three seconds since.
    gateway.until(lambda: 0.1 < time.monotonic() % PING_SECONDS < 0.5)
    assert pool.heartbeat() == 200
    freeze(process)
    frozen = threading.Timer(4, os.kill, (process, signal.SIGCONT))  # however long a command takes
    frozen.start()
    while frozen.is_alive():
        assert pool.state() == "serving" or not frozen.is_alive()
    gateway.until(lambda: pool.state() == "silent")
    assert pool.heartbeat() == 200
    gateway.kill(process)
    assert pool.heartbeat() == 200, "it waits for the next process"
    assert pool.state() == "serving"
    assert pool.process() not in (0, process)


@pytest.mark.heavy
@pytest.mark.slow  # it is asked every five seconds, and has ten to answer
def test_service_outlasts_a_process_that_hangs_until_it_is_replaced(gateway: GatewayPool) -> None:
    pool = Registering(gateway)
    assert pool.heartbeat() == 200
    process = pool.process()
    freeze(process)
    while pool.process() in (0, process):
        assert pool.state() == "serving"
    assert pool.heartbeat() == 200
    gateway.until(lambda: pool.state() == "silent")


@pytest.mark.heavy
def test_no_heartbeat_fails_while_the_supervisor_is_replaced(gateway: GatewayPool) -> None:
    pool = Registering(gateway)
    supervisor = pool.pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    answers = 0
    while pool.pool.info()["supervisor_pid"] == supervisor or answers < 3:
        assert pool.heartbeat() == 200
        answers += 1


ENVIRONMENT_APP = """
import json, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    body = json.dumps([name for name in os.environ if name.endswith("_TOKEN")]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""
