"""The settings of another tool's file: a table for each format says what becomes of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ._foreign_pool import ForeignServer, Remarked

_EMPTY: tuple[Any, ...] = (None, "", [], {})
NO_EQUIVALENT = "no equivalent"
ONE_LOG = "a server has one log, of both streams"
AS_USUAL = object()  # a result of `convert`: the value is the default here, too
OF_ANOTHER_TYPE = "a value of another type than expected"


class Becomes(NamedTuple):
    """What becomes of a setting: `key` of pool.toml, or several, with the result of `convert`.

    If there is no key, or the result is "" or None or a ValueError, it becomes a remark with its value and `advice`;
    likewise if `unless_set` and the key is set. It needs no remark if it has the value `default`, or is `meaningless`
    for the reason given.
    """

    key: str = ""
    convert: Callable[[str], Any] = str
    unless_set: bool = False
    default: Any = None
    advice: str = ""
    meaningless: str = ""

    @classmethod
    def nothing(cls, why: str, *names: str) -> dict[str, Becomes]:
        """Rows of settings without a meaning here."""
        return dict.fromkeys(names, cls(meaningless=why))

    @classmethod
    def advised(cls, advice: str, *names: str) -> dict[str, Becomes]:
        """Rows of settings without an equivalent key."""
        return dict.fromkeys(names, cls(advice=advice))

    @classmethod
    def unless(cls, **defaults: object) -> dict[str, Becomes]:
        """Rows of settings without an equivalent, unless they have these values, which change nothing."""
        return {name: cls(default=default) for name, default in defaults.items()}


# By the path of a setting, such as `deploy.mode`, or a pattern, in the order in which keys are set. A function takes
# the setting and others from their table.
Table = Mapping[str, Becomes | Callable[..., None]]


def row_of(path: str, table: Table) -> Becomes:
    """The row of a setting that was not taken."""
    row = next((row for pattern, row in table.items() if fnmatchcase(path, pattern)), None)
    return row if isinstance(row, Becomes) else Becomes()


class Settings:
    """A table of settings that records which were taken. Settings with an empty value are ignored.

    `about` is what the settings describe: it gets the remarks, and the line of the setting taken last.
    `line` returns the line of a path, and `show` the text of a path and its value.
    """

    def __init__(
        self,
        about: Remarked,
        values: Mapping[Any, Any],
        line: Callable[..., int],
        rows: Table,
        show: Callable[[str, Any], str] = lambda path, value: f"{path}: {shown(value)}",
        prefix: str = "",
    ) -> None:
        self._about, self._rows, self._show, self._prefix = about, rows, show, prefix
        self.line = line
        self._values = {str(key): value for key, value in values.items()}
        self._taken: set[str] = set()
        self._mistyped: set[str] = set()
        self._tables: dict[str, Settings] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, *types: type) -> Any:
        """Take the value of `key`. If it is missing or of another type than `types`, return None and do not take it."""
        value = self._values.get(key)
        if value in _EMPTY:
            return None
        if types and not isinstance(value, types):
            self._mistyped.add(key)
            return None
        self._taken.add(key)
        self._about.at = self.line(key)
        return value

    def peek(self, key: str) -> Any:
        """Return the value of `key` without taking it; None if it is missing."""
        return self._values.get(key)

    def table(self, key: str) -> Settings:
        """The settings in the table `key`, to be taken one by one; empty if the table is missing."""
        if key not in self._tables:
            values, line = self.take(key, dict) or {}, functools.partial(self.line, key)
            prefix = f"{self._prefix}{key}."
            self._tables[key] = Settings(self._about, values, line, self._rows, self._show, prefix)
        return self._tables[key]

    def apply(self, server: ForeignServer, *context: Any, rows: Table | None = None) -> None:
        """Set the keys of pool.toml, by the rows in their order. Functions get `context`, or else the server."""
        for name, row in (self._rows if rows is None else rows).items():
            if not isinstance(row, Becomes):
                row(*(context or (server,)), self)
            elif row.key:
                self.carry(server, name, row)

    def carry(self, server: ForeignServer, name: str, row: Becomes) -> None:
        """Set keys from a setting, which may be in a table. It is not taken if its value cannot be converted."""
        table, _, rest = name.partition(".")
        if rest:
            self.table(table).carry(server, rest, row)
            return
        value = self.peek(name)
        try:
            converted = None if value in _EMPTY else row.convert(text_of(value))
        except ValueError:
            return
        keys = row.key.split()
        if converted in ("", None) or (row.unless_set and server.has(keys[0])):
            return
        self.take(name)
        for key in keys if converted is not AS_USUAL else ():
            server.set(key, converted)

    def remark(self, key: str, why: str) -> None:
        """Take the setting if present, and add a remark with its value."""
        value = self.take(key)
        if value is not None:
            self._about.remark(f"{self._show(self._prefix + key, value)}: {why}")

    def remark_unread(self) -> None:
        """Add a remark for each setting that was not taken and needs one."""
        for key, value in self._values.items():
            path = self._prefix + key
            row = row_of(path, self._rows)
            if key in self._taken:
                if key in self._tables:
                    self._tables[key].remark_unread()
            elif not (value in _EMPTY or row.default == value or row.meaningless):
                why = row.advice or (OF_ANOTHER_TYPE if key in self._mistyped else NO_EQUIVALENT)
                self._about.remark(f"{self._show(path, value)}: {why}", self.line(key))


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
