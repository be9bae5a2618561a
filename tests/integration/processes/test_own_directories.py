"""A pool's state is kept in a directory that only its user can change: another is refused before anything starts."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from poolctl.exit_codes import NOT_PERMITTED
from tests.ports import claim_port
from tests.processes import is_alive
from tests.real_pool import COMMAND_TIMEOUT_SECONDS, RealPool

OTHER = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")


@pytest.fixture
def pool(real_pool: RealPool, short_path: Path) -> RealPool:
    real_pool.write_hello()
    real_pool.env["POOLCTL_STATE_DIR"] = str(short_path / "shared")
    return real_pool


def started_and_stopped(pool: RealPool) -> Path:
    """The pool's state directory after its first life."""
    pool.ok("start")
    pool.ok("stop")
    (found,) = Path(pool.env["POOLCTL_STATE_DIR"]).iterdir()
    return found


def refused_with_fix(pool: RealPool, *command: str) -> tuple[str, str]:
    """The message and the fix of a command that the state directory keeps from running."""
    done = pool.run(*command, "-o", "json")
    assert done.code == NOT_PERMITTED, done
    (error,) = done.json["errors"]
    return error["message"], error["hint"]


@as_root
@pytest.mark.capability
def test_start_refuses_a_state_directory_that_another_user_has_put_there(pool: RealPool) -> None:
    state = started_and_stopped(pool)
    state.rename(state.with_name("moved"))
    state.mkdir(mode=0o777)
    private = pool.write("private", "precious")
    for name in ("ports.json", "dashboard.token"):
        (state / name).symlink_to(private)
    os.chown(state, OTHER, OTHER)
    for command in ("start", "logs", "events"):
        message, fix = refused_with_fix(pool, command)
        assert message == f"{state} belongs to uid {OTHER}, not to you (uid 0)"
    assert not list(pool.runtime.glob("*/info.json"))
    assert private.read_text() == "precious"
    subprocess.run(fix, shell=True, check=True)
    pool.ok("start")
    assert state.stat().st_mode & 0o777 == 0o700


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("content", [NESTED, "[1]", '{"seq'], ids=["nested", "no object", "cut off"])
def test_damaged_files_of_the_state_are_named_and_do_not_keep_a_pool_from_starting(
    pool: RealPool, content: str
) -> None:
    state = started_and_stopped(pool)
    with (state / "events.jsonl").open("a") as journal:
        journal.write(f"{content}\n")
    (state / "ports.json").write_text(content)
    started = pool.ok("start")
    assert f"{state}/ports.json was damaged, and is not used" in started.stderr
    assert f"{state}/events.jsonl ends with 1 damaged line" in started.stderr
    events = pool.ok("events").stdout
    assert events.count("damaged: ") == 2
    assert "starting → running" in events
    assert "damaged" not in pool.ok("restart").stderr


def test_directories_are_private_whatever_the_umask(pool: RealPool, short_path: Path) -> None:
    pool.env["POOLCTL_RUNTIME_DIR"] = str(pool.runtime / "a" / "run")
    pool.env["POOLCTL_STATE_DIR"] = str(short_path / "b" / "state")
    with open(pool.directory / "pool.toml", "a") as file:
        file.write(f'[dashboard]\nbind = "127.0.0.1:{claim_port()}"\n')
    subprocess.run(
        ["sh", "-c", 'umask 000; exec "$@"', "sh", *pool.command(), "start"],
        cwd=pool.directory, env=pool.env, check=True, timeout=COMMAND_TIMEOUT_SECONDS,
    )  # fmt: skip
    try:
        made = {path for top in (pool.runtime, short_path) for path in (top, *top.rglob("*"))}
        others = {
            str(path): oct(path.stat().st_mode)
            for path in made
            if not path.is_symlink() and path.stat().st_mode & 0o022
        }
        assert not others
        assert list(short_path.rglob("dashboard.token"))
    finally:
        pool.ok("stop", env={})


def test_a_supervisor_that_follows_serves_on_when_others_may_change_its_state_directory(
    pool: RealPool, until: Any
) -> None:
    pool.ok("start")
    before, info = pool.items(), pool.info()
    (state,) = Path(pool.env["POOLCTL_STATE_DIR"]).iterdir()
    state.parent.chmod(0o777)
    os.kill(info["supervisor_pid"], signal.SIGKILL)
    until(lambda: not is_alive(info["supervisor_pid"]))
    until(lambda: pool.run("restart").code == 0)
    assert pool.items()["web"]["pids"] != before["web"]["pids"]
    directory = pool.runtime / state.name
    assert f"{state.parent} can be changed by others" in (directory / "supervisor.log").read_text()
    assert (directory / "state" / "logs").is_dir()
    assert refused_with_fix(pool, "logs")[0].startswith(str(state.parent))
    pool.ok("stop")
    refused_with_fix(pool, "start")
