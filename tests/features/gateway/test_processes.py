"""HAProxy as a process of the pool: no change, and no death of another process, is noticed by clients."""

from __future__ import annotations

import os
import pwd
import re
import signal
import socket
import ssl
import tempfile
from pathlib import Path

import pytest

from tests import leaving_clients
from tests.certificates import certificate
from tests.features.gateway.conftest import ROUTES, SERVERS, GatewayPool, gateway
from tests.integration.processes.test_both_killed import kill_both
from tests.integration.processes.test_keeper_killed import kill_keeper, whole_again
from tests.load.load import Load
from tests.ports import claim_port
from tests.processes import descriptors, freeze, is_alive, watched_descriptors
from tests.programs import program

__all__ = ["gateway"]

pytestmark = [pytest.mark.slow, pytest.mark.integration]

NEW = ROUTES + '[[route]]\nalias = "new"\nto = "two"\npath = "/new"\n'


def kill_supervisor(gateway: GatewayPool) -> None:
    before = gateway.pool.info()["supervisor_pid"]
    os.kill(before, signal.SIGKILL)
    gateway.until(lambda: gateway.pool.info()["supervisor_pid"] != before)


def test_haproxy_outlives_its_supervisor_and_its_keeper(gateway: GatewayPool) -> None:
    program("haproxy")
    gateway.start()
    pid = gateway.until(gateway.process)
    with Load([gateway.port], "keep_alive", paths=["/one", "/two"], connections=4, pause=0.01) as running:
        kill_supervisor(gateway)
        gateway.until(lambda: gateway.pool.ok("status", "-v").stdout.count(f"gateway     pid {pid} ") == 1)
        gateway.pool.ok("restart", "one")
        whole_again(gateway.pool, gateway.until, kill_keeper(gateway.pool))
        assert gateway.process() == pid
        gateway.write(NEW)
        gateway.pool.ok("reload")
        assert gateway.get("/new").status == 200
    assert running.report.failed == 0, running.report
    gateway.pool.ok("stop")
    gateway.until(lambda: not gateway.pool.processes())


