"""`poolctl stop`: what was stopped, and the end of a pool without a supervisor."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from poolctl.control.pool_paths import pool_key, state_dir
from poolctl.keeper import pool_files
from poolctl.runners.left_overs import ProcessNote, ProcessNotes, left_overs
from tests.processes import is_alive
from tests.stand_in import always, item

from .conftest import Command, Leave, Supervised


def test_nothing_to_stop_is_no_failure(poolctl: Command, directory: Path) -> None:
    assert poolctl("stop") == (0, "nothing is running\n", "")
    assert poolctl("stop", "users").code == 0
    assert poolctl("stop", "usres").code == 4
    (directory / "pool.toml").write_text("broken [")
    assert poolctl("stop") == (0, "nothing is running\n", "")
    said = poolctl("stop", "-o", "json")
    assert (said.code, said.json["items"]) == (0, [])
    assert said.json["warnings"][0].startswith("pool.toml:1:")
    (directory / "pool.toml").unlink()
    assert poolctl("stop").code == 5
    assert poolctl("--pool", "nobody", "stop").code == 6


def desired_of(directory: Path) -> dict[str, str]:
    found = pool_files.read_left_state(str(directory / "run" / pool_key(str(directory / "pool.toml"))))
    return {name: each["desired"] for name, each in found.get("servers", {}).items()}


@pytest.fixture
def killed(directory: Path) -> Path:
    """The directory of a pool whose keeper and supervisor were killed."""
    place = directory / "run" / pool_key(str(directory / "pool.toml"))
    place.mkdir(parents=True, mode=0o700)
    (place / "lock").touch()
    state = b'{"servers": {"users": {"desired": "running"}, "orders": {"desired": "running"}}}'
    pool_files.write_left_state(str(place), state)
    (place / "info.json").write_text("{}")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "control.sock"))
    return place


def test_stop_ends_what_is_left_of_a_killed_pool(poolctl: Command, killed: Path, leave: Leave) -> None:
    left = (
        leave("users", server="users"),
        leave("orders", server="orders", is_deaf=True),
        leave("the gateway"),
    )
    said = poolctl("stop")
    labels = "users, orders, the gateway"
    assert (said.code, said.out) == (0, f"3 processes of a killed pool were left over: {labels}; ended\n")
    assert said.err == f"warning: orders: pid {left[1].pid} had to be killed\n"
    assert [-process.wait(0) for process in left] == [signal.SIGTERM, signal.SIGKILL, signal.SIGTERM]
    assert [path.name for path in killed.iterdir()] == ["lock"], "nothing is left behind"


def test_stop_names_but_neither_ends_nor_counts_what_may_be_a_strangers(
    poolctl: Command, killed: Path
) -> None:
    script = "sleep 600 >/dev/null & echo $!"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as leader:
        stranger = int(leader.communicate()[0])
    ProcessNotes(str(killed)).close([ProcessNote(leader.pid, 1, "users", "users")])
    try:
        said = poolctl("stop")
        assert (said.code, said.out) == (0, "nothing is running\n")
        assert said.err.startswith(
            f"warning: users: pid {stranger} may be left over from a killed pool, or another program"
        )
        assert is_alive(stranger)
    finally:
        os.kill(stranger, signal.SIGKILL)


def test_stop_of_one_server_leaves_the_others_of_a_killed_pool(
    poolctl: Command, directory: Path, killed: Path, leave: Leave
) -> None:
    users, orders = (leave(name, server=name) for name in ("users", "orders"))
    said = poolctl("stop", "users", "--timeout", "3s", "-o", "json")
    assert [(each["name"], each["state"]) for each in said.json["items"]] == [("users", "stopped")]
    assert (users.wait(0), orders.poll()) == (-signal.SIGTERM, None)
    assert desired_of(directory) == {"users": "stopped", "orders": "running"}
    assert [each.pid for each in left_overs(str(killed))] == [orders.pid]
    assert (killed / "info.json").exists()


def test_stop_of_a_killed_pool_whose_file_is_broken_needs_no_file(
    poolctl: Command, directory: Path, killed: Path, leave: Leave
) -> None:
    users = leave("users", server="users")
    (directory / "pool.toml").write_text("broken [")
    assert poolctl("stop", "users").code == 5
    assert users.poll() is None
    assert poolctl("stop") == (0, "1 process of a killed pool was left over: users; ended\n", "")


def test_stop_of_a_killed_pool_of_which_nothing_is_left_forgets_what_was_desired(
    poolctl: Command, directory: Path, killed: Path
) -> None:
    assert poolctl("stop", "users").out == "nothing is running\n"
    assert desired_of(directory) == {"users": "stopped", "orders": "running"}
    assert [each["name"] for each in poolctl("stop", "-o", "json").json["items"]] == ["users", "orders"]
    assert desired_of(directory) == {}
    assert [path.name for path in killed.iterdir()] == ["lock"]


def test_stop_says_where_the_logs_are_when_the_pool_ends(
    poolctl: Command, supervised: Supervised, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLCTL_STATE_DIR", str(directory / "state"))
    logs = Path(state_dir(os.environ, pool_key(str(directory / "pool.toml")))) / "logs"
    stopped = item("a", state="stopped", ready=False)
    with supervised(always(stopped, ended=True)):
        assert poolctl("stop").out == "1 server stopped: a\n"
        logs.mkdir(parents=True)
        assert poolctl("stop").out == f"1 server stopped: a\nlogs: {logs}\n"
    with supervised(always(stopped)):
        assert poolctl("stop").out == "1 server stopped: a\n"


def test_stop_that_was_refused_is_its_errors(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(exit_code=8, errors=[{"code": 8, "message": "it is busy"}])):
        assert poolctl("stop") == (8, "", "error: it is busy\n")
