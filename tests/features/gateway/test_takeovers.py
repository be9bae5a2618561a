"""A supervisor that takes over while it cannot prepare a HAProxy of its own: the adopted one serves, and is changed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.features.gateway.conftest import ROUTES, SERVERS, GatewayPool, gateway
from tests.features.gateway.test_wake import open_websocket
from tests.integration.processes.test_upgrade import by, newer
from tests.load.load import Load
from tests.ports import claim_port
from tests.programs import program

__all__ = ["gateway", "newer"]

pytestmark = [pytest.mark.slow, pytest.mark.integration]

HAPROXY = "own-haproxy"

ECHO = """
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
"""


def take_over(gateway: GatewayPool) -> None:
    """Kill the supervisor; returns when the next one manages the pool."""
    before = gateway.pool.info()["supervisor_pid"]
    os.kill(before, signal.SIGKILL)
    gateway.until(lambda: gateway.pool.info()["supervisor_pid"] != before)


def remove_certificate(directory: Path) -> None:
    (directory / "localhost.pem").unlink()


def break_certificate(directory: Path) -> None:
    (directory / "localhost.key").write_text("broken")


def remove_program(directory: Path) -> None:
    (directory / HAPROXY).unlink()


def break_file(directory: Path) -> None:
    (directory / "pool.toml").write_text("[broken")


@pytest.mark.parametrize("break_one", [remove_certificate, break_certificate, remove_program, break_file])
def test_adopted_haproxy_serves_and_is_changed_while_no_other_one_could_be_started(
    gateway: GatewayPool, break_one: Callable[[Path], None]
) -> None:
    directory = gateway.pool.directory
    certificate(directory)
    (directory / HAPROXY).symlink_to(program("haproxy"))  # its libraries are beside it
    tls = (
        f'{{ bind = "127.0.0.1:{claim_port()}", tls = {{ cert = "localhost.pem", key = "localhost.key" }} }}'
    )
    head = f'[gateway]\nbind = ["127.0.0.1:{gateway.port}", {tls}]\nprogram = "{directory / HAPROXY}"\n'
    gateway.pool.write("pool.toml", head + ROUTES + SERVERS.format(**gateway.ports, extra=""))
    gateway.pool.ok("start")
    pid = gateway.until(gateway.process)
    break_one(directory)
    with Load([gateway.port], "keep_alive", paths=["/two"], connections=2, pause=0.01) as running:
        take_over(gateway)
        gateway.pool.ok("stop", "one")
        assert gateway.get("/one").status == 503
        gateway.pool.ok("start", "one")
        gateway.until(lambda: gateway.get("/one").status == 200)
        gateway.pool.run("backends", "disable", "one", "--for", "0")
        gateway.until(lambda: gateway.get("/one").status == 503)
        gateway.pool.ok("restart", "two")
    assert running.report.failed == 0, running.report
    assert gateway.process() == pid


def test_upgrade_keeps_haproxy_whose_configuration_is_the_same(gateway: GatewayPool, newer: Path) -> None:
    gateway.start()
    pid = gateway.until(gateway.process)
    with Load([gateway.port], "keep_alive", paths=["/one", "/two"], connections=4, pause=0.01) as running:
        done = by(newer, gateway.pool, "upgrade")
        assert done.code == 0, done
        gateway.pool.ok("restart", "one")
    assert running.report.failed == 0, running.report
    assert gateway.process() == pid


def test_websocket_that_began_while_its_target_woke_lives_until_its_end(
    gateway: GatewayPool, newer: Path
) -> None:
    dashboard = f'[dashboard]\nbind = "127.0.0.1:{claim_port()}"\n'
    slow = f"""[[server]]
name = "slow"
bind = "127.0.0.1:{claim_port()}"
socket = "proxied"
scale = {{ min = 0, idle = 0 }}
command = ["{sys.executable}", "-m", "uvicorn", "echo:app", "--port", "{{port}}", "--ws-ping-interval", "600"]
"""
    gateway.pool.write("echo.py", ECHO)
    gateway.start(ROUTES + '[[route]]\nto = "slow"\npath = "/slow"\n' + slow)
    gateway.until(lambda: gateway.pool.items()["slow"]["state"] == "sleeping")
    (forwarder,) = gateway.until(lambda: gateway.named("poolctl-forward"))
    with open_websocket(gateway.port, "/slow") as sock:
        gateway.write(ROUTES + slow + dashboard)  # without its route
        gateway.pool.ok("reload")
        assert by(newer, gateway.pool, "upgrade").code == 0
        gateway.until(lambda: {*gateway.named("poolctl-forward")} > {forwarder})
        take_over(gateway)
        assert forwarder in gateway.named("poolctl-forward")
        sock.sendall(b"\x81\x82\0\0\0\0yo")
        assert sock.recv(4) == b"\x81\x02yo"
    gateway.until(lambda: forwarder not in gateway.named("poolctl-forward"))
