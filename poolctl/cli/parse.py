"""The fast lane's reading of a command line: plain spellings only, from the table made of the Typer application.

Whatever is not plain (help, abbreviations, clusters, values that look like options, `--`) is left to the slow lane,
which also says what is wrong with it.
"""

from __future__ import annotations

from poolctl.cli.request import Request
from poolctl.cli.table import COMMON, DEFAULTS, OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def parse(args: Sequence[str]) -> Request | None:
    """The request of a plainly spelled frequent command; None for everything else."""
    values: dict[str, Any] = {}
    verb = ""
    table = COMMON
    at = 0
    while at < len(args):
        word = args[at]
        at += 1
        if not word.startswith("-"):
            if verb:
                values.setdefault("targets", []).append(word)
            elif word in OPTIONS:
                verb, table = word, {**COMMON, **OPTIONS[word]}
            else:
                return None
            continue
        name, equals, value = word.partition("=")
        if not word.startswith("--") and len(word) > 2:
            name, equals, value = word[:2], "=", word[2:]
        if name not in table:
            return None
        key, kind = table[name]
        if kind == "flag":
            if equals:
                return None
            values[key] = True
            continue
        if not equals:
            if at == len(args) or args[at].startswith("-"):
                return None
            value = args[at]
            at += 1
        if kind == "list":
            values.setdefault(key, []).append(value)
        else:
            values[key] = value
    if not verb or "" in args:
        return None
    return Request(verb, {**_defaults(verb), **values})


def _defaults(verb: str) -> dict[str, Any]:
    return {key: [] if value == [] else value for key, value in DEFAULTS[verb].items()}
