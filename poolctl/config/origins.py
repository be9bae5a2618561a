"""The values of a server's configuration, each with where it was set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from poolctl.json_form import Table

DEFAULT = "default"


class ConfiguredValue(NamedTuple):
    """One value by its key, such as `restart.limit`. `place` is `pool.toml:6`, DEFAULT, or "" if it is unknown."""

    key: str
    value: object
    place: str


def configured_values(config: Table, origin: Mapping[str, str] | None) -> list[ConfiguredValue]:
    """Every value of a server's effective configuration, with its place from `origin` (keys and their places)."""
    origin = origin or {}
    leaves = _flattened(config)
    # Places are unknown once the files have changed, and the place of a table does not apply to its keys.
    places = {key: _place(key, origin) if origin else "" for key, _ in leaves}
    unsure = [key for key in places if key not in origin and places[key] != DEFAULT]
    usual: Table = {}
    if unsure:
        from poolctl.config import Section, ServerConfig

        usual = dict(_flattened(Section.to_dict(ServerConfig(name="example", bind=":80"))))
    places |= {key: DEFAULT for key, value in leaves if key in unsure and usual.get(key) == value}
    return [ConfiguredValue(key, value, places[key]) for key, value in leaves]


def _flattened(table: Table, prefix: str = "") -> list[tuple[str, object]]:
    leaves: list[tuple[str, object]] = []
    for key, value in table.items():
        if isinstance(value, dict) and value:
            leaves += _flattened(value, f"{prefix}{key}.")
        elif value is not None and value != {}:
            leaves.append((prefix + key, value))
    return leaves


def _place(key: str, origin: Mapping[str, str]) -> str:
    """Where in the files `key` is set, or else the table around it if none of its keys has a place; else DEFAULT."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if where := origin.get(name):
            has_others = name != key and any(other.startswith(f"{name}.") for other in origin)
            return DEFAULT if has_others else str(where)
    return DEFAULT
