"""Describes a problem of a configuration: its place, the value found, the allowed values, and the fix.

For an unknown key, the fix is a similar key, or the equivalent of another tool's key.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any, NamedTuple

from poolctl.config.values.other_tools import OTHER_TOOLS
from poolctl.config.values.secrets import MASK, is_secret_key, masked_text
from poolctl.errors import PoolValidateError, ServerError

SHOWN_CHARACTERS = 60
# The model is five levels deep.
MAX_DEPTH = 100
# Enough for 10,000 servers of 25 keys; hostile files are rejected before they cost seconds.
MAX_VALUES = 300_000

# The keys and indexes that lead to a value.
KeyPath = tuple[str | int, ...]
# A value from a parser or from Python, before the model has checked it: it may have any type.
Tree = Any

_parts = re.compile(r"\.|\[\d+\]\.?")


class ParseError(ValueError):
    """A text that cannot be parsed; line and column count from 1, 0 is unknown."""

    def __init__(self, message: str, line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint


class Place(NamedTuple):
    """A position in a file; lines and columns count from 1, 0 is unknown. `key` is the dotted path of the key."""

    file: str = ""
    line: int = 0
    column: int = 0
    key: str = ""

    def __str__(self) -> str:
        if not self.file:
            return self.key
        numbers = [str(number) for number in (self.line, self.column) if number]
        return ":".join([path_from_working_directory(self.file), *numbers])


NO_PLACE = Place()


class Finding(NamedTuple):
    """A problem of a value, before file and line of the value are known.

    `path` has the keys that lead to the value from its server's table, such as `("http", "loop")`. A warning does not
    prevent a start.
    """

    path: KeyPath
    message: str
    hint: str = ""
    found: str = ""
    allowed: str = ""
    is_warning: bool = False


class Problem(ServerError):
    """A finding with its place. `str()` is the line that an operator reads."""

    def __init__(
        self,
        message: str,
        *,
        place: Place = NO_PLACE,
        name: str = "",
        bind: str = "",
        hint: str = "",
        found: str = "",
        allowed: str = "",
    ) -> None:
        message, hint, found = _without_secrets(place.key, message, hint, found)
        code, error = PoolValidateError.code, PoolValidateError.error
        super().__init__(message, name=name, bind=bind, hint=hint, code=code, error=error)
        self.place = place
        self.file, self.line, self.column, self.key = place
        self.found = found
        self.allowed = allowed

    def __str__(self) -> str:
        who = "" if self.file or not self.name else shortened_printable(self.name)
        where = ": ".join(part for part in (str(self.place) if self.file else who, self.key) if part)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text}; {self.hint}" if self.hint else text

    def to_dict(self) -> dict[str, Any]:
        """The problem as JSON, as the command line prints it."""
        return super().to_dict() | self.place._asdict() | {"found": self.found, "allowed": self.allowed}


def _without_secrets(key: str, message: str, hint: str, found: str) -> tuple[str, str, str]:
    """Message, hint and found value of a problem, masked if the value is a secret."""
    names = _parts.split(key)
    if not is_secret_key(names) or found == names[-1] or found.startswith("${"):
        return masked_text(message), masked_text(hint), masked_text(found)
    for value in (found, found.strip("'")):
        if value:
            message, hint = message.replace(value, MASK), hint.replace(value, MASK)
    return message, hint, MASK if found else ""


def problem_of(finding: Finding, place: Place | None = None, *, name: str = "", bind: str = "") -> Problem:
    """The finding as a Problem: at `place` (None if it is in no file), of the server `name` ("" if of no server)."""
    path, message, hint, found, allowed, _ = finding
    place = place if place and place.key else (place or NO_PLACE)._replace(key=dotted(path))
    return Problem(message, place=place, name=name, bind=bind, hint=hint, found=found, allowed=allowed)


def dotted(path: KeyPath) -> str:
    """`("server", 1, "http", "root_path")` as `server[1].http.root_path`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{shortened_printable(str(part))}" for part in path)
    return "".join(parts).removeprefix(".")


def shortened_printable(text: str) -> str:
    """The text shortened and escaped to fit on one line of a terminal."""
    cut = text[:SHOWN_CHARACTERS] + ("…" if len(text) > SHOWN_CHARACTERS else "")
    return cut if cut.isprintable() else repr(cut)


