"""Contract §3: one selector language, here on a pool that is not running."""

from __future__ import annotations

import pytest

from tests.real_pool import RealPool

POOL = """
[defaults]
app = "hello:app"
[[server]]
name = "users-api"
bind = "127.0.0.1:8081"
expose = "http://users.local"
tags = ["api", "v1"]
[[server]]
name = "Orders-API"
bind = "127.0.0.1:8082"
expose = "http://orders.local"
tags = ["api"]
[[server]]
name = "admin"
bind = "[::1]:9000"
tags = ["Private"]
[[server]]
name = "off"
bind = "127.0.0.1:9001"
disabled = true
"""
ALL = ["users-api", "Orders-API", "admin", "off"]


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write("pool.toml", POOL)
    return real_pool


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ("", ALL),
        ("admin", ["admin"]),
        ("ADMIN", ["admin"]),
        ("orders-api", ["Orders-API"]),
        ("admin users-api", ["users-api", "admin"]),
        ("admin admin", ["admin"]),
        ("127.0.0.1:8082", ["Orders-API"]),
        ("[0:0:0:0:0:0:0:1]:9000", ["admin"]),
        ("*-api", ["users-api", "Orders-API"]),
        ("127.0.0.1:*", ["users-api", "Orders-API", "off"]),
        ("127.0.0.1:900?", ["off"]),
        ("a*", ["admin"]),
        ("USERS-*", ["users-api"]),
        ("*", ALL),
        ("[::1]:*", ["admin"]),
        ("--name api$", ["users-api"]),
        ("--name API", ["Orders-API"]),
        ("--name (?i)api", ["users-api", "Orders-API"]),
        ("--name ^users --name ^admin", ["users-api", "admin"]),
        ("--bind :808", ["users-api", "Orders-API"]),
        ("--expose users", ["users-api"]),
        ("--tag api", ["users-api", "Orders-API"]),
        ("--tag api --tag Private", ["users-api", "Orders-API", "admin"]),
        ("--tag api --name users", ["users-api"]),
        ("--state disabled", ["off"]),
        ("--state stopped", ["users-api", "Orders-API", "admin"]),
        ("--state stopped --state disabled", ALL),
        ("--health unknown", ALL),
        ("--tag api --not", ["admin", "off"]),
        ("--not admin", ["users-api", "Orders-API", "off"]),
        ("*-api --tag v1", ["users-api"]),
        ("off admin --state stopped", ["admin"]),
        ("--bind 808[12] --not", ["admin", "off"]),
        ("--tag v1 --tag api --expose orders", ["Orders-API"]),
        ("--name api --bind 8081 --expose users --tag api --state stopped --health unknown", ["users-api"]),
        ("--not --allow-empty *", []),
        ("--allow-empty --tag none", []),
    ],
)
def test_a_selector_chooses_in_the_order_of_the_file(
    pool: RealPool, arguments: str, chosen: list[str]
) -> None:
    assert pool.ok("list", *arguments.split(), "-o", "name").stdout.split() == chosen


@pytest.mark.parametrize(
    "arguments",
    ["nobody", "admin nobody", "nobody --allow-empty", "*nobody*", "*nobody* --allow-empty", "10.0.0.1:80",
     "--tag private", "--tag a*", "--expose USERS", "admin --tag api",
     "--name ^nobody", "--state running", "--health ok", "--tag api --state disabled",
     "--name . --not"],
)  # fmt: skip
def test_selection_without_a_match_is_exit_4(pool: RealPool, arguments: str) -> None:
    done = pool.run("list", *arguments.split())
    assert done.code == 4, str(done)
    assert done.stdout == ""
    assert done.stderr


@pytest.mark.parametrize(
    ("typed", "meant"), [("usres-api", "users-api"), ("admn", "admin"), ("127.0.0.1:8083", "")]
)
def test_an_unknown_target_is_answered_with_near_names(pool: RealPool, typed: str, meant: str) -> None:
    done = pool.run("list", typed)
    assert done.code == 4
    assert typed in done.stderr
    assert meant in done.stderr


@pytest.mark.parametrize(
    "command", ["start", *(pytest.param(each, marks=pytest.mark.slow) for each in ("restart", "run"))]
)
def test_an_unknown_target_keeps_everything_from_being_done(pool: RealPool, command: str) -> None:
    done = pool.run(command, "admin", "nobody")
    assert done.code == 4, str(done)
    assert pool.items()["admin"]["state"] == "stopped"
    assert pool.ok("pools", "-o", "name").stdout == "", "no supervisor that was launched for it is left"


@pytest.mark.parametrize("option", ["--name", "--bind", "--expose"])
def test_an_invalid_regular_expression_is_a_usage_error_that_shows_the_place(
    pool: RealPool, option: str
) -> None:
    done = pool.run("list", option, "us(ers")
    assert done.code == 2, str(done)
    assert "us(ers" in done.stderr
    assert "^" in done.stderr or "position 2" in done.stderr


@pytest.mark.parametrize("arguments", ["--state flying", "--health great", "--no-such-option"])
def test_a_word_that_does_not_exist_is_a_usage_error(pool: RealPool, arguments: str) -> None:
    assert pool.run("list", *arguments.split()).code == 2


def test_every_command_has_the_same_selector(pool: RealPool) -> None:
    for command in (
        "list",
        "show",
        "config",
        "wait",
        "stop",
        "start",
        "restart",
        "run",
        "logs",
        "walk",
        "filter",
    ):
        text = pool.ok(command, "--help").stdout
        for option in ("--tag", "--state", "--not", "--allow-empty"):
            assert option in text, f"{command} {option}"


def test_the_json_of_no_match_is_still_one_document(pool: RealPool) -> None:
    done = pool.run("list", "nobody", "-o", "json")
    assert done.code == 4
    assert done.json["schema"] == 1
    assert done.json["items"] == []
    assert done.json["errors"][0]["message"]


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("name ADMIN", ["admin"]),
        ("name admi --allow-empty", []),
        ("name --regex ^a", ["admin"]),
        ("name users-api --regex ^admin", ["users-api", "admin"]),
        ("bind 127.0.0.1:8081", ["users-api"]),
        ("bind http://[0::1]:9000", ["admin"]),
        ("bind --regex :80", ["users-api", "Orders-API"]),
        ("expose users.local", ["users-api"]),
        ("expose HTTP://USERS.local", ["users-api"]),
        ("expose --regex orders", ["Orders-API"]),
    ],
)
def test_filter_is_the_seeds_filter(pool: RealPool, arguments: str, printed: list[str]) -> None:
    assert pool.ok("filter", *arguments.split(), "-o", "name").stdout.split() == printed


def test_filter_prints_another_field_as_the_seeds_list_does(pool: RealPool) -> None:
    done = pool.ok("filter", "name", "--regex", "-api$", "--target", "bind")
    assert done.stdout.split() == ["127.0.0.1:8081"]
    assert pool.run("filter", "name").code in (2, 4), "both empty match nothing"
    assert pool.run("filter", "colour", "red").code == 2
    assert pool.run("filter", "name", "--regex", "(").code == 2
    assert pool.run("filter", "name", "nobody").code == 4


def test_list_prints_one_value_per_line(pool: RealPool) -> None:
    assert pool.ok("list", "--field", "bind").stdout.splitlines()[2] == "[::1]:9000"
    assert pool.ok("list", "-o", "name,state").stdout.splitlines()[3].split() == ["off", "disabled"]
    assert pool.run("list", "--field", "colour").code == 2
    assert pool.run("list", "-o", "colour").code == 2
