"""The fast lane's reading of a command line: plain spellings only, from the table made of the Typer application.

Whatever is not plain (help, clusters, values that look like options) is left to the slow lane,
which also says what is wrong with it.
"""

from __future__ import annotations

from poolctl.cli.request import Request
from poolctl.cli.table import COMMON, OWN, SHARED, WITH_COMMAND, WITH_TARGETS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Options = dict[str, tuple[str, str]]


def parse(args: Sequence[str]) -> Request | None:
    """The request of a plainly spelled frequent command; None for everything else."""
    given: dict[str, Any] = {}
    words = list(args)
    if "--" in words:
        at = words.index("--")
        given["command"] = words[at + 1 :]
        del words[at:]
    verb, table = "", COMMON
    words.reverse()
    while words:
        word = words.pop()
        if not word:
            return None
        if word.startswith("-"):
            if not _take_option(word, words, table, given):
                return None
        elif verb in WITH_TARGETS:
            given.setdefault("targets", []).append(word)
        elif not verb and word in OWN:
            verb, table = word, {**COMMON, **(SHARED if word in WITH_TARGETS else {}), **OWN[word]}
        else:
            return None
    if not verb or ("command" in given and verb not in WITH_COMMAND):
        return None
    return Request(verb, {**_nothing_given(verb, table), **given})


def _take_option(word: str, rest: list[str], table: Options, given: dict[str, Any]) -> bool:
    """Put the option into `given`, with its value from the end of `rest`; False if it is not plain."""
    name, equals, value = word.partition("=")
    if not word.startswith("--") and len(word) > 2:
        name, equals, value = word[:2], "=", word[2:]
    if name not in table:
        return False
    key, kind = table[name]
    if kind == "flag":
        given[key] = True
        return not equals
    if not equals:
        if not rest or not rest[-1] or rest[-1].startswith("-"):
            return False
        value = rest.pop()
    if kind == "list":
        given.setdefault(key, []).append(value)
    else:
        given[key] = value
    return True


def _nothing_given(verb: str, table: Options) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if verb in WITH_TARGETS:
        values["targets"] = []
    if verb in WITH_COMMAND:
        values["command"] = []
    for key, kind in table.values():
        values[key] = False if kind == "flag" else [] if kind == "list" else None
    return values
