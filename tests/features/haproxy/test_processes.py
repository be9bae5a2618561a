"""HAProxy as the program of the gateway: no change, and no death of a process, is noticed by clients."""

from __future__ import annotations

import pytest

from tests import leaving_clients
from tests.features.gateway.conftest import ROUTES, GatewayPool, gateway
from tests.load.load import Load
from tests.processes import is_alive
from tests.programs import program

__all__ = ["gateway"]

HAPROXY = 'engine = "haproxy"'

# Three programs take the clients over from each other, which takes a busy machine long.
pytestmark = [pytest.mark.heavy, pytest.mark.slow, pytest.mark.integration]


def processes(gateway: GatewayPool) -> tuple[int, int] | None:
    """The pids of the gateway's process and of HAProxy, which serves for it; None unless there is one of each."""
    lines = gateway.pool.processes().items()
    drivers = [pid for pid, line in lines if line.endswith("bootstrap.py features.haproxy")]
    programs = [pid for pid, line in lines if " -db -q -f " in line]
    return (drivers[0], programs[0]) if len(drivers) == len(programs) == 1 else None


def test_no_request_is_lost_while_haproxy_serves_whatever_ends_or_changes(gateway: GatewayPool) -> None:
    program("haproxy")
    gateway.write(ROUTES, HAPROXY)
    gateway.pool.ok("start")
    first = gateway.until(lambda: processes(gateway))
    with Load([gateway.port], "keep_alive", paths=["/one", "/two"], connections=8, pause=0.002) as running:
        gateway.pool.ok("restart", "one")
        gateway.write(ROUTES + '[[route]]\nalias = "new"\nto = "two"\npath = "/new"\n', HAPROXY)
        gateway.pool.ok("reload")
        assert gateway.get("/new").status == 200
        gateway.kill(first[0])
        second = gateway.until(lambda: (found := processes(gateway)) and found[0] != first[0] and found)
        assert second[1] != first[1]
    assert running.report.failed == 0, running.report
    # The process that has just been started may not answer yet.
    gateway.until(
        lambda: gateway.pool.ok("status", "-o", "json").json["gateway"].get("stats", {}).get("proxied_total")
    )
    gateway.write()  # with the pool's own gateway
    gateway.pool.ok("reload")
    gateway.until(gateway.process)
    gateway.until(lambda: not any(map(is_alive, second)))
    gateway.write(ROUTES, HAPROXY)
    gateway.pool.ok("reload")
    last = gateway.until(lambda: processes(gateway))
    assert gateway.get("/one").status == 200
    gateway.pool.ok("stop")
    gateway.until(lambda: not any(map(is_alive, last)))


def test_request_whose_client_leaves_during_the_wake_is_not_executed(gateway: GatewayPool) -> None:
    program("haproxy")
    gateway.pool.write("leaving.py", leaving_clients.APP)
    gateway.write(ROUTES, HAPROXY, "scale = { min = 0, idle = 60 }")
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
