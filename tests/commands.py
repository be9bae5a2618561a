"""The commands as Typer knows them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import typer

from poolctl.cli.app import app


@cache
def group() -> Any:
    return typer.main.get_command(app)


def names() -> list[str]:
    return sorted(group().commands)


@cache
def command_named(name: str) -> Any:
    """The command of the module, which is imported for it."""
    return group().imported(name)


def spellings(command: Any) -> list[str]:
    """The spellings of the options in its help."""
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    return [spelling for param in shown for spelling in param.opts if spelling.startswith("-")]


def parsed(words: Sequence[str]) -> Any:
    """The context of the command that the words name, parsed but not run."""
    at = next(at for at, word in enumerate(words) if word in group().commands)
    return command_named(words[at]).make_context(words[at], [*words[:at], *words[at + 1 :]])
