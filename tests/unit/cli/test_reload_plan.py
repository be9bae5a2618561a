"""Commands say on standard error that the files have changed, and what would apply the change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.reload_plan import (
    change_lines,
    drift_line,
    drift_line_without_values,
    plan_lines,
    plan_text,
)
from poolctl.control.answers import PlannedChange, ReloadResult, Result
from poolctl.json_form import from_json
from tests.stand_in import always, item, server
from tests.terminal import Screen

from .conftest import Command, Supervised

CHANGED = "pool.toml has changed since the pool read it; `poolctl reload` applies it"


def test_note_is_on_stderr_and_the_document_keeps_its_form(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users"), changed={"files": ["pool.toml"], "added": 1, "changed": 1})):
        for verb in ("list", "start", "restart"):
            assert poolctl(verb).err == f"note: {CHANGED} (+1 ~1)\n"
        said = poolctl("list", "-o", "json")
        assert poolctl("list", "--quiet").err == ""
    assert said.json == {"schema": 1, "items": [item("users")], "errors": []}
    assert said.err == f"note: {CHANGED} (+1 ~1)\n"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"files": ["pool.toml"]}, CHANGED),
        (
            {"files": ["a.toml", "b.env"], "added": 0, "removed": 2, "changed": 0},
            "a.toml and b.env have changed since the pool read them; `poolctl reload` applies them (-2)",
        ),
        ({"files": ["pool.toml"], "added": 0}, f"{CHANGED} (no difference)"),
        (
            {"files": ["a", "b", "c", "d", "e"], "added": 1},
            "a, b, c and 2 more have changed since the pool read them; `poolctl reload` applies them (+1)",
        ),
        (
            {
                "files": ["pool.toml"],
                "problems": 3,
                "problem": {"message": "not closed", "hint": "close it", "file": "pool.toml", "line": 3},
            },
            (
                "pool.toml has changed since the pool read it, and is not valid: pool.toml:3: not closed "
                "(and 2 more: poolctl validate)"
            ),
        ),
    ],
)
def test_line_names_files_and_numbers_of_changes_or_the_first_problem(
    changed: dict[str, Any], line: str
) -> None:
    assert drift_line(changed) == line


def test_line_for_readers_who_may_see_no_values_names_places_below_the_directory() -> None:
    problem = {"message": "'s3cret' is not allowed", "hint": "", "file": "/srv/conf/pool.toml", "line": 3}
    changed = {"files": ["/srv/conf/pool.toml", "/etc/shop.env"], "problems": 1, "problem": problem}
    assert drift_line_without_values(changed, "/srv") == (
        "conf/pool.toml and /etc/shop.env have changed since the pool read them, and are not valid: "
        "conf/pool.toml:3 (poolctl validate shows the fix)"
    )
    assert drift_line_without_values({"files": ["/srv/pool.toml"]}, "/srv") == CHANGED


def change(kind: str, name: str = "a", **members: Any) -> PlannedChange:
    return from_json(
        PlannedChange, {"name": name, "bind": f"127.0.0.1:{len(name)}", "change": kind, **members}
    )


def test_each_kind_of_change_has_its_sign_and_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [
        change("add"), change("remove"), change("restart", keys=["env.A", "app"]), change("restart", message="code"),
        change("restart"), change("update", keys=["tags"]), change("override", message="3 workers"),
        change("override"), change("later", keys=["x"]),
    ]  # fmt: skip
    assert [*plan_lines(changes)] == [
        "+ a 127.0.0.1:1", "- a 127.0.0.1:1", "~ a: env.A, app", "~ a: code", "~ a: changed", "= a: tags",
        "! a: 3 workers", "! a: a live change ends", "? a: x",
    ]  # fmt: skip
    monkeypatch.setenv("TERM", "xterm")
    with Screen() as screen:
        coloured = [*plan_lines(changes[:1], stream=screen.stream)]
    assert coloured != [*plan_lines(changes[:1])]
    assert coloured[0].endswith("+ a 127.0.0.1:1\x1b[0m")


def plan(*changes: PlannedChange, exit_code: int = 0) -> ReloadResult:
    return ReloadResult(changes=changes, exit_code=exit_code)


def test_plan_counts_changes_of_each_kind_and_servers_that_would_change() -> None:
    both = plan(
        change("restart", keys=["app"]), change("override"), change("restart", "b"), change("add", "c")
    )
    assert plan_text(both).splitlines()[-1] == "1 added, 2 restarted, 1 reset to the file"
    assert plan_text(both, dry_run=True).splitlines()[-1] == (
        "3 servers would change: 1 added, 2 restarted, 1 reset to the file"
    )
    assert plan_text(plan(), with_code=True) == "nothing has changed"
    assert plan_text(plan(), dry_run=True, with_code=True) == "nothing to do"
    assert plan_text(plan()).startswith("nothing has changed (code is not compared")
    assert "not compared" not in plan_text(both)


def test_plan_that_failed_says_so_and_invalid_files_have_none() -> None:
    assert plan_text(plan(change("add"), exit_code=1)) == "+ a 127.0.0.1:1\nnot everything could be applied"
    assert plan_text(plan(exit_code=1)) == "not everything could be applied"
    assert plan_text(ReloadResult(exit_code=5)) == ""
    assert plan_text(plan(change("add"), exit_code=3)).splitlines()[-1] == "1 added"


def test_detected_change_is_a_plan_or_the_servers_whose_code_was_replaced() -> None:
    assert change_lines(plan(change("add"))) == ["+ a 127.0.0.1:1", "1 added"]
    assert change_lines(plan()) == ["nothing has changed"]
    items = (server("a"), server("b", ready=False))
    assert change_lines(Result(items=items)) == ["~ a: code"]


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"files": ["/p/a"]}, "a has changed since the pool read it; `poolctl reload` applies it"),
        ({"files": ["/p/a", "/p/b"]}, "a and b have changed since the pool read them; `poolctl reload` applies them"),
        ({"files": ["/p/a"], "added": 0, "removed": 0, "changed": 0},
         "a has changed since the pool read it; `poolctl reload` applies it (no difference)"),
        ({"files": ["/p/a"], "added": 1, "removed": 2, "changed": 3},
         "a has changed since the pool read it; `poolctl reload` applies it (+1 ~3 -2)"),
        ({"files": ["/p/a"], "added": 1, "removed": 0, "changed": 0, "applied": True},
         "a has changed, and no server that differs was running: the pool has read it again (+1)"),
        ({"files": ["/p/a"], "problem": {"code": 1, "message": "no", "file": "/p/a", "line": 7}, "problems": 1},
         "a has changed since the pool read it, and is not valid: a:7 (poolctl validate shows the fix)"),
        ({"files": ["/p/a", "/p/b"], "problem": {"code": 1, "message": "no"}, "problems": 3},
         "a and b have changed since the pool read them, and are not valid: a:1 (and 2 more: poolctl validate)"),
    ],
)  # fmt: skip
def test_public_line_of_changed_files(members: dict[str, Any], line: str) -> None:
    assert drift_line_without_values(members, "/p") == line


def test_line_shows_a_few_of_many_files(directory: Path) -> None:
    files = [f"/p/{number}" for number in range(5)]
    assert "/p/2 and 2 more have changed" in drift_line({"files": files})
    problem = {"code": 1, "message": "unknown key", "hint": "take it out", "file": "/p/0", "line": 3}
    line = drift_line({"files": ["/p/0"], "problem": problem, "problems": 1})
    assert line.endswith("is not valid: /p/0:3: unknown key (poolctl validate shows the fix)")
