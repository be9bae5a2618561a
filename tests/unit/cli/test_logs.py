from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import tzname
from typing import Any

import pytest

from poolctl.cli.log_rendering import terminal_text
from poolctl.cli.main import main
from poolctl.cli.options import BadValue, parse_time, timestamp
from poolctl.control.pool_paths import pool_key
from poolctl.feature import FEATURES
from poolctl.logs.log_line import stamp
from poolctl.routing.context import KEY_CHARACTERS, context_value
from tests.stand_in import Send, always, item, result
from tests.terminal import Screen

from .conftest import Command, Supervised

NOW = datetime.now(UTC).timestamp()


@pytest.fixture
def logs(directory: Path) -> Path:
    """The default log files, with two lines of each server a minute apart."""
    path = directory / "run" / pool_key(str(directory / "pool.toml")) / "state" / "logs"
    path.mkdir(parents=True, mode=0o700)
    os.chmod(path.parents[1], 0o700)
    for at, name in enumerate(("users", "orders")):
        lines = [f"{stamp(NOW - 7200 + at)} old {name}", f"{stamp(NOW - 60 + at)} new {name}"]
        (path / f"{name}.log").write_text("\n".join(lines) + "\n")
    return path


def test_logs_are_merged_in_the_order_of_time(poolctl: Command, logs: Path) -> None:
    assert poolctl("logs").out == (
        "users  | old users\norders | old orders\nusers  | new users\norders | new orders\n"
    )


def test_the_last_lines_of_each_server(poolctl: Command, logs: Path) -> None:
    assert poolctl("logs", "-n", "1").out == "users  | new users\norders | new orders\n"
    assert poolctl("logs", "users", "-n0").out == ""
    assert poolctl("logs", "users", "--lines", "all").out.count("\n") == 2


@pytest.mark.parametrize(
    "since",
    ["90m", "5400", (datetime.now() - timedelta(minutes=90)).isoformat(),
     (datetime.now(UTC) - timedelta(minutes=90)).isoformat()],
    ids=["duration", "seconds", "local time", "UTC"],
)  # fmt: skip
def test_lines_since_a_time(poolctl: Command, logs: Path, since: str) -> None:
    assert poolctl("logs", "users", "--since", since).out == "users | new users\n"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("03:00", "2026-11-29 03:00"),
        ("3:00", "2026-11-29 03:00"),
        ("23:59:59.5", "2026-11-29 23:59:59.5"),
        ("today", "2026-11-29 00:00"),
        ("yesterday", "2026-11-28 00:00"),
        ("yesterday 18:00", "2026-11-28 18:00"),
        ("tomorrow", "2026-11-30 00:00"),
        ("now", "2026-11-29 12:30"),
        ("1 hour ago", "2026-11-29 11:30"),
        ("2h 30min ago", "2026-11-29 10:00"),
        ("2 days 3 hours ago", "2026-11-27 09:30"),
        ("-90s", "2026-11-29 12:28:30"),
        ("+1 hour", "2026-11-29 13:30"),
        ("90m", "2026-11-29 11:00"),
        ("1.5 hours", "2026-11-29 11:00"),
        ("60", "2026-11-29 12:29"),
        ("1 week ago", "2026-11-22 12:30"),
        ("@1767225600", "2026-01-01T00:00Z"),
        ("2026-07-01", "2026-07-01 00:00"),
        ("2026-07-01 12:00", "2026-07-01 12:00"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00Z"),
        ("2026-01-31T12:00:00+05:00", "2026-01-31T07:00Z"),
        (f"Sun 2026-11-29 03:00:00 {tzname[0]}", "2026-11-29 03:00"),
        ("2026-11-29 03:00:00 UTC", "2026-11-29T03:00Z"),
    ],
)
def test_times_are_those_of_journalctl(text: str, meant: str) -> None:
    found = parse_time(text, datetime(2026, 11, 29, 12, 30))
    assert found.timestamp() == datetime.fromisoformat(meant.replace(".5", ".500000")).timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "soon",
        "25:00",
        "12:60",
        "3 parsecs ago",
        "1 2",
        "2026-13-01",
        "yesterday noon",
        "@",
        "1h2",
        f"{10**19}y",
    ],
)
def test_text_that_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(BadValue, match="is not a time"):
        timestamp(text)


