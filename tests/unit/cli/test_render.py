from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.cli import render
from poolctl.cli.outcome import Outcome
from poolctl.cli.render import (
    abbreviated_list,
    count_ready_and_expected,
    duration,
    gateway_line,
    ready_line,
    server_count_text,
    set_table_text,
    terminal_width_or_zero,
)
from poolctl.control.answers import ErrorEntry, Item, Result
from poolctl.control.gateway_answers import GatewayStats, GatewayStatus
from poolctl.control.server_answers import MeasuredServer
from poolctl.json_form import from_json, to_json
from tests.stand_in import always, item, server
from tests.terminal import Screen

from .conftest import Command, Supervised

USERS = server("users", 8081, pids=[7], tags=["api", "v1"])
OFF = server("off", 80, state="disabled", ready=False, health="unknown", pids=[], uptime_seconds=0.0, tags=[])


def failure(message: str, **where: Any) -> ErrorEntry:
    return from_json(ErrorEntry, {"code": 1, "error": "ErrorUnexpected", "message": message, **where})


def test_table_shows_how_long_a_window_keeps_a_server_awake_or_asleep() -> None:
    end = (
        (datetime.now() + timedelta(days=30))
        .replace(hour=18, minute=0, second=0, microsecond=0)
        .astimezone(UTC)
    )
    asleep = server("a", 81, state="sleeping", kept="asleep", kept_until=f"{end:%Y-%m-%dT%H:%M:%SZ}")
    head, users, awake, kept = render.text_of(
        [USERS, server("b", 82, kept="awake"), asleep], "table"
    ).splitlines()
    assert head.split()[-1] == "KEPT"
    assert (users.split()[-1], awake.split()[-1]) == ("-", "awake")
    assert kept.endswith(f"  asleep until {end.astimezone():%Y-%m-%d} 18:00")


def test_table_shows_when_a_job_runs_next_and_a_wide_one_how_its_last_run_ended() -> None:
    run = {"result": "failed", "started_at": "2026-11-22T03:00:00Z", "ended_at": "2026-11-22T03:01:30Z"}
    backup = server("backup", 81, state="sleeping", next_run_at="2026-11-23T03:00:00Z", last_run=run)
    head, users, job = render.text_of([USERS, backup], "table").splitlines()
    following = datetime(2026, 11, 23, 3, tzinfo=UTC).astimezone()
    assert (head[-8:], users.split()[-1]) == ("NEXT RUN", "-")
    assert job.endswith(f"  {following:%Y-%m-%d %H:%M %Z}")
    head, _, job = render.text_of([USERS, backup], "wide").splitlines()
    assert head.endswith("NEXT RUN              LAST RUN")
    last = datetime(2026, 11, 22, 3, tzinfo=UTC).astimezone()
    assert job.endswith(f"  failed {last:%Y-%m-%d %H:%M}")
    assert render.last_run_outcome_line(backup) == "backup: failed after 1m30s"


