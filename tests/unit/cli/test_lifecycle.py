from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from poolctl.control.client import await_end
from tests.stand_in import Send, always, item, result

from .conftest import Command, Supervised

RUNNING = [item("users", 8081), item("orders", 8082, pids=[4243])]


def test_start_says_how_many_are_ready(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(*RUNNING)) as requests:
        said = poolctl("start", "--tag", "api", "--timeout", "5s", "--no-deps")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("2 servers ready\n")
    ((verb, body),) = requests
    assert verb == "start"
    assert body["selector"]["tag"] == ["api"]
    # Nobody sees the steps of a command that is no terminal's: they are not asked for.
    assert body["options"] == {"timeout": 5.0, "wait": True, "deps": False, "progress": False}


@pytest.mark.parametrize(
    ("args", "items", "line"),
    [
        (["start"], [item("a"), item("b", ready=False, state="failed")], "1 of 2 servers ready"),
        (["start"], [item("a"), item("b", ready=False, state="disabled")], "1 server ready (1 disabled)"),
        (["start", "--no-wait"], [item("a"), item("b", ready=False)], "2 servers starting, 1 ready"),
        (["restart"], [item("a")], "1 server restarted"),
        (
            ["restart"],
            [item("a"), item("b", ready=False, state="draining")],
            "1 server restarted (1 draining)",
        ),
        (["restart", "--no-wait"], [item("a"), item("b")], "2 servers restarting"),
        (["start", "--tag", "x", "--allow-empty"], [], "no server selected"),
        (["stop"], [item("a", state="stopped", ready=False)], "1 server stopped: a"),
        (["stop"], [item("a", state="stopped"), item("b", state="stopping")], "1 of 2 servers stopped: a"),
        (["stop", "--no-wait"], [item("a", state="stopping")], "1 server stopping: a"),
        (["wait"], [item("a")], "1 server ready"),
        (["wait", "--for", "healthy"], [item("a"), item("b")], "2 servers healthy"),
    ],
)
def test_the_line_for_people(
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
        (["disable", "a"], "disabled", ["v", "w"], "1 server disabled, and 2 that depend on it stopped"),
        (["enable", "a"], "running", ["w"], "1 server enabled, 1 ready, and 1 that depends on it started"),
    ],
)
def test_dependents_of_the_selected_servers_are_counted_apart(
    poolctl: Command, supervised: Supervised, args: list[str], state: str, dependents: list[str], line: str
) -> None:
    items = [item("a", state=state, ready=state == "running")]
    with supervised(always(*items, dependents=dependents)):
        assert poolctl(*args).out == f"{line}\n"
        assert poolctl(*args, "-o", "json").json == {"schema": 1, "items": items, "errors": []}


def test_stop_names_the_first_of_many(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(*(item(f"s{at}", state="stopped", ready=False) for at in range(6)))):
        assert poolctl("stop").out == "6 servers stopped: s0, s1, s2, s3, s4 and 1 more\n"


def test_enable_counts_a_selected_dependent_once(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("db"), item("web"), dependents=["web"])):
        said = poolctl("enable", "--all").out
    assert said == "1 server enabled, 1 ready, and 1 that depends on it started\n"


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


def test_start_says_where_the_first_ten_servers_are(poolctl: Command, supervised: Supervised) -> None:
    items = [item(f"s{number}", 8000 + number) for number in range(12)]
    items[1]["state"] = items[1]["expose"] = "failed"
    items[2]["expose"] = "http://me:secret@host"
    with supervised(always(*items)):
        said = poolctl("start").out.splitlines()
        assert poolctl("start", "-q").out == ""
        assert "s0  " not in poolctl("start", "-o", "json").out
    assert said[0] == "12 servers ready"
    assert said[1:3] == ["s0   http://127.0.0.1:8000", "s2   http://me:********@host"]
    assert said[-2:] == ["s10  http://127.0.0.1:8010", "and 1 more: poolctl list"]
    with supervised(always(item("job", bind="job:job", expose=""))):
        assert poolctl("start").out == "1 server ready\n"


def test_restart_counts_no_server_as_ready_whose_replacement_failed(
    poolctl: Command, supervised: Supervised
) -> None:
    failure = {"code": 1325, "name": "b", "message": "the replacement exited with status 3", "hint": ""}
    with supervised(always(item("a"), item("b"), exit_code=1, errors=[failure])):
        said = poolctl("restart")
    assert said.out == "1 of 2 servers restarted\n"


@pytest.mark.parametrize("state", ["failed", "starting"])
def test_failures_are_listed_with_their_fix_and_the_exit_code(
    poolctl: Command, supervised: Supervised, state: str
) -> None:
    failure = {
        "code": 1323, "error": "ErrorPoolStart", "name": "orders", "bind": "127.0.0.1:8082",
        "message": "exited with status 3 before it was ready", "hint": "poolctl logs orders",
    }  # fmt: skip
    answer = always(item("users"), item("orders", ready=False, state=state), exit_code=1, errors=[failure])
    with supervised(answer):
        said = poolctl("start")
        document = poolctl("start", "-o", "json")
    assert said.code == document.code == 1
    assert said.out == "1 of 2 servers ready\nusers  http://127.0.0.1:8081\n"
    note = "note: poolctl keeps trying to start orders; poolctl stop orders ends that\n"
    assert said.err == (note if state == "starting" else "") + (
        "error: orders: exited with status 3 before it was ready\n  hint: poolctl logs orders\n"
    )
    assert document.json["errors"] == [failure]


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


