"""Where each key and element of a JSON text stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from poolctl.config.files.lines import Lines

Path = tuple[str | int, ...]

_blank = re.compile(r"[ \t\r\n]*")
_scalar = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s,\]}]+', re.DOTALL)


def positions(text: str) -> dict[Path, tuple[int, int]]:
    """Line and column of every key and element of a valid text; of a repeated key, the first."""
    lines = Lines(text)
    found: dict[Path, tuple[int, int]] = {}
    for path, offset in _walk(text):
        found.setdefault(path, lines.place(offset))
    return found


def first_repeated(text: str) -> tuple[str, int, int]:
    """The first key that its table already had, with its line and column."""
    seen: set[Path] = set()
    for path, offset in _walk(text):
        if path in seen:
            return str(path[-1]), *Lines(text).place(offset)
        seen.add(path)
    return "", 0, 0


def _walk(text: str) -> Iterator[tuple[Path, int]]:
    # Open collections: the path to each, and the index of a list's next element (None: a table).
    stack: list[tuple[Path, int | None]] = []
    here = 0
    path: Path = ()
    while True:
        here = _skip(text, here)
        if here >= len(text):
            return
        sign = text[here]
        if sign in "{[":
            stack.append((path, None if sign == "{" else 0))
            here = _skip(text, here + 1)
        elif sign in "]}":
            stack.pop()
            here = _skip(text, here + 1)
        elif sign == ",":
            here = _skip(text, here + 1)
        else:
            match = _scalar.match(text, here)
            here = _skip(text, match.end() if match else here + 1)
        if not stack:
            return
        if here < len(text) and text[here] in "]},":
            continue
        base, index = stack[-1]
        if index is not None:
            path = (*base, index)
            stack[-1] = (base, index + 1)
            yield path, here
            continue
        match = _scalar.match(text, here)
        if match is None:
            return
        path = (*base, json.loads(match[0]))
        yield path, here
        here = _skip(text, match.end()) + 1


def _skip(text: str, here: int) -> int:
    match = _blank.match(text, here)
    return match.end() if match else here
