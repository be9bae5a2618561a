"""Contract §3: one selector language, here on a pool that is not running."""

from __future__ import annotations

import os
import re
import select
import subprocess
from itertools import cycle

import pytest

from tests.commands import command_named, names
from tests.configuration import sleeper
from tests.deadline import wait_until
from tests.real_pool import RealPool
from tests.terminal import Terminal

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


@pytest.mark.parametrize("option", ["--name", "--bind", "--expose", "--tag", "--state", "--health", "--pool"])
def test_an_empty_value_of_an_option_is_a_usage_error(pool: RealPool, option: str) -> None:
    other = [option, "", "list"] if option == "--pool" else ["list", "admin", option, "", option, "x"]
    for arguments in (["list", option, ""], ["list", f"{option}="], other):
        done = pool.run(*arguments)
        assert done.code == 2, str(done)
        assert done.stdout == ""
        assert re.match(rf"error: {option} is empty.*variable.*\n  hint: .*\$\{{NAME:\?\}}", done.stderr), (
            done
        )


@pytest.mark.slow
def test_no_command_takes_an_empty_word_for_everything(pool: RealPool) -> None:
    for verb in names():
        for each in [] if verb in ("register", "serve") else command_named(verb).params:
            is_argument = each.param_type_name == "argument"
            if is_argument or (getattr(each, "rich_help_panel", "") == "Selection" and not each.is_flag):
                words = [each.opts[-1], ""] if not is_argument else ["name", ""] if verb == "filter" else [""]
                done = pool.run(verb, *words)
                assert (done.code, done.stdout) == (2, ""), str(done)


@pytest.mark.parametrize(
    "arguments", ["unregister users --to", "logs --grep", "filter name --regex", "filter name"]
)
def test_an_empty_expression_or_name_of_one_command_is_a_usage_error(pool: RealPool, arguments: str) -> None:
    done = pool.run(*arguments.split(), "")
    assert done.code == 2, str(done)
    assert "is empty" in done.stderr


def test_filter_without_a_pattern_is_a_usage_error(pool: RealPool) -> None:
    for arguments in ("", "--tag api", "--not", "--allow-empty"):
        done = pool.run("filter", "name", *arguments.split())
        assert done.code == 2, str(done)
        assert "poolctl filter name --regex" in done.stderr


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
    assert pool.run("filter", "colour", "red").code == 2
    assert pool.run("filter", "name", "--regex", "(").code == 2
    assert pool.run("filter", "name", "nobody").code == 4


@pytest.mark.parametrize(
    ("stdin", "chosen"),
    [
        ("admin\n", ["admin"]),
        ("\n  admin \r\n\nusers-api", ["users-api", "admin"]),
        ("127.0.0.1:8082\n", ["Orders-API"]),
        ("", []),
        ("\n \n", []),
    ],
)
def test_names_are_read_from_standard_input(pool: RealPool, stdin: str, chosen: list[str]) -> None:
    assert pool.ok("list", "-", "-o", "name", stdin=stdin).stdout.split() == chosen
    assert [each["name"] for each in pool.ok("list", "-", "-o", "json", stdin=stdin).json["items"]] == chosen


def test_names_from_standard_input_are_a_selection_like_others(pool: RealPool) -> None:
    assert pool.ok("list", "-", "--tag", "v1", "-o", "name", stdin="users-api\nadmin\n").stdout.split() == [
        "users-api"
    ]
    assert pool.ok("list", "-", "--not", "-o", "name", stdin="off\nadmin").stdout.split() == [
        "users-api",
        "Orders-API",
    ]
    assert pool.ok("list", "-", "--not", "-o", "name", stdin="").stdout == "", "no name is not every name"
    filtered = pool.ok("filter", "name", "--regex", "api$", "-o", "name").stdout
    assert pool.ok("list", "-", "-o", "name", stdin=filtered).stdout.split() == ["users-api"]