def test_waiting_for_an_end_is_bounded() -> None:
    lasting = subprocess.Popen(["sleep", "60"])
    try:
        assert not await_end(lasting.pid, 0.01)
    finally:
        lasting.kill()
        lasting.wait()
    assert await_end(lasting.pid, 0.01)


def test_nothing_to_stop_is_no_failure(poolctl: Command, directory: Path) -> None:
    assert poolctl("stop") == (0, "nothing is running\n", "")
    assert poolctl("stop", "users").code == 0
    assert poolctl("stop", "usres").code == 4
    (directory / "pool.toml").write_text("broken [")
    assert poolctl("stop").code == 0
    (directory / "pool.toml").unlink()
    assert poolctl("stop").code == 5
    assert poolctl("--pool", "nobody", "stop").code == 6


def test_commands_reach_a_running_pool_whose_file_is_missing(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    (directory / "pool.toml").unlink()
    with supervised(always(*RUNNING)):
        assert poolctl("list", "-o", "name").out == "users\norders\n"
        assert poolctl("-c", "pool.toml", "list", "-o", "name").out == "users\norders\n"


def test_wait_gives_up_when_its_time_is_over(poolctl: Command) -> None:
    said = poolctl("wait", "--timeout", "0.1", "-o", "json")
    assert said.code == 124
    assert [each["name"] for each in said.json["items"]] == ["users", "orders"]
    assert said.json["errors"][0]["error"] == "ErrorTimeout"


def test_wait_for_stopped_is_over_where_nothing_runs(poolctl: Command) -> None:
    assert poolctl("wait", "--for", "stopped").out == "2 servers stopped\n"
    assert poolctl("wait", "nobody", "--for", "stopped").code == 4
    assert poolctl("wait", "nobody").code == 4


def test_wait_goes_on_when_the_supervisor_goes_away_meanwhile(
    poolctl: Command, supervised: Supervised
) -> None:
    asked = []

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        asked.append(body["options"]["timeout"])
        return None if len(asked) < 3 else result(item("users"))

    with supervised(answer):
        assert poolctl("wait", "--timeout", "20").code == 0
    assert 19 < asked[2] < asked[0] <= 20


def test_status_is_3_without_a_supervisor(poolctl: Command, directory: Path) -> None:
    assert poolctl("status") == (3, "no supervisor is running, 2 servers stopped\n", "")
    summary = poolctl("status", "-o", "json").json["summary"]
    assert summary == {
        "files": [str(directory / "pool.toml")], "supervisor_pid": None, "keeper_pid": None,
        "servers": 2, "should_run": 1, "ready": 0,
        "states": {"stopped": 1, "disabled": 1}, "health": {"unknown": 2},
    }  # fmt: skip
    (directory / "pool.toml").write_text("broken [")
    assert poolctl("status").code == 5


def test_status_names_servers_that_are_not_ready(poolctl: Command, supervised: Supervised) -> None:
    items = [item("a"), item("bb", ready=False, state="backoff"), item("c", ready=False, state="stopped")]
    states = {"running": 1, "backoff": 1, "stopped": 1}
    summary = {"name": "shop", "should_run": 2, "states": states}
    with supervised(always(*items, exit_code=3, summary=summary)):
        said = poolctl("status")
        document = poolctl("status", "-o", "json").json
    assert said == (3, "shop: 1 of 2 servers ready, 1 stopped, up 12s\n  bb  backoff\n", "")
    assert document["summary"]["should_run"] == 2
    assert document["summary"]["states"] == states


def test_a_pool_is_not_named_twice(poolctl: Command) -> None:
    assert poolctl("list", "--pool", "shop", "-c", "pool.toml").code == 2


def test_the_supervisors_own_words_about_usage_are_passed_on(
    poolctl: Command, supervised: Supervised
) -> None:
    error = {
        "code": 1320,
        "error": "ErrorParamEmpty",
        "message": "no server matches 'x'",
        "hint": "did you mean 'y'?",
    }
    with supervised(always(exit_code=4, errors=[error])):
        for command in (["list", "x"], ["show", "x"], ["walk", "x"], ["logs", "x"]):
            assert poolctl(*command) == (4, "", "error: no server matches 'x'\n  hint: did you mean 'y'?\n")


@pytest.mark.parametrize("command", ["start", "run"])
@pytest.mark.parametrize("exists", [True, False])
def test_interpreter_that_cannot_run_the_supervisor_is_8_with_its_reason(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch, command: str, exists: bool
) -> None:
    python = directory / "python"
    why = f"{python}: No such file or directory"
    if exists:
        why = "Fatal Python error: init_sys_streams: can't initialize sys standard streams"
        python.write_text(f'#!/bin/sh\necho "{why}" >&2\n')
        python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    said = poolctl(command)
    assert (said.code, said.out) == (8, "")
    assert said.err.startswith(f"error: the supervisor could not start: {why}\n")
