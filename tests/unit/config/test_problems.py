"""Every problem of every file in one run: its place, its key, its cause and its fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.config_files import SERVER, assert_named_with_its_fix, load_text, told


def test_a_problem_is_a_document_of_the_command_line(tmp_path: Path) -> None:
    (problem,) = load_text(tmp_path, SERVER.replace("app =", "ap =")).problems[:1]
    document = problem.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["name"] == "web"
    assert document["bind"] == "127.0.0.1:8080"
    assert (document["code"], document["error"]) == (1322, "ErrorPoolValidate")
    assert (document["line"], document["column"], document["key"]) == (4, 1, "server[0].ap")
    assert "did you mean 'app'?" in document["hint"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("binf", "did you mean 'bind'?"),
        ("evn", "did you mean 'env'?"),
        ("Start-Timeout", "did you mean 'start_timeout'?"),
        ("ind", "similar keys: bind"),
        ("timeout", "similar keys: stop_timeout, start_timeout, drain_timeout"),
        ("zzz", "`poolctl schema` lists every key"),
        ("pre_start", 'another tool; write hooks = { before_start = ["prog", "argument"] }'),
        ("before_start", "write hooks = { before_start ="),
        ("ExecStartPre", "write hooks = { before_start ="),
        ("post_stop", "write hooks = { after_stop ="),
        ("ExecStopPost", "write hooks = { after_stop ="),
        ("schedule", 'another tool; write every = "0 3 * * *", and job = true'),
        ("cron", 'every = "0 3 * * *"'),
        ("OnCalendar", 'every = "0 3 * * *"'),
        ("cron_restart", "take it out: a crontab may call `poolctl restart NAME`"),
        ("autorestart", 'write restart = "always"'),
        ("numprocs", "write workers = N"),
        ("scalability", ""),
    ],
)
def test_unknown_key_is_given_the_key_that_was_meant_or_a_few_near_ones(
    tmp_path: Path, key: str, hint: str
) -> None:
    problem = told(tmp_path, f"{SERVER}{key} = 1\n")
    assert hint in problem
    assert problem.count(",") <= 6
    assert ("did you mean" in problem) == hint.startswith("did you mean")


WRONG: list[tuple[str, str, str]] = [
    # line to add, what the problem names, what the fix says
    ("binf = 1", "'binf'", "bind"),
    ("Workers = 1", "'Workers'", "did you mean 'workers'?"),
    ("start-timeout = 1", "'start-timeout'", "start_timeout"),
    ("depends-on = []", "'depends-on'", "depends_on"),
    ("address = 1", "'address'", "take it out"),
    ("base_dir = 'x'", "'base_dir'", "take it out"),
    ("restart = { polcy = 'no' }", "restart.polcy", "policy"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "named", "fix"), WRONG)
def test_wrong_value_is_named_with_its_fix(tmp_path: Path, line: str, named: str, fix: str) -> None:
    assert_named_with_its_fix(tmp_path, line, named, fix)


@pytest.mark.parametrize("value", [None, [], {}, "x" * 10_000, 10**1000, -1.5, True])
def test_found_value_of_any_kind_is_shown_on_one_short_line(tmp_path: Path, value: Any) -> None:
    servers = [
        {"name": "a", "bind": ":1", "app": "a:b", key: value} for key in ("tags2", "scale", "user", "bind")
    ]
    text = told(tmp_path, json.dumps(servers), "pool.json")
    assert all(len(line) < 1000 for line in text.splitlines())