def shown_on_terminal(monkeypatch: pytest.MonkeyPatch, items: Sequence[Item], form: str, width: int) -> str:
    """The table for a terminal of this width, without colors."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    with Screen():
        return render.text_of(items, form)


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (80, ""),
        (65, "READY"),
        (50, "READY, PIDS, UPTIME"),
        (20, "READY, PIDS, UPTIME, HEALTH, RESTARTS"),
    ],
)
def test_table_leaves_out_columns_on_a_narrow_terminal_and_says_so(
    monkeypatch: pytest.MonkeyPatch, width: int, left_out: str
) -> None:
    every = ["NAME", "STATE", "READY", "HEALTH", "BIND", "PIDS", "UPTIME", "RESTARTS"]
    head, *rows = shown_on_terminal(monkeypatch, [USERS, OFF], "table", width).splitlines()
    assert head.split() == [each for each in every if each not in left_out.split(", ")]
    assert max(map(len, [head, *rows[:2]])) <= width
    assert (left_out != "") == (len(rows) > 2)
    assert f"{left_out} left out" in " ".join(rows) or not left_out


LONG = server("a-name-of-more-than-sixty-letters-that-somebody-has-chosen-for-it", 82, pids=[7])


def test_a_long_cell_is_shortened_before_a_column_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LONG.name in render.text_of([LONG], "table"), "not for a reader that is no terminal"
    lines = shown_on_terminal(monkeypatch, [USERS, OFF, LONG], "table", 90).splitlines()
    head, users, _, long = lines
    assert head.split() == ["NAME", "STATE", "READY", "HEALTH", "BIND", "PIDS", "UPTIME", "RESTARTS"]
    assert (len(long) <= 90, users[:5]) == (True, "users")
    assert re.match("a-name-of-.*…  running", long)


def test_a_wide_table_fits_into_120_columns_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    socket = replace(
        LONG, bind="unix:/run/a/long/directory/of/some/service/api.sock", pids=(70001, 70002, 70003)
    )
    for width in (80, 120):
        servers = [USERS, OFF, LONG, socket]
        head, *lines = shown_on_terminal(monkeypatch, servers, "wide", width).splitlines()
        assert head.split()[4:8] == ["BIND", "EXPOSE", "PIDS", "WORKERS"]
        assert max(map(len, lines)) <= 120


def test_a_wide_table_shows_the_workers_that_are_there_of_those_that_are_wanted() -> None:
    lines = render.text_of([replace(USERS, pids=(7, 8), workers=3)], "wide").splitlines()
    assert "2/3" in lines[1].split()


def test_a_wide_table_shows_the_rest_too() -> None:
    head, users, off = render.text_of([USERS, OFF], "wide").splitlines()
    assert head.split()[-1] == "TAGS"
    assert "http://127.0.0.1:8081" in users
    assert users.endswith("api,v1")
    assert off.endswith("-")


def measured(server: Item, **stats: Any) -> MeasuredServer:
    return from_json(MeasuredServer, {**to_json(server), "stats": stats})


def test_a_wide_table_shows_cpu_and_memory_where_they_were_measured() -> None:
    busy = measured(USERS, cpu_percent=12.34, memory_bytes=60 * 2**20)
    idle = measured(OFF, cpu_percent=0.0, memory_bytes=0)
    head, *lines = render.text_of([busy, idle], "wide").splitlines()
    assert head.split()[7:10] == ["WORKERS", "CPU", "MEMORY"]
    assert lines[0].split()[7:10] == ["1", "12.3%", "60MiB"]
    assert lines[1].split()[-6:-3] == ["1", "-", "-"]
    assert render.text_of([busy, idle], "cpu,memory") == "12.3%\t60MiB\n\t\n"
    assert "CPU" not in render.text_of([USERS], "wide")


def test_program_that_has_ended_by_itself_is_not_called_stopped() -> None:
    ended = replace(OFF, state="stopped", ended={"status": 0, "signal": None, "at": None})
    assert render.text_of([ended], "table").splitlines()[1].split()[:2] == ["off", "ended"]
    assert render.text_of([ended], "state") == "ended\n"


def test_no_servers_are_no_lines() -> None:
    assert render.text_of([], "table") == render.text_of([], "name") == ""


def test_json_lines_end_with_the_errors(capsys: pytest.CaptureFixture[str]) -> None:
    error = failure("exited with status 3", name="web")
    outcome = Outcome([USERS], errors=[error], warnings=["slow"], form="jsonl")
    outcome.errors_are_result = True
    render.show(outcome)
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"schema": 1, **to_json(each)} for each in (USERS, error)
    ]
    assert err == "warning: slow\nerror: web: exited with status 3\n"


def test_a_result_without_items_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    render.show(Outcome(text="poolctl 1.0\n", extra={"version": "1.0"}, form="jsonl"))
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "version": "1.0"}


def test_colours_are_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not render.coloured(io.StringIO())
    with Screen() as screen:
        for term, no_color, coloured in (("xterm", "", True), ("xterm", "1", False), ("dumb", "", False)):
            monkeypatch.setenv("TERM", term)
            monkeypatch.setenv("NO_COLOR", no_color)
            assert render.coloured(screen.stream) is coloured


def test_colours_change_nothing_but_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = render.text_of([USERS, OFF], "table")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Screen():
        coloured = render.text_of([USERS, OFF], "table")
    assert "\x1b[32mrunning" in coloured
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in uncoloured.splitlines()] == plain.splitlines()


def test_what_a_server_is_called_is_never_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    named = replace(USERS, name="[red]a[/red] :tada:")
    assert named.name in shown_on_terminal(monkeypatch, [named], "table", 100)


def test_quiet_leaves_results_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(errors=[failure("no")], warnings=["slow"], message="done")
    outcome.quiet = True
    render.show(outcome)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: no\n")


def test_json_is_one_document_whatever_else_there_is_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    render.show(Outcome([USERS], errors=[failure("no")], warnings=["slow"], text="text", form="json"))
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "schema": 1,
        "items": [to_json(USERS)],
        "errors": [to_json(failure("no"))],
        "warnings": ["slow"],
    }


def test_a_problem_of_a_file_begins_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    place = {"file": "/etc/pool.toml", "line": 7, "column": 1, "key": "server[1].binf"}
    problem = failure("unknown key 'binf'", hint="did you mean 'bind'?", **place)
    outcome = Outcome(errors=[problem])
    outcome.errors_are_result = True
    render.show(outcome)
    assert capsys.readouterr().out == (
        "/etc/pool.toml:7:1: server[1].binf: unknown key 'binf'; did you mean 'bind'?\n"
    )


def test_a_problem_in_the_working_directory_is_named_from_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = render.error_lines(failure("is empty", file=f"{tmp_path}/pool.toml"))
    assert line == "pool.toml: is empty"


def test_hints_of_several_lines_keep_their_shape() -> None:
    lines = list(render.error_lines(failure("invalid expression", hint="us(ers\n  ^")))
    assert lines[1:] == ["  hint: us(ers", "          ^"]


def test_a_hint_of_consecutive_errors_is_printed_once_after_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = {"file": "/etc/pool.toml", "line": 7}
    errors = [
        failure("a is taken", hint="choose another port"),
        failure("b is taken", hint="choose another port"),
        failure("c is slow", hint="look at its log"),
        failure("d is taken", hint="choose another port"),
        failure("e is odd"),
        failure("unknown key", hint="choose another port", **place),
        failure("unknown key", hint="choose another port", **place),
    ]
    render.show(Outcome(errors=errors))
    assert capsys.readouterr().err == (
        "error: a is taken\n"
        "error: b is taken\n"
        "  hint: choose another port\n"
        "error: c is slow\n"
        "  hint: look at its log\n"
        "error: d is taken\n"
        "  hint: choose another port\n"
        "error: e is odd\n"
        "/etc/pool.toml:7: unknown key; choose another port\n"
        "/etc/pool.toml:7: unknown key; choose another port\n"
    )
    render.show(Outcome(errors=errors, form="json"))
    document = json.loads(capsys.readouterr().out)
    assert document["errors"] == [to_json(each) for each in errors], "each error of the document has its hint"


@given(st.text())
def test_nothing_printed_drives_the_terminal(text: str) -> None:
    shown = render.printable(text)
    assert shown.isprintable()
    assert render.printable(shown) == shown


STATUS = GatewayStatus(
    state="running", pid=4711, addresses=("http://127.0.0.1:8080", "https://127.0.0.1:8443"), routes=12,
    uptime_seconds=75.0, restarts=0,
)  # fmt: skip
STATS = GatewayStats(
    requests_total=1200, refused_total=0, errors_total=3, requests_per_second=4.25, errors_per_second=0.0,
    connections=7, memory_bytes=20_000_000, cpu_percent=1.5,
)  # fmt: skip
WHOLE = "[gateway] running, http://127.0.0.1:8080, https://127.0.0.1:8443, 12 routes, pid 4711, up 1m15s"


def test_line_has_what_is_known() -> None:
    assert gateway_line(to_json(STATUS)) == WHOLE
    assert (
        gateway_line(to_json(replace(STATUS, stats=STATS)))
        == f"{WHOLE}, 4.2 requests/s, 1200 requests, 3 errors"
    )
    refused = gateway_line(to_json(replace(STATUS, stats=replace(STATS, refused_total=7))))
    assert refused.endswith("3 errors, 7 refused")
    for count, words in ((1, "1 replaced process"), (2, "2 replaced processes")):
        replaced = gateway_line(to_json(replace(STATUS, stats=replace(STATS, replaced_processes=count))))
        assert replaced.endswith(f"3 errors, {words}")
    starting = replace(STATUS, state="starting", pid=None, addresses=(), routes=1, uptime_seconds=0.0)
    assert gateway_line(to_json(starting)) == "[gateway] starting, 1 route"
    assert "1 restart" in gateway_line(to_json(replace(STATUS, restarts=1)))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_line_is_broken_where_a_terminal_ends(width: int) -> None:
    lines = gateway_line(to_json(replace(STATUS, stats=STATS)), width).split("\n")
    assert max(map(len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == gateway_line(to_json(replace(STATUS, stats=STATS)))


def test_gateway_is_no_server_of_the_list(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users"), gateway=to_json(STATUS))):
        document = poolctl("list", "-o", "json").json
        assert [each["name"] for each in document["items"]] == ["users"]
        assert document["gateway"] == to_json(STATUS)
        for form in ("table", "wide", "name", "jsonl", "name,state"):
            assert "gateway" not in poolctl("list", "-o", form).out, "scripts read lines of servers"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0.0s"),
        (4.24, "4.2s"),
        (9.9, "9.9s"),
        (10.0, "10s"),
        (59.0, "59s"),
        (60.0, "1m00s"),
        (61.0, "1m01s"),
        (3599.0, "59m59s"),
        (3600.0, "1h00m"),
        (86400.0, "1d00h"),
        (1051200, "12d04h"),
    ],
)
def test_duration_changes_its_units_at_whole_ones(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def answer(*items: Item, **members: Any) -> Result:
    return Result(items=items, **members)


def test_counts_and_lists_are_words() -> None:
    counts: list[tuple[int, ...]] = [(1,), (3,), (2, 3), (1, 1), (0, 1)]
    assert [server_count_text(*each) for each in counts] == [
        "1 server", "3 servers", "2 of 3 servers", "1 server", "0 of 1 server",
    ]  # fmt: skip
    assert abbreviated_list(["a", "b"], 2) == "a, b"
    assert abbreviated_list(["a", "b", "c"], 2) == "a, b and 1 more"
    assert abbreviated_list(["a", "b"], 1, "files") == "a and 1 more files"


def test_ready_line_tells_servers_at_rest_apart() -> None:
    asleep, disabled = (server(state, ready=False, state=state) for state in ("sleeping", "disabled"))
    job = server("job", ready=True, state="waiting", next_run_at="2026-11-23T03:00:00Z")
    found = answer(server("a"), asleep, disabled, server("b", ready=False))
    assert ready_line(found, waited=True) == "1 of 2 servers ready (1 sleeping, 1 disabled)"
    assert ready_line(found, waited=False) == "2 servers starting, 1 ready (1 sleeping, 1 disabled)"
    assert ready_line(found, waited=False, restarted=True) == "2 servers restarting (1 sleeping, 1 disabled)"
    assert ready_line(answer(server("a"), job), waited=True, restarted=True) == "1 server restarted"
    assert ready_line(answer(server("a"), job), waited=True) == "2 servers ready"
    tool = server("tool", ready=False, state="stopped", on_demand=True)
    assert (
        ready_line(answer(server("a"), asleep, tool), waited=True)
        == "1 server ready (1 sleeping, 1 on demand)"
    )
    assert ready_line(answer(server("a"), tool), waited=False) == "1 server starting, 1 ready (1 on demand)"
    assert ready_line(answer(), waited=True) == "no server selected"
    assert (
        ready_line(answer(without_servers=True), waited=True) == "the gateway serves; the pool has no server"
    )
    assert ready_line(answer(exit_code=1), waited=True) == ""


def test_servers_at_rest_are_not_expected_to_be_ready() -> None:
    rest = [server(state, ready=False, state=state) for state in ("stopped", "disabled", "sleeping")]
    assert count_ready_and_expected([server("a"), server("b", ready=False), *rest]) == (1, 2)
    assert count_ready_and_expected([server("job", state="stopped")]) == (1, 1)


def test_width_is_that_of_the_terminal_or_any(monkeypatch: pytest.MonkeyPatch) -> None:
    with Screen(columns=91) as screen, Screen() as unknown:
        for columns, width, width_of_unknown in (("77", 77, 77), ("wide", 0, 0), ("", 91, 0)):
            monkeypatch.setenv("COLUMNS", columns)
            assert terminal_width_or_zero(screen.stream) == width
            assert terminal_width_or_zero(unknown.stream) == width_of_unknown
        monkeypatch.setenv("COLUMNS", "77")
        assert terminal_width_or_zero(io.StringIO()) == 0


def test_output_without_a_descriptor_has_none(tmp_path: Path) -> None:
    with (tmp_path / "output").open("w") as file, redirect_stdout(file):
        assert render.stdout_fd() == file.fileno()
        file.close()
        assert render.stdout_fd() == -1
    for other in (io.StringIO(), None):
        with redirect_stdout(other):
            assert render.stdout_fd() == -1


def test_stacks_are_shown_with_their_worker_and_their_first_lines() -> None:
    document = {"name": "web", "worker": "web.0", "pid": 7, "problem": "no answer"}
    assert render.stack_lines(document) == ["worker web.0 (pid 7)", "no answer"]
    tasks = [{"names": ["t\x1b"], "count": 1, "waits": "a lock", "frames": []}] * 30
    lines = render.stack_lines({**document, "problem": "", "tasks": tasks})
    assert len(lines) == 21
    assert all(line.isprintable() for line in lines)


def test_table_of_routes_has_a_head_even_without_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(form: str, *lines: object) -> str | None:
        names = [str(getattr(line, "alias", "")) for line in lines]
        columns = ("alias", "last_seen")
        return set_table_text(Outcome(), form or None, lines, columns, names, ("last_seen",)).text

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "10")
    line = SimpleNamespace(alias="a\x1b", last_seen="now")
    assert listed("") == "ALIAS  LAST SEEN\n"
    text = listed("", line)
    assert text is not None
    assert text.splitlines()[1].split()[-1] == "now"
    with Screen():
        assert listed("", line) == "ALIAS\na\\x1b\nLAST SEEN left out; -o wide shows all\n"
        assert listed("wide", line) == text, "every column, on any terminal"
        assert "a" * 60 in (listed("wide", SimpleNamespace(alias="a" * 60, last_seen="now")) or "")
    assert listed("name", line) == "a\\x1b\n"
    assert listed("json", line) is None
    failed = Outcome.failed(1, "no")
    assert set_table_text(failed, None, [line], ("alias",), []).text is None


def test_outcome_prints_one_result_in_its_form(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(outcome: Outcome) -> str:
        assert render.show(outcome) == outcome.exit_code
        return capsys.readouterr().out

    streamed = Outcome(text="text", message="message", exit_code=3)
    streamed.streamed = True
    assert printed(streamed) == ""
    assert printed(Outcome(text="text", message="message")) == "text"
    assert printed(Outcome([USERS], form="name", message="message")) == "users\n"
    assert printed(Outcome(message="a\x1b\nb")) == "a\\x1b\nb\n"
    painted = Outcome(message="\x1b[1ma")
    painted.painted = True
    assert printed(painted) == "\x1b[1ma\n"
    quiet = Outcome(message="message")
    quiet.quiet = True
    assert printed(quiet) == ""
    assert printed(Outcome()) == ""


@pytest.mark.parametrize(("form", "is_shown"), [("table", True), ("wide", True), ("name", False)])
def test_footer_is_for_tables_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str, is_shown: bool
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    outcome = Outcome([USERS], form=form)
    outcome.footer = "foot\x1b\nand more"
    with Screen() as screen:
        render.show(outcome)
    assert screen.text().endswith("\n\nfoot\\x1b\nand more\n") is is_shown
    render.show(outcome)
    assert "foot" not in capsys.readouterr().out


def test_password_of_an_address_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    secret = replace(USERS, expose="http://me:secret@h")
    render.show(Outcome([secret, OFF], form="name,expose"))
    assert capsys.readouterr().out == "users\thttp://me:********@h\noff\thttp://127.0.0.1:80\n"
    assert secret.expose == "http://me:secret@h"


def test_path_is_relative_below_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [f"{tmp_path}/c", f"{tmp_path}c", str(tmp_path), "c"]
    assert [render.relative_to_cwd(path) for path in paths] == ["c", *paths[1:]]
    tmp_path.rmdir()
    assert render.relative_to_cwd(paths[0]) == paths[0]
    monkeypatch.chdir("/")
    assert render.relative_to_cwd("/a") == "/a"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (4.2, "4.2"), (9.96, "10.0"), (9, "9"), (10.4, "10"), (846.6, "847")]
)
def test_small_numbers_have_one_decimal_place(number: float, text: str) -> None:
    assert render.count_text(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.00085, "850µs"), (0.001, "1.0ms"), (0.0042, "4.2ms"), (0.9999, "999.9ms"), (1, "1.0s")],
)  # fmt: skip
def test_latency_has_its_unit(seconds: float | None, text: str) -> None:
    assert render.latency(seconds) == text


def test_gateway_below_a_table_has_its_problem_on_a_line_of_its_own() -> None:
    table = {
        "state": "failed", "problem": "port 80 is in use", "addresses": [], "routes": 1, "pid": None,
        "uptime_seconds": None, "restarts": 1,
    }  # fmt: skip
    assert render.footer_of(table, 0) == "[gateway] failed, 1 route, 1 restart\n  port 80 is in use"
    assert render.footer_of({**table, "problem": ""}, 21) == "[gateway] failed,\n  1 route, 1 restart"
    assert render.serves_line(table) == ""
    running = {**table, "state": "running", "addresses": ["http://a", "http://b"]}
    assert render.serves_line(running) == "the gateway serves http://a, http://b"


def test_tables_are_exactly_so() -> None:
    inherited = replace(
        USERS, name="fd", bind="fd:3", address="127.0.0.1:90", pids=(7, 8), workers=3, restarts=12
    )
    assert render.text_of([USERS, OFF, inherited], "table") == (
        "NAME   STATE     READY  HEALTH   BIND                 PIDS          UPTIME  RESTARTS\n"
        "users  running   true   ok       127.0.0.1:8081       7                12s         0\n"
        "off    disabled  false  unknown  127.0.0.1:80         -                  -         0\n"
        "fd     running   true   ok       fd:3 (127.0.0.1:90)  7 and 1 more     12s        12\n"
    )


def test_errors_are_coloured_by_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    place = {"file": "/etc/pool.toml", "line": 7, "key": "name"}
    with Screen() as screen:
        assert list(render.error_lines(failure("bad", hint="do so", **place), screen.stream)) == [
            "\x1b[1m/etc/pool.toml:7\x1b[0m: name: bad; do so"
        ]
        assert list(render.error_lines(failure("bad", hint="do\nso", name="web"), screen.stream)) == [
            "\x1b[1;31merror:\x1b[0m web: bad", "  \x1b[36mhint:\x1b[0m do", "        so",
        ]  # fmt: skip
    assert list(render.error_lines(failure("web is bad", name="web"))) == ["error: web is bad"]
    assert list(render.error_lines(failure("was bad", name="w"))) == ["error: w: was bad"]
    assert list(render.error_lines(failure("bad", bind=":80"))) == ["error: :80: bad"]
    assert list(render.error_lines(failure("", hint="x"), with_hint=False)) == ["error: failed"]


@pytest.mark.parametrize("harmful", ["\x1b]0;title\x07", "\x9b2J", "\u202etxt", "\x1b[2J"])
def test_outcome_is_escaped_on_a_terminal_wherever_it_comes_from(harmful: str) -> None:
    for outcome in (
        Outcome(text=f"\x1b[1mHEAD\x1b[0m\n{harmful}\n"),
        Outcome(message=harmful),
        Outcome([replace(USERS, tags=(harmful,))], form="name,tags"),
        Outcome(errors=[failure("failed", name=harmful)]),
    ):
        with Screen("stdout", "stderr") as screen:
            render.show(outcome)
        shown = re.sub("\x1b\\[[0-9;]*m", "", screen.text())
        assert shown.replace("\n", "").replace("\t", "").isprintable()


def test_text_for_another_program_is_not_changed(capsys: pytest.CaptureFixture[str]) -> None:
    render.show(Outcome(text="\u202ea\x1b[2J\n"))
    assert capsys.readouterr().out == "\u202ea\x1b[2J\n"