def test_haproxy_that_has_outlived_keeper_and_supervisor_is_replaced_by_the_next_start(
    gateway: GatewayPool,
) -> None:
    gateway.start()
    pid = gateway.until(gateway.process)
    with socket.create_connection(("127.0.0.1", gateway.port), 60) as client:
        client.sendall(b"POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
        kill_both(gateway.pool, gateway.until)
        gateway.pool.ok("start")
        client.sendall(b"x")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    gateway.until(lambda: not is_alive(pid))
    gateway.until(lambda: status_of(gateway, "/one") == 200)


def test_replaced_haproxy_is_not_woken_by_the_connections_of_its_successor(gateway: GatewayPool) -> None:
    gateway.start('[[route]]\nto = "one"\n')
    pid = gateway.until(gateway.process)
    listener = descriptors(pid)[5]  # after its log and what a replaced one passes on
    with (
        Load([gateway.port], "websocket", connections=1),
        Load([gateway.port], "new_connection", connections=4),
    ):
        gateway.write(ROUTES + '[[route]]\nalias = "ws"\nto = "one"\n')
        gateway.pool.ok("reload")
        gateway.until(lambda: listener not in descriptors(pid).values())
        assert watched_descriptors(pid) <= descriptors(pid).keys()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user of a process")
def test_haproxy_of_a_pool_of_root_runs_as_an_ordinary_user_unless_the_file_says_root(
    gateway: GatewayPool,
) -> None:
    cert, key = certificate(gateway.pool.directory)
    port = claim_port()
    tls = f'{{ bind = "127.0.0.1:{port}", tls = {{ cert = "{cert}", key = "{key}" }} }}'
    sockets = SERVERS.replace('"127.0.0.1:{two}"', '"unix:{two}"')
    # Root's own directories are closed to it.
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        gateway.ports["two"] = f"{directory}/two.sock"  # type: ignore[assignment]
        users = {each.pw_name: each.pw_uid for each in pwd.getpwall()}
        for user, uid in (("", users.get("haproxy", users["nobody"])), ('user = "root"\n', 0)):
            head = f'[gateway]\nbind = ["127.0.0.1:{gateway.port}", {tls}]\n{user}'
            gateway.pool.write("pool.toml", head + ROUTES + sockets.format(**gateway.ports, extra=""))
            gateway.pool.ok("reload" if uid == 0 else "start")
            pid = gateway.until(gateway.process)
            assert (uid_of(pid), gateway.get("/one").status, gateway.get("/two").status) == (uid, 200, 200)
            with (
                socket.create_connection(("127.0.0.1", port)) as sock,
                anonymous_context().wrap_socket(sock) as secure,
            ):
                assert (
                    ssl.DER_cert_to_PEM_cert(secure.getpeercert(True) or b"").strip()
                    == cert.read_text().strip()
                )
        gateway.pool.ok("stop")


def uid_of(pid: int) -> int:
    """The effective user of a process."""
    (line,) = re.findall(r"^Uid:.*", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(line.split()[2])


def anonymous_context() -> ssl.SSLContext:
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def test_access_log_has_a_line_for_each_request_and_is_the_loggers_file(gateway: GatewayPool) -> None:
    gateway.start(gateway="access_log = true")

    def logged() -> list[str]:
        files = gateway.pool.runtime.rglob("gateway-access.log")
        return [line for each in files for line in re.findall(r'- ("GET /.*) [\d.]+ms', each.read_text())]

    assert [gateway.get(path).status for path in ("/one?a=b", "/none")] == [200, 404]
    expected = ['"GET /one?a=b HTTP/1.1" 200', '"GET /none HTTP/1.1" 404']
    gateway.until(lambda: logged() == expected)
    pid = gateway.until(gateway.process)
    gateway.kill(pid)
    gateway.until(lambda: status_of(gateway, "/two") == 200)
    gateway.until(lambda: logged()[:2] == expected and '"GET /two HTTP/1.1" 200' in logged())
    assert "[access]" in gateway.pool.ok("logs", "gateway").stdout


@pytest.mark.parametrize(
    "killed",
    ["", *(pytest.param(each, marks=pytest.mark.heavy) for each in ("supervisor_pid", "keeper_pid"))],
)
def test_frozen_haproxy_is_replaced(gateway: GatewayPool, killed: str) -> None:
    gateway.start()
    gateway.until(lambda: gateway.get("/one").status == 200)
    pid = gateway.until(gateway.process)
    freeze(pid)
    if killed:
        os.kill(gateway.pool.info()[killed], signal.SIGKILL)
    assert gateway.get("/one").status == 200
    gateway.until(lambda: not is_alive(pid))


def status_of(gateway: GatewayPool, path: str) -> int | None:
    try:
        return gateway.get(path).status
    except OSError:
        return None


@pytest.mark.heavy
def test_request_whose_client_leaves_during_the_wake_is_not_executed(gateway: GatewayPool) -> None:
    program("haproxy")
    gateway.pool.write("leaving.py", leaving_clients.APP)
    gateway.write(ROUTES, "", "scale = { min = 0, idle = 60 }")
    text = (gateway.pool.directory / "pool.toml").read_text().replace("tests.load.apps:app", "leaving:app")
    gateway.pool.write("pool.toml", text)
    gateway.pool.ok("start")
    gateway.until(lambda: gateway.get("/three").status == 404)
    clients = [
        (leave, leaving_clients.post(gateway.port, f"/one/{leave.__name__}"))
        for leave in leaving_clients.WAYS_TO_LEAVE
    ]
    gateway.until(lambda: gateway.pool.items()["one"]["state"] == "starting")
    with leaving_clients.post(gateway.port, "/one/stays") as stays:
        for leave, client in clients:
            leave(client)
        # By then HAProxy has seen that they have left.
        assert not clients[-1][1].recv(100).startswith(b"HTTP/1.1 200")
        gateway.pool.write("go", "")
        assert stays.recv(12) == b"HTTP/1.1 200"
    for _, client in clients:
        client.close()
    gateway.pool.ok("stop")
    assert (gateway.pool.directory / "requests").read_text() == "/one/stays\n"