def test_an_unknown_name_on_standard_input_is_exit_4(pool: RealPool) -> None:
    for unknown in ("admn", "-", "caf\xe9", "ad\x1bmin"):
        done = pool.run("list", "-", stdin=f"users-api\n{unknown}\n")
        assert (done.code, done.stdout) == (4, ""), str(done)
        assert "\x1b" not in done.stderr
    assert "did you mean 'admin'" in pool.run("list", "-", stdin="admn").stderr


@pytest.mark.parametrize(
    "arguments",
    ["list - admin", "list admin -", "list - -", "scale - web 2", "scale web - 2", "scale --auto - web"],
)
def test_standard_input_beside_other_targets_is_a_usage_error(pool: RealPool, arguments: str) -> None:
    done = pool.run(*arguments.split(), stdin="admin\n")
    assert done.code == 2, str(done)
    assert "standard input" in done.stderr


def test_names_are_read_until_the_end_of_a_pipe_that_does_not_block(pool: RealPool) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    command = [*pool.command(), "list", "-", "-o", "name"]
    with subprocess.Popen(
        command, cwd=pool.directory, env=pool.env, stdin=read, stdout=subprocess.PIPE
    ) as process:
        os.write(write, b"users-api\nad")
        wait_until(lambda: not select.select([read], [], [], 0)[0])
        os.write(write, b"min\n")
        os.close(write)
        assert process.communicate(timeout=60)[0].split() == [b"users-api", b"admin"]
    os.close(read)


def test_standard_input_does_not_say_to_how_many_workers_servers_are_scaled(pool: RealPool) -> None:
    for stdin in ("", "admin\n2\n"):
        done = pool.run("scale", "-", stdin=stdin)
        assert (done.code, "'-' is not a number" in done.stderr) == (2, True), str(done)


def test_names_are_not_read_from_a_terminal(pool: RealPool) -> None:
    with Terminal(pool, "list", "-") as terminal:
        assert terminal.end() == 2
    assert "standard input is a terminal" in terminal.shown


def test_list_prints_one_value_per_line(pool: RealPool) -> None:
    assert pool.ok("list", "-o", "bind").stdout.splitlines()[2] == "[::1]:9000"
    assert pool.ok("list", "-o", "name,state").stdout.splitlines()[3].split() == ["off", "disabled"]
    assert pool.run("list", "-o", "colour").code == 2
    assert pool.run("list", "-o", "colour").code == 2


RUNNING = sleeper("a", stop_timeout="1s") + sleeper("b", stop_timeout="1s")
CHANGES = ("disable", "drain", "enable", "remove", "restart", "scale", "stop", "undrain")


def pids(pool: RealPool) -> dict[str, object]:
    return {name: (item["state"], item["pids"]) for name, item in pool.items().items()}


@pytest.mark.capability
def test_a_script_with_an_unset_variable_or_without_a_match_changes_nothing(real_pool: RealPool) -> None:
    real_pool.write("pool.toml", RUNNING)
    real_pool.ok("start")
    before = pids(real_pool)
    options = cycle(("--name", "--bind", "--expose", "--tag"))  # each of them of every command in a slow test
    for verb in CHANGES:
        number = ["2"] if verb == "scale" else []
        for words in ([""], ["a", ""], [next(options), ""]):
            done = real_pool.run(verb, *words, *number)
            assert done.code == 2, str(done)
        done = real_pool.ok(verb, "-", *number)
        assert "nothing" in done.stderr, str(done)
        assert real_pool.run(verb, "-", *number, stdin="a\nnobody\n").code == 4
    assert real_pool.ok("walk", "-", "--", "echo", "called").stdout == ""
    assert pids(real_pool) == before
    real_pool.ok("restart", "-", stdin="a\n")
    after = pids(real_pool)
    assert (after["a"] != before["a"], after["b"]) == (True, before["b"])
    real_pool.ok("scale", "-", "2", stdin="b\n")
    assert {name: item["workers"] for name, item in real_pool.items().items()} == {"a": 1, "b": 2}
    walked = real_pool.ok("walk", "-", "-q", "--", "readlink", "/proc/self/fd/0", stdin="a\nb\n").stdout
    assert walked.split() == ["/dev/null"] * 2
    real_pool.ok("remove", "-", stdin="b")
    assert [*pids(real_pool)] == ["a"]
