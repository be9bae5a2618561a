"""A pool without a supervisor: its files, the selection of its servers, and the limit of regular expressions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.cli.offline import choose, load, servers_with_chosen_ports, summary_of
from poolctl.cli.options import Selection
from poolctl.cli.outcome import Failure
from poolctl.cli.pool_ref import PoolRef
from poolctl.feature import FEATURES
from tests.slow_expression import HOSTILE_TEXT, SLOW_EXPRESSION
from tests.stand_in import server

from .conftest import Command


def test_an_invalid_file_is_5_with_every_problem(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text('[[server]]\nname = "a"\nbinf = "x"\nworkers = -1\n')
    for command in ("list", "show", "config", "walk", "logs", "validate"):
        said = poolctl(command, "-o", "json")
        assert said.code == 5, command
        assert len(said.json["errors"]) >= 2, command
        assert {error["code"] for error in said.json["errors"]} == {1322}, command
    text = poolctl("list")
    assert "pool.toml:3" in text.err
    assert text.out == ""


def test_no_server_at_all_is_a_problem_unless_allowed(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text('[pool]\nname = "x"\n')
    said = poolctl("validate")
    assert (said.code, "no server" in said.out) == (5, True)
    assert poolctl("validate", "--allow-empty").out == "0 servers, ok\n"
    assert poolctl("list").code == 5
    nothing = poolctl("list", "--allow-empty")
    assert nothing == (0, "", "note: the pool has no servers\n")
    assert poolctl("list", "--allow-empty", "--tag", "x").err == "note: no server matches\n"
    assert poolctl("list", "--allow-empty", "-q").err == ""


POOL = f'[[server]]\nname = "{HOSTILE_TEXT}"\nbind = "127.0.0.1:8081"\ncommand = ["sleep", "60"]\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [["list", "--name"], ["filter", "name", "--regex"], ["remove", "--save", "--name"]],
    ids=" ".join,
)
def test_an_expression_that_takes_too_long_is_a_usage_error(
    poolctl: Command, directory: Path, line: list[str]
) -> None:
    (directory / "pool.toml").write_text(POOL)
    said = poolctl(*line, SLOW_EXPRESSION)
    assert (said.code, said.out) == (2, "")
    assert ": the regular expression takes more than 0.25 s" in said.err
    assert "avoid repeats within repeats" in said.err
    assert poolctl("list", "--name", "^a+b$").code == 0


@pytest.mark.slow
def test_search_in_logs_is_bounded_in_each_line_and_not_in_all(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text(POOL + 'log = { path = "own.log" }\n')
    (directory / "own.log").write_text("short\n" * 2000 + f"{HOSTILE_TEXT}\n")
    said = poolctl("logs", "--grep", SLOW_EXPRESSION)
    assert (said.code, said.out) == (2, "")
    assert "--grep: the regular expression takes more than" in said.err
    assert poolctl("logs", "--grep", "^a+b$").out.endswith("ab\n")


def test_summary_counts_states_and_health(directory: Path) -> None:
    found = [
        server("a"), server("b", ready=False, state="starting", health="unknown"),
        server("c", ready=False, state="disabled", health="unknown"),
        server("d", ready=False, state="stopped", health="unknown", on_demand=True),
    ]  # fmt: skip
    assert summary_of(found, PoolRef(["/p/pool.toml"], "/run/x")) == {
        "files": ["/p/pool.toml"], "supervisor_pid": None, "keeper_pid": None, "servers": 4, "should_run": 2,
        "ready": 1, "states": {"running": 1, "starting": 1, "disabled": 1, "stopped": 1},
        "health": {"ok": 1, "unknown": 3},
    }  # fmt: skip


AUTO = """\
[pool]
port_range = "%d-%d"
[[server]]
name = "a"
bind = "127.0.0.1:auto"
command = ["sleep", "60", "{port}"]
[[server]]
name = "b"
bind = "127.0.0.1:auto"
command = ["sleep", "60", "{port}"]
"""


def test_automatic_ports_are_those_of_an_earlier_start_or_chosen_now(
    directory: Path, free_port: Callable[..., int]
) -> None:
    first = free_port(2)
    (directory / "pool.toml").write_text(AUTO % (first, first + 1))
    ref = PoolRef([str(directory / "pool.toml")], str(directory / "run" / "abc123"))
    config = load(ref)
    assert [each.address.port for each in servers_with_chosen_ports(config, ref)] == [None, None]
    chosen = [each.address.port for each in servers_with_chosen_ports(config, ref, choose_ports=True)]
    assert sorted(filter(None, chosen)) == [first, first + 1]
    assert [each.address.port for each in servers_with_chosen_ports(config, ref)] == chosen


def test_routes_of_a_server_and_masked_secrets_are_in_its_description(
    poolctl: Command, directory: Path
) -> None:
    text = (directory / "pool.toml").read_text()
    (directory / "pool.toml").write_text(f'{text}env = {{ API_KEY = "hidden" }}\n')
    users, orders = poolctl("show", "-o", "json").json["items"]
    assert orders["config"]["env"] == {"API_KEY": "********"}
    assert "routes" not in users
    revealed = poolctl("show", "orders", "--reveal", "-o", "json").json["items"]
    assert revealed[0]["config"]["env"] == {"API_KEY": "hidden"}
    if "gateway" in FEATURES:
        (directory / "pool.toml").write_text(
            f'[gateway]\n[[route]]\nalias = "api"\npath = "/v1"\nto = "users"\n{text}'
        )
        users, orders = poolctl("show", "-o", "json").json["items"]
        assert users["routes"] == [{"alias": "api", "protocol": "http", "host": "", "path": "/v1"}]
        assert orders["routes"] == []


def test_selection_that_matches_nothing_ends_the_command() -> None:
    with pytest.raises(Failure) as caught:
        choose([server("users")], Selection(targets=["usres"]))
    (error,) = caught.value.outcome.errors
    assert (caught.value.outcome.exit_code, error.hint) == (4, "did you mean 'users'?")
