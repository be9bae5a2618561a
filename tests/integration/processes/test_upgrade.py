"""Another version of poolctl takes over a running pool: same keeper process, same workers, no request lost."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl.control.client import Client
from poolctl.control.protocol import PROTOCOL
from tests.deadline import wait_until
from tests.environments import with_uvicorn_only
from tests.http_get import get
from tests.load import Load
from tests.ports import claim_port
from tests.processes import is_alive
from tests.real_pool import Done, RealPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NEW = "99.1.2"


def copied(place: Path) -> Path:
    """The directory, with this package in it; with its bytecode, which takes seconds to make."""
    shutil.copytree(Path(poolctl.__file__).parent, place / "poolctl", dirs_exist_ok=True)
    return place


@pytest.fixture
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with this package in it, as another version."""
    place = copied(tmp_path_factory.mktemp("newer"))
    init = place / "poolctl/__init__.py"
    init.write_text(
        init.read_text().replace(f'__version__ = "{poolctl.__version__}"', f'__version__ = "{NEW}"')
    )
    return place


def by(version: Path, pool: RealPool, *args: str, env: dict[str, str] | None = None) -> Done:
    """What the other version's command line does."""
    done = subprocess.run(
        [sys.executable, "-m", "poolctl", *args], cwd=pool.directory, text=True, capture_output=True,
        env={**pool.env, "PYTHONPATH": str(version), **(env or {})}, timeout=100,
    )  # fmt: skip
    return pool.explained(Done(args, done.returncode, done.stdout, done.stderr))


def by_under_load(version: Path, pool: RealPool, *args: str, names: Iterable[str] = ()) -> Done:
    """The same, while clients of these servers, or of all, notice nothing."""
    ports = [port for name, port in pool.ports.items() if not names or name in names]
    with Load(ports, "new_connection", connections=4, pause=0.01) as load:
        done = by(version, pool, *args)
    assert (load.report.failed, load.report.refused) == (0, 0), load.report
    assert load.report.complete > 0
    return done


def version(pool: RealPool) -> str:
    return str(pool.run("status", "-o", "json").json["summary"]["version"])


def facts(pool: RealPool) -> dict[str, Any]:
    return {name: (item["pids"], item["state"], item["restarts"]) for name, item in pool.items().items()}


def write_echo(pool: RealPool, *names: str, extra: str = "") -> None:
    pool.write_hello(*names, extra=f'app_dir = "{Path(__file__).parents[3]}"\n{extra}')
    pool.replace("hello:app", "tests.load.apps:app")


@pytest.mark.capability
def test_pool_goes_on_under_the_new_version_unnoticed_by_clients(pool: RealPool, newer: Path) -> None:
    write_echo(pool, "users", "orders", extra='env = { LEVEL = "info" }')
    pool.ok("start")
    pool.ok("scale", "orders", "2")
    os.kill(pool.items()["users"]["pids"][0], 9)
    wait_until(lambda: (users := pool.items()["users"])["ready"] and users["restarts"])
    before, keeper, supervisor = facts(pool), pool.info()["keeper_pid"], pool.info()["supervisor_pid"]
    done = by_under_load(newer, pool, "upgrade")
    assert done.code == 0, str(done)
    assert done.stdout == (
        f"poolctl {poolctl.__version__} → {NEW}: 2 servers kept their workers; "
        "poolctl upgrade --restart replaces them\n"
    )
    assert version(pool) == NEW
    assert facts(pool) == before
    assert pool.info()["keeper_pid"] == keeper
    wait_until(lambda: not is_alive(supervisor))
    # What was placed before is watched, stopped and replaced as ever.
    os.kill(pool.items()["users"]["pids"][0], 9)
    wait_until(
        lambda: (users := pool.items()["users"])["ready"] and users["restarts"] == before["users"][2] + 1
    )
    assert "already" in by(newer, pool, "upgrade").stdout
    workers = facts(pool)
    renewed = by(newer, pool, "upgrade", "--restart")
    assert renewed.stdout == f"the pool already runs poolctl {NEW}: 2 servers restarted\n", str(renewed)
    assert all(set(now[0]).isdisjoint(workers[name][0]) for name, now in facts(pool).items())
    # There is no way back.
    workers = facts(pool)
    back = pool.run("upgrade", "--restart", "--allow-same-version")
    assert back.code == 8
    assert (
        f"the pool runs poolctl {NEW}, and poolctl {poolctl.__version__} is older: it cannot take over"
        in back.stderr
    )
    assert (version(pool), facts(pool)) == (NEW, workers)
    pool.ok("stop")
    assert pool.processes() == {}


