"""list, filter, show, config, validate, schema, version: what the commands show, with and without a supervisor."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.stand_in import always, item

from .conftest import Command, Supervised


def test_without_a_supervisor_servers_are_stopped_or_disabled(poolctl: Command) -> None:
    items = poolctl("list", "-o", "json").json["items"]
    assert [(i["name"], i["state"], i["ready"], i["health"], i["pids"]) for i in items] == [
        ("users", "stopped", False, "unknown", []),
        ("orders", "disabled", False, "unknown", []),
    ]


def test_with_a_supervisor_it_is_asked(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users", pids=[7]))) as requests:
        assert poolctl("list", "--field", "pids").out == "7\n"
        assert poolctl("list", "users", "--not", "-o", "name,state").out == "users\trunning\n"
    assert requests[1][1]["selector"]["not"] is True


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


def test_validate_prints_the_number_of_servers_or_the_problems(poolctl: Command, directory: Path) -> None:
    assert poolctl("validate").out == "2 servers, ok\n"
    (directory / "pool.toml").write_text('[[server]]\nname = "a"\nbinf = "x"\n')
    said = poolctl("validate")
    assert said.code == 5
    assert "pool.toml:3:1: " in said.out
    (directory / "pool.toml").write_text("broken [")
    unreadable = poolctl("validate")
    assert (unreadable.code, unreadable.err) == (5, "")
    assert unreadable.out.startswith("pool.toml:1:")


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


def test_a_missing_file_and_none_at_all_are_5(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").unlink()
    none = poolctl("list", "-o", "json")
    assert none.code == 5
    assert "poolctl init" in none.json["errors"][0]["hint"]
    missing = poolctl("-c", "gone.toml", "list")
    assert missing.code == 5
    assert "gone.toml" in missing.err


def test_show_tells_where_each_value_comes_from(poolctl: Command) -> None:
    said = poolctl("show", "users")
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert lines[0] == "users"
    assert "state stopped" in lines
    assert any(
        line.startswith('bind = "127.0.0.1:8081" #') and line.endswith("pool.toml:6") for line in lines
    )
    assert not any(line.endswith("# default") for line in lines)
    assert {"job", "drain_timeout", "http"} <= set(" ".join(each for each in lines if each[0] == "#").split())
    full = [" ".join(line.split()) for line in poolctl("show", "users", "--full").out.splitlines()]
    assert "job = false # default" in full
    assert {each for each in lines if each[0] != "#"} < set(full)
    (shown,) = poolctl("show", "users", "-o", "json").json["items"]
    assert shown["config"]["tags"] == ["api", "inner"]
    assert shown["origin"]["tags"].endswith("pool.toml:8")


def test_show_leaves_out_the_defaults_of_a_table_in_one_line(poolctl: Command, directory: Path) -> None:
    text = (directory / "pool.toml").read_text()
    (directory / "pool.toml").write_text(f"{text}http = {{ keep_alive = 3 }}\n")
    lines = [line.strip() for line in poolctl("show", "orders").out.splitlines() if "http." in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("http.keep_alive = 3 ")


def test_show_of_a_running_server_has_its_live_state(poolctl: Command, supervised: Supervised) -> None:
    failure = {"message": "exited with status 3\n    Traceback"}
    running = item(
        "users",
        endpoints=["127.0.0.1:8081"],
        failure=failure,
        config={"env": {"A": "b"}, "user": None},
        origin={},
    )
    with supervised(always(running)):
        said = poolctl("show", "--full")
    assert "endpoints  127.0.0.1:8081" in said.out
    assert "failure    earlier: exited with status 3" in said.out, "it has been ready since"
    assert 'env.A = "b"\n' in said.out
    with supervised(always(running | {"state": "backoff", "ready": False})):
        assert "failure    exited with status 3" in poolctl("show").out


def test_configuration_is_printed_so_that_it_can_be_loaded_again(poolctl: Command, directory: Path) -> None:
    text = poolctl("config").out
    parsed = tomllib.loads(text)
    assert parsed["pool"]["name"] == "shop"
    assert [server["name"] for server in parsed["server"]] == ["users", "orders"]
    (directory / "again.toml").write_text(text)
    again = poolctl("-c", "again.toml", "config", "-o", "json").json
    first = poolctl("config", "-o", "json").json
    assert [each["config"] for each in again["items"]] == [each["config"] for each in first["items"]]
    assert first["pool"]["name"] == "shop"
    assert poolctl("config", "orders", "-o", "name").out == "orders\n"
    assert "********" not in text


def test_the_schema_stands_for_itself(poolctl: Command) -> None:
    assert "$schema" in json.loads(poolctl("schema").out)


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["name", "USERS"], "users"),
        (["bind", "http://127.0.0.1:8081"], "users"),
        (["bind", "nonsense:", "--regex", "8082"], "orders"),
        (["expose", "orders.example"], "orders"),
        (["expose", "--regex", "^https"], "orders"),
        (["name", "users", "--not"], "orders"),
        (["name", "--regex", ".", "--tag", "api"], "users"),
        (["name", "--regex", ".", "--state", "disabled", "--state", "stopped"], "users orders"),
        (["name", "--allow-empty"], ""),
    ],
)
def test_filter_matches_a_field(poolctl: Command, args: list[str], names: str) -> None:
    said = poolctl("filter", *args, "-o", "name")
    assert said.code == 0, said.err
    assert said.out.split() == names.split()


@pytest.mark.parametrize(
    ("args", "code", "hint"),
    [
        (["name"], 4, "--allow-empty"),
        (["name", "usres"], 4, "did you mean 'users'?"),
        (["nmae", "x"], 2, "did you mean 'name'?"),
        (["name", "--regex", "("], 2, "^"),
        (["name", "x", "--target", "colour"], 2, "one of: name"),
        (["name", "x", "--target", "bind", "-o", "json"], 2, "-o bind"),
        (["name", "users", "--state", "flying"], 2, "one of"),
    ],
)
def test_filter_reports_wrong_arguments(poolctl: Command, args: list[str], code: int, hint: str) -> None:
    said = poolctl("filter", *args)
    assert said.code == code
    assert hint in said.err


def test_filter_prints_another_field(poolctl: Command) -> None:
    assert (
        poolctl("filter", "name", "--regex", "u|o", "--target", "bind").out
        == "127.0.0.1:8081\n127.0.0.1:8082\n"
    )


def test_the_version_is_the_installed_one(poolctl: Command, supervised: Supervised) -> None:
    short = poolctl("version")
    assert short == poolctl("--version")
    assert short.out.startswith("poolctl ")
    assert short.out.count("\n") == 1
    with supervised(always(version="9.9")):
        assert "supervisor 9.9" in poolctl("version", "--verbose").out
        assert poolctl("version", "-o", "json").json["supervisor"] == "9.9"
    assert poolctl("version", "-o", "json").json["supervisor"] == ""
