"""Where each key and element of a TOML or JSON text is, and the error of a text that cannot be parsed."""

from __future__ import annotations

import json
import re
from bisect import bisect_right

from poolctl.config.model.problems import Path

# The model is five levels deep.
DEEPEST = 100
# 10,000 servers of 25 keys; hostile files are given up before they cost seconds.
MOST_VALUES = 300_000

_blank = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_space = re.compile(r"[ \t]*")
_string = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:[^"\\]|\\.)*"|\'[^\']*\'', re.DOTALL
)
_bare = re.compile(r"[^,\]}\n#]+")
_key = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_-]+')


class ParseError(Exception):
    """The text cannot be parsed; line and column count from 1, 0 is unknown."""

    def __init__(self, message: str, line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint


class Lines:
    """Finds the line of an offset in a text, in logarithmic time."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1


class Scanner:
    """Walks over a valid text, or the part of one before an error.

    The methods read what begins `here` and return the offset behind it. JSON is read as one value of TOML: only the
    sign between key and value is another.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = Lines(text)
        self.found: dict[Path, tuple[int, int]] = {}
        # The offsets of brackets that are not closed, and the first key of a table that was there before.
        self.open: list[int] = []
        self.repeated: tuple[str, int] | None = None
        # How many tables an array of tables has so far.
        self.counts: dict[Path, int] = {}

    def scan(self, kind: str) -> dict[Path, tuple[int, int]]:
        """Line and column of every key, header and element; the first where one is repeated."""
        table: Path = ()
        here = self.skip(0)
        if kind == "json":
            here = self.value(here, ()) if here < len(self.text) else here
            return self.found
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
        """Record the place of a path, unless it has one."""
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
        """Read a pair of that table: `key = value`, or `"key": value`."""
        parts, after = self.keys(here)
        path = table
        for number, (part, offset) in enumerate(parts, 1):
            path = (*path, part)
            if number == len(parts) and path in self.found and self.repeated is None:
                self.repeated = part, offset
            self.note(path, offset)
        # Past the equals sign or colon.
        return self.value(self.skip(self.skip(after) + 1), path)

    def value(self, here: int, path: Path) -> int:
        """Read the value of that path."""
        sign = self.text[here : here + 1]
        if sign in ("[", "{"):
            return self.inside(here, path, "]" if sign == "[" else "}")
        pattern = _string if sign in ('"', "'") else _bare
        match = pattern.match(self.text, here)
        return match.end() if match else here + 1

    def inside(self, here: int, path: Path, end: str) -> int:
        """Read a list or an inline table, from its bracket to its `end`."""
        self.open.append(here)
        index = 0
        here = self.skip(here + 1)
        while here < len(self.text) and self.text[here] != end:
            if self.text[here] == ",":
                here += 1
            elif end == "}":
                here = self.pair(here, path)
            else:
                self.note((*path, index), here)
                here = self.value(here, (*path, index))
                index += 1
            here = self.skip(here)
        if here < len(self.text):
            self.open.pop()
        return here + 1


def _unquoted(key: str) -> str:
    if key[0] not in "\"'":
        return key
    if key[0] == "'" or "\\" not in key:
        return key[1:-1]
    try:
        return str(json.loads(key))
    except ValueError:
        import tomllib  # its escapes are more

        return next(iter(tomllib.loads(f"{key} = 0")))
