"""The command line's files: no circles among them, and a command is one file that no other one needs."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

import poolctl
from poolctl.cli import commands
from poolctl.cli.command_line import SECTIONS, command_named, names

from .conftest import Command

PACKAGE = Path(poolctl.__file__).parent
CLI = PACKAGE / "cli"
FILES = {
    ".".join(["poolctl", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(CLI.rglob("*.py"))
}
MOST_FILES = 20


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
def test_command_declares_section_and_help(verb: str) -> None:
    command = command_named(verb)
    assert command is not None
    assert command.section in SECTIONS
    assert command.help.endswith((".", "…")) or ": " in command.help


def test_a_package_holds_at_most_twenty_files() -> None:
    counts = Counter(path.parent for path in FILES.values() if path.parent.name != "commands")
    assert {str(path): count for path, count in counts.items() if count > MOST_FILES} == {}


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
from poolctl.cli.command_line import OUTPUT, Command, Option, targets
from poolctl.cli.outcome import Outcome

COMMAND = Command(
    "Greet servers.",
    targets(),
    OUTPUT,
    Option("--with", "WORDS", "The words.", key="words", words=("hello", "welcome")),
    section="Look",
    examples=("poolctl greet users",),
)


def perform(request):
    return Outcome(message=f"{request.get('words') or 'hello'} {' '.join(request.get('targets'))}")
"""


def test_a_new_command_is_one_new_file(
    poolctl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greet.py").write_text(GREET)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    try:
        assert poolctl("greet", "users").out == "hello users\n"
        assert (
            poolctl("greet", "--wit", "welcome", "users").err.splitlines()[1]
            == "  hint: did you mean --with?"
        )
        assert poolctl("-q", "greet", "users", "--with=welcome", "--", "orders") == (0, "", "")
        assert "poolctl greet users" in poolctl("greet", "--help").out
        assert re.search(r"^  greet +Greet servers\.$", poolctl("help", "--all").out, re.MULTILINE)
        assert poolctl("__complete", "greet", "--with", "").out == "hello\nwelcome\n"
    finally:
        sys.modules.pop("poolctl.cli.commands.greet", None)
