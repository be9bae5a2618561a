"""A gateway whose libraries are not installed: commands refuse it, and no client waits for it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poolctl.exit_codes import INVALID_CONFIGURATION
from poolctl.installation import GATEWAY_LIBRARIES
from tests.environments import need_gateway, without
from tests.features.gateway.conftest import GatewayPool

pytestmark = [pytest.mark.slow, pytest.mark.integration]

APPS = f'app_dir = "{Path(__file__).parents[3]}"'
HINT = f"-m pip install {' '.join(GATEWAY_LIBRARIES)}"


def refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return without(tmp_path_factory.mktemp("plain") / "venv", *GATEWAY_LIBRARIES)


@pytest.mark.parametrize("command", ["validate", "start"])
def test_gateway_without_its_libraries_is_refused_before_anything_starts(
    gateway: GatewayPool, plain: str, command: str
) -> None:
    gateway.pool.python = plain
    gateway.write(extra=APPS)
    done = gateway.pool.run(command)
    assert done.code == INVALID_CONFIGURATION, done
    assert "gateway: " in done.stdout + done.stderr
    assert HINT in done.stdout + done.stderr
    assert gateway.pool.processes() == {}
    assert refuses(gateway.port)


def test_running_pool_refuses_a_gateway_whose_libraries_are_missing(gateway: GatewayPool, plain: str) -> None:
    gateway.pool.python = plain
    gateway.write(extra=APPS)
    file = gateway.pool.directory / "pool.toml"
    whole = file.read_text()
    file.write_text(whole[whole.index("[[server]]") :])
    gateway.pool.ok("start")
    before = gateway.pool.items()
    file.write_text(whole)
    done = gateway.pool.run("reload")
    assert (done.code, HINT in done.stderr) == (INVALID_CONFIGURATION, True), done
    assert refuses(gateway.port)
    assert {name: item["pids"] for name, item in gateway.pool.items().items()} == {
        name: item["pids"] for name, item in before.items()
    }


def test_upgrade_by_an_installation_without_the_gateways_libraries_is_refused(
    gateway: GatewayPool, plain: str
) -> None:
    gateway.start(extra=APPS)
    before = gateway.process()
    gateway.pool.python = plain
    done = gateway.pool.run("upgrade", "--allow-same-version")
    assert (done.code, HINT in done.stderr) == (INVALID_CONFIGURATION, True), done
    assert gateway.process() == before
    assert gateway.get("/one").status == 200


def test_gateway_that_cannot_be_replaced_refuses_connections(gateway: GatewayPool, tmp_path: Path) -> None:
    need_gateway()
    gateway.pool.python = without(tmp_path / "venv")
    gateway.start(extra=APPS)
    assert gateway.get("/one").status == 200
    (packages,) = tmp_path.glob("venv/lib/python*/site-packages")
    kept = (packages / "uvloop").rename(tmp_path / "uvloop")
    process = gateway.process()
    assert process is not None
    gateway.kill(process)
    gateway.until(lambda: refuses(gateway.port))
    gateway.until(lambda: "-m pip install uvloop" in str(gateway.pool.run("status")))
    kept.rename(packages / "uvloop")
    gateway.until(gateway.process)
    gateway.until(lambda: not refuses(gateway.port))
    assert gateway.get("/one").status == 200
