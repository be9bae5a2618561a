"""What `run -- CMD` says about servers that failed."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.run_session._failure_report import (
    death_lines,
    find_logs,
    last_lines,
    lines_beside,
    log_sections,
)
from poolctl.cli.run_session._pool_events import Death
from poolctl.control.client import AsyncClient
from poolctl.logs.log_line import LogLine
from poolctl.logs.log_tail import tail
from tests.stand_in import always, item, stand_in


def test_deaths_are_counted() -> None:
    died = {
        "a": [Death("", "killed by SIGKILL")],
        "b": [Death("", "exited with status 1"), Death("", "exited with status 7: Error: no disk")],
    }
    assert [*death_lines(died, "pytest", {})] == [
        "a died while pytest ran: killed by SIGKILL",
        "b died 2 times while pytest ran: exited with status 7: Error: no disk",
    ]
    logs = {"a": [LogLine("SIGKILL", time="", name="a")], "b": [LogLine("Error: no disk", time="", name="b")]}
    assert [*death_lines(died, "pytest", logs)] == [
        "a died while pytest ran: killed by SIGKILL",
        "b died 2 times while pytest ran: exited with status 7",
    ], "the log below says the rest"


def test_lines_that_the_reason_quotes_are_not_repeated() -> None:
    lines = [LogLine(text, time="") for text in ("Traceback", "  x.py, line 2", "KeyError: 'A'", "")]
    reason = "exited with status 3: cannot import 'x:app': KeyError: 'A'\n    x.py, line 2"
    assert [line.text for line in lines_beside(reason, lines)] == ["Traceback", ""]
    assert lines_beside(reason, lines[1:]) == [], "a blank line is no section"
    assert lines_beside("", lines) == lines
    secret = [LogLine("postgresql://u:secret@h/db failed", time="")]
    assert lines_beside("exited with status 4: postgresql://u:********@h/db failed", secret) == []


@pytest.mark.parametrize(
    ("env", "before", "after"),
    [
        ({}, "last 2 lines of a:\n", ""),
        ({"GITHUB_ACTIONS": "false"}, "last 2 lines of a:\n", ""),
        ({"GITHUB_ACTIONS": "true"}, "::group::last 2 lines of a\n", "::endgroup::\n"),
        (
            {"GITLAB_CI": "true"},
            "\x1b[0Ksection_start:99:poolctl_a[collapsed=true]\r\x1b[0Klast 2 lines of a\n",
            "\x1b[0Ksection_end:99:poolctl_a\r\x1b[0K\n",
        ),
    ],
)
def test_last_lines_are_folded_where_logs_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], before: str, after: str
) -> None:
    for name in ("GITHUB_ACTIONS", "GITLAB_CI"):
        monkeypatch.setenv(name, env.get(name, ""))
    log = tmp_path / "a.log"
    lines = [(7, "too early"), (8, "one"), (9, "::error::two\x1b[31m ##[error]")]
    log.write_text("".join(f"2026-11-20T08:47:0{at}.000000Z {text}\n" for at, text in lines))
    (tmp_path / "empty.log").write_text("")
    paths = {"a": str(log), "b": str(tmp_path / "empty.log"), "c": str(tmp_path / "none.log")}
    since = "2026-11-20T08:47:07.500000Z"
    logs = {name: tail(path, 20, since=since, name=name) for name, path in paths.items()}
    found = re.sub(r"(section_\w+):\d+", r"\1:99", log_sections(logs, objects=False))
    assert found == f"{before}a | one\na | ::error::two #\\x23[error]\n{after}"
    objects = [json.loads(line) for line in log_sections(logs, objects=True).splitlines()]
    assert [(each["server"], each["message"]) for each in objects] == [
        ("a", "one"),
        ("a", "::error::two\x1b[31m ##[error]"),
    ]


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory) -> PoolRef:
    return PoolRef(["/a/pool.toml"], str(tmp_path_factory.mktemp("p")))


def test_logs_are_those_that_the_servers_have(pool: PoolRef) -> None:
    shown = [
        item("web", config={"log": {"path": "/var/log/web.log"}}),
        item("api", config={}),
    ]
    with stand_in(Path(pool.socket), always(*shown)):
        found = asyncio.run(find_logs(AsyncClient(pool.socket), pool, ["api", "web", "gone", "api"]))
    assert found == {"api": f"{pool.logs_directory}/api.log", "web": "/var/log/web.log"}


def test_logs_of_a_pool_that_has_ended_are_its_default_files_and_at_most_ten(pool: PoolRef) -> None:
    names = [f"s{at}" for at in range(12)]
    found = asyncio.run(find_logs(AsyncClient(pool.socket), pool, names))
    assert found == {name: f"{pool.logs_directory}/{name}.log" for name in names[:10]}


@pytest.mark.parametrize(
    ("died", "expected"),
    [([], ["two", "three", "four"]), (["07"], ["two", "three", "four"]), (["08", "09"], ["three", "four"])],
)
def test_last_lines_are_those_of_the_last_attempt(
    tmp_path: Path, died: list[str], expected: list[str]
) -> None:
    log = tmp_path / "web.log"
    words = ["one", "two", "three", "four"]
    log.write_text("".join(f"2026-11-20T08:47:0{at}.500000Z {word}\n" for at, word in enumerate(words, 6)))
    deaths = {"web": [Death(f"2026-11-20T08:47:{second}.000000Z", "x") for second in died]}
    begun = 1795164427.0  # 08:47:07
    found = last_lines({"web": str(log), "none": str(tmp_path / "none.log")}, deaths, begun, objects=False)
    assert {name: [line.text for line in lines] for name, lines in found.items()} == {
        "web": expected, "none": [],
    }  # fmt: skip
    assert [line.level for line in last_lines({"web": str(log)}, {}, begun, objects=True)["web"]] == [""] * 3
