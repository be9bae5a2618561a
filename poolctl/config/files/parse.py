"""Text into plain values: tables, lists, strings, numbers. Two equal keys are an error in every format."""

from __future__ import annotations

from typing import Any

from poolctl.config.files.parse_error import MOST_VALUES, ParseError
from poolctl.config.model.problems import Path


def parse(text: str, kind: str) -> Any:
    """The value of a text of that kind (`toml`, `yaml`, `json`). Raises ParseError."""
    if text.count("\n") + text.count(",") > MOST_VALUES:
        hint = "split it: a directory is one pool"
        raise ParseError(f"more than {MOST_VALUES:,} lines and values", hint=hint)
    try:
        if kind == "toml":
            from poolctl.config.files.toml_file import parse_toml

            return parse_toml(text)
        if kind == "json":
            from poolctl.config.files.json_file import parse_json

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
    if kind == "toml":
        from poolctl.config.files import toml_file

        return toml_file.positions(text)
    if kind == "json":
        from poolctl.config.files import json_file

        return json_file.positions(text)
    from poolctl.config.files import yaml_file

    return yaml_file.positions(text)
