"""Text into plain values: tables, lists, strings, numbers. Two equal keys are an error in every format."""

from __future__ import annotations

import re
from typing import Any

from poolctl.config.files.parse_error import DEEPEST, MOST_VALUES, ParseError
from poolctl.config.files.plain_toml import WORTHWHILE_CHARACTERS, parse_plain_toml

_many_digits = re.compile(r"[0-9_]{4000,}")
_place = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_dotted_part = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|[A-Za-z0-9_-]+|[ \t]+|\.|[^.]")


def parse(text: str, kind: str) -> Any:
    """The value of a text of that kind (`toml`, `yaml`, `json`). Raises ParseError."""
    if text.count("\n") + text.count(",") > MOST_VALUES:
        raise ParseError(
            f"more than {MOST_VALUES:,} lines and values", hint="split it: a directory is one pool"
        )
    try:
        return PARSERS[kind](text)
    except ParseError as error:
        raise error if error.hint else _explained(text, kind, error) from None
    except RecursionError:
        raise ParseError("nested too deeply", hint="a configuration needs five levels") from None


def _explained(text: str, kind: str, error: ParseError) -> ParseError:
    if kind == "toml":
        from poolctl.config.files.toml_syntax_hints import toml_slip

        return toml_slip(text, error)
    if kind == "json":
        from poolctl.config.files.json_syntax_hints import json_slip

        return json_slip(text, error)
    return error


def _toml(text: str) -> Any:
    import tomllib

    if len(text) >= WORTHWHILE_CHARACTERS:
        found = parse_plain_toml(text)
        if found is not None:
            return found
    _refuse_long_keys(text)
    try:
        return tomllib.loads(text)
    except ValueError as error:
        message = str(error)
        digits = _many_digits.search(text) if "integer string conversion" in message else None
        if digits:
            start = digits.start()
            line, column = text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)
            raise ParseError("a number of too many digits", line, column) from None
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


def _json(text: str) -> Any:
    import json

    try:
        value = json.loads(text, object_pairs_hook=_table, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ParseError(error.msg, error.lineno, error.colno) from None
    except _TwiceError:
        from poolctl.config.files.json_positions import first_repeated

        key, line, column = first_repeated(text)
        raise ParseError(f"the key {key!r} is there twice", line, column, "keep one of them") from None
    except ValueError as error:
        message = "a number of too many digits" if "integer string" in str(error) else str(error)
        raise ParseError(message) from None
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


def _yaml(text: str) -> Any:
    # PyYAML is imported only for a YAML file.
    from poolctl.config.files.yaml_file import parse_yaml

    return parse_yaml(text)


PARSERS = {"toml": _toml, "json": _json, "yaml": _yaml}
