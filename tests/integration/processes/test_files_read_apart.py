"""The supervisor has its files read by another process, also while poolctl is being replaced beneath it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import poolctl
from tests.deadline import wait_until
from tests.load import Load
from tests.ports import claim_port
from tests.processes import children, descriptors, is_alive, reads_files, stat
from tests.real_pool import Done, RealPool

pytestmark = pytest.mark.timeout(180)

NEW = "99.1.2"


def validates(pid: int) -> bool:
    """Whether the process has loaded pydantic."""
    return "pydantic_core" in Path(f"/proc/{pid}/maps").read_text()


def readers(pool: RealPool) -> list[int]:
    info = pool.info()
    parents = (info["keeper_pid"], info["supervisor_pid"])
    return [pid for parent in parents for pid in children(parent) if reads_files(pid)]


def test_supervisor_validates_nothing_itself_and_its_successor_needs_no_reader(pool: RealPool) -> None:
    pool.warm = False  # a supervisor that is forked has what the process that forks it has imported
    pool.write_hello("a", "b")
    pool.ok("start")
    supervisor = pool.info()["supervisor_pid"]
    assert not validates(supervisor)
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", text.replace('name = "b"', 'name = "c"'))
    pool.ok("reload")
    pool.ok("add", "once", "--set", "job=true", "--set", 'command=["true"]')
    assert pool.items().keys() == {"a", "c", "once"}
    assert not validates(supervisor)
    assert "pool.toml:3" in pool.ok("show", "a").stdout
    os.kill(supervisor, signal.SIGKILL)
    assert pool.items().keys() == {"a", "c", "once"}
    # It answers a moment before it writes down who it is.
    wait_until(lambda: pool.info()["supervisor_pid"] != supervisor)
    wait_until(lambda: not readers(pool), what="the readers end with their supervisor")
    assert not validates(pool.info()["supervisor_pid"])


def test_first_reader_is_a_child_of_the_keeper_with_its_own_end_of_the_link_alone(pool: RealPool) -> None:
    pool.write_hello("a")
    pool.ok("start")
    info = pool.info()
    keeper, supervisor = info["keeper_pid"], info["supervisor_pid"]
    (reader,) = readers(pool)
    assert stat(reader).parent == keeper
    held = descriptors(reader)
    assert held[1] == held[2] == descriptors(supervisor)[2].replace("supervisor.log", "config.log")
    others = [target for pid in (keeper, supervisor) for target in descriptors(pid).values()]
    assert held[3] not in others, "nobody else has its end of the link"
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{reader}").exists(), what="it has ended, and left no zombie")
    assert pool.items().keys() == {"a"}
    wait_until(lambda: pool.info()["supervisor_pid"] != supervisor)


@pytest.mark.heavy_variants
@pytest.mark.parametrize("kills", ["first", "every"])
def test_start_whose_reader_is_killed_reads_once_more_and_then_fails_with_the_reason(
    real_pool: RealPool, tmp_path: Path, kills: str
) -> None:
    pool = real_pool
    pool.write_hello("a")
    hook = tmp_path / "hook"
    hook.mkdir()
    trace = tmp_path / "trace"
    (hook / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        f"if 'config_reader' in sys.orig_argv and ({kills!r} == 'every' or not os.path.exists({str(trace)!r})):\n"
        f"    open({str(trace)!r}, 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = pool.run("start", env={**pool.env, "PYTHONPATH": str(hook)})
    assert done.code == (0 if kills == "first" else 8), done
    assert ("the process that does it was killed by signal 9" in done.stderr) == (kills == "every")


HIDDEN = """
import os, sys
if "config_reader" in sys.orig_argv:
    raise ImportError("no pydantic here")
