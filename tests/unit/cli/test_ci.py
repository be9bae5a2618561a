"""In a CI: annotations at places of the file, and no command to it from what servers print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.log_rendering import PrefixedLineFormatter
from poolctl.cli.output import (
    MAX_ANNOTATIONS,
    json_without_commands,
    lines_without_commands,
    without_commands,
)
from poolctl.logs.log_line import LogLine
from tests.stand_in import always, item

from .conftest import Command, Supervised


@pytest.fixture
def workspace(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of GitHub Actions around the working directory."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(directory.parent))
    return directory


def annotations(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("::error", "::warning"))]


def failure(name: str, message: str, **more: Any) -> dict[str, Any]:
    return {"code": 1323, "error": "ErrorPoolStart", "name": name, "message": message, **more}


def test_problem_is_annotated_at_its_place_in_the_workspace(poolctl: Command, workspace: Path) -> None:
    (workspace / "pool.toml").write_text('[[server]]\nname = "a"\ncommand = ["x"]\nwroking = "100%"\n')
    for arguments in (("validate",), ("validate", "-o", "json"), ("list",)):
        done = poolctl(*arguments)
        place = f"file={workspace.name}/pool.toml,line=4,col=1"
        assert f"::error {place}::server[0].wroking: unknown key 'wroking'; " in done.err
        assert "::error" not in done.out


def test_failed_server_and_warning_are_annotated_at_the_table_of_the_server(
    poolctl: Command, supervised: Supervised, workspace: Path
) -> None:
    answer: dict[str, Any] = {
        "exit_code": 1,
        "errors": [failure("orders", "exited: 100%\n    of it", hint="look")],
        "warnings": [
            "users: no probe",
            f"{workspace}/pool.toml:7:1: bind: is public",
            "no place",
            "orders has failed: src/app.py:12: as it printed",
            "127.0.0.1:8000: no file",
        ],
    }
    with supervised(always(**answer)):
        done = poolctl("start")
    file = f"file={workspace.name}/pool.toml"
    assert annotations(done.err) == [
        f"::error {file},line=10,col=1::orders: exited: 100%25%0A    of it; look",
        f"::warning {file},line=4,col=1::users: no probe",
        f"::warning {file},line=7,col=1::bind: is public",
        "::warning::no place",
        f"::warning {file},line=10,col=1::orders has failed: src/app.py:12: as it printed",
        "::warning::127.0.0.1:8000: no file",
    ]


def test_failed_server_of_a_list_is_annotated_once(
    poolctl: Command, supervised: Supervised, workspace: Path
) -> None:
    failed = {"name": "users", "state": "failed", "ready": False}
    with supervised(always(item(**failed), item(name="orders"))):
        done = poolctl("list")
    assert annotations(done.err) == [
        f"::error file={workspace.name}/pool.toml,line=4,col=1::users: failed",
    ]


def test_same_problem_in_two_files_is_annotated_in_both(poolctl: Command, workspace: Path) -> None:
    for name in ("a", "b"):
        table = f'[[server]]\nname = "{name}"\nwroking = 1\ncommand = ["x"]\n'
        (workspace / f"{name}.toml").write_text(table)
    found = annotations(poolctl("-c", "a.toml", "-c", "b.toml", "validate").err)
    assert [line.partition(",")[0] for line in found if "wroking" in line] == [
        f"::error file={workspace.name}/{name}.toml" for name in ("a", "b")
    ]


def test_printed_file_is_unchanged(poolctl: Command, workspace: Path) -> None:
    (workspace / "pool.toml").write_text('[[server]]\nname = "web"\ncommand = ["date", "##[%s]"]\n')
    assert "##[%s]" in poolctl("config").out


def test_a_command_writes_at_most_ten_annotations(
    poolctl: Command, supervised: Supervised, workspace: Path
) -> None:
    errors = [failure(f"s{number}", "failed") for number in range(MAX_ANNOTATIONS + 2)]
    with supervised(always(exit_code=1, errors=errors, warnings=["w"])):
        for _ in range(2):
            assert len(annotations(poolctl("start").err)) == MAX_ANNOTATIONS == 10


def test_file_outside_of_the_workspace_and_special_characters_of_its_path_are_kept(
    poolctl: Command, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = workspace / "a,b:c%.toml"
    odd.write_text('[[server]]\nname = "a"\ncommand = ["x"]\nwroking = 1\n')
    escaped = "a%2Cb%3Ac%25.toml"
    assert f"::error file={workspace.name}/{escaped},line=4,col=1::" in poolctl("-c", str(odd), "list").err
    monkeypatch.setenv("GITHUB_WORKSPACE", str(workspace / "elsewhere"))
    assert f"::error file={workspace}/{escaped},line=4,col=1::" in poolctl("-c", str(odd), "list").err
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    assert "::error" not in poolctl("-c", str(odd), "list").err


def test_quiet_command_annotates_errors_only(
    poolctl: Command, supervised: Supervised, workspace: Path
) -> None:
    answer: dict[str, Any] = {
        "exit_code": 1,
        "errors": [failure("users", "failed")],
        "warnings": ["users: no probe"],
    }
    with supervised(always(**answer)):
        assert [line[:7] for line in annotations(poolctl("start", "-q").err)] == ["::error"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a ##[error]b", r"a #\x23[error]b"),
        ("###[group]", r"##\x23[group]"),
        ("x ##vso[task.complete]", r"x #\x23vso[task.complete]"),
        ("##teamcity[buildStop]", r"#\x23teamcity[buildStop]"),
        ("\x1b[0Ksection_end:1:x\r", "\x1b[0Ksection\\x5fend:1:x\r"),
        ("a\n \t::error::b", "a\n \t\\x3a:error::b"),
        ("a\r::error::b", "a\r\\x3a:error::b"),
        ("::1 is fine, ::error:: too", "::1 is fine, ::error:: too"),
        ("## [a] # [b]", "## [a] # [b]"),
    ],
)
def test_commands_to_a_ci_are_escaped(text: str, expected: str) -> None:
    assert without_commands(text) == expected
    assert json.loads(json_without_commands({"a": text})) == {"a": text}
    assert "##" not in json_without_commands({"a": text}).replace("## [", "").replace("##\\u", "")


def test_first_line_of_output_is_no_command_either() -> None:
    assert lines_without_commands(" ::error::a\nb") == " \\x3a:error::a\nb"


def test_line_of_a_log_is_no_command() -> None:
    formatter = PrefixedLineFormatter(["web"])
    assert formatter.line(LogLine("##[error]a\r::error::b", name="web", time="")) == (
        "web | #\\x23[error]a\r\\x3a:error::b\n"
    )


def test_reason_and_output_of_a_server_are_no_commands(
    poolctl: Command, supervised: Supervised, workspace: Path
) -> None:
    said = "ended:\n    ::error::x\n    ##[error]y ##vso[z]"
    answer: dict[str, Any] = {
        "exit_code": 1,
        "errors": [failure("users", said, hint="::error::z\n::error::z")],
    }
    with supervised(always(**answer)):
        text, document = poolctl("start"), poolctl("start", "-o", "json")
    for done in (text, document):
        lines = [line.strip() for line in f"{done.out}{done.err}".splitlines()]
        assert [line for line in lines if line.startswith("::")] == annotations(done.err)
        assert "##[" not in f"{done.out}{done.err}"
        assert "##vso[" not in f"{done.out}{done.err}"
    assert document.json["errors"][0]["message"] == said
