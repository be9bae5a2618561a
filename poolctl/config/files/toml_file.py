"""TOML text into plain values, and where each of its keys and elements is."""

from __future__ import annotations

import re
from typing import Any

from poolctl.config.files.parse_error import DEEPEST, Lines, ParseError
from poolctl.config.model.problems import Path

_many_digits = re.compile(r"[0-9_]{4000,}")
_place = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_dotted_part = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|[A-Za-z0-9_-]+|[ \t]+|\.|[^.]")

_blank = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_space = re.compile(r"[ \t]*")
_string = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:[^"\\]|\\.)*"|\'[^\']*\'', re.DOTALL
)
_bare = re.compile(r"[^,\]}\n#]+")
_key = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_-]+')


def parse_toml(text: str) -> Any:
    """What the text says. Raises ParseError."""
    import tomllib

    _refuse_long_keys(text)
    try:
        return tomllib.loads(text)
    except ValueError as error:
        message = str(error)
        digits = _many_digits.search(text) if "integer string conversion" in message else None
        if digits:
            raise ParseError("a number of too many digits", *Lines(text).place(digits.start())) from None
        place = _place.search(message)
        message = message[: place.start()] if place else message.partition(";")[0]
        if place and place[1]:
            line, column = int(place[1]), int(place[2])
        else:
            line, column = (text.count("\n") + 1, len(text) - text.rfind("\n")) if place else (0, 0)
        raise ParseError(message, line, column) from None


def _refuse_long_keys(text: str) -> None:
    """tomllib takes quadratic time and memory for a key of many parts: a.a.a.a.…"""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") < DEEPEST:
            continue
        parts, expects_dot = 0, False
        for match in _dotted_part.finditer(line):
            token = match[0]
            if token.isspace():
                continue
            if token == "." and expects_dot:
                parts, expects_dot = parts + 1, False
            elif token != "." and (len(token) > 1 or token.isalnum() or token in "_-"):
                parts, expects_dot = (0 if expects_dot else parts), True
            else:
                parts, expects_dot = 0, False
            if parts >= DEEPEST:
                raise ParseError(f"a key of more than {DEEPEST} parts", number, match.start() + 1)


def positions(text: str) -> dict[Path, tuple[int, int]]:
    """Line and column of every key, header and element of a valid text."""
    return Scanner(text).scan()


class Scanner:
    """Walks over a valid text; what a method reads begins `here`, and the offset that it gives is behind it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = Lines(text)
        self.found: dict[Path, tuple[int, int]] = {}
        # How many tables an array of tables has so far.
        self.counts: dict[Path, int] = {}

    def scan(self) -> dict[Path, tuple[int, int]]:
        """Line and column of everything in it."""
        table: Path = ()
        here = self.skip(0)
        while here < len(self.text):
            if self.text[here] == "[":
                table, here = self.header(here)
            else:
                here = self.pair(here, table)
            here = self.skip(here)
        return self.found

    def skip(self, here: int) -> int:
        """Read blanks, comments and ends of lines."""
        match = _blank.match(self.text, here)
        return match.end() if match else here

    def note(self, path: Path, offset: int) -> None:
        """It stands there; what is noted first counts."""
        self.found.setdefault(path, self.lines.place(offset))

    def keys(self, here: int) -> tuple[list[tuple[str, int]], int]:
        """The parts of a dotted key, each with its offset."""
        parts: list[tuple[str, int]] = []
        while True:
            space = _space.match(self.text, here)
            here = space.end() if space else here
            match = _key.match(self.text, here)
            if match is None:
                return parts, here + 1
            parts.append((_unquoted(match[0]), here))
            space = _space.match(self.text, match.end())
            here = space.end() if space else match.end()
            if self.text[here : here + 1] != ".":
                return parts, here
            here += 1

    def header(self, here: int) -> tuple[Path, int]:
        """The table that the header begins."""
        start = here
        array = self.text.startswith("[[", here)
        parts, here = self.keys(here + 1 + array)
        path: Path = ()
        for number, (part, _) in enumerate(parts, 1):
            path = (*path, part)
            if path in self.counts and not (array and number == len(parts)):
                path = (*path, self.counts[path] - 1)
        if array:
            self.note(path, start)
            index = self.counts.get(path, 0)
            self.counts[path] = index + 1
            path = (*path, index)
        self.note(path, start)
        return path, here + 1 + array

    def pair(self, here: int, table: Path) -> int:
        """Read `key = value`, a pair of that table."""
        parts, after = self.keys(here)
        path = table
        for part, offset in parts:
            path = (*path, part)
            self.note(path, offset)
        # Past the equals sign.
        return self.value(self.skip(after + 1), path)

    def value(self, here: int, path: Path) -> int:
        """Read the value of that path."""
        sign = self.text[here : here + 1]
        if sign in ("[", "{"):
            return self.array(here + 1, path) if sign == "[" else self.inline(here + 1, path)
        pattern = _string if sign in ('"', "'") else _bare
        match = pattern.match(self.text, here)
        return match.end() if match else here + 1

    def array(self, here: int, path: Path) -> int:
        """Read what follows `[`, to its end."""
        index = 0
        here = self.skip(here)
        while here < len(self.text) and self.text[here] != "]":
            if self.text[here] == ",":
                here = self.skip(here + 1)
                continue
            self.note((*path, index), here)
            here = self.skip(self.value(here, (*path, index)))
            index += 1
        return here + 1

    def inline(self, here: int, path: Path) -> int:
        """Read what follows `{`, to its end."""
        here = self.skip(here)
        while here < len(self.text) and self.text[here] != "}":
            here = self.skip(here + 1) if self.text[here] == "," else self.skip(self.pair(here, path))
        return here + 1


def _unquoted(key: str) -> str:
    if key[0] == "'":
        return key[1:-1]
    if key[0] != '"':
        return key
    if "\\" not in key:
        return key[1:-1]
    import tomllib

    return next(iter(tomllib.loads(f"{key} = 0")))