def shown(value: object) -> str:
    """The value as a text short enough for a line, even if it is deeply nested or long."""
    if isinstance(value, str):
        cut = value[:SHOWN_CHARACTERS]
        return repr(cut) + ("…" if len(value) > SHOWN_CHARACTERS else "")
    if isinstance(value, (dict, list, tuple)):
        return "a table" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very large number"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text[:SHOWN_CHARACTERS] + ("…" if len(text) > SHOWN_CHARACTERS else "")


def path_from_working_directory(file: str) -> str:
    """The path, relative to the working directory if it is below that."""
    try:
        here = os.getcwd()
    except OSError:
        return file
    return file[len(here) + 1 :] if here != "/" and file.startswith(here + "/") else file


MAX_SUGGESTIONS = 2000
MAX_NEAR = 5
# Minimum similarities, from 0 to 1 (difflib).
MISSPELT, SIMILAR = 0.75, 0.8


def key_of_another_tool(path: KeyPath, table: str) -> Finding | None:
    """Return the finding about the key at `path` if OTHER_TOOLS has it for its table: "" is a server's."""
    key = str(path[-1])
    parent = next((part for part in reversed(path[:-1]) if isinstance(part, str)), table)
    word = plain_word(key[:60])
    fix = next((advice for advice, words in OTHER_TOOLS.get(parent, {}).items() if word in words.split()), "")
    if not fix:
        return None
    fix = fix if fix.startswith("take it out") else f"write {fix}"
    is_own = f"{key[:60]} = " in fix
    message = f"{key[:60]!r} {'belongs elsewhere' if is_own else 'is a key of another tool'}"
    return Finding(path, message, fix, key[:60])


def unknown_key(path: KeyPath, keys: tuple[str, ...], table: str) -> Finding:
    """Return the finding about the key at `path`, which is not one of the `keys` of its table.

    `table` is the table's name, or "" for a server.
    """
    if finding := key_of_another_tool(path, table):
        return finding
    key = str(path[-1])
    word = plain_word(key[:60])
    if near := misspelt(key, keys):
        hint = f"did you mean {near!r}?"
    elif len(keys) <= MAX_NEAR:
        hint = f"known here: {', '.join(keys)}"
    else:
        close = [name for name in keys if name.endswith(f"_{word}")] or similar(key, keys, MAX_NEAR, SIMILAR)
        hint = f"similar keys: {', '.join(close)}" if close else "`poolctl config --schema` lists every key"
    return Finding(path, f"unknown key {key[:60]!r}", hint, key[:60], ", ".join(keys))


def misspelt(word: str, words: tuple[str, ...]) -> str:
    """The word of `words` that `word` misspells, or "". Typos rarely change the first letter, or more than one."""
    from difflib import SequenceMatcher

    near = nearest(word, words)
    written, meant = plain_word(word), plain_word(near)
    if written[:1] != meant[:1] or abs(len(written) - len(meant)) > 1:
        return ""
    is_same = sorted(written) == sorted(meant) or SequenceMatcher(None, written, meant).ratio() >= MISSPELT
    return near if is_same else ""


def plain_word(word: str) -> str:
    """The word in lower case without underscores and hyphens, which tools use differently."""
    return word.lower().replace("-", "").replace("_", "")


@lru_cache(maxsize=MAX_SUGGESTIONS)
def _similar(word: str, words: tuple[str, ...], number: int, cutoff: float) -> list[str]:
    from difflib import get_close_matches

    direct = {plain_word(name): name for name in words}.get(plain_word(word))
    return [direct] if direct else get_close_matches(word.lower(), words, n=number, cutoff=cutoff)


def similar(word: str, words: tuple[str, ...], number: int, cutoff: float) -> list[str]:
    """At most `number` of `words` that resemble `word`; `cutoff` is the least similarity, from 0 to 1 (difflib).

    Empty after MAX_SUGGESTIONS different searches, until `reset_suggestions` is called: a file full of unknown keys
    would take minutes.
    """
    if len(word) > SHOWN_CHARACTERS or _similar.cache_info().currsize >= MAX_SUGGESTIONS:
        return []
    return _similar(word, words, number, cutoff)


def nearest(word: str, words: tuple[str, ...]) -> str:
    """The one of `words` that was probably meant by `word`, or ""."""
    return next(iter(similar(word, words, 1, 0.6)), "")


def reset_suggestions() -> None:
    """Set the count of searches by `similar` back to 0. Called before each file, and for each server made in Python."""
    _similar.cache_clear()