def test_verbose_lines_carry_their_time(poolctl: Command, logs: Path) -> None:
    assert poolctl("logs", "users", "-v", "-n1").out == f"users | {stamp(NOW - 60)} new users\n"
    assert poolctl("logs", "users", "-v", "--no-timestamps", "-n1").out == "users | new users\n"


def test_lines_until_a_time(poolctl: Command, logs: Path) -> None:
    assert poolctl("logs", "users", "--until", "90m").out == "users | old users\n"
    assert poolctl("logs", "--since", "3h", "--until", "3h").out == ""


@pytest.mark.parametrize(
    ("args", "same"), [("-o table", ""), ("-o wide", "-v"), ("users --tail 1", "users -n1"), ("-v", "-t")]
)
def test_option_has_another_name(poolctl: Command, logs: Path, args: str, same: str) -> None:
    assert poolctl("logs", *args.split()) == poolctl("logs", *same.split())


def test_last_lines_are_those_of_the_lines_that_match(poolctl: Command, logs: Path) -> None:
    assert poolctl("logs", "--grep", "^old", "-n1").out == "users  | old users\norders | old orders\n"
    assert (
        poolctl("logs", "--grep", "old u", "--grep", "w o").out == "users  | old users\norders | new orders\n"
    )
    assert poolctl("logs", "--grep", "absent") == (0, "", "")


@pytest.fixture
def levels(logs: Path) -> Path:
    """A log with lines of several levels, among them a traceback."""
    lines = [
        "INFO:     started", '{"level": "error", "msg": "no answer"}', "plain", "2026-01-01 12:00:00 [WARNING] slow",
        "ERROR:    Exception in ASGI application", "Traceback (most recent call last):", "  File x", "ValueError: bad",
        "plain again",
    ]  # fmt: skip
    path = logs / "users.log"
    path.write_text("".join(f"{stamp(NOW + at)} {line}\n" for at, line in enumerate(lines)))
    return path


@pytest.mark.parametrize(
    ("word", "found"), [("error", [1, 4, 5, 6, 7]), ("WARN", [1, 3, 4, 5, 6, 7]), ("critical", [])]
)
def test_lines_of_at_least_a_level(poolctl: Command, levels: Path, word: str, found: list[int]) -> None:
    written = [line[28:] for line in levels.read_text().splitlines()]
    assert poolctl("logs", "users", "--raw", "--level", word).out.splitlines() == [
        written[at] for at in found
    ]
    assert poolctl("logs", "users", "--raw", "--level", word, "-n1").out.splitlines() == [
        written[at] for at in found[-1:]
    ]


