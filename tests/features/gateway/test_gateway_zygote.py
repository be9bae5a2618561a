"""The zygote that the next gateway is forked from: it waits, is watched itself, and keeps nothing of the last one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from poolctl.feature import FEATURES
from tests.deadline import wait_until
from tests.features.gateway.conftest import PROXIED, ROUTES, GatewayPool
from tests.integration.processes.test_keeper_killed import kill_keeper, whole_again
from tests.processes import descriptors, is_alive, stat

pytestmark = pytest.mark.integration


@pytest.fixture
def gateway(gateway: GatewayPool) -> GatewayPool:
    """One that serves a passed and a proxied route, with a zygote that waits."""
    gateway.start(PROXIED)
    wait_until(gateway.zygote)
    return gateway


def zygote_of(gateway: GatewayPool) -> int:
    pid: int = wait_until(gateway.zygote, what="one zygote waits")
    return pid


def kill_gateway(gateway: GatewayPool) -> int:
    """The pid of the next one, which serves both routes."""
    (before,) = gateway.named("poolctl-gateway")
    gateway.kill(before)
    assert [gateway.get(path).status for path in ("/one", "/two")] == [200, 200]
    pid: int = wait_until(gateway.process)
    assert pid != before
    return pid


def test_gateway_is_a_fork_whose_parent_is_the_keeper_and_so_is_the_next_one(gateway: GatewayPool) -> None:
    zygote, keeper = zygote_of(gateway), gateway.pool.info()["keeper_pid"]
    for _ in range(2):
        following = kill_gateway(gateway)
        assert stat(following).parent == keeper
        assert stat(following).session == following
        assert len([each for each in descriptors(following).values() if "eventpoll" in each]) == 1
        assert zygote_of(gateway) == zygote
    assert not [each for each in descriptors(zygote).values() if "memfd" in each], "it holds no table"
    gateway.pool.ok("stop")
    wait_until(lambda: not is_alive(zygote))


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.heavy)])
def test_zygote_that_is_killed_or_stopped_is_replaced(gateway: GatewayPool, number: signal.Signals) -> None:
    zygote = zygote_of(gateway)
    os.kill(zygote, number)
    wait_until(lambda: not is_alive(zygote), what="it is found")
    assert zygote_of(gateway) != zygote
    kill_gateway(gateway)


@pytest.mark.heavy
def test_gateway_that_is_killed_with_its_zygote_or_while_that_is_stopped_is_replaced(
    gateway: GatewayPool,
) -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP):
        zygote = zygote_of(gateway)
        os.kill(zygote, number)
        kill_gateway(gateway)
        assert zygote_of(gateway) != zygote
        wait_until(lambda zygote=zygote: not is_alive(zygote))


def test_next_gateway_has_the_routes_and_certificates_of_now(gateway: GatewayPool) -> None:
    kill_gateway(gateway)
    gateway.write(ROUTES.replace("/two", "/other"))
    gateway.pool.ok("reload")
    (before,) = gateway.named("poolctl-gateway")
    gateway.kill(before)
    assert [gateway.get(path).status for path in ("/one", "/other", "/two")] == [200, 200, 404]


@pytest.mark.heavy
@pytest.mark.skipif("notify" not in FEATURES, reason="there is no [[notify]]")
def test_variable_that_is_a_secret_of_the_pool_now_is_not_in_the_next_gateway(gateway: GatewayPool) -> None:
    pool = gateway.pool
    pool.ok("stop")
    pool.env["HOOK"] = "https://hooks.test/secret"
    pool.ok("start")
    zygote = zygote_of(gateway)
    assert b"hooks.test" in Path(f"/proc/{zygote}/environ").read_bytes()
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", f'{text}\n[[notify]]\ntype = "slack"\nurl_env = "HOOK"\nmin_severity = "error"\n')
    pool.ok("reload")
    following = kill_gateway(gateway)
    for pid in (following, zygote_of(gateway)):
        assert pid != zygote
        assert b"hooks.test" not in Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.heavy
def test_next_supervisor_keeps_the_zygote_and_one_of_another_keeper_replaces_it(gateway: GatewayPool) -> None:
    pool, zygote = gateway.pool, zygote_of(gateway)
    supervisor = pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: pool.info()["supervisor_pid"] != supervisor)
    kill_gateway(gateway)
    assert zygote_of(gateway) == zygote
    whole_again(pool, wait_until, kill_keeper(pool))
    wait_until(lambda: not is_alive(zygote))
    following = kill_gateway(gateway)
    assert stat(following).parent == pool.info()["keeper_pid"] == stat(zygote_of(gateway)).parent


@pytest.mark.heavy
def test_zygote_ends_with_the_table_and_with_keeper_and_supervisor(gateway: GatewayPool) -> None:
    pool, zygote = gateway.pool, zygote_of(gateway)
    whole = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", whole[whole.index("[[server]]") :])
    pool.ok("reload")
    wait_until(lambda: not is_alive(zygote))
    pool.write("pool.toml", whole)
    pool.ok("reload")
    zygote, info = zygote_of(gateway), pool.info()
    for role in ("keeper_pid", "supervisor_pid"):
        os.kill(info[role], signal.SIGKILL)
    wait_until(lambda: not is_alive(zygote))
    assert gateway.get("/one").status == 200, "the gateway serves on"


@pytest.mark.heavy
def test_upgrade_to_another_build_replaces_the_zygote(gateway: GatewayPool) -> None:
    zygote = zygote_of(gateway)
    gateway.pool.ok("upgrade", "--allow-same-version")
    wait_until(lambda: not is_alive(zygote))
    assert zygote_of(gateway) != zygote
