"""`poolctl reload`: the changes, and a dry run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stand_in import always, item

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
    with supervised(always(item("users"), changes=CHANGES[2:3], exit_code=1, errors=[failed])):
        said = poolctl("reload")
    assert said.code == 1
    assert said.out == "~ users: env.A, app\nnot everything could be applied; users still runs\n"
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


def test_watch_and_dry_run_cannot_be_combined(poolctl: Command) -> None:
    said = poolctl("reload", "--watch", "--dry-run")
    message = "error: --watch and --dry-run cannot be combined\n  hint: a dry run changes nothing\n"
    assert (said.code, said.err) == (2, message)


def test_warning_names_the_files_that_the_pool_was_started_with(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    for name in ("more.toml", "other.toml"):
        (directory / name).write_text("")
    files = [str(directory / name) for name in ("pool.toml", "other.toml")]
    with supervised(always(changes=[], files=files)) as requests:
        said = poolctl("-c", "pool.toml", "-c", "more.toml", "reload")
        assert said.err == (
            "warning: this pool was started with pool.toml, other.toml and reloads those; "
            "to change its files, stop it and start it with others\n"
        )
        assert [verb for verb, _ in requests] == ["reload", "ping"]
        poolctl("-c", "pool.toml", "reload")
        assert [verb for verb, _ in requests] == ["reload", "ping", "reload"]
