"""A gateway before real servers: requests find their server, and no death or change of a process is noticed."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from poolctl.exit_codes import NO_SUPERVISOR
from tests.deadline import wait_until
from tests.features.gateway.conftest import ROUTES, GatewayPool
from tests.features.gateway.other_machine import backend
from tests.http_get import get
from tests.integration.processes.test_keeper_killed import kill_keeper, whole_again
from tests.load.load import Load
from tests.ports import claim_port
from tests.processes import freeze
from tests.real_pool import RealPool, pool_in


def load(gateway: GatewayPool, mode: str = "keep_alive", **options: object) -> Load:
    """Requests for both servers in turn, over the gateway."""
    return Load(
        [gateway.port], mode, **{"paths": ["/one", "/two"], "connections": 8, "pause": 0.002, **options}
    )


@pytest.fixture(scope="module")
def shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayPool]:
    with pool_in(tmp_path_factory.mktemp("pool")) as pool:
        yield GatewayPool(pool, wait_until)


@pytest.fixture
def shared(shared_pool: GatewayPool) -> GatewayPool:
    """A gateway that serves, with the file as it was: one pool for all tests that leave it running."""
    shared_pool.write()
    if shared_pool.pool.run("reload").code == NO_SUPERVISOR:
        shared_pool.pool.ok("start")
    shared_pool.until(shared_pool.process)
    return shared_pool


@pytest.mark.integration
@pytest.mark.capability
def test_requests_find_their_server_by_path_and_host_and_others_are_not_found(gateway: GatewayPool) -> None:
    with backend(b"elsewhere") as port:
        routes = f'{ROUTES}[[route]]\nhost = "out.example.com"\nto = "http://127.0.0.1:{port}"\n'
        gateway.start(routes)
        assert gateway.get("/one?n=000000000001").body == b"n=000000000001"
        assert gateway.get("/two/x?n=000000000002").status == 200
        assert gateway.get("/", Host="out.example.com").body == b"elsewhere"
        assert gateway.get("/onetwo").status == 404

        def shown() -> list[tuple[object, ...]]:
            items = gateway.pool.ok("routes", "-o", "json").json["items"]
            names = "alias", "state", "requests"
            return [tuple(each[name] for name in names) for each in items]

        # HAProxy counts a request a moment after its client has the response.
        expected = [
            ("one", "healthy", 1),
            ("two", "healthy", 1),
            (f"127.0.0.1:{port}", "healthy", 1),
        ]
        gateway.until(lambda: shown() == expected, what=lambda: str(shown()))
        status = gateway.until(
            lambda: (
                (found := gateway.pool.ok("status", "-o", "json").json["gateway"])["stats"]["requests_total"]
                == 4
                and found
            )
        )
        assert (status["state"], status["pid"], status["routes"]) == ("running", gateway.process(), 3)
        assert status["addresses"] == [f"http://127.0.0.1:{gateway.port}"]
        assert "gateway" not in gateway.pool.ok("list", "one", "-o", "json").json, "nothing selects it"
        assert gateway.pool.ok("list", "-o", "json").json["gateway"]["state"] == "running"
        assert (
            f"[gateway] running, http://127.0.0.1:{gateway.port}, 3 routes"
            in gateway.pool.ok("status").stdout
        )
        explained = gateway.pool.ok(
            "routes", "explain", f"http://127.0.0.1:{gateway.port}/one/x", "-o", "json"
        ).json
        assert explained["route"] == "one"
        assert "  routes     one: http://*/one\n" in gateway.pool.ok("show", "one").stdout
        (event,) = [
            each for each in gateway.pool.ok("events", "-o", "json").stdout.splitlines() if "gateway" in each
        ]
        assert f"the gateway serves 127.0.0.1:{gateway.port}" in event


@pytest.mark.integration
def test_pool_without_servers_serves_routes_to_other_machines(gateway: GatewayPool) -> None:
    pool = gateway.pool
    with backend(b"elsewhere") as port:
        head = f'[gateway]\nbind = "127.0.0.1:{gateway.port}"\n[[route]]\nto = "http://127.0.0.1:{port}"\n'
        pool.write("pool.toml", head)
        said = f"the gateway serves http://127.0.0.1:{gateway.port}; the pool has no server\n"
        assert pool.ok("start").stdout == said
        assert gateway.get("/").body == b"elsewhere"
        supervisor = pool.info()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        gateway.until(lambda: pool.info()["supervisor_pid"] != supervisor)
        pool.write("pool.toml", head + 'path = "/other"\n')
        pool.ok("reload")
        assert gateway.get("/").status == 404
        assert gateway.get("/other").body == b"elsewhere"
        assert pool.ok("status", "-o", "json").json["summary"]["servers"] == 0
    pool.ok("stop")
    assert not answers(gateway.port)


@pytest.mark.integration
def test_stop_of_the_pool_finishes_requests_to_other_machines(gateway: GatewayPool) -> None:
    pool = gateway.pool
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        pool.write("pool.toml", f'[gateway]\nbind = "127.0.0.1:{gateway.port}"\n[[route]]\nto = "{url}"\n')
        pool.ok("start")
        with socket.create_connection(("127.0.0.1", gateway.port), 60) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            backend, _ = other.accept()
            stop = pool.spawn("stop")
            with backend:
                gateway.until(lambda: not accepts(gateway.port))
                assert stop.poll() is None
                backend.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
                assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"\r\n\r\ndone")
            assert stop.wait(60) == 0


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.integration
@pytest.mark.parametrize("mode", [pytest.param("keep_alive", marks=pytest.mark.capability), "new_connection"])
def test_restart_of_servers_fails_no_request_and_closes_no_connection(shared: GatewayPool, mode: str) -> None:
    with load(shared, mode) as running:
        for _ in range(2):
            shared.pool.ok("restart")
        before = running.look().complete
        shared.until(lambda: running.look().complete > before + 100)
    report = running.report
    # A connection for each request counts as closed when its client has received the response.
    closed = report.closed + report.idle_reset if mode == "keep_alive" else 0
    assert (report.failed, closed) == (0, 0), report


@pytest.mark.integration
def test_killed_gateway_is_replaced_while_connections_wait(shared: GatewayPool) -> None:
    pid = shared.until(shared.process)
    with load(shared, "new_connection", connections=2) as running:
        shared.kill(pid)
        before = running.look().complete
        shared.until(lambda: running.look().complete > before + 20)
        shared.until(lambda: shared.process() not in (None, pid))
    lines = [json.loads(line) for line in shared.pool.ok("events", "-o", "json").stdout.splitlines()]
    ended = [each for each in lines if each["event"] == "gateway ended"]
    assert [(each["pid"], each["severity"]) for each in ended] == [(pid, "warning")]
    # Of new connections only those that it had accepted, and not passed on yet, are lost.
    assert running.report.failed <= 2, running.report


@pytest.mark.integration
def test_reload_adds_and_removes_routes_without_a_pause(shared: GatewayPool) -> None:
    with load(shared) as running:
        shared.write(ROUTES + '[[route]]\nalias = "three"\npath = "/three"\nto = "one"\n')
        shared.pool.ok("reload")
        assert shared.get("/three?n=000000000001").status == 200
        shared.write(gateway='keep_alive = "60s"')
        shared.pool.ok("reload")
        assert shared.get("/three").status == 404
    assert running.report.failed == 0, running.report


@pytest.mark.integration
def test_gateway_moves_to_another_address_and_ends_with_its_table(gateway: GatewayPool) -> None:
    gateway.write()
    gateway.pool.ok("start")
    before, gateway.port = gateway.port, claim_port()
    gateway.write()
    gateway.pool.ok("reload")
    assert answers(gateway.port)
    assert not answers(before)
    assert served(gateway) == [f"the gateway serves 127.0.0.1:{port}" for port in (before, gateway.port)]
    text = (gateway.pool.directory / "pool.toml").read_text()
    gateway.pool.write("pool.toml", text[text.index("[[server]]") :])
    gateway.pool.ok("reload")
    assert not answers(gateway.port)
    gateway.until(lambda: gateway.process() is None)
    assert get(gateway.ports["one"]).status == 200


def served(gateway: GatewayPool) -> list[str]:
    """What the events say of its addresses."""
    lines = [json.loads(line) for line in gateway.pool.ok("events", "-o", "json").stdout.splitlines()]
    return [each["message"] for each in lines if each.get("message", "").startswith("the gateway serves")]


def answers(port: int) -> bool:
    try:
        return get(port, "/one").status == 200
    except OSError:
        return False


@pytest.mark.integration
def test_killed_supervisor_is_not_noticed_and_the_next_one_adopts_the_gateway(gateway: GatewayPool) -> None:
    gateway.start()
    pid = gateway.until(gateway.process)
    with load(gateway) as running:
        supervisor = gateway.pool.info()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        gateway.until(lambda: gateway.pool.info()["supervisor_pid"] != supervisor)
        gateway.pool.ok("restart", "one")
        gateway.write(ROUTES + '[[route]]\nalias = "three"\npath = "/three"\nto = "one"\n')
        gateway.pool.ok("reload")
        gateway.until(lambda: gateway.get("/three").status == 200)
        assert running.look().failed == 0, running.look()
    # The new route needed another one; the one before was adopted, and has ended by itself.
    assert gateway.until(gateway.process) != pid


@pytest.mark.heavy
@pytest.mark.integration
@pytest.mark.slow
def test_killed_keeper_is_not_noticed_and_the_gateway_lives_on(gateway: GatewayPool) -> None:
    gateway.start()
    pid = gateway.until(gateway.process)
    with load(gateway) as running:
        whole_again(gateway.pool, gateway.until, kill_keeper(gateway.pool))
        gateway.pool.ok("restart", "two")
    assert running.report.failed == 0, running.report
    assert gateway.process() == pid
    gateway.kill(pid)
    gateway.until(lambda: gateway.process() not in (None, pid))
    gateway.until(lambda: answers(gateway.port))


@pytest.mark.integration
def test_stopped_pool_refuses_and_leaves_nothing_behind(gateway: GatewayPool, real_pool: RealPool) -> None:
    gateway.start()
    with socket.create_connection(("127.0.0.1", gateway.port)) as idle:
        idle.sendall(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        real_pool.ok("stop")
        idle.settimeout(60)
        assert idle.recv(65536) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", gateway.port))
    gateway.until(lambda: not real_pool.processes())


@pytest.mark.heavy
@pytest.mark.integration
def test_taken_address_fails_the_start_and_is_tried_again(gateway: GatewayPool) -> None:
    with socket.create_server(("127.0.0.1", gateway.port)):
        gateway.write()
        done = gateway.pool.run("start", "-o", "json")
        assert done.code == 1, done
        (error,) = done.json["errors"]
        assert (error["name"], error["bind"]) == ("[gateway]", f"127.0.0.1:{gateway.port}")
        assert error["error"] == "ErrorPoolStart"
        assert f"port {gateway.port} is in use" in error["message"]
        assert [each["ready"] for each in done.json["items"]] == [True, True]
        # Of a selection of servers it is no part.
        assert "[gateway]" in gateway.pool.ok("start", "one").stderr
        status = gateway.pool.ok("status", "-o", "json").json
        assert [each.partition(":")[0] for each in status["summary"]["not_served"]] == ["[gateway]"]
    gateway.pool.ok("start")
    assert answers(gateway.port)


@pytest.mark.integration
def test_reload_to_a_taken_address_fails_and_the_gateway_stays_where_it_is(gateway: GatewayPool) -> None:
    gateway.start()
    before, gateway.port = gateway.port, claim_port()
    with socket.create_server(("127.0.0.1", gateway.port)):
        gateway.write(ROUTES + '[[route]]\nalias = "three"\npath = "/three"\nto = "one"\n')
        done = gateway.pool.run("reload")
        assert done.code == 1, done
        assert f"error: [gateway]: port {gateway.port} is in use" in done.stderr, done
        assert get(before, "/three").status == 200
    gateway.until(lambda: answers(gateway.port))
    gateway.until(lambda: not answers(before))


@pytest.mark.integration
def test_address_that_becomes_wider_and_narrower_loses_at_most_what_lies_in_the_backlog(
    gateway: GatewayPool,
) -> None:
    gateway.start()
    text = (gateway.pool.directory / "pool.toml").read_text()
    with load(gateway, "new_connection") as running:
        for host in ("0.0.0.0", "", "127.0.0.1"):
            gateway.pool.write("pool.toml", text.replace('bind = "127.0.0.1:', f'bind = "{host}:', 1))
            gateway.pool.ok("reload")
    report = running.report
    assert report.failed == report.reset <= 8, report  # one of each client, for one address that is closed


@pytest.mark.integration
def test_reload_warns_when_the_gateway_does_not_confirm_it_in_time(shared: GatewayPool) -> None:
    pid = shared.until(shared.process)
    freeze(pid)
    try:
        shared.write(ROUTES + '[[route]]\nalias = "three"\npath = "/three"\nto = "one"\n')
        done = shared.pool.ok("reload", "--timeout", "2s")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "[gateway]: not everything is in force yet: its process does not answer" in done.stderr


@pytest.mark.integration
def test_stopped_server_is_unavailable_and_comes_back(shared: GatewayPool) -> None:
    assert shared.get("/one").status == 200
    shared.pool.ok("stop", "one")
    reply = shared.get("/one")
    assert reply.status == 503, reply
    assert "retry-after" in reply.headers
    shared.pool.ok("start", "one")
    shared.until(lambda: shared.get("/one").status == 200)


@pytest.mark.integration
def test_stop_and_start_of_a_server_reset_and_refuse_no_connection(shared: GatewayPool) -> None:
    """Clients get an answer or 503; the gateway lets go of the pair before it is closed."""
    with load(shared, "new_connection", echo=False, statuses=[200, 503]) as running:
        for _ in range(3):
            shared.pool.ok("stop", "one")
            shared.pool.ok("start", "one")
            before = running.look().complete
            shared.until(lambda before=before: running.look().complete > before + 50)
    assert running.report.failed == 0, running.report


@pytest.mark.heavy
@pytest.mark.integration
def test_disabled_host_stays_disabled_over_the_death_of_gateway_and_supervisor(gateway: GatewayPool) -> None:
    gateway.start()
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        # Passed to the worker, which counts it.
        gateway.until(lambda: connections(gateway, "one") == 1)
    gateway.until(lambda: connections(gateway, "one") == 0)
    gateway.pool.ok("backends", "disable", "one", "--for", "0")
    assert "host disabled: one (disabled by request)" in gateway.pool.ok("events", "--kind", "pool").stdout
    assert gateway.get("/one").status == 503
    pid = gateway.until(gateway.process)
    gateway.kill(pid)
    gateway.until(lambda: gateway.process() not in (None, pid))
    assert gateway.until(lambda: status_of(gateway, "/one")) == 503
    supervisor = gateway.pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    gateway.until(lambda: gateway.pool.info()["supervisor_pid"] != supervisor)
    # The next one has the states of hosts once the gateway's process answers it.
    gateway.until(lambda: host(gateway, "one").get("state") == "disabled")
    gateway.pool.ok("backends", "enable", "one")
    assert gateway.get("/one").status == 200


def host(gateway: GatewayPool, name: str) -> dict[str, Any]:
    """Its row of `poolctl backends`; empty if there is none."""
    items = gateway.pool.ok("backends", "-o", "json").json["items"]
    return next((each for each in items if each["host"] == name), {})


def connections(gateway: GatewayPool, name: str) -> int:
    return int(host(gateway, name)["connections"])


def status_of(gateway: GatewayPool, path: str) -> int | None:
    try:
        return gateway.get(path).status
    except OSError:
        return None
