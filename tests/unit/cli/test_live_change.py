"""reload, scale, drain, undrain, enable, disable, add, remove and pools, against a stand-in for the supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stand_in import Send, always, item, result

from .conftest import Command, Supervised

CHANGES = [
    {"name": "orders", "bind": "127.0.0.1:8082", "change": "add", "keys": [], "message": ""},
    {"name": "old", "bind": "127.0.0.1:8083", "change": "remove", "keys": [], "message": ""},
    {"name": "users", "bind": "127.0.0.1:8081", "change": "restart", "keys": ["env.A", "app"], "message": ""},
    {"name": "docs", "bind": "127.0.0.1:8084", "change": "update", "keys": ["tags"], "message": ""},
    {"name": "x", "bind": "", "change": "override", "keys": [], "message": "3 workers, the file says 1"},
]
PLAN = """\
+ orders 127.0.0.1:8082
- old 127.0.0.1:8083
~ users: env.A, app
= docs: tags
! x: 3 workers, the file says 1
"""
COUNTED = "1 added, 1 removed, 1 restarted, 1 updated in place, 1 reset to the file"


def test_reload_prints_applied_changes(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users"), changes=CHANGES)) as requests:
        said = poolctl("reload", "--timeout", "5s")
        document = poolctl("reload", "-o", "json").json
    assert said == (0, f"{PLAN}{COUNTED}\n", "")
    assert requests[0] == (
        "reload",
        {"selector": requests[0][1]["selector"],
         "options": {"timeout": 5.0, "wait": True, "dry_run": False, "progress": False}},
    )  # fmt: skip
    assert document["changes"] == CHANGES
    assert document["items"] == [item("users")]


def test_a_dry_run_is_3_when_there_is_a_difference(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(changes=CHANGES, exit_code=3)) as requests:
        assert poolctl("reload", "--dry-run") == (3, f"{PLAN}5 servers would change: {COUNTED}\n", "")
    assert requests[0][1]["options"]["dry_run"] is True
    with supervised(always(changes=[])):
        remark = "(code is not compared: `poolctl restart` takes it)"
        assert poolctl("reload", "--dry-run") == (0, f"nothing to do {remark}\n", "")
        assert poolctl("reload") == (0, f"nothing has changed {remark}\n", "")


def test_a_reload_that_failed_for_some_does_not_say_that_it_is_done(
    poolctl: Command, supervised: Supervised
) -> None:
    failed = {"code": 1325, "error": "ErrorPoolRestart", "name": "users", "message": "exited with status 3"}
    with supervised(always(changes=CHANGES[2:3], exit_code=1, errors=[failed])):
        said = poolctl("reload")
    assert said.code == 1
    assert said.out == "~ users: env.A, app\nnot everything could be applied\n"
    assert said.err == "error: users: exited with status 3\n"


def test_reload_warns_of_files_that_the_pool_was_not_started_with(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    (directory / "more.toml").write_text("")
    more = ["-c", "pool.toml", "-c", "more.toml"]
    with supervised(always(changes=[], files=[str(directory / "pool.toml")])):
        assert poolctl("reload").err == ""
        assert "started with pool.toml and reloads those" in poolctl(*more, "reload").err
    with supervised(always(changes=[], files=[str(directory / "pool.toml"), str(directory / "more.toml")])):
        assert poolctl(*more, "reload").err == ""


def test_reload_env_sends_this_environment(
    poolctl: Command, supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGION", "here")
    with supervised(always(changes=[])) as requests:
        poolctl("reload", "--env")
    assert requests[0][1]["options"]["env"]["REGION"] == "here"


def test_reload_of_a_broken_file_exits_5_with_its_problems_only(
    poolctl: Command, supervised: Supervised
) -> None:
    problem = {
        "code": 1322,
        "error": "ErrorPoolValidate",
        "file": "/p/pool.toml",
        "line": 3,
        "message": "unknown key",
    }
    with supervised(always(exit_code=5, errors=[problem])):
        assert poolctl("reload") == (5, "", "/p/pool.toml:3: unknown key\n")


@pytest.mark.parametrize(
    ("args", "items", "line"),
    [
        (["scale", "web", "3"], [item("web", workers=3)], "1 server scaled to 3 workers"),
        (["scale", "--all", "1"], [item("a"), item("b")], "2 servers scaled to 1 worker"),
        (["scale", "--all", "2"], [item("a", workers=2), item("b")], "1 of 2 servers scaled to 2 workers"),
        (["drain", "a"], [item("a", state="draining", ready=False)], "1 server out of rotation"),
        (["undrain", "--all"], [item("a")], "1 server in rotation"),
        (["enable", "a"], [item("a")], "1 server enabled, 1 ready"),
        (["disable", "a"], [item("a", state="disabled", ready=False)], "1 server disabled"),
        (["remove", "a"], [item("a", state="stopped")], "removed a 127.0.0.1:8081"),
        (["disable", "--tag", "x", "--allow-empty"], [], "no server selected"),
    ],
)  # fmt: skip
def test_the_line_for_people(
    poolctl: Command, supervised: Supervised, args: list[str], items: list[dict[str, Any]], line: str
) -> None:
    with supervised(always(*items)) as requests:
        assert poolctl(*args) == (0, f"{line}\n", "")
        assert poolctl(*args, "-o", "json").json == {"schema": 1, "items": items, "errors": []}
    assert {verb for verb, _ in requests} == {args[0]}


IDLE = {"state": "stopped", "ready": False}


@pytest.mark.parametrize(
    ("items", "unchanged", "lines"),
    [
        ([item("a")], ["a"], ["1 server enabled already"]),
        (
            [item("a", **IDLE)],
            ["a"],
            ["a is enabled already, and stopped: `poolctl start a` starts it"],
        ),
        (
            [item("a", **IDLE | {"state": "failed"})],
            ["a"],
            ["a is enabled already, and failed: `poolctl start a` starts it"],
        ),
        ([item("job", state="completed", ready=True)], ["job"], ["1 server enabled already"]),
        (
            [item("a"), item("b", **IDLE), item("c", **IDLE), item("d")],
            ["b", "c", "d"],
            [
                "1 server enabled, 1 ready",
                "1 server enabled already",
                "2 servers enabled already, and not running: `poolctl start b c` starts them",
            ],
        ),
        (
            [item(f"s{number}", **IDLE) for number in range(11)],
            [f"s{number}" for number in range(11)],
            ["11 servers enabled already, and not running: `poolctl start NAME...` starts them"],
        ),
    ],
)
def test_enable_says_which_servers_were_enabled_already(
    poolctl: Command,
    supervised: Supervised,
    items: list[dict[str, Any]],
    unchanged: list[str],
    lines: list[str],
) -> None:
    with supervised(always(*items, unchanged=unchanged)):
        assert poolctl("enable", "--all").out.splitlines() == lines
        assert poolctl("enable", "--all", "-o", "json").json == {"schema": 1, "items": items, "errors": []}


CHANGES_OF_SELECTED = [["remove"], ["disable"], ["enable"], ["drain"], ["undrain"], ["scale", "2"]]


@pytest.mark.parametrize("words", CHANGES_OF_SELECTED)
def test_a_change_without_a_selection_is_a_usage_error_that_counts_the_servers(
    poolctl: Command, supervised: Supervised, words: list[str]
) -> None:
    with supervised(always(item("a"), item("b"), item("c"))) as requests:
        said = poolctl(*words)
        saved = poolctl(*words, "--save")
    assert (said.code, said.out, saved.code) == (2, "", 2)
    assert f"{words[0]} without a selection would change all 3 servers of the pool" in said.err
    assert "--all" in said.err
    assert {verb for verb, _ in requests} == {"list"}, "something was asked to change"
    unsupervised = poolctl(*words)
    assert (unsupervised.code, "all 2 servers" in unsupervised.err) == (2, True)


@pytest.mark.parametrize("words", CHANGES_OF_SELECTED)
def test_all_is_an_explicit_selection_and_excludes_any_other(
    poolctl: Command, supervised: Supervised, words: list[str]
) -> None:
    verb, *number = words
    with supervised(always(item("a", workers=2), item("b", workers=2))) as requests:
        assert poolctl(verb, "--all", *number).code == 0
        for selection in (["a"], ["--tag", "api"], ["--not"]):
            said = poolctl(verb, "--all", *selection, *number)
            assert (said.code, "cannot be combined" in said.err) == (2, True), selection
    ((asked, body),) = requests
    assert (asked, body["options"]["all"], body["selector"]["targets"]) == (verb, True, [])


def test_a_pool_of_broken_files_is_not_counted_and_not_changed(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text("broken [")
    said = poolctl("remove", "--save")
    assert (said.code, "would change all servers of the pool" in said.err) == (2, True)


def test_the_number_of_scale_is_the_last_word(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("a"))) as requests:
        poolctl("scale", "a", "b*", "--tag", "api", "4")
    body = requests[0][1]
    assert (body["selector"]["targets"], body["selector"]["tag"]) == (["a", "b*"], ["api"])
    assert body["options"]["workers"] == 4


@pytest.mark.parametrize("args", [["scale"], ["scale", "web"], ["scale", "web", "0"], ["scale", "web", "10001"],
                                  ["scale", "web", "-1"], ["scale", "web", "2.5"]])  # fmt: skip
def test_invalid_number_of_workers_is_a_usage_error(poolctl: Command, args: list[str]) -> None:
    said = poolctl(*args)
    assert (said.code, said.out) == (2, "")


@pytest.mark.parametrize(
    "args",
    [["reload"], ["reload", "--dry-run"], ["scale", "users", "2"], ["drain", "users"],
     ["undrain", "--all"], ["enable", "--all"], ["disable", "users"],
     ["remove", "users"], ["add", "x", "--bind", ":1"]],
)  # fmt: skip
def test_without_a_supervisor_live_changes_are_6(poolctl: Command, args: list[str]) -> None:
    assert poolctl(*args).code == 6
    assert poolctl(*args, "-o", "json").json["errors"][0]["error"] == "ErrorNoSupervisor"


def test_add_sends_a_table_as_a_file_has_it(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    with supervised(always(item("new"))) as requests:
        said = poolctl(
            "add", "new", "--bind", "127.0.0.1:9", "--app", "hello:app", "--set", "workers=2",
            "--set", "env.LEVEL=debug", "--set", 'tags=["a", "b"]',
            "--set", "env.DAY=2026-01-01", "--set", 'env."odd.key"=a=b',
        )  # fmt: skip
    assert said == (0, "added new, ready\n", "")
    assert requests[0][1]["options"]["server"] == {
        "name": "new",
        "bind": "127.0.0.1:9",
        "app": "hello:app",
        "workers": 2,
        "tags": ["a", "b"],
        "env": {"LEVEL": "debug", "DAY": "2026-01-01", "odd.key": "a=b"},
    }
    assert requests[0][1]["options"]["base_dir"] == str(directory)


def test_lists_can_be_set_as_on_a_command_line(poolctl: Command, supervised: Supervised) -> None:
    words = ["tags=api, inner", "depends_on=db", "command=sh -c 'exec sleep 60'", "env.A=a,b"]
    with supervised(always(item("new"))) as requests:
        poolctl("add", "new", "--bind", ":9", *(part for word in words for part in ("--set", word)))
    assert requests[0][1]["options"]["server"] == {
        "name": "new",
        "bind": ":9",
        "tags": ["api", "inner"],
        "depends_on": ["db"],
        "command": ["sh", "-c", "exec sleep 60"],
        "env": {"A": "a,b"},
    }


def test_add_takes_a_program_without_a_port(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("queue"))) as requests:
        poolctl("add", "queue", "--command", "celery --app 'my shop' worker", "--set", "workers=2")
    assert requests[0][1]["options"]["server"] == {
        "name": "queue",
        "command": ["celery", "--app", "my shop", "worker"],
        "workers": 2,
    }


def test_add_takes_the_servers_of_a_file(poolctl: Command, supervised: Supervised, directory: Path) -> None:
    (directory / "more").mkdir()
    (directory / "more" / "two.yaml").write_text("- {name: a, listen: ':1'}\n- {name: b, bind: ':2'}\n")
    (directory / "one.json").write_text('{"name": "c", "bind": ":3"}')
    (directory / "full.toml").write_text('[[server]]\nname = "d"\nbind = ":4"\n')
    failing = {"code": 1323, "error": "ErrorPoolStart", "name": "a", "bind": "", "message": "no", "hint": ""}

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        name = body["options"]["server"]["name"]
        failed = {"errors": [failing], "exit_code": 1} if name == "a" else {}
        return result(item(name, ready=name != "a"), **failed)

    with supervised(answer) as requests:
        said = poolctl("add", "-f", "more/two.yaml", "-o", "json")
        assert poolctl("add", "-f", "one.json").code == 0
        assert poolctl("add", "-f", "full.toml").code == 0
    assert said.code == 1
    assert [each["name"] for each in said.json["items"]] == ["a", "b"]
    assert said.json["errors"] == [failing]
    assert [body["options"]["server"]["name"] for _, body in requests] == ["a", "b", "c", "d"]
    assert requests[0][1]["options"]["base_dir"] == str(directory / "more")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ([], 2), (["x", "-f", "pool.toml"], 2), (["x", "--set", "workers"], 2), (["x", "--set", "=2"], 2),
        (["x", "--set", "command=a 'b"], 2), (["x", "--command", "a 'b"], 2),
        (["x", "--command", "a", "--set", "command=b"], 2), (["--command", "a", "-f", "pool.toml"], 2),
        (["x", "--set", "name=y"], 2), (["x", "--bind", ":1", "--set", "bind=:2"], 2), (["-f", "gone.toml"], 5),
        (["-f", "pool.toml"], 5), (["-f", "empty.toml"], 5),
    ],
)  # fmt: skip
def test_invalid_addition_is_refused_before_anything_is_done(
    poolctl: Command, supervised: Supervised, directory: Path, args: list[str], code: int
) -> None:
    (directory / "empty.toml").write_text("")
    with supervised(always()) as requests:
        assert poolctl("add", *args).code == code
    assert requests == []


def test_pools_lists_the_pools_of_this_user(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    assert poolctl("pools") == (0, "", "note: no pool of this user is running\n")
    summary = {
        "name": "shop",
        "files": [str(directory / "pool.toml")],
        "supervisor_pid": 41,
        "keeper_pid": 40,
    }
    (directory / "run" / "dead").mkdir(parents=True)
    (directory / "run" / "dead" / "control.sock").touch()
    resting = [item(state, ready=False, state=state) for state in ("stopped", "disabled", "sleeping")]
    running = [item("users"), item("orders", ready=False), item("migrate", state="completed")]
    with supervised(always(*running, *resting, summary=summary, exit_code=3)):
        said = poolctl("pools")
        (pool,) = poolctl("pools", "-o", "json").json["items"]
        assert poolctl("pools", "-o", "name").out == "shop\n"
    assert said == (0, "NAME  PID  READY  FILES\nshop  41   2/3    pool.toml\n", "")
    assert pool["files"] == [str(directory / "pool.toml")]
    assert (pool["name"], pool["pid"], pool["servers"], pool["ready"]) == ("shop", 41, 6, 2)


def test_pool_that_does_not_answer_is_still_listed(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    async def hang_up(verb: str, body: dict[str, Any], send: Send) -> None:
        return None

    with supervised(hang_up):
        (place,) = (directory / "run").iterdir()
        (place / "info.json").write_text('{"name": "shop", "supervisor_pid": 7, "files": ["/pool.toml"]}')
        assert poolctl("pools").out == "NAME  PID  READY  FILES\nshop  7    ?      /pool.toml\n"
        assert "ended" in poolctl("pools", "-o", "json").json["items"][0]["message"]
