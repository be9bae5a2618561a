"""Text into plain values: tables, lists, strings, numbers. Two equal keys are an error in every format."""

from __future__ import annotations

import json
import re
from typing import Any

from poolctl.config.files.positions import DEEPEST, MOST_VALUES, Lines, ParseError, Scanner
from poolctl.config.model.problems import Path

_many_digits = re.compile(r"[0-9_]{4000,}")
_toml_place = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_PART = r"""(?:"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+'|[\w-]++)[ \t]*+"""
_long_key = re.compile(rf"(?:^|[\[{{,])[ \t]*+(?:{_PART}\.[ \t]*+){{{DEEPEST}}}", re.ASCII)
_json_constant = re.compile(r'"(?:[^"\\]|\\.)*+"?|(NaN|-?Infinity)', re.DOTALL)


def parse(text: str, kind: str) -> Any:
    """The value of a text of that kind (`toml`, `yaml`, `json`). Raises ParseError."""
    if text.count("\n") + text.count(",") > MOST_VALUES:
        hint = "split it: a directory is one pool"
        raise ParseError(f"more than {MOST_VALUES:,} lines and values", hint=hint)
    try:
        if kind == "toml":
            return parse_toml(text)
        if kind == "json":
            return parse_json(text)
        from poolctl.config.files.yaml_file import parse_yaml

        return parse_yaml(text)
    except ParseError as error:
        if error.hint:
            raise
        from poolctl.config.files.syntax_hints import explained

        raise explained(text, kind, error) from None
    except RecursionError:
        raise ParseError("nested too deeply", hint="a configuration needs five levels") from None


def positions(text: str, kind: str) -> dict[Path, tuple[int, int]]:
    """Line and column of every key and element of a valid text: a second pass over it."""
    if kind == "yaml":
        from poolctl.config.files.yaml_file import yaml_positions

        return yaml_positions(text)
    scanner = Scanner(text)
    try:
        return scanner.scan(kind)
    except RecursionError:  # JSON that is deeper than any configuration
        return scanner.found


def parse_toml(text: str) -> Any:
    """What the text says. Raises ParseError."""
    import tomllib

    for number, row in enumerate(text.split("\n"), 1):
        # tomllib takes quadratic time and memory for a key of many parts: a.a.a.a.…
        if row.count(".") >= DEEPEST and (key := _long_key.search(row)):
            raise ParseError(f"a key of more than {DEEPEST} parts", number, key.start() + 1)
    try:
        return tomllib.loads(text)
    except ValueError as error:
        message = str(error)
        digits = _many_digits.search(text) if "integer string conversion" in message else None
        if digits:
            raise ParseError("a number of too many digits", *Lines(text).place(digits.start())) from None
        place = _toml_place.search(message)
        message = message[: place.start()] if place else message.partition(";")[0]
        if place and place[1]:
            line, column = int(place[1]), int(place[2])
        else:
            line, column = Lines(text).place(len(text)) if place else (0, 0)
        raise ParseError(message, line, column) from None


def parse_json(text: str) -> Any:
    """What the text says. Raises ParseError."""
    try:
        return json.loads(text, object_pairs_hook=_table, parse_constant=_refused)
    except json.JSONDecodeError as error:
        raise ParseError(error.msg, error.lineno, error.colno) from None
    except _RepeatedKey:
        scanner = Scanner(text)
        scanner.scan("json")
        key, offset = scanner.repeated or ("", 0)
        place = scanner.lines.place(offset)
        raise ParseError(f"the key {key!r} is there twice", *place, "keep one of them") from None
    except ValueError as error:
        constant = next((found for found in _json_constant.finditer(text) if found[1]), None)
        if constant is None:
            raise ParseError("a number of too many digits") from None
        place = Lines(text).place(constant.start(1))
        raise ParseError(str(error), *place, "write a number, or leave the key out") from None


class _RepeatedKey(Exception):
    pass


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _RepeatedKey
    return table


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
