"""Writes values and tables as TOML (https://toml.io/en/v1.0.0), which the standard library only reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from poolctl.config.values.problems import Tree

_controls = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_bare_key = re.compile(r"[A-Za-z0-9_-]+")


def value_text(value: object) -> str:
    """The value in TOML on one line; tables are written inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key_text(k)} = {value_text(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(value_text(element) for element in value)}]"
    return _string(str(value))


def key_text(key: str) -> str:
    """The key in TOML, quoted if necessary."""
    return key if _bare_key.fullmatch(key) else _string(key)


def table_text(head: str, table: Mapping[str, object]) -> str:
    """The table in TOML, below the line `head` (`[pool]`, `[[server]]`); keys with the value None are omitted."""
    lines = [head, *(f"{key_text(k)} = {value_text(v)}" for k, v in table.items() if v is not None)]
    return "\n".join(lines) + "\n"


def escaped(value: Tree) -> Tree:
    """The value with `${` in its strings escaped as `$${`, so that interpolation restores it.

    References to servers (`${server.NAME.url}`) stay, because interpolation ignores them.
    """
    if isinstance(value, str):
        return re.sub(r"\$\{(?!server\.)", "$${", value)
    if isinstance(value, Mapping):
        return {key: escaped(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [escaped(inner) for inner in value]
    return value


def _string(text: str) -> str:
    # A TOML basic string is a JSON string, except for DEL and unpaired surrogates.
    return json_text(text.encode("utf-8", "replace").decode("utf-8"))


def json_text(value: object) -> str:
    """The value as JSON in one line; characters that could control a terminal are escaped."""
    return _controls.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))
