"""JSON text into plain values, and where each of its keys and elements is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from poolctl.config.files.parse_error import Lines, ParseError
from poolctl.config.model.problems import Path

_blank = re.compile(r"[ \t\r\n]*")
_scalar = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s,\]}]+', re.DOTALL)
_constant_or_string = re.compile(r'"(?:[^"\\]|\\.)*+"?|(NaN|-?Infinity)', re.DOTALL)


def parse_json(text: str) -> Any:
    """What the text says. Raises ParseError."""
    try:
        value = json.loads(text, object_pairs_hook=_table, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ParseError(error.msg, error.lineno, error.colno) from None
    except _TwiceError:
        key, line, column = _first_repeated(text)
        raise ParseError(f"the key {key!r} is there twice", line, column, "keep one of them") from None
    except ValueError as error:
        constant = next((found for found in _constant_or_string.finditer(text) if found[1]), None)
        if constant is None:
            raise ParseError("a number of too many digits") from None
        place = Lines(text).place(constant.start(1))
        raise ParseError(str(error), *place, "write a number, or leave the key out") from None
    return value


class _TwiceError(Exception):
    pass


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _TwiceError
    return table


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def positions(text: str) -> dict[Path, tuple[int, int]]:
    """Line and column of every key and element of a valid text; of a repeated key, the first."""
    lines = Lines(text)
    found: dict[Path, tuple[int, int]] = {}
    for path, offset in _walk(text):
        found.setdefault(path, lines.place(offset))
    return found


def _first_repeated(text: str) -> tuple[str, int, int]:
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
