"""Services that register with a real pool: routed to at once, and out of the route table when they are silent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from poolctl.control.client import Client
from poolctl.control.pool_client import PoolClient
from tests.http_get import get
from tests.integration.gateway.conftest import GatewayPool
from tests.integration.gateway.test_gateway_process import backend
from tests.ports import claim_port

pytestmark = pytest.mark.unmeasured


def curl(socket: str, verb: str, **options: object) -> Any:
    """The answer to a request as docs/gateway.md has it."""
    body = json.dumps({"options": options})
    command = ["curl", "-sS", "--unix-socket", socket, "-d", body, f"http://pool/v1/{verb}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
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
        # Another supervisor goes on with it.
        supervisor = pool.info()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        gateway.until(lambda: pool.info()["supervisor_pid"] != supervisor)
        assert gateway.get("/").body == b"first"
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


def test_services_and_their_probes_outlast_a_stop_of_the_pool(gateway: GatewayPool) -> None:
    pool = gateway.pool
    head = f'[gateway]\nbind = "127.0.0.1:{gateway.port}"\n'
    pool.write("pool.toml", f'{head}[[route]]\nalias = "users"\nregister = true\n')
    pool.ok("start")
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
        (route,) = (
            each for each in pool.ok("routes", "-o", "json").json["items"] if each["alias"] == "users"
        )
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
