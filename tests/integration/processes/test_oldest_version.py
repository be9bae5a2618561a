"""The oldest version of poolctl whose pools can be upgraded: taken from the history, and run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import poolctl
from poolctl.control.client import Client
from poolctl.control.protocol import PROTOCOL
from tests.deadline import wait_until
from tests.integration.processes.test_both_killed import kill_both
from tests.integration.processes.test_upgrade import by, copied, facts
from tests.load import Load
from tests.ports import claim_port
from tests.processes import is_alive
from tests.real_pool import RealPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[3]
# What speaks PROTOCOL 1 (poolctl/control/protocol.py).
OLDEST = "199a544b2141fa44dd0fbe8813d650020a1cee5b"


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with that version of the package in it."""
    place = tmp_path_factory.mktemp("oldest")
    try:
        done = subprocess.run(
            ["git", "-C", ROOT, "archive", OLDEST, "poolctl"], capture_output=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("git, from whose history the oldest version is taken, is not installed")
    if done.returncode:
        pytest.skip(f"the oldest version is not in the history here: {done.stderr.decode().strip()}")
    subprocess.run(["tar", "-xf", "-", "-C", place], input=done.stdout, timeout=60, check=True)
    return place


def test_pool_of_the_oldest_version_goes_on_under_this_one(pool: RealPool, oldest: Path) -> None:
    pool.write_hello("users", "orders", "spare", extra=f'app_dir = "{ROOT}"')
    with (pool.directory / "pool.toml").open("a") as file:
        file.write('[[server]]\nname = "program"\ncommand = ["sleep", "1000"]\n')
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", text.replace("hello:app", "tests.load.apps:app"))
    for args in (
        ("start",),
        ("scale", "orders", "2"),
        ("add", "late", "--bind", f"127.0.0.1:{claim_port()}", "--app", "hello:app"),
        ("remove", "spare"),
    ):
        done = by(oldest, pool, *args)
        assert done.code == 0, done
    os.kill(pool.items()["users"]["pids"][0], 9)
    wait_until(lambda: (users := pool.items()["users"])["ready"] and users["restarts"])
    before, keeper, supervisor = facts(pool), pool.info()["keeper_pid"], pool.info()["supervisor_pid"]
    assert before.keys() == {"users", "orders", "program", "late"}
    addresses = [f"127.0.0.1:{pool.ports[name]}" for name in ("users", "orders")]
    with Load(addresses, mode="new_connection", connections=4, pause=0.01) as load:
        pool.ok("upgrade")
        pool.ok("restart", "orders")
    assert (load.report.failed, load.report.refused) == (0, 0), load.report
    assert load.report.complete > 0
    (path,) = [each for each in pool.runtime.glob("*/control.sock") if not each.parent.is_symlink()]
    assert (Client(str(path)).ping().protocol, Client(str(path)).ping().version) == (
        PROTOCOL,
        poolctl.__version__,
    )
    assert pool.info()["keeper_pid"] == keeper
    wait_until(lambda: not is_alive(supervisor))
    after = facts(pool)
    assert set(after["orders"][0]).isdisjoint(before["orders"][0])
    assert len(after["orders"][0]) == 2, "it was scaled live"
    assert {**after, "orders": ()} == {**before, "orders": ()}
    # What the old one started is watched and reported as ever.
    os.kill(pool.items()["users"]["pids"][0], 9)
    wait_until(lambda: (now := pool.items()["users"])["ready"] and now["restarts"] == before["users"][2] + 1)
    assert "stopp" in pool.ok("stop").stdout
    assert pool.processes() == {}


@pytest.mark.heavy
def test_oldest_version_is_replaced_in_its_own_directory(
    real_pool: RealPool, oldest: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Its log may name modules that were replaced while it imported them.
    pool, place = real_pool, tmp_path_factory.mktemp("replaced")
    (oldest / "poolctl").rename(place / "poolctl")
    try:
        pool.write_hello("users")
        assert by(place, pool, "start").code == 0
        # It has imported everything by now.
        assert by(place, pool, "reload", "--dry-run").code == 0
        before = facts(pool)
    finally:
        (place / "poolctl").rename(oldest / "poolctl")
    copied(place)
    done = by(place, pool, "upgrade", "--restart")
    assert done.code == 0, done
    assert set(facts(pool)["users"][0]).isdisjoint(before["users"][0])


def test_pool_of_this_version_is_not_taken_over_by_the_oldest(pool: RealPool, oldest: Path) -> None:
    pool.write_hello("users")
    pool.ok("start")
    before, supervisor = facts(pool), pool.info()["supervisor_pid"]
    done = by(oldest, pool, "upgrade", "--force")
    assert done.code == 8, done
    assert "is older: it cannot take over" in done.stderr
    assert (facts(pool), pool.info()["supervisor_pid"]) == (before, supervisor)


@pytest.mark.heavy
def test_orphans_of_the_oldest_version_are_adopted(pool: RealPool, oldest: Path) -> None:
    # With the default of access_log, which has changed, they would be replaced.
    extra = f'app_dir = "{ROOT}"\nworkers = 2\nhttp = {{ access_log = false }}'
    pool.write_hello("users", extra=extra)
    text = (pool.directory / "pool.toml").read_text().replace("hello:app", "tests.load.apps:app")
    pool.write("pool.toml", text + '[[server]]\nname = "program"\ncommand = ["sleep", "1000"]\n')
    assert by(oldest, pool, "start").code == 0
    before = facts(pool)
    with Load([f"127.0.0.1:{pool.ports['users']}"], mode="new_connection", connections=4, pause=0.01) as load:
        kill_both(pool, wait_until)
        pool.ok("start")
    assert (load.report.failed, load.report.refused) == (0, 0), load.report
    assert facts(pool) == before
    pool.ok("restart")
    assert all(set(now[0]).isdisjoint(before[name][0]) for name, now in facts(pool).items())


@pytest.mark.heavy
def test_supervisor_of_the_oldest_version_is_followed_by_this_one_that_was_installed_over_it(
    real_pool: RealPool, oldest: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pool, place = real_pool, tmp_path_factory.mktemp("replaced")
    (oldest / "poolctl").rename(place / "poolctl")
    try:
        pool.write_hello("users", "orders")
        assert by(place, pool, "start").code == 0
        assert by(place, pool, "reload", "--dry-run").code == 0
        before, supervisor = facts(pool), pool.info()["supervisor_pid"]
    finally:
        (place / "poolctl").rename(oldest / "poolctl")
    copied(place)
    os.kill(supervisor, 9)
    wait_until(lambda: not is_alive(supervisor))
    assert facts(pool) == before
    # It answers a moment before it writes down who it is.
    wait_until(lambda: pool.info()["supervisor_pid"] != supervisor)
    (log,) = [each for each in pool.runtime.glob("*/supervisor.log") if not each.parent.is_symlink()]
    assert "the configuration in force is read from the files again: it cannot be read: " in log.read_text()