sys.path.remove(os.environ["PYTHONPATH"])
del sys.modules["pydantic"]
import pydantic
"""


def test_reader_that_cannot_run_fails_the_first_start_with_the_reason(
    real_pool: RealPool, tmp_path: Path
) -> None:
    pool = real_pool
    pool.write_hello("a")
    hidden = tmp_path / "hidden" / "pydantic"
    hidden.mkdir(parents=True)
    # The command may import it too.
    (hidden / "__init__.py").write_text(HIDDEN)
    done = pool.run("start", env={**pool.env, "PYTHONPATH": str(hidden.parent)})
    assert done.code == 8, done
    assert "no pydantic here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.heavy
def test_supervisor_of_a_gateway_is_prepared_for_registrations_before_the_first_one(pool: RealPool) -> None:
    pool.write_hello("a")
    with (pool.directory / "pool.toml").open("a") as file:
        file.write(f'[gateway]\nbind = "127.0.0.1:{claim_port()}"\n')
    pool.ok("start")
    wait_until(lambda: validates(pool.info()["supervisor_pid"]))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory with this package in it, whose files can be replaced."""
    place = tmp_path / "installed"
    shutil.copytree(Path(poolctl.__file__).parent, place / "poolctl")
    return place


def install_new(installed: Path) -> None:
    init = installed / "poolctl/__init__.py"
    init.write_text(init.read_text().replace(f'"{poolctl.__version__}"', f'"{NEW}"'))


def by(installed: Path, pool: RealPool, *args: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "poolctl", *args], cwd=pool.directory, text=True, capture_output=True,
        env={**pool.env, "PYTHONPATH": str(installed)}, timeout=100,
    )  # fmt: skip
    return Done(args, done.returncode, done.stdout, done.stderr)


@pytest.mark.heavy
def test_replaced_package_is_no_reader_for_the_running_pool_until_it_is_upgraded(
    pool: RealPool, installed: Path
) -> None:
    root = Path(__file__).parents[3]
    ports = pool.write_hello("users", "orders", "extra", extra=f'app_dir = "{root}"')
    table = "[[server]]\nname = "
    text = (pool.directory / "pool.toml").read_text().replace("hello:app", "tests.load.apps:app")
    users, orders, extra = text.removeprefix(table).split(table)
    pool.write("pool.toml", f"{table}{users}{table}{orders}")
    assert by(installed, pool, "start").code == 0
    supervisor, before = pool.info()["supervisor_pid"], pids(pool)
    install_new(installed)
    pool.write("pool.toml", f"{table}{users}env = {{ A = '1' }}\n{table}{extra}")
    done = by(installed, pool, "reload")
    assert done.code == 8, done
    assert f"poolctl {NEW} is installed, and this pool runs {poolctl.__version__}" in done.stderr
    assert "poolctl upgrade" in done.stderr
    load = Load(
        [f"127.0.0.1:{ports[name]}" for name in before], mode="new_connection", connections=4, pause=0.01
    )
    load.start()
    done = by(installed, pool, "upgrade")
    report = load.stop()
    assert done.code == 0, done
    assert (
        "pool.toml has changed since the pool read it; `poolctl reload` applies it (+1 ~1 -1)" in done.stderr
    )
    assert (report.failed, report.refused) == (0, 0), report
    assert report.complete > 0
    wait_until(lambda: not is_alive(supervisor))
    assert pids(pool) == before
    load = Load([f"127.0.0.1:{ports['users']}"], mode="new_connection", connections=4, pause=0.01)
    load.start()
    done = by(installed, pool, "reload")
    report = load.stop()
    assert done.code == 0, done
    assert (report.failed, report.refused) == (0, 0), report
    assert report.complete > 0
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
    original = (pool.directory / "pool.toml").read_text()
    file = pool.write("pool.toml", original + 'tags = ["new"]\n')
    done = by(installed, pool, "upgrade")
    assert done.code == 8, done
    assert "version 1 of its form is not known" in done.stderr
    assert f"{file} changed since the pool read its files" in done.stderr
    assert "undo the change and repeat poolctl upgrade" in done.stderr
    assert is_alive(supervisor)
    pool.write("pool.toml", original)
    done = by(installed, pool, "upgrade")
    assert done.code == 0, done
    pool.write("pool.toml", original + 'tags = ["new"]\n')
    done = by(installed, pool, "reload")
    assert done.code == 0, done
    assert by(installed, pool, "list", "-o", "tags").stdout.strip() == "new"
