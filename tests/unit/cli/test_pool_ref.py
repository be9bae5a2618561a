"""A file that was named and does not exist: exit 5, unless the pool that was started from it still runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from poolctl.cli.command_line import names
from poolctl.cli.outcome import outcome_of
from poolctl.cli.typer_app import perform_args
from tests.stand_in import always, item

from .conftest import Command, Supervised

READ_NO_POOL = {"", "doctor", "schema", "version", "completion", "pools", "init", "import"}
# What a command needs beside its name, with every option that takes another way through it.
WORDS = {
    "filter": [["name", "x"]],
    "walk": [[], ["--", "true"]],
    "run": [[], ["--debug", "web"], ["--", "true"]],
    "wait": [["--timeout", "0.1"], ["--for", "stopped"]],
    "logs": [[], ["-f"], ["--reopen"]],
    "events": [[], ["-f"], ["web"]],
    "top": [["--once"]],
    "reload": [[], ["--dry-run"], ["--watch"]],
    "scale": [["web", "2"], ["--all", "2", "--save"]],
    "drain": [["web"]],
    "undrain": [["web"]],
    "enable": [["--all"], ["--all", "--save"]],
    "disable": [["web"], ["web", "--save"]],
    "remove": [["web"], ["web", "--save"], []],
    "add": [["x", "--bind", ":1", "--app", "a:b"], ["x", "--bind", ":1", "--app", "a:b", "--save"]],
    "notify": [["test"]],
    "register": [["x", "--to", "http://127.0.0.1:1"]],
    "unregister": [["x"]],
    "export": [["systemd"]],
    "rollout": [["web"], ["status"], ["abort", "web"]],
}
LINES = [[verb, *words] for verb in names() if verb not in READ_NO_POOL for words in WORDS.get(verb, [[]])]


def slow_lane(args: list[str]) -> int:
    """The exit code of the command line when Typer reads it."""
    try:
        return perform_args(args).exit_code
    except Exception as error:
        outcome = outcome_of(error)
        return outcome.exit_code if outcome else -1


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_named_file_that_does_not_exist_is_5_in_both_lanes_for_every_command_that_reads_a_pool(
    poolctl: Command, monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    for args in (["-c", "gone.toml", *line], ["-c", "pool.toml", "-c", "gone.toml", *line]):
        said = poolctl(*args)
        assert said.code == 5, said
        assert "gone.toml: there is no such file" in said.err + said.out
        assert slow_lane(args) == 5
    monkeypatch.setenv("POOLCTL_CONFIG", "gone.toml")
    assert poolctl(*line).code == 5


def test_each_of_several_missing_files_is_named(poolctl: Command) -> None:
    document = poolctl("-c", "gone.toml", "-c", "lost.toml", "stop", "-o", "json").json
    assert [Path(error["file"]).name for error in document["errors"]] == ["gone.toml", "lost.toml"]


@pytest.mark.parametrize("line", [["schema"], ["version"], ["completion", "bash"], ["pools"], ["help"]])
def test_commands_that_need_no_pool_ignore_a_missing_file(poolctl: Command, line: list[str]) -> None:
    assert poolctl("-c", "gone.toml", *line).code == 0


def test_init_writes_the_file_that_c_names(poolctl: Command, directory: Path) -> None:
    said = poolctl("-c", "conf/shop.toml", "init", "--app")
    assert said.code == 0
    assert said.out == "wrote conf/shop.toml and conf/hello.py; next: poolctl -c conf/shop.toml start\n"
    assert (
        poolctl("-c", "conf/shop.toml", "validate").out
        == "1 server, ok (applications not imported: --import)\n"
    )
    assert (directory / "pool.toml").read_text().startswith("[pool]"), "the default file is as it was"
    for wrong in (["-c", "a.toml", "-c", "b.toml", "init"], ["-c", "a.yaml", "init"],
                  ["-c", "pyproject.toml", "init"], ["-c", "a.toml", "init", "conf"]):  # fmt: skip
        assert poolctl(*wrong).code == 2, wrong
    assert not (directory / "a.toml").exists()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("line", [["list"], ["status"], ["stop"], ["drain", "web"], ["logs", "--reopen"]])
def test_a_running_pool_whose_file_has_vanished_is_found_by_its_path_and_it_is_said(
    poolctl: Command, supervised: Supervised, directory: Path, line: list[str], named: bool
) -> None:
    line = ["-c", "pool.toml", *line] if named else line
    with supervised(always(item("web"))):
        (directory / "pool.toml").unlink()
        said = poolctl(*line)
        quiet = poolctl("-q", *line)
    assert said.code == quiet.code == 0
    assert "pool.toml no longer exists, but" in said.err
    assert quiet.err == ""
    assert poolctl(*line).code == 5, "the socket of a supervisor that is gone is no pool"
    shutil.rmtree(directory / "run")
    assert poolctl(*line).code == 5


def test_a_missing_file_and_none_at_all_are_5(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").unlink()
    none = poolctl("list", "-o", "json")
    assert none.code == 5
    assert "poolctl init" in none.json["errors"][0]["hint"]
    missing = poolctl("-c", "gone.toml", "list")
    assert missing.code == 5
    assert "gone.toml" in missing.err


RUNNING = [item("users", 8081), item("orders", 8082, pids=[4243])]


def test_commands_reach_a_running_pool_whose_file_is_missing(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    (directory / "pool.toml").unlink()
    with supervised(always(*RUNNING)):
        assert poolctl("list", "-o", "name").out == "users\norders\n"
        assert poolctl("-c", "pool.toml", "list", "-o", "name").out == "users\norders\n"


def test_a_pool_is_not_named_twice(poolctl: Command) -> None:
    assert poolctl("list", "--pool", "shop", "-c", "pool.toml").code == 2
