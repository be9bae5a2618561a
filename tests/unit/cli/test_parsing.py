"""The command line as Typer reads it: help, options before and after the command, mistakes and their hints."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import poolctl
from poolctl.cli.app import app
from poolctl.cli.report import OTHER_COMMANDS
from tests.commands import command_named, group, names, parsed, spellings

from .conftest import Command

PACKAGE = Path(poolctl.__file__).parent
FIRST = {
    "init", "run", "validate", "restart", "start", "stop", "filter", "list", "logs", "show", "status", "top", "walk",
    "reload", "scale",
}  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_help_of_a_command_is_short_and_the_line_in_the_list_is_its_first(
    poolctl: Command, name: str
) -> None:
    command, said = command_named(name), poolctl(name, "--help")
    assert command.help.splitlines()[0] == group().commands[name].help
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    assert f"Usage: poolctl {name} " in said.out
    assert all(spelling in said.out for spelling in spellings(command))
    assert poolctl("help", name).out == said.out
    for line in (command.epilog or "").split("\n\n")[1:]:
        assert line in said.out


@pytest.mark.parametrize("name", names())
def test_examples_of_a_command_are_understood(name: str) -> None:
    import shlex

    for line in (command_named(name).epilog or "").split("\n\n")[1:]:
        example = re.split(r"  +| && | > ", line)[0].removeprefix("poolctl ")
        if example != "export":
            parsed(shlex.split(example))


def test_help_has_the_first_fifteen_and_help_all_the_rest(poolctl: Command) -> None:
    def listed(text: str) -> set[str]:
        return {name for name in names() if re.search(rf"^  {name} ", text, re.MULTILINE)}

    first = FIRST.intersection(names())  # one of them is a feature's
    assert listed(poolctl("--help").out) == first
    assert listed(poolctl("help", "--all").out) == set(names())
    said = poolctl()
    assert (said.code, said.out, listed(said.err)) == (2, "", first)
    for line in (*poolctl("--help").out.splitlines(), *poolctl("help", "--all").out.splitlines()):
        assert len(line) <= 80


def test_help_is_in_panels_on_a_terminal_and_plain_in_a_pipe(
    poolctl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "─" not in poolctl("walk", "--help").out
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = poolctl("walk", "--help").out
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "─ Selection ─" in text
    assert text != shown
    assert "poolctl walk -- curl -fsS '{expose}/health'" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "line", ["-c x list -v", "-v list -c x", "list -vc x", "-v -c x list", "list -v -cx"]
)
def test_options_of_every_command_stand_before_it_or_after_it(poolctl: Command, line: str) -> None:
    said = poolctl(*line.split())
    assert (said.code, "x: there is no such file" in said.err) == (5, True)


def test_files_before_and_after_the_command_are_joined_in_order(poolctl: Command) -> None:
    errors = poolctl("-c", "one.toml", "list", "-c", "two.toml", "-o", "json").json["errors"]
    assert [Path(each["file"]).name for each in errors] == ["one.toml", "two.toml"]


def test_program_after_the_dashes_is_left_alone() -> None:
    words = ["-n", "--help", "--", "-c"]
    ctx = parsed(["walk", "users", "-j", "2", "--", *words])
    assert (ctx.args, ctx.params["targets"], ctx.params["jobs"]) == (words, ["users"], 2)
    assert parsed(["list", "--", "-x"]).params["targets"] == ["-x"]


MISTAKES = [
    ("lst", "error: no such command 'lst'", "did you mean 'list'"),
    ("ps", "error: no such command 'ps'", "here it is called: poolctl list"),
    ("list --nmae x", "error: no such option: --nmae", "did you mean --name"),
    ("list --state runing", "error: --state: unknown value 'runing'", "did you mean 'running'?"),
    ("list -o jsno", "error: --output: unknown value 'jsno'", "did you mean 'json'?"),
    ("list --json", "error: no such option: --json", "here it is called: -o json"),
    ("start -f x", "error: no such option: -f", "here it is called: -c FILE"),
    ("start -d", "error: no such option: -d", "poolctl start runs servers in the background"),
    ("restart --force", "error: no such option: --force", "restart replaces every selected process anyway"),
    ("list --all", "error: no such option: --all", "without a selection, every server is meant"),
    ("-n 5 logs", "error: no such option: -n", "poolctl -h"),
    ("start --timeout 3x", "error: --timeout: '3x' is not a duration", "poolctl start -h"),
    ("logs --since soon", "error: --since: 'soon' is not a time", "03:00, yesterday"),
    ("logs -n some", "error: --lines: 'some' is not a number of lines", "all"),
    ("filter", "error: missing argument 'FIELD'", "poolctl filter -h"),
    ("list --name", "error: option '--name' requires an argument", "poolctl list -h"),
    ("walk -- sh -c 'echo {name}'", "error: {name} in the script of a shell", "$POOLCTL_NAME"),
    ("add x --dry-run", "error: --dry-run shows what --save would write", "add --save"),
]


@pytest.mark.parametrize(("line", "message", "hint"), MISTAKES)
def test_mistake_is_one_line_with_the_way_out_and_exit_code_2(
    poolctl: Command, line: str, message: str, hint: str
) -> None:
    import shlex

    said = poolctl(*shlex.split(line))
    first, second = said.err.splitlines()
    assert (said.code, said.out) == (2, "")
    assert message.lower() in first.lower()
    assert second.startswith("  hint: ")
    assert hint in second


@pytest.mark.parametrize(
    "line", ["list --nmae x -o json", "list -ojson --name=", "list zzz --output=json", "lst -o=json"]
)
def test_mistakes_are_json_where_json_is_asked_for(poolctl: Command, line: str) -> None:
    said = poolctl(*line.split())
    assert said.code in (2, 4)
    assert said.json["errors"][0]["message"] in said.err


def test_words_of_other_tools_lead_to_commands_and_are_none_themselves() -> None:
    for word, meant in OTHER_COMMANDS.items():
        assert word not in names()
        assert meant.startswith("--") or meant.split()[0] in {*names(), *FIRST}


@pytest.mark.parametrize(
    "option", ["--name", "--bind", "--expose", "--tag", "--state", "--timeout", "-o", "-c"]
)
def test_empty_value_never_means_everything(poolctl: Command, option: str) -> None:
    assert poolctl("restart", option, "").code in (2, 5)
    assert poolctl("restart", "").code == 2


def test_names_from_an_empty_standard_input_do_nothing() -> None:
    """Also where a callback of Typer that returned an empty list would reach the command as none at all."""
    done = subprocess.run(
        [sys.executable, "-m", "poolctl", "restart", "-"], input="\n", capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "note: no names on standard input: nothing was done\n"


def test_typers_runner_goes_through_everything_that_the_command_does(directory: Path) -> None:
    run: Any = CliRunner().invoke
    assert json.loads(run(app, ["list", "-o", "json"]).stdout)["items"][0]["name"] == "users"
    for words, code in ((["lst"], 2), (["list", "nobody"], 4), (["-c", "gone", "list"], 5)):
        found = run(app, words)
        assert (found.exit_code, "Traceback" in found.output) == (code, False)


def test_a_command_imports_its_own_module_and_rich_only_for_people(directory: Path) -> None:
    script = (
        "import sys; from poolctl.cli.main import main\n"
        "main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    )
    for words, own in (
        (["list", "--pool", "nobody"], {"list"}),
        (["--help"], set()),
        (["help", "--all"], {"help"}),
    ):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
        modules = done.stderr.split()
        found = {each.rpartition(".")[2] for each in modules if each.startswith("poolctl.cli.commands.")}
        assert (found, "rich" in modules, "poolctl.config.model" in modules) == (own, False, False)


def test_words_of_the_command_line_are_read_in_the_hooks_alone() -> None:
    """There is one parser: Typer. `sys.argv` of a process that is no command is another matter."""
    reading = set()
    for path in [*PACKAGE.glob("cli/**/*.py"), *PACKAGE.glob("features/*/[!_]*command*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "argv" and ast.unparse(node.value) == "sys":
                reading.add(path.name)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ('startswith("-")', "ArgumentParser")
            ):
                reading.add(path.name)
    assert reading == {"group.py"}


def test_a_name_is_suggested_by_one_of_its_parts(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text('[[server]]\nname = "users-api"\ncommand = ["true"]\n')
    assert poolctl("list", "api").err.splitlines()[1] == "  hint: did you mean 'users-api'?"