def test_a_version_that_does_not_run_takes_over_nothing(pool: RealPool, newer: Path) -> None:
    pool.write_hello("users")
    pool.ok("start")
    before, supervisor = facts(pool), pool.info()["supervisor_pid"]
    (newer / "poolctl/core/core.py").write_text("import not_there\n")
    done = by(newer, pool, "upgrade")
    assert done.code == 8
    assert "No module named 'not_there'" in done.stderr
    assert (facts(pool), pool.info()["supervisor_pid"]) == (before, supervisor)


@pytest.mark.parametrize(
    ("file", "found", "flaw", "reason"),
    [
        ("keeper/keeper.py", "import json", "import json, not_there", "No module named 'not_there'"),
        ("logs/logger_process.py", "import os", "import os, not_there", "No module named 'not_there'"),
        ("web/web_process.py", "import os", "import os, not_there", "No module named 'not_there'"),
        ("worker/zygote.py", "import gc", "import gc, pydantic", "No module named 'pydantic'"),
        (
            "core/server_entry.py",
            "entry.desired.state = Desired(",
            'entry.desired.state = Desired("?" + ',
            "'?",
        ),
    ],
    ids=["keeper", "logger", "web", "zygote", "saved state"],
)
def test_version_of_which_a_part_cannot_be_imported_or_read_the_state_is_refused(
    pool: RealPool, newer: Path, tmp_path: Path, file: str, found: str, flaw: str, reason: str
) -> None:
    pool.write_hello("users", extra=f'python = "{with_uvicorn_only(tmp_path / "venv")}"')
    pool.ok("start")
    before, keeper, supervisor = facts(pool), pool.info()["keeper_pid"], pool.info()["supervisor_pid"]
    break_(newer, file, found, flaw)
    done = by(newer, pool, "upgrade", "--restart")
    assert done.code == 8, done
    assert f"poolctl {NEW} cannot take over: " in done.stderr
    assert reason in done.stderr
    assert "nothing has changed" in done.stderr
    assert (facts(pool), version(pool)) == (before, poolctl.__version__)
    assert (pool.info()["keeper_pid"], pool.info()["supervisor_pid"]) == (keeper, supervisor)


def break_(version: Path, file: str, found: str, flaw: str) -> None:
    path = version / "poolctl" / file
    text = path.read_text()
    assert found in text
    path.write_text(text.replace(found, flaw, 1))


ADOPTS = "    recorded = await store.restore_entries(core.entries)\n"
FLAW = "    raise RuntimeError('a flaw')\n"
FAILED = "could not take over: RuntimeError: a flaw"


def test_supervisor_of_another_environment_that_dies_while_it_adopts_is_replaced_by_the_old_one(
    real_pool: RealPool, newer: Path
) -> None:
    write_echo(real_pool, "users")
    real_pool.ok("start")
    before, keeper = facts(real_pool), real_pool.info()["keeper_pid"]
    break_(newer, "supervisor/supervisor.py", ADOPTS, FLAW)
    done = by_under_load(newer, real_pool, "upgrade")
    assert done.code == 1, done
    assert f"poolctl {NEW} {FAILED}; the pool still runs poolctl {poolctl.__version__}" in done.stderr
    assert (facts(real_pool), version(real_pool), real_pool.info()["keeper_pid"]) == (
        before,
        poolctl.__version__,
        keeper,
    )
    os.kill(before["users"][0][0], 9)
    wait_until(lambda: (users := real_pool.items()["users"])["ready"] and users["restarts"] == 1)
    break_(newer, "supervisor/supervisor.py", FLAW, ADOPTS)
    before = facts(real_pool)
    assert by(newer, real_pool, "upgrade").code == 0
    assert (facts(real_pool), version(real_pool), real_pool.info()["keeper_pid"]) == (before, NEW, keeper)
    assert str(newer) in real_pool.processes()[keeper]