def test_terminal_shows_times_of_lines_that_show_none_and_levels_in_colours(
    poolctl: Command, levels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(*args: str) -> list[str]:
        with Screen() as screen:
            assert main(["logs", "users", *args]) == 0
        return screen.text().splitlines()

    monkeypatch.setenv("TERM", "xterm")
    texts = shown("--tail", "all")
    prefix = "\x1b[36musers | \x1b[0m"
    faint_time = re.compile(r"\x1b\[2m([\d-]+ )?\d\d:\d\d:\d\d\.\d{3}\x1b\[0m ")
    assert all(faint_time.search(text) for at, text in enumerate(texts) if at != 3)
    assert faint_time.sub("", texts[0]) == f"{prefix}\x1b[32mINFO\x1b[0m:     started"
    assert faint_time.sub("", texts[1]) == f"{prefix}\x1b[31mERROR\x1b[0m no answer"
    assert texts[3] == f"{prefix}2026-01-01 12:00:00 [\x1b[33mWARNING\x1b[0m] slow"
    assert shown("--no-timestamps", "-n1") == [f"{prefix}plain again"]


ACCESS = 'INFO:     127.0.0.1:1 - "GET / HTTP/1.1" 404 Not Found 3.1ms'


@pytest.mark.parametrize("shown", [False, True])
def test_request_ids_are_shown_only_where_they_are_configured(
    poolctl: Command, supervised: Supervised, directory: Path, shown: bool
) -> None:
    record = json.dumps({"message": "GET / 404", "request_id": "abc", "status": 404})
    (directory / "own.log").write_text(f"{ACCESS} 5b6a1f0f\n{record}\n")
    config = {"log": {"path": str(directory / "own.log")}, "http": {"request_id": shown}}
    with supervised(always(item("users", config=config))):
        name = " 5b6a1f0f" if shown else ""
        pair = " request_id=abc" if shown else ""
        assert poolctl("logs").out == f"users | {ACCESS}{name}\nusers | GET / 404{pair} status=404\n"
        assert poolctl("logs", "-v").out.count("5b6a1f0f") == 1
        assert "5b6a1f0f" in poolctl("logs", "--raw").out


@pytest.mark.parametrize(
    "args",
    [
        ["--level", "loud"], ["--until", "soon"], ["-f", "--until", "1m"], ["-t", "--no-timestamps"], ["-t", "--raw"],
        ["-n", "some"], ["-n", "-1"], ["--since", "some time"], ["--since", "2026-13-01"], ["-o", "name"],
        ["--raw", "-o", "json"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_contradictions_and_unknown_words_are_usage_errors(
    poolctl: Command, logs: Path, args: list[str]
) -> None:
    assert poolctl("logs", *args).code == 2


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_is_lines(poolctl: Command, logs: Path, form: str) -> None:
    documents = [json.loads(line) for line in poolctl("logs", "-o", form).out.splitlines()]
    assert documents[0] == {
        "time": stamp(NOW - 7200), "name": "users", "level": None, "line": "old users",
    }  # fmt: skip
    assert len(documents) == 4


def test_a_configured_path_is_read_instead(poolctl: Command, supervised: Supervised, directory: Path) -> None:
    (directory / "own.log").write_text("a line\n")
    with supervised(always(item("users", config={"log": {"path": str(directory / "own.log")}}))):
        assert poolctl("logs").out == "users | a line\n"


RECORD = {"level": "warning", "msg": "slow", "path": "/a b", "ms": 12, "trace": "one\ntwo"}


@pytest.fixture
def json_logs(logs: Path) -> Path:
    """A log with a record, and a line that only looks like one."""
    lines = [json.dumps(RECORD), '{"half": ']
    (logs / "users.log").write_text("".join(f"{stamp(NOW)} {line}\n" for line in lines))
    return logs


def test_json_lines_are_rendered_for_people(poolctl: Command, json_logs: Path) -> None:
    assert poolctl("logs", "users").out == (
        'users | WARNING slow path="/a b" ms=12\nusers |     trace:\nusers |         one\n'
        'users |         two\nusers | {"half": \n'
    )


def test_raw_lines_are_as_the_server_wrote_them(poolctl: Command, json_logs: Path) -> None:
    assert poolctl("logs", "users", "--raw").out == f'{json.dumps(RECORD)}\n{{"half": \n'


def test_json_output_has_the_record_next_to_the_line(poolctl: Command, json_logs: Path) -> None:
    documents = [json.loads(line) for line in poolctl("logs", "users", "-o", "json").out.splitlines()]
    assert [document.get("record") for document in documents] == [RECORD, None]
    assert documents[0]["line"] == json.dumps(RECORD)


def test_a_configured_path_is_read_without_a_supervisor_too(poolctl: Command, directory: Path) -> None:
    (directory / "own.log").write_text("a line\n")
    with (directory / "pool.toml").open("a") as file:
        file.write('log = { path = "own.log" }\n')
    assert poolctl("logs", "orders").out == "orders | a line\n"


def test_servers_that_have_written_nothing_are_no_failure(poolctl: Command) -> None:
    assert poolctl("logs") == (0, "", "")


def test_pool_without_a_gateway_has_no_log_of_it(
    poolctl: Command, logs: Path, supervised: Supervised
) -> None:
    for word in ("gateway", "--gateway"):
        said = poolctl("logs", word)
        assert (said.code, said.out) == (4, "")
    assert "the pool has no gateway" in said.err
    with supervised(always(item("users"))):
        assert "the pool has no gateway" in poolctl("logs", "--gateway").err


@pytest.fixture
def gateway_logs(directory: Path) -> Path:
    """The logs of a gateway, with two lines each."""
    place = directory / "run" / pool_key(str(directory / "pool.toml"))
    (place / "state").mkdir(parents=True, mode=0o700, exist_ok=True)
    place.chmod(0o700)
    for file, text in (
        (place / "gateway.log", "report"),
        (place / "state" / "gateway-access.log", "request"),
    ):
        lines = [f"{stamp(NOW - 90 + at)} {text} {at}" for at in range(2)]
        file.write_text("\n".join(lines) + "\n")
    return place


BOTH = "[gateway] | report 0\n[access]  | request 0\n[gateway] | report 1\n[access]  | request 1\n"


@pytest.mark.parametrize("more", [[], ["--raw"], ["-o", "json"]])
def test_names_of_servers_are_shown_without_the_secret_that_haproxy_sends_them(
    poolctl: Command, gateway_logs: Path, supervised: Supervised, more: list[str]
) -> None:
    name = context_value("users", KEY_CHARACTERS * "a", "users")
    (gateway_logs / "gateway.log").write_text(f"[WARNING] (7) : Server route:users/{name} is UP\n")
    with supervised(always(item("users"), gateway={"state": "running"})):
        assert "Server route:users/users is UP" in poolctl("logs", "--gateway", *more).out


@pytest.mark.parametrize("words", [["--gateway"], ["gateway"]])
def test_logs_of_the_gateway_are_merged_alone(
    poolctl: Command, gateway_logs: Path, supervised: Supervised, words: list[str]
) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if body["selector"].get("targets"):
            error = {"code": 4, "error": "ErrorNothingMatched", "message": "no server matches"}
            return result(exit_code=4, errors=[error])
        return result(item("users"), gateway={"state": "running"})

    with supervised(answer):
        assert poolctl("logs", *words) == (0, BOTH, "")


@pytest.mark.skipif("gateway" not in FEATURES, reason="there is no gateway")
def test_gateway_of_a_file_needs_no_supervisor(
    poolctl: Command, gateway_logs: Path, logs: Path, directory: Path
) -> None:
    with (directory / "pool.toml").open("a") as file:
        file.write('[gateway]\nbind = ":8080"\n[[route]]\npath = "/"\nto = "users"\n')
    assert poolctl("logs", "--gateway") == (0, BOTH, "")
    assert poolctl("logs", "users", "--gateway", "-n1").out == (
        "[gateway] | report 1\n[access]  | request 1\nusers     | new users\n"
    )
    for each in gateway_logs.rglob("gateway*.log"):
        each.write_text("")
    hint = "note: no output yet; `access_log = true` in [gateway] logs each proxied request\n"
    assert poolctl("logs", "--gateway") == (0, "", hint)
    assert poolctl("logs", "--gateway", "--since", "1m") == (0, "", "")
    assert poolctl("logs", "--gateway", "--grep", "x") == (0, "", "")


def test_pool_without_a_gateway_says_how_it_gets_one(poolctl: Command, logs: Path) -> None:
    message = "error: the pool has no gateway\n  hint: a [gateway] or a [[route]] in the file adds one\n"
    assert poolctl("logs", "--gateway") == (4, "", message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-f", "--until", "1m"], "--until and --follow cannot be combined\n  hint: --until ends before new lines"),
        (["-t", "--no-timestamps"], "--timestamps and --no-timestamps cannot be combined"),
        (["-t", "--raw"], "--timestamps and --raw cannot be combined"),
        (["--raw", "-o", "json"],
         "--raw and -o cannot be combined\n  hint: --raw prints lines as servers wrote them"),
    ],
)  # fmt: skip
def test_options_that_exclude_each_other_are_named(poolctl: Command, args: list[str], message: str) -> None:
    assert poolctl("logs", *args).err == f"error: {message}\n"


def test_terminal_is_told_why_nothing_is_shown(poolctl: Command, logs: Path) -> None:
    for file in logs.iterdir():
        file.write_text("")
    for args, note in (
        ([], "no output yet"),
        (["--grep", "x"], "no line matches"),
        (["--since", "1m"], "no line matches"),
    ):
        with Screen():
            assert poolctl("logs", *args) == (0, "", f"note: {note}\n")


def test_raw_lines_on_a_terminal_have_no_control_characters(
    poolctl: Command, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (logs / "users.log").write_text(f"{stamp(NOW)} a\x07b\x1b[31mc\n")
    for colours in (True, False):
        monkeypatch.setenv("TERM", "xterm" if colours else "dumb")
        with Screen() as screen:
            assert main(["logs", "users", "--raw"]) == 0
        assert screen.text() == terminal_text("a\x07b\x1b[31mc", colours=colours) + "\n"
    assert poolctl("logs", "users", "--raw").out == "a\x07b\x1b[31mc\n"
