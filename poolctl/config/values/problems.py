"""One problem of a configuration: its place, the found value, the allowed values, and the fix."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from poolctl.config.values.secrets import MASK, is_secret_key, masked_text
from poolctl.errors import PoolValidateError, ServerError

SHOWN_CHARACTERS = 60
# The model is five levels deep.
DEEPEST = 100
# Enough for 10,000 servers of 25 keys; hostile files are rejected before they cost seconds.
MOST_VALUES = 300_000

# The keys and indexes that lead to a value.
Path = tuple[str | int, ...]
# A value from a parser or from Python, before the model has checked it: it may have any type.
Tree = Any

_parts = re.compile(r"\.|\[\d+\]\.?")


class ParseError(Exception):
    """A text that cannot be parsed; line and column count from 1, 0 is unknown."""

    def __init__(self, message: str, line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint


class Place(NamedTuple):
    """A position in a file; lines and columns count from 1, 0 is unknown. `key` is the path in it."""

    file: str = ""
    line: int = 0
    column: int = 0
    key: str = ""

    def __str__(self) -> str:
        if not self.file:
            return self.key
        where = f"{shorter(self.file)}:{self.line}" if self.line else shorter(self.file)
        return f"{where}:{self.column}" if self.column else where


NOWHERE = Place()


class Finding(NamedTuple):
    """A problem before its place is known; `path` leads from the server's table to the value."""

    path: Path
    message: str
    hint: str = ""
    found: str = ""
    allowed: str = ""


class Problem(ServerError):
    """A finding with its place. `str()` is the line that an operator reads."""

    def __init__(
        self,
        message: str,
        *,
        place: Place = NOWHERE,
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
        who = "" if self.file or not self.name else printable(self.name)
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
    """A finding as a problem of a server, at its place in a file if it is in one."""
    path, message, hint, found, allowed = finding
    place = place if place and place.key else (place or NOWHERE)._replace(key=dotted(path))
    return Problem(message, place=place, name=name, bind=bind, hint=hint, found=found, allowed=allowed)


def dotted(path: Path) -> str:
    """`("server", 1, "http", "root_path")` as `server[1].http.root_path`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{printable(str(part))}" for part in path)
    return "".join(parts).removeprefix(".")


def printable(text: str) -> str:
    """The text shortened and escaped to fit on one line of a terminal."""
    cut = text[:SHOWN_CHARACTERS] + ("…" if len(text) > SHOWN_CHARACTERS else "")
    return cut if cut.isprintable() else repr(cut)


def unreported(more: list[Finding], reported: list[Finding]) -> list[Finding]:
    """The findings in `more` for whose path no finding is reported yet."""
    paths = {finding.path for finding in reported}
    return [finding for finding in more if finding.path not in paths]


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


def shorter(file: str) -> str:
    """The path as a person in the working directory would write it."""
    try:
        here = os.getcwd()
    except OSError:
        return file
    return file[len(here) + 1 :] if here != "/" and file.startswith(here + "/") else file
