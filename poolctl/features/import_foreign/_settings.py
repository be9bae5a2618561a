"""The settings of another tool's file: each is converted, becomes a remark, or has no meaning here.

A reader takes the settings that it knows from `Settings`. All others become remarks, except the `Meaningless`
settings, which the module of the format lists with reasons.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ._foreign_pool import ForeignServer, Keys, Remarked

_EMPTY: tuple[Any, ...] = (None, "", [], {})
NO_EQUIVALENT = "no equivalent"
OF_ANOTHER_TYPE = "a value of another type than expected"
# The reasons why a setting needs no remark, by the pattern of its path, such as `deploy.x-*`.
Meaningless = Mapping[str, str]


class Unread(NamedTuple):
    """A setting that was not taken: path, such as `deploy.mode`, value, line and reason."""

    path: str
    value: Any
    line: int
    why: str


class Settings:
    """A table of settings that records which were taken. Settings with an empty value are ignored.

    `about` is what the settings describe: it gets the remarks, and the line of the setting taken last.
    `line` returns the line of a path in the table, and `sign` is written between a setting's name and value.
    """

    def __init__(
        self,
        about: Remarked,
        values: Mapping[Any, Any],
        line: Callable[..., int],
        *,
        sign: str = ": ",
        prefix: str = "",
    ) -> None:
        self._about = about
        self._values = {str(key): value for key, value in values.items()}
        self._line = line
        self._sign = sign
        self._prefix = prefix
        self._taken: set[str] = set()
        self._mistyped: set[str] = set()
        self._tables: dict[str, Settings] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __repr__(self) -> str:
        return f"<Settings {', '.join(self._values)}; taken: {', '.join(sorted(self._taken)) or 'none'}>"

    def line(self, key: str) -> int:
        """The line of `key`."""
        return self._line(key)

    def take(self, key: str, *types: type) -> Any:
        """Take the value of `key`. If it is missing or of another type than `types`, return None and do not take it."""
        value = self._values.get(key)
        if value in _EMPTY:
            return None
        if types and not isinstance(value, types):
            self._mistyped.add(key)
            return None
        self._taken.add(key)
        self._about.at = self._line(key)
        return value

    def peek(self, key: str) -> Any:
        """Return the value of `key` without taking it; None if it is missing."""
        return self._values.get(key)

    def table(self, key: str) -> Settings:
        """The settings in the table `key`, to be taken one by one; empty if the table is missing."""
        if key not in self._tables:
            values = self.take(key, dict) or {}
            line = functools.partial(self._line, key)
            prefix = f"{self._prefix}{key}."
            self._tables[key] = Settings(self._about, values, line, sign=self._sign, prefix=prefix)
        return self._tables[key]

    def carry(self, server: ForeignServer, keys: Keys) -> None:
        """Set the keys of pool.toml that correspond to settings one by one.

        A setting is not taken if its value cannot be converted (result "" or None, or ValueError).
        """
        for name, (key, convert) in keys.items():
            value = self.peek(name)
            converted = None if value in _EMPTY else _converted(convert, value)
            if converted not in ("", None):
                self.take(name)
                server.set(key, converted)

    def remark(self, key: str, why: str) -> None:
        """Take the setting if present, and add a remark with its value."""
        value = self.take(key)
        if value is not None:
            self._about.remark(f"{self._prefix}{key}{self._sign}{shown(value)}: {why}")

    def unread(self, meaningless: Meaningless, defaults: Mapping[str, object]) -> Iterator[Unread]:
        """The settings that were not taken, except `meaningless` ones and those with default values."""
        for key, value in self._values.items():
            path = self._prefix + key
            if value in _EMPTY:
                continue
            if key in self._taken:
                if key in self._tables:
                    yield from self._tables[key].unread(meaningless, defaults)
            elif defaults.get(path) != value and not is_meaningless(path, meaningless):
                why = OF_ANOTHER_TYPE if key in self._mistyped else NO_EQUIVALENT
                yield Unread(path, value, self._line(key), why)

    def remark_unread(
        self,
        meaningless: Meaningless,
        *,
        defaults: Mapping[str, object] = {},
        advice: Mapping[str, str] = {},
    ) -> None:
        """Add a remark with value and `advice` for each setting of `unread`."""
        for path, value, line, why in self.unread(meaningless, defaults):
            self._about.remark(f"{path}{self._sign}{shown(value)}: {advice.get(path, why)}", line)


def is_meaningless(path: str, meaningless: Meaningless) -> bool:
    """Whether a pattern of `meaningless` matches the path."""
    return any(fnmatchcase(path, pattern) for pattern in meaningless)


def _converted(convert: Callable[[str], Any], value: Any) -> Any:
    try:
        return convert(text_of(value))
    except ValueError:
        return None


def text_of(value: Any) -> str:
    """The value as the file has it: `true`, not `True`; a number as JavaScript and Go write it, such as `1` for 1.0."""
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return str(value).lower() if isinstance(value, bool) else str(value)


def shown(value: Any) -> str:
    """The value of a setting for a remark."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key}: {shown(item)}" if item not in _EMPTY else str(key) for key, item in value.items()
        )
    return ", ".join(map(shown, value)) if isinstance(value, (list, tuple)) else text_of(value)
