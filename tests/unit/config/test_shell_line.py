"""A line in the place of a list of words gets a list that does what a shell makes of the line."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from poolctl import ServerConfig
from poolctl.config.checks.interpreter import missing_program
from poolctl.config.values.shell_line import needs_shell, words_fix, words_meant
from tests.config_files import load_text, told

# Each prints, and in a shell it prints the same.
PLAIN = [
    "echo a b",
    "echo 'a b' \"c d\"",
    r"echo a\ b",
    "echo '$HOME | cat'",
    "echo x=1",
    "echo grün ☃",
    "printf %s\\\\n 'a\"b\\c'",
    "echo {port} {name}",
    "sh -c 'cd / && pwd'",
]
OF_A_SHELL = [
    "cd / && pwd",
    "A=1 sh -c 'echo $A'",
    "echo $HOME",
    'echo "$HOME is home"',
    "echo `pwd`",
    'echo $(pwd) "it\'s"',
    "echo a | tr a b",
    "echo a > /dev/null; echo b",
    "echo a 2>&1",
    "echo *",
    "echo [a-z]*",
    "echo ~",
    "exec echo done",
    "! false && echo done",
    "export A=1; echo $A",
    "if true; then echo yes; fi",
    "echo a # a comment",
    "echo a\necho b",
    "echo 'a\tb' $((1 + 1)) \\\\ \"\x7f\"",
    ". /dev/null",
]


def output(command: list[str], directory: Path) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, cwd=directory).stdout


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "abc").touch()
    return tmp_path


@pytest.mark.parametrize("line", [*PLAIN, *OF_A_SHELL])
def test_list_that_is_proposed_does_what_a_shell_does(directory: Path, line: str) -> None:
    fix = words_fix(line).removeprefix("write ")
    words = tomllib.loads(f"command = {fix}")["command"]
    assert (words[:2] == ["sh", "-c"]) == (line in OF_A_SHELL or line.startswith("sh -c"))
    assert output(words, directory) == output(["sh", "-c", line], directory)


@pytest.mark.parametrize(
    "line", [*OF_A_SHELL, "echo $${HOME} | cat", "echo ${OF_POOL} | cat", "echo '$${A}'"]
)
def test_list_that_is_proposed_works_in_the_place_of_the_line(tmp_path: Path, line: str) -> None:
    head, value = '[[server]]\nname = "q"\ncommand = ', json.dumps(line).replace("\x7f", "\\u007f")
    (problem,) = load_text(tmp_path, head + value, env={"OF_POOL": "s3cret b"}).problems
    assert problem.message == "a command is a list of words, not a line for a shell"
    assert "s3cret" not in problem.hint, "what a variable holds may be a secret, and stays where it is"
    (server,) = load_text(tmp_path, head + problem.hint.removeprefix("write "), env={"OF_POOL": "s3cret b"})
    meant = line.replace("$${", "${").replace("${OF_POOL}", "s3cret b")
    assert server.command == (("echo", "${A}") if "'$${A}'" in line else ("sh", "-c", meant))


@pytest.mark.parametrize(
    "text",
    [
        '[[server]]\nname = "q"\ncommand = LINE\n',
        '[[server]]\nname = "q"\ncommand = ["a"]\nhooks = { after_stop = LINE }\n',
        '[[server]]\nname = "q"\ncommand = ["a"]\nhealth = { liveness = { exec = LINE } }\n',
    ],
)
def test_every_command_of_a_file_gets_the_list(tmp_path: Path, text: str) -> None:
    problems = told(tmp_path, text.replace("LINE", '"curl -f $URL"'))
    assert 'not a line for a shell; write ["sh", "-c", "curl -f $URL"]' in problems
    assert problems.count("\n") == 0
    assert told(tmp_path, text.replace("LINE", '["sh", "-c", "curl -f $URL"]')) == ""


@pytest.mark.parametrize("line", ["", " ", "echo 'a", 'echo "a'])
def test_line_that_no_shell_can_read_gets_the_form_of_a_list(line: str) -> None:
    assert words_fix(line) == 'write ["prog", "argument"]'


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["echo a b"], ["echo", "a", "b"]),
        (["cd / && pwd"], ["sh", "-c", "cd / && pwd"]),
        (["cd", "/", "&&", "pwd"], ["sh", "-c", "cd / && pwd"]),
        (["A=1", "sh", "-c", "echo $A"], ["sh", "-c", "A=1 sh -c 'echo $A'"]),
        (["cd", "$HOME", ";", "echo", "a b", "2>&1"], ["sh", "-c", "cd $HOME ; echo 'a b' 2>&1"]),
        (["echo -n", "(a)"], ["echo", "-n", "(a)"]),
        (["/opt/my app/run"], ["/opt/my", "app/run"]),
        (["no-such-program", "a b"], None),
    ],
)
def test_words_that_were_a_line_are_split_as_it_was_meant(words: list[str], meant: list[str] | None) -> None:
    assert words_meant(words) == meant
    server = ServerConfig(name="a", command=words)
    found = missing_program(server, {"PATH": os.environ["PATH"]})
    runs = meant is not None and meant[0] != "/opt/my"
    assert found is not None
    assert found.hint == (f"write {json.dumps(meant)}" if runs else "install it, or write its full path")


def test_words_with_quotes_backslashes_and_assignments_need_no_shell() -> None:
    assert not needs_shell("A=1 echo 'a & b' \"c; d\" e\\;f g=h")
