"""`poolctl stop`: what was stopped, and the end of a pool without a supervisor."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from poolctl import feature
from poolctl.control.pool_paths import pool_key, state_dir
from poolctl.feature import DetachedProcesses, Feature
from poolctl.keeper import pool_files
from poolctl.runners import local
from tests.stand_in import Send, always, item, result

from .conftest import Command, Supervised


def test_stop_names_the_first_of_many(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(*(item(f"s{at}", state="stopped", ready=False) for at in range(6)))):
        assert poolctl("stop").out == "6 servers stopped: s0, s1, s2, s3, s4 and 1 more\n"


@pytest.mark.parametrize(
    ("args", "unchanged", "more", "line"),
    [
        (["stop"], ["b"], {}, "1 server stopped: a"),
        (["stop", "--no-wait"], ["b"], {}, "1 server stopping: a"),
        (["stop", "a", "b"], ["a", "b"], {}, "nothing was running"),
        (["stop"], ["a", "b"], {"ended": True}, "no server was running: the supervisor has ended"),
        (
            ["stop", "a", "b"],
            ["a", "b"],
            {"dependents": ["w"]},
            "0 servers stopped, and 1 that depends on them: w",
        ),
    ],
)
def test_stop_counts_only_what_ran(
    poolctl: Command,
    supervised: Supervised,
    args: list[str],
    unchanged: list[str],
    more: dict[str, Any],
    line: str,
) -> None:
    items = [item("a", state="stopped", ready=False), item("b", state="disabled", ready=False)]
    with supervised(always(*items, unchanged=unchanged, **more)):
        assert poolctl(*args).out == f"{line}\n"
        assert poolctl(*args, "-o", "json").json == {"schema": 1, "items": items, "errors": []}


def test_warnings_on_the_way_are_said_once(poolctl: Command, supervised: Supervised) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        send({"warning": "stopping web as well"})
        return result(item("a", state="stopped"), warnings=["stopping web as well", "a: had to be killed"])

    with supervised(answer):
        said = poolctl("stop", "a")
    assert said.err == "warning: stopping web as well\nwarning: a: had to be killed\n"


def test_stop_waits_until_the_last_process_is_gone(poolctl: Command, supervised: Supervised) -> None:
    last = subprocess.Popen(["sleep", "0.3"])

    with supervised(always(item("a", state="stopped"), ended=True, keeper_pid=last.pid)):
        assert poolctl("stop").code == 0
    assert last.poll() == 0 or last.wait(0.1) == 0


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


@pytest.mark.parametrize(
    ("args", "items", "line"),
    [
        (["stop"], [item("a", state="stopped", ready=False)], "1 server stopped: a"),
        (["stop"], [item("a", state="stopped"), item("b", state="stopping")], "1 of 2 servers stopped: a"),
        (["stop", "--no-wait"], [item("a", state="stopping")], "1 server stopping: a"),
    ],
)
def test_line_counts_and_names_the_servers_that_were_stopped(
    poolctl: Command, supervised: Supervised, args: list[str], items: list[dict[str, Any]], line: str
) -> None:
    with supervised(always(*items)):
        assert poolctl(*args).out.splitlines()[0] == line
        assert poolctl(*args, "--quiet").out == ""
        assert poolctl(*args, "-o", "json").json == {"schema": 1, "items": items, "errors": []}


@pytest.mark.parametrize(
    ("args", "state", "dependents", "line"),
    [
        (["stop", "a"], "stopped", ["w"], "1 server stopped, and 1 that depends on it: a, w"),
        (["stop", "a", "--no-wait"], "stopping", ["w"], "1 server stopping, and 1 that depends on it: a, w"),
    ],
)
def test_dependents_of_the_selected_servers_are_counted_apart(
    poolctl: Command, supervised: Supervised, args: list[str], state: str, dependents: list[str], line: str
) -> None:
    items = [item("a", state=state, ready=state == "running")]
    with supervised(always(*items, dependents=dependents)):
        assert poolctl(*args).out == f"{line}\n"
        assert poolctl(*args, "-o", "json").json == {"schema": 1, "items": items, "errors": []}


class Worker:
    """A worker that keeper and supervisor have left behind; it ends when it is asked to, unless it is deaf."""

    def __init__(self, server: str, pid: int, *, deaf: bool = False) -> None:
        self.pid, self.uid = pid, os.geteuid()
        self.said = {"server": server, "ready_at": 1.0}
        self.deaf = deaf
        self.log: list[object] = []

    def ask_to_end(self) -> None:
        self.log.append("ask")

    def await_end(self, timeout_seconds: float) -> bool:
        self.log.append(round(timeout_seconds))
        return not self.deaf

    def kill(self) -> None:
        self.log.append("kill")

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture
def left(directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """Workers of a pool whose keeper and supervisor were killed."""
    workers = [Worker("users", 7), Worker("orders", 8, deaf=True), Worker("users", 9)]
    place = directory / "run" / pool_key(str(directory / "pool.toml"))
    place.mkdir(parents=True, mode=0o700)
    (place / "lock").touch()
    state = b'{"servers": {"users": {"desired": "running"}, "orders": {"desired": "running"}}}'
    pool_files.write_left_state(str(place), state)
    (place / "info.json").write_text("{}")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "control.sock"))
    monkeypatch.setattr(local, "has_orphans", lambda found: found == str(place))
    monkeypatch.setattr(local, "find_orphans", lambda found: workers)
    return workers


def desired_of(directory: Path) -> dict[str, str]:
    found = pool_files.read_left_state(str(directory / "run" / pool_key(str(directory / "pool.toml"))))
    return {name: each["desired"] for name, each in found.get("servers", {}).items()}


REST = "stopped, left over from a pool whose keeper and supervisor were killed\n"


def test_stop_of_what_is_left_of_a_killed_pool_asks_waits_and_kills(
    poolctl: Command, directory: Path, left: list[Worker]
) -> None:
    said = poolctl("stop")
    assert (said.code, said.out) == (0, f"2 servers {REST}")
    assert said.err == "warning: orders: pid 8 had to be killed\n"
    users, orders, also = left
    assert users.log[-3:] == also.log[-3:] == ["ask", 10, "close"]
    assert orders.log[-5:] == ["ask", 10, "kill", 5, "close"]
    assert desired_of(directory) == {}
    (place,) = (directory / "run").iterdir()
    assert [path.name for path in place.iterdir()] == ["lock"], "nothing is left behind"


def test_stop_of_one_server_leaves_the_others_of_a_killed_pool(
    poolctl: Command, directory: Path, left: list[Worker]
) -> None:
    said = poolctl("stop", "users", "--timeout", "3s", "-o", "json")
    (users,) = said.json["items"]
    assert (users["state"], users["ready"], users["health"], users["pids"], users["uptime_seconds"]) == (
        "stopped", False, "unknown", [], 0.0,
    )  # fmt: skip
    asked = [[step for step in worker.log if step != "close"] for worker in left]
    assert asked == [["ask", 3], [], ["ask", 3]]
    assert all(worker.log[-1] == "close" for worker in left)
    assert desired_of(directory) == {"users": "stopped", "orders": "running"}
    (place,) = (directory / "run").iterdir()
    assert (place / "info.json").exists()


def test_stop_of_a_killed_pool_whose_file_is_broken_needs_no_file(
    poolctl: Command, directory: Path, left: list[Worker]
) -> None:
    (directory / "pool.toml").write_text("broken [")
    assert poolctl("stop", "users").code == 5
    assert all("ask" not in worker.log for worker in left)
    said = poolctl("stop")
    assert said.out == f"2 servers {REST}"
    assert said.err.startswith("warning: pool.toml:1:")
    assert "servers that do not run are not listed" in said.err


def test_stop_ends_the_processes_of_features_after_the_workers(
    poolctl: Command, directory: Path, left: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []

    class Lasting(Feature):
        def load(self, reference: str) -> Any:
            assert reference == "end"
            assert "ask" in left[0].log

            def end(place: str, seconds: float) -> list[tuple[int, bool]]:
                asked.append((place, seconds))
                return [(70, True), (71, False)]

            return end

    processes = DetachedProcesses(label="the gateway", entry="g", sockets=("g",), end="end")
    declared = (Lasting(package="x", processes=processes), Feature(package="y"))
    monkeypatch.setattr(feature, "features", lambda: declared)
    said = poolctl("stop", "--timeout", "3s")
    assert said.out == f"2 servers and the gateway {REST}"
    assert "warning: the gateway: pid 71 had to be killed\n" in said.err
    assert "pid 70" not in said.err
    (place,) = (directory / "run").iterdir()
    assert asked == [(str(place), 3.0)]
    assert poolctl("stop", "users").out == f"1 server {REST}"
    assert len(asked) == 1, "one server was selected"


def test_stop_without_anything_that_serves_forgets_what_was_desired(
    poolctl: Command, directory: Path, left: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "has_orphans", lambda found: False)
    assert poolctl("stop", "users").out == "nothing is running\n"
    assert desired_of(directory) == {"users": "stopped", "orders": "running"}
    (place,) = (directory / "run").iterdir()
    assert not (place / "info.json").exists()
    assert not (place / "control.sock").exists()
    assert [each["name"] for each in poolctl("stop", "-o", "json").json["items"]] == ["users", "orders"]
    assert desired_of(directory) == {}
    assert all(worker.log == [] for worker in left)


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
