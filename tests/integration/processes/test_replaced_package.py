"""The supervisor reads its files while poolctl is being replaced beneath it."""

from __future__ import annotations

from pathlib import Path

import pytest

import poolctl
from tests.deadline import wait_until
from tests.integration.processes.test_upgrade import NEW, by, by_under_load, copied
from tests.processes import is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory with this package in it, whose files can be replaced."""
    return copied(tmp_path / "installed")


def install_new(installed: Path) -> None:
    init = installed / "poolctl/__init__.py"
    init.write_text(init.read_text().replace(f'"{poolctl.__version__}"', f'"{NEW}"'))


@pytest.mark.heavy
def test_replaced_package_is_no_reader_for_the_running_pool_until_it_is_upgraded(
    pool: RealPool, installed: Path
) -> None:
    root = Path(__file__).parents[3]
    pool.write_hello("users", "orders", "extra", extra=f'app_dir = "{root}"')
    table = "[[server]]\nname = "
    pool.replace("hello:app", "tests.load.apps:app")
    users, orders, extra = (pool.directory / "pool.toml").read_text().removeprefix(table).split(table)
    pool.write("pool.toml", f"{table}{users}{table}{orders}")
    assert by(installed, pool, "start").code == 0
    supervisor, before = pool.info()["supervisor_pid"], pids(pool)
    install_new(installed)
    pool.write("pool.toml", f"{table}{users}env = {{ A = '1' }}\n{table}{extra}")
    done = by(installed, pool, "reload")
    assert done.code == 8, done
    assert f"poolctl {NEW} is installed, and this pool runs {poolctl.__version__}" in done.stderr
    assert "poolctl upgrade" in done.stderr
    done = by_under_load(installed, pool, "upgrade", names=before)
    assert done.code == 0, done
    assert (
        "pool.toml has changed since the pool read it; `poolctl reload` applies it (+1 ~1 -1)" in done.stderr
    )
    wait_until(lambda: not is_alive(supervisor))
    assert pids(pool) == before
    done = by_under_load(installed, pool, "reload", names=["users"])
    assert done.code == 0, done
    now = pids(pool)
    assert now.keys() == {"users", "extra"}
    assert now["users"] != before["users"]


def pids(pool: RealPool) -> dict[str, list[int]]:
    return {name: item["pids"] for name, item in pool.items().items()}


@pytest.mark.heavy
def test_replaced_package_that_cannot_take_the_configuration_over_names_a_way_that_works(
    pool: RealPool, installed: Path
) -> None:
    pool.write_hello("a")
    assert by(installed, pool, "start").code == 0
    supervisor = pool.info()["supervisor_pid"]
    install_new(installed)
    form = installed / "poolctl/supervisor/takeover/state_store.py"
    form.write_text(form.read_text().replace("VERSION = 1\n", "VERSION = 2\n"))
    pool.append('tags = ["new"]\n')
    done = by(installed, pool, "upgrade")
    assert done.code == 8, done
    assert "version 1 of its form is not known" in done.stderr
    assert f"{pool.directory}/pool.toml changed since the pool read its files" in done.stderr
    assert "undo the change and repeat poolctl upgrade" in done.stderr
    assert is_alive(supervisor)
    pool.replace('tags = ["new"]\n', "")
    done = by(installed, pool, "upgrade")
    assert done.code == 0, done
    pool.append('tags = ["new"]\n')
    done = by(installed, pool, "reload")
    assert done.code == 0, done
    assert by(installed, pool, "list", "-o", "tags").stdout.strip() == "new"