def test_supervisor_that_dies_while_it_adopts_is_tried_again_where_the_old_environment_is_gone(
    real_pool: RealPool, newer: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = copied(tmp_path_factory.mktemp("removed"))
    real_pool.write_hello("users")
    assert by(place, real_pool, "start").code == 0
    (path,) = [each for each in real_pool.runtime.glob("*/control.sock") if not each.parent.is_symlink()]
    wait_until(lambda: Client(str(path)).ping().build)
    before = facts(real_pool)
    shutil.rmtree(place)
    break_(newer, "supervisor/supervisor.py", ADOPTS, FLAW)
    done = by(newer, real_pool, "upgrade")
    assert done.code == 1, done
    assert f"{FAILED}; the servers keep serving, without a supervisor" in done.stderr
    break_(newer, "supervisor/supervisor.py", FLAW, ADOPTS)
    assert by(newer, real_pool, "upgrade").code == 0
    assert (facts(real_pool), version(real_pool)) == (before, NEW)


@pytest.fixture
def failed(real_pool: RealPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the package under which the pool was started; its supervisor has died in an upgrade there."""
    place = copied(tmp_path_factory.mktemp("place"))
    real_pool.write_hello("users")
    assert by(place, real_pool, "start").code == 0
    break_(place, "supervisor/supervisor.py", ADOPTS, FLAW)
    done = by(place, real_pool, "upgrade")
    assert done.code == 1, done
    assert f"{FAILED}; the servers keep serving, without a supervisor" in done.stderr
    return place


@pytest.mark.parametrize("repaired_in", ["same environment", "another environment"])
def test_servers_serve_on_while_no_supervisor_can_adopt_them_until_a_second_upgrade(
    real_pool: RealPool, failed: Path, newer: Path, repaired_in: str
) -> None:
    info = real_pool.info()
    assert not is_alive(info["supervisor_pid"])
    done = real_pool.run("status")
    assert done.code == 3
    assert "RuntimeError: a flaw" in done.stdout
    assert get(real_pool.ports["users"]).status == 200
    if repaired_in == "same environment":
        break_(failed, "supervisor/supervisor.py", FLAW, ADOPTS)
    done = by(failed if repaired_in == "same environment" else newer, real_pool, "upgrade")
    assert done.code == 0, done
    if repaired_in == "another environment":
        assert "whose supervisor had failed" in done.stdout
    # else the keeper tries the repaired code itself, and may have been earlier
    assert real_pool.info()["keeper_pid"] == info["keeper_pid"]
    assert real_pool.items()["users"]["restarts"] == 0
    if repaired_in == "another environment":
        os.kill(real_pool.items()["users"]["pids"][0], 9)
    else:
        real_pool.ok("restart")  # a supervisor that has died often by itself only serves commands
    wait_until(lambda: (users := real_pool.items()["users"])["ready"] and users["restarts"] == 1)
    real_pool.ok("stop")
    assert real_pool.processes() == {}


def test_pool_without_a_supervisor_is_stopped_by_its_keeper(real_pool: RealPool, failed: Path) -> None:
    done = real_pool.run("stop")
    assert done.code == 0, done
    assert "RuntimeError: a flaw" in done.stderr
    assert real_pool.processes() == {}
    assert real_pool.run("status").code == 3
    real_pool.ok("start")
    assert get(real_pool.ports["users"]).status == 200


def test_new_version_keeps_what_is_in_force_when_the_file_is_not_valid_or_gone(
    pool: RealPool, newer: Path
) -> None:
    pool.write_hello("users", "orders")
    pool.ok("start")
    pool.ok("add", "late", "--bind", f"127.0.0.1:{claim_port()}", "--app", "hello:app")
    pool.ok("remove", "orders")
    before = facts(pool)
    assert before.keys() == {"users", "late"}
    file = pool.write("pool.toml", "[[server]]\nname = 3\n")
    done = by(newer, pool, "upgrade")
    assert done.code == 0, done
    assert "pool.toml has changed since the pool read it, and is not valid: pool.toml:1" in done.stderr
    assert (facts(pool), version(pool)) == (before, NEW)
    file.unlink()
    done = by(newer, pool, "upgrade", "--allow-same-version", "-c", str(file))
    assert done.code == 0, done
    pool.write_hello("users")
    assert (facts(pool), version(pool)) == (before, NEW)


WRITTEN = 'keep_alive: Duration = Field(default="75s", validate_default=True)'


def test_configuration_that_the_new_version_does_not_understand_is_that_of_the_files_or_refused(
    pool: RealPool, newer: Path
) -> None:
    sections = newer / "poolctl/config/model/server_tables.py"
    sections.write_text(sections.read_text().replace(WRITTEN, "keep_alive: AtLeastOne = 75"))
    pool.write_hello("users", extra="http = { keep_alive = 3 }")
    pool.ok("start")
    before, supervisor = facts(pool), pool.info()["supervisor_pid"]
    pool.append('tags = ["new"]\n')
    done = by(newer, pool, "upgrade")
    assert done.code == 8, done
    assert "'http.keep_alive' in ServerConfig: " in done.stderr
    assert "poolctl reload applies the files" in done.stderr
    assert (facts(pool), pool.info()["supervisor_pid"]) == (before, supervisor)
    assert pool.run("reload").code == 0
    done = by(newer, pool, "upgrade")
    assert done.code == 0, done
    assert (facts(pool), version(pool)) == (before, NEW)


def test_another_build_of_the_same_version_is_an_upgrade_and_the_same_build_is_none(
    pool: RealPool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = copied(tmp_path_factory.mktemp("build"))
    pool.write_hello("users")
    pool.ok("start")
    before, supervisor = facts(pool), pool.info()["supervisor_pid"]
    same = f"the pool already runs poolctl {poolctl.__version__}, this build"
    assert pool.ok("upgrade").stdout.startswith(same)
    assert by(place, pool, "upgrade").stdout.startswith(same), "its files are the same"
    assert pool.info()["supervisor_pid"] == supervisor
    with (place / "poolctl/units.py").open("a") as file:
        file.write("# another build\n")
    done = by(place, pool, "upgrade")
    assert done.code == 0, done
    assert f"poolctl {poolctl.__version__} → {poolctl.__version__}, another build: 1 server" in done.stdout
    assert facts(pool) == before
    wait_until(lambda: not is_alive(supervisor))
    wait_until(lambda: "another build of" in pool.run("doctor").stdout)


def test_upgrade_to_the_same_build_says_so(real_pool: RealPool) -> None:
    real_pool.write_hello("users")
    real_pool.ok("start")
    for _ in range(2):  # at once, before a process has read its own files
        said = real_pool.ok("upgrade", "--allow-same-version").stdout
        assert said.startswith(
            f"poolctl {poolctl.__version__}, the same build, in new processes: 1 server kept"
        )


def test_supervisor_whose_package_is_damaged_reads_its_files_and_is_upgraded_to_a_whole_one(
    real_pool: RealPool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Its log may name modules that were replaced while it imported them.
    pool, place = real_pool, copied(tmp_path_factory.mktemp("replaced"))
    pool.write_hello("users")
    assert by(place, pool, "start").code == 0
    (path,) = [each for each in pool.runtime.glob("*/control.sock") if not each.parent.is_symlink()]
    wait_until(lambda: Client(str(path)).ping().build)
    before = facts(pool)
    (place / "poolctl/bootstrap.py").unlink()
    pool.ok("reload")
    copied(place)
    with (place / "poolctl/units.py").open("a") as file:
        file.write("# another build\n")
    done = by(place, pool, "upgrade")
    assert done.code == 0, done
    assert facts(pool) == before
    pool.ok("reload")


def test_pool_of_another_protocol_is_left_alone_until_the_commands_of_the_hint_move_it(
    pool: RealPool, newer: Path
) -> None:
    protocol = newer / "poolctl/control/protocol.py"
    protocol.write_text(f"{protocol.read_text()}\nPROTOCOL = {PROTOCOL + 1}\n")
    pool.write_hello("users")
    pool.ok("start")
    supervisor = pool.info()["supervisor_pid"]
    done = by(newer, pool, "upgrade")
    assert done.code == 8, done
    message = f"the pool runs poolctl {poolctl.__version__}, which is too old for {NEW} to take over"
    assert message in done.stderr
    assert pool.info()["supervisor_pid"] == supervisor
    (hint,) = re.findall(r"hint: (.*) \(the servers pause\)", done.stderr)
    assert hint in by(newer, pool, "doctor").stdout
    for command in hint.split(" && "):
        done = by(newer, pool, *shlex.split(command)[1:])
        assert done.code == 0, done
    assert version(pool) == NEW
    assert pool.items()["users"]["ready"]


def test_there_must_be_a_pool(pool: RealPool) -> None:
    pool.write_hello("users")
    assert pool.run("upgrade").code == 6
