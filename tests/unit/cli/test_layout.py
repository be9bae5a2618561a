"""The command line's files: no circles among them, and a command is one file that no other one needs."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

import poolctl
from poolctl.cli.app import app
from poolctl.cli.group import PoolGroup
from tests.commands import command_named, names

from .conftest import Command

PACKAGE = Path(poolctl.__file__).parent
CLI = PACKAGE / "cli"
FILES = {
    ".".join(["poolctl", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(CLI.rglob("*.py"))
}
MAX_FILES = 20


def imports_of(module: str) -> set[str]:
    """The files of the command line that it imports: in functions and for annotations too."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            stem = ".".join(filter(None, [base, node.module]))
            inner = {f"{stem}.{alias.name}" for alias in node.names}
            found |= inner & FILES.keys() or {stem}
    return found & FILES.keys() - {module}


IMPORTS = {module: imports_of(module) for module in FILES}


def test_no_file_imports_itself_by_way_of_others() -> None:
    left = dict(IMPORTS)
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left, {module: sorted(imported & left.keys()) for module, imported in left.items()}


def test_no_file_imports_a_command() -> None:
    for module, imported in IMPORTS.items():
        assert not [each for each in imported if each.startswith("poolctl.cli.commands.")], module


@pytest.mark.parametrize("verb", names())
def test_command_and_its_options_say_what_they_do(verb: str) -> None:
    for text in (
        command_named(verb).help,
        *(getattr(each, "help", "") for each in command_named(verb).params),
    ):
        assert text
        assert "[" not in text, "Rich would take it for a style"


def test_a_package_holds_at_most_twenty_files() -> None:
    counts = Counter(path.parent for path in FILES.values() if path.parent.name != "commands")
    assert {str(path): count for path, count in counts.items() if count > MAX_FILES} == {}


@pytest.mark.slow
def test_no_class_of_the_command_line_is_defined_twice() -> None:
    classes = Counter(
        node.name
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in classes.items() if count > 1] == []


GREET = """
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, Selection, examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand, epilog=examples("poolctl greet users"))
@with_options
def greet(
    place: Place,
    selection: Selection,
    output: Form = None,
    words: Annotated[str, typer.Option("--with", metavar="WORDS", help="The words.")] = "hello",
) -> Outcome:
    \"\"\"Greet servers.\"\"\"
    return Outcome(message=f"{words} {' '.join(selection.targets or ())}")
"""


def test_a_new_command_is_one_new_file_and_a_line_in_the_list(
    poolctl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greet.py").write_text(GREET)
    monkeypatch.syspath_prepend(tmp_path)
    known = [*app.registered_commands]
    PoolGroup.modules["greet"] = "greet"
    app.command("greet", help="Greet servers.", rich_help_panel="Look")(lambda: None)
    try:
        assert poolctl("greet", "users").out == "hello users\n"
        assert "--with?" in poolctl("greet", "--wit", "welcome", "users").err
        assert poolctl("-q", "greet", "users", "--with=welcome", "--", "orders") == (0, "", "")
        assert "poolctl greet users" in poolctl("greet", "--help").out
        assert re.search(r"^  greet +Greet servers\.$", poolctl("help", "--all").out, re.MULTILINE)
    finally:
        app.registered_commands[:] = known
        del PoolGroup.modules["greet"]
        sys.modules.pop("greet", None)
