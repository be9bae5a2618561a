"""Completion scripts for shells, made from what the commands declare: they can be read, and know no Python."""

from __future__ import annotations

SHELLS = ("bash", "zsh", "fish")
FILES = {"bash": "poolctl.bash", "zsh": "_poolctl", "fish": "poolctl.fish"}


def script(shell: str) -> str:
    """The script of one of SHELLS."""
    from importlib import import_module

    from poolctl.cli.completions.command_words import completed

    module = import_module(f"poolctl.cli.completions.{shell}")
    return str(module.script(completed()))
