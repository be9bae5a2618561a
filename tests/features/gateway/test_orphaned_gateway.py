"""Keeper and supervisor are both killed: the gateway serves on, and the next start adopts it, or a stop ends it."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from tests.features.gateway.conftest import PROXIED, ROUTES, GatewayPool
from tests.features.gateway.test_gateway_manager import ask
from tests.integration.processes.test_both_killed import kill_both
from tests.load.load import Load

pytestmark = [pytest.mark.slow, pytest.mark.integration]


def load(gateway: GatewayPool, mode: str = "keep_alive") -> Load:
    """Requests on a passed and on a proxied route in turn."""
    return Load([gateway.port], mode, paths=["/one", "/two"], connections=4, pause=0.002)


def still_serve(gateway: GatewayPool) -> bool:
    """Whether `status` finds all of them; a worker on a busy machine may need longer to answer."""
    done = gateway.pool.run("status")
    assert done.code == 3, done
    return "but 2 servers and the gateway are still serving" in done.stdout


def ways(gateway: GatewayPool) -> list[str]:
    return [row["way"] for row in gateway.pool.ok("routes", "-o", "json").json["items"]]


def test_no_request_fails_while_both_are_gone_and_when_the_next_start_adopts_it(
    gateway: GatewayPool,
) -> None:
    gateway.start(PROXIED)
    pid = gateway.until(gateway.process)
    with ExitStack() as clients:
        with load(gateway) as kept, load(gateway, "new_connection") as short:
            kill_both(gateway.pool, gateway.until)
            for each in (kept, short):
                before = each.look().complete
                gateway.until(lambda each=each, before=before: each.look().complete > before + 50)
            gateway.until(lambda: still_serve(gateway))
            gateway.pool.ok("start")
            assert gateway.process() == pid
            passed = clients.enter_context(socket.create_connection(("127.0.0.1", gateway.port), 60))
            ask(passed, "/one")
            gateway.write(PROXIED + '[[route]]\nalias = "three"\npath = "/three"\nto = "one"\n')
            gateway.pool.ok("reload")
            gateway.until(lambda: gateway.get("/three").status == 200)
            gateway.pool.ok("restart")
            gateway.until(lambda: ways(gateway) == ["pass", "proxy", "pass"])
        assert (kept.report.failed, short.report.failed) == (0, 0), (kept.report, short.report)
        gateway.kill(pid)
        # The worker has it: it was passed as before.
        ask(passed, "/one")
        gateway.until(lambda: gateway.process() not in (None, pid))


@pytest.mark.heavy
def test_stop_ends_it_with_the_servers(gateway: GatewayPool) -> None:
    gateway.start(ROUTES)
    kill_both(gateway.pool, gateway.until)
    gateway.until(lambda: still_serve(gateway))
    assert gateway.get("/one").status == 200
    found = gateway.pool.run("doctor").stdout
    assert "its processes still serve" in found
    assert "in use" not in found, "its addresses are the pool's own"
    done = gateway.pool.ok("stop", "one")
    assert "1 server stopped" in done.stdout, done
    assert gateway.get("/two").status == 200
    done = gateway.pool.ok("stop")
    assert "1 server and the gateway stopped" in done.stdout, done
    gateway.until(lambda: not gateway.pool.processes())
    with pytest.raises(ConnectionRefusedError):
        gateway.get("/two")
