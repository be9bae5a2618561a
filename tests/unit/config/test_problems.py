"""Every problem of every file in one run: its place, its key, its cause and its fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import Place, Problem
from poolctl.config.values.problems import (
    MAX_SUGGESTIONS,
    Finding,
    dotted,
    nearest,
    path_from_working_directory,
    problem_of,
    reset_suggestions,
    shortened_printable,
    shown,
    similar,
    unknown_key,
)
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
        ("timeout", "similar keys: start_timeout, stop_timeout, drain_timeout"),
        ("directories", "`poolctl config --schema` lists every key"),
        ("zzz", "`poolctl config --schema` lists every key"),
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
    ("address = 1", "'address'", 'write bind = "HOST:PORT"'),
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


LONG = "x" * 61


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (LONG, f"'{LONG[:60]}'…"),
        (LONG[:60], f"'{LONG[:60]}'"),
        ({"a": 1}, "a table"),
        ([1], "a list"),
        ((), "a list"),
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (1.5, "1.5"),
        (7, "7"),
        (1 << 199, str(1 << 199)),
        (1 << 200, "a very large number"),
    ],
)
def test_value_is_shown_in_a_few_words(value: object, text: str) -> None:
    assert shown(value) == text


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError


def test_value_that_cannot_be_printed_is_shown_by_its_type() -> None:
    assert shown(Unprintable()) == "a Unprintable"


def test_text_of_a_terminal_is_cut_and_escaped() -> None:
    assert shortened_printable("a b") == "a b"
    assert shortened_printable(LONG) == LONG[:60] + "…"
    assert shortened_printable("a\x1b[31m\n") == r"'a\x1b[31m\n'"
    assert dotted(("server", 1, "http", "root\npath")) == r"server[1].http.'root\npath'"
    assert dotted((1, "bind")) == "[1].bind"


def test_path_is_shown_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_from_working_directory(str(tmp_path / "a" / "pool.toml")) == "a/pool.toml"
    assert path_from_working_directory(f"{tmp_path}x/pool.toml") == f"{tmp_path}x/pool.toml"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert path_from_working_directory(f"{gone}/pool.toml") == f"{gone}/pool.toml"
    monkeypatch.chdir("/")
    assert path_from_working_directory("/etc/pool.toml") == "/etc/pool.toml"


@pytest.mark.parametrize(
    ("place", "name", "text"),
    [
        (
            Place("/a/pool.toml", 3, 5, "server[0].bind"),
            "web",
            "/a/pool.toml:3:5: server[0].bind: is wrong; fix it",
        ),
        (Place("/a/pool.toml", 3), "web", "/a/pool.toml:3: is wrong; fix it"),
        (Place("/a/pool.toml"), "", "/a/pool.toml: is wrong; fix it"),
        (Place(key="bind"), "web", "web: bind: is wrong; fix it"),
        (Place(), "", "is wrong; fix it"),
    ],
)
def test_problem_is_a_line_with_its_place_or_its_server(place: Place, name: str, text: str) -> None:
    assert str(Problem("is wrong", place=place, name=name, hint="fix it")) == text
    assert str(Problem("is wrong", place=place, name=name)) == text.removesuffix("; fix it")
    assert str(Place(key="bind")) == "bind"


def test_finding_becomes_a_problem_of_its_place_and_server() -> None:
    finding = Finding(("http", "port"), "is wrong", "fix it", "'x'", "a number")
    problem = problem_of(finding, name="web", bind=":1")
    assert (problem.key, problem.name, problem.bind) == ("http.port", "web", ":1")
    assert (problem.message, problem.hint, problem.found, problem.allowed) == (
        "is wrong", "fix it", "'x'", "a number",
    )  # fmt: skip
    assert problem_of(finding, Place("f", 1, 2)).place == Place("f", 1, 2, "http.port")
    assert problem_of(finding, Place("f", 1, 2, "server[0].http")).place == Place("f", 1, 2, "server[0].http")


@pytest.mark.parametrize(
    ("key", "found", "message", "hint", "shows"),
    [
        ("notify[0].password", "'hunter2'", "'hunter2' is too short", "not hunter2", False),
        ("server[0].env.API_TOKEN", "hunter2", "hunter2 is wrong", "", False),
        ("notify[0].password", "", "is missing", "", False),
        ("notify[0].password", "password", "unknown key 'password'", "", True),
        ("notify[0].password", "${VAR}", "${VAR} is not set", "", True),
        ("server[0].bind", "hunter2", "hunter2 is wrong", "not hunter2", True),
    ],
)
def test_secret_value_is_masked_in_its_problem(
    key: str, found: str, message: str, hint: str, shows: bool
) -> None:
    problem = Problem(message, place=Place(key=key), found=found, hint=hint)
    assert "hunter2" not in str(problem) or shows
    assert (problem.message == message) is (shows or not found)
    assert bool(problem.found) is bool(found)


def test_search_for_similar_words_ends_after_many_until_it_is_reset() -> None:
    reset_suggestions()
    try:
        assert nearest("workrs", ("workers", "bind")) == "workers"
        assert nearest("zzz", ("workers", "bind")) == ""
        assert similar(LONG, (LONG,), 1, 0.1) == []
        assert similar(LONG[:60], (LONG[:60],), 1, 0.1) == [LONG[:60]]
        assert similar("Start-Timeout", ("start_timeout", "stop_timeout"), 2, 0.1) == ["start_timeout"]
        for number in range(MAX_SUGGESTIONS):
            similar(f"word {number}", (), 1, 0.5)
        assert nearest("workrs", ("workers", "bind")) == ""
    finally:
        reset_suggestions()
    assert nearest("workrs", ("workers", "bind")) == "workers"


@pytest.mark.parametrize(
    ("path", "known", "table", "message", "hint"),
    [
        (("hooks", "ExecStartPre"), ("before_start",), "", "of another tool", 'write before_start = ["prog"'),
        (("certs",), ("cert",), "tls", "of another tool", "write tls = {"),
        (("x",), ("a", "b"), "", "unknown key 'x'", "known here: a, b"),
        (("x" * 80,), ("a",), "", f"unknown key {'x' * 60!r}", "known here: a"),
        (("bnid",), ("bind",), "", "unknown key", "did you mean 'bind'?"),
        (("ind",), ("bind",), "", "unknown key", "known here: bind"),
    ],
)
def test_unknown_key_of_a_table_has_a_fix(
    path: tuple[str | int, ...], known: tuple[str, ...], table: str, message: str, hint: str
) -> None:
    finding = unknown_key(path, known, table)
    assert message in finding.message
    assert hint in finding.hint
    assert finding.found == str(path[-1])[:60]
