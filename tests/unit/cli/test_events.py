"""`poolctl events` over a journal, with a supervisor and without one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from poolctl.control.pool_paths import pool_key
from poolctl.logs.log_line import stamp
from tests.stand_in import Answer, Send, always, item, result

from .conftest import POOL, Command, Supervised

NOW = datetime.now(UTC).timestamp()
ROOT = {"uid": 0, "pid": 42, "user": "root", "command": "poolctl"}


def event(
    seq: int, kind: str, word: str, server: str = "", age_seconds: float = 60, **more: Any
) -> dict[str, Any]:
    return {
        "time": stamp(NOW - age_seconds), "schema": 1, "seq": seq, "kind": kind, "event": word, "server": server,
        "message": "", "cause": "", "by": None, "before": None, "after": None, **more,
    }  # fmt: skip


EVENTS = [
    event(1, "pool", "supervisor started", age_seconds=7200),
    event(2, "audit", "start", message="start", by=ROOT),
    event(3, "lifecycle", "running", "users", message="starting → running", before="starting", after="running",
          cause="start"),
    event(4, "lifecycle", "failed", "orders", message="starting → failed", after="failed", cause="exited\x1b[2J"),
    event(5, "audit", "start failed", message="start", by=ROOT, servers=["users", "orders"], duration_seconds=0.5,
          cause="exited"),
]  # fmt: skip


def state(directory: Path) -> Path:
    path = directory / "run" / pool_key(str(directory / "pool.toml")) / "state"
    path.mkdir(parents=True, mode=0o700, exist_ok=True)
    os.chmod(path.parent, 0o700)
    return path


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in events))
    return path


@pytest.fixture
def journal(directory: Path) -> Path:
    """The journal in its default place, whose last line is torn."""
    path = write(state(directory) / "events.jsonl", EVENTS[2:])
    write(path.with_name("events.jsonl.1"), EVENTS[:2])
    with path.open("a") as file:
        file.write('{"time": "')
    return path


def numbers(said: str) -> list[int]:
    return [json.loads(line)["seq"] for line in said.splitlines()]


def test_events_are_printed_as_sentences_oldest_first(poolctl: Command, journal: Path) -> None:
    said = poolctl("events")
    assert said.code == 0
    lines = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in said.out.splitlines()]
    assert lines == [
        "pool       -       supervisor started",
        "audit      -       start  [root, poolctl 42]",
        "lifecycle  users   starting → running (start)",
        "lifecycle  orders  starting → failed (exited\\x1b[2J)",
        "audit      -       start: failed after 0.5 s (exited)  [root, poolctl 42]",
    ]


def test_table_is_the_default_form(poolctl: Command, journal: Path) -> None:
    assert poolctl("events", "-o", "table") == poolctl("events")


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_is_lines_as_they_are_in_the_journal(poolctl: Command, journal: Path, form: str) -> None:
    said = poolctl("events", "-o", form)
    assert [json.loads(line) for line in said.out.splitlines()] == EVENTS


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["-n", "2"], [4, 5]),
        (["-n", "0"], []),
        (["-n", "all"], [1, 2, 3, 4, 5]),
        (["--since", "90m"], [2, 3, 4, 5]),
        (["--kind", "audit"], [2, 5]),
        (["--kind", "audit", "--kind", "pool"], [1, 2, 5]),
        (["users"], [3, 5]),
        (["orders", "--kind", "lifecycle"], [4]),
        (["--not", "users", "-n", "1", "--kind", "lifecycle"], [4]),
        (["--tag", "api", "--kind", "lifecycle"], [3]),
    ],
)
def test_events_are_selected_by_options(
    poolctl: Command, journal: Path, args: list[str], found: list[int]
) -> None:
    assert numbers(poolctl("events", "-o", "jsonl", *args).out) == found


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["nobody"], 4, "no server matches 'nobody'"),
        (["--kind", "wether"], 2, "unknown value 'wether'"),
        (["-n", "many"], 2, "not a number of lines"),
        (["--since", "2026-13-01"], 2, "not a time"),
        (["-o", "name"], 2, "--output: unknown value 'name'"),
    ],
)
def test_wrong_arguments_of_events_are_refused(
    poolctl: Command, journal: Path, args: list[str], code: int, words: str
) -> None:
    said = poolctl("events", *args)
    assert (said.code, said.out) == (code, "")
    assert words in said.err


def test_without_a_journal_nothing_has_happened(poolctl: Command) -> None:
    assert poolctl("events") == (0, "", "")


def test_the_files_say_where_the_journal_is(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text(POOL + '[events]\npath = "elsewhere/e.jsonl"\n')
    write(directory / "elsewhere" / "e.jsonl", EVENTS)
    assert numbers(poolctl("events", "-o", "json").out) == [1, 2, 3, 4, 5]


def test_configured_journal_is_read_although_the_default_one_exists(
    poolctl: Command, journal: Path, directory: Path
) -> None:
    (directory / "pool.toml").write_text(POOL + '[events]\npath = "e.jsonl"\n')
    write(directory / "e.jsonl", EVENTS[:1])
    assert numbers(poolctl("events", "-o", "json").out) == [1]


def test_events_reads_the_journal_when_the_file_is_broken(
    poolctl: Command, journal: Path, directory: Path
) -> None:
    (directory / "pool.toml").write_text("broken [")
    said = poolctl("events", "-o", "json", "-n1")
    assert numbers(said.out) == [5]
    assert re.fullmatch(
        rf"warning: pool.toml:1:\d+: .+; the path of \[events\] is not known, and events are read from {journal} "
        r"\(`poolctl validate` shows the fix\)\n",
        said.err,
    ), said.err
    assert poolctl("events", "--quiet").err == ""
    assert poolctl("events", "users").code == 5, "which servers there are is not known"


@pytest.mark.parametrize(("table", "is_known"), [("[events]\npath = 3\n", False), ("[nonsense]\n", True)])
def test_events_warns_of_a_problem_that_hides_the_journals_path(
    poolctl: Command, journal: Path, directory: Path, table: str, is_known: bool
) -> None:
    (directory / "pool.toml").write_text(POOL + table)
    said = poolctl("events", "-o", "json")
    assert numbers(said.out) == [1, 2, 3, 4, 5]
    assert ("the path of [events] is not known" in said.err) is not is_known


def test_a_supervisor_says_where_the_journal_is_and_which_servers_there_are(
    poolctl: Command, directory: Path, supervised: Supervised
) -> None:
    path = write(directory / "e.jsonl", EVENTS)
    (directory / "pool.toml").write_text("broken [")

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "events":
            return {"schema": 1, "items": [], "errors": [], "exit_code": 0, "path": str(path), "seq": 5}
        return {"schema": 1, "items": [item("orders")], "errors": [], "exit_code": 0}

    with supervised(answer):
        assert numbers(poolctl("events", "orders", "-o", "json").out) == [4, 5]


def test_a_supervisor_of_an_older_version_is_done_without(
    poolctl: Command, journal: Path, supervised: Supervised
) -> None:
    refused = {"schema": 1, "items": [], "errors": [{"message": "does not know 'events'"}], "exit_code": 2}
    with supervised(always(refused)):
        assert numbers(poolctl("events", "-o", "json", "-n1").out) == [5]


def followed(
    poolctl: Command, supervised: Supervised, answer: Answer, *words: str
) -> tuple[Any, list[dict[str, Any]]]:
    """What `events -f` prints until it follows for the third time, and the options of its requests until then."""
    follows: list[dict[str, Any]] = []

    async def answer_twice(verb: str, body: dict[str, Any], send: Send) -> Any:
        if verb == "events" and body["options"].get("follow"):
            follows.append(body["options"])
            if len(follows) > 2:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                await asyncio.Event().wait()
        return await answer(verb, body, send)

    with supervised(answer_twice):
        said = poolctl("events", "-f", *words)
    return said, follows[:2]


def test_new_events_follow_the_past_ones_and_each_is_printed_once(
    poolctl: Command, supervised: Supervised, journal: Path
) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if body["options"].get("follow"):
            send({"event": event(5 + len(asked), "pool", "supervisor started")})
            send({"event": event(90, "audit", "start")})
            asked.append(body)
        return result(path=str(journal), seq=5)

    asked: list[Any] = []
    said, follows = followed(poolctl, supervised, answer, "-n", "1", "--kind", "pool", "-o", "json")
    assert said.code == 130
    assert numbers(said.out) == [1, 5, 6]
    assert [each["after"] for each in follows] == [5, 90]


def test_events_go_on_in_the_journal_while_there_is_no_supervisor(
    poolctl: Command, supervised: Supervised, journal: Path
) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        if not body["options"].get("follow"):
            return result(path=str(journal), seq=5)
        asked.append(body["options"]["after"])
        if len(asked) == 1:
            write(journal, [event(6, "pool", "stopped"), event(7, "pool", "started")])
        else:  # another journal has taken its place
            write(journal, [event(1, "pool", "first"), event(2, "pool", "second")])
            journal.with_name("events.jsonl.1").unlink(missing_ok=True)
        return None

    asked: list[int] = []
    said, _ = followed(poolctl, supervised, answer, "-n", "0", "-o", "json")
    assert said.code == 130
    assert numbers(said.out) == [6, 7, 1, 2]
    assert asked == [5, 7]


def test_author_of_an_event_is_shown_where_there_is_room(poolctl: Command, journal: Path) -> None:
    write(journal, [event(9, "lifecycle", "running", "users", message="up", by=ROOT)])
    journal.with_name("events.jsonl.1").unlink()
    assert "[root, poolctl 42]" not in poolctl("events").out
    assert poolctl("events", "-o", "wide").out.endswith("[root, poolctl 42]\n")
    assert poolctl("events", "-v").out.endswith("[root, poolctl 42]\n")
