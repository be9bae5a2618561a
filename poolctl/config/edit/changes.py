"""Changes to the servers of one file, made in its value as any library has parsed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from poolctl.config.model.problems import Path

Pairs = list[tuple[Path, Any]]


def _as_it_is(value: Any) -> Any:
    return value


@dataclass
class Changes:
    """New values of keys by the index of their server, servers to remove, and tables to add as servers."""

    pairs: dict[int, Pairs] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    added: list[dict[str, Any]] = field(default_factory=list)

    def set(self, server: int, path: Path, value: Any) -> None:
        """Give a key of a server a value."""
        self.pairs.setdefault(server, []).append((path, value))

    def apply(self, servers: Any, convert: Callable[[Any], Any] = _as_it_is) -> None:
        """Change the servers of a parsed file; `convert` makes what its library writes of a plain value."""
        for index, pairs in self.pairs.items():
            assign(servers[index], pairs, convert)
        for index in sorted(self.removed, reverse=True):
            del servers[index]
        for table in self.added:
            servers.append(convert(table))

    def first(self) -> Path:
        """The path of one of them, in the list of servers."""
        for index, pairs in self.pairs.items():
            return (index, *pairs[0][0])
        return tuple(sorted(self.removed)[:1])


def assign(table: Any, pairs: Pairs, convert: Callable[[Any], Any] = _as_it_is) -> None:
    """Give keys of a table their values; tables on the way are made."""
    for path, value in pairs:
        at = table
        for number, key in enumerate(path[:-1], 1):
            if at.get(key) is None:
                for inner in reversed(path[number:]):
                    value = {inner: value}
                path = path[:number]
                break
            at = at[key]
        at[path[-1]] = convert(value)


def list_at(data: Any, servers: Path, make: Callable[[], Any] = list) -> Any:
    """The list of servers of a parsed file; an empty one is put there if there is none."""
    for number, key in enumerate(servers, 1):
        if data.get(key) is None:
            data[key] = make() if number == len(servers) else {}
        data = data[key]
    return data
