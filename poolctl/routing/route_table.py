"""The route table: routes in one sealed file in memory, which other processes read.

The file never changes: a change of the routes makes a new file with a higher generation. Each route is a line, because
a worker gets thousands of routes and decodes only a few of them.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, cached_property
from json import JSONDecoder, JSONEncoder
from typing import Any

from poolctl.platform import memory_file

from ..json_form import from_json
from .match import WILDCARD, explain, host_pattern, normal_host
from .route import ExcludedRoute, Route, StreamRoute

_encode, _decode = JSONEncoder().encode, JSONDecoder().decode  # unaffected if an application patches `json`

# A line begins with the letter of the route's kind; the fields follow in JSON, the alias first.
_HTTP, _STREAM, _EXCLUDED = "h", "s", "x"
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def write_table(
    routes: Iterable[Route],
    generation: int,
    *,
    streams: Iterable[StreamRoute] = (),
    excluded: Iterable[ExcludedRoute] = (),
) -> int:
    """Write a table of these routes; returns its descriptor, which the caller closes.

    Raises ValueError if HTTP routes have the same alias, OSError if memory is exhausted.
    """
    http = [*routes]
    if len({route.alias for route in http}) < len(http):
        raise ValueError("two routes have the same alias")
    kinds: dict[str, list[Any]] = {
        _HTTP: http,
        _STREAM: _unique_by_alias(streams),
        _EXCLUDED: _unique_by_alias(excluded),
    }
    head = {"generation": generation, **{kind: len(members) for kind, members in kinds.items()}}
    lines = [_encode(head)]
    for kind, members in kinds.items():
        lines += [kind + _encode({"alias": route.alias, **_non_default_fields(route)}) for route in members]
    return memory_file("poolctl-routes", "\n".join([*lines, ""]).encode(), SEALS)


def _unique_by_alias(routes: Iterable[StreamRoute | ExcludedRoute]) -> list[StreamRoute | ExcludedRoute]:
    """The first route of each alias."""
    by_alias: dict[str, StreamRoute | ExcludedRoute] = {}
    for route in routes:
        by_alias.setdefault(route.alias, route)
    return [*by_alias.values()]


def _non_default_fields(value: Any) -> dict[str, Any]:
    """The JSON form of a value, without the fields that have their defaults."""
    return {
        name: _in_json(field)
        for name, default in _defaults(type(value))  # type: ignore[arg-type]
        if (field := getattr(value, name)) is not default
    }


@cache
def _defaults(kind: Any) -> tuple[tuple[str, object], ...]:
    return tuple((field.name, field.default) for field in fields(kind))


def _in_json(field: object) -> object:
    if is_dataclass(field):
        return _non_default_fields(field)
    return [_in_json(element) for element in field] if isinstance(field, tuple) else field


class TableError(ValueError):
    """The descriptor does not hold a valid route table."""


class RouteTable:
    """A read-only route table, read from a file that `write_table` made. Any thread may use it."""

    def __init__(self, fd: int) -> None:
        """Read the table behind a descriptor, which the caller still owns. Raises TableError, OSError."""
        if _seals(fd) & SEALS != SEALS:
            raise TableError("the route table is not sealed")
        self._text = os.pread(fd, os.fstat(fd).st_size, 0)
        try:
            head = _decode(self._text[: self._text.find(b"\n")].decode())
            self.generation: int = head["generation"]
            self._counts = {kind: int(head[kind]) for kind in (_HTTP, _STREAM, _EXCLUDED)}
        except (ValueError, LookupError, TypeError) as error:
            raise TableError("the descriptor holds no route table") from error

    def __len__(self) -> int:
        return self._counts[_HTTP]

    def __iter__(self) -> Iterator[Route]:
        """Every route, in the order given to `write_table`; each is decoded when it is reached."""
        return (from_json(Route, values) for values in self._all(_HTTP))

    def find(
        self,
        host: str,
        path: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        *,
        secure: bool = False,
    ) -> Route | None:
        """The route that takes a request, or None. `secure` is true for a request over TLS.

        `host` and `path` are in normal form (`normal_host`, `normal_path`), and header names in lower case.
        """
        routes = [from_json(Route, self._fields(at)) for at in self._routes_that_cover(host)]
        steps = explain(routes, host, path, method, headers, secure=secure)
        return next((step.route for step in steps if step.matched), None)

    # The interface of a registry.

    def get(self, alias: str) -> Route | None:
        """The route of this alias, or None."""
        return None if (values := self._find_by_alias(_HTTP, alias)) is None else from_json(Route, values)

    def get_by_host(self, host: str) -> Route | None:
        """The first route with exactly this host and any path; None if there is no such route."""
        at = next(iter(self._by_host.get(normal_host(host), ())), -1)
        return None if at < 0 else from_json(Route, self._fields(at))

    def get_stream(self, alias: str) -> StreamRoute | None:
        """The stream of this alias, or None."""
        return (
            None
            if (values := self._find_by_alias(_STREAM, alias)) is None
            else from_json(StreamRoute, values)
        )

    def get_excluded(self, alias: str) -> ExcludedRoute | None:
        """Return the route of this alias that is known but not served (excluded); None if there is no such route."""
        values = self._find_by_alias(_EXCLUDED, alias)
        return None if values is None else from_json(ExcludedRoute, values)

    def streams(self) -> Iterator[StreamRoute]:
        """Every stream, in the order given to `write_table`."""
        return (from_json(StreamRoute, values) for values in self._all(_STREAM))

    def excluded(self) -> Iterator[ExcludedRoute]:
        """Iterate over the routes that are known but not served (excluded), in the order given to `write_table`."""
        return (from_json(ExcludedRoute, values) for values in self._all(_EXCLUDED))

    @property
    def num_streams(self) -> int:
        """The number of streams."""
        return self._counts[_STREAM]

    @property
    def num_excluded(self) -> int:
        """The number of excluded routes."""
        return self._counts[_EXCLUDED]

    @cached_property
    def _by_host(self) -> dict[str, list[int]]:
        """The byte offsets of each host's routes, in the order given to `write_table`."""
        offsets: dict[str, list[int]] = {}
        for offset in self._offsets(_HTTP):
            offsets.setdefault(normal_host(self._fields(offset).get("host", "")), []).append(offset)
        return offsets

    @cached_property
    def _patterns(self) -> tuple[list[str], int]:
        """The WILDCARD patterns, and the maximum number of labels in a "*.DOMAIN"."""
        wildcards = [host for host in self._by_host if host_pattern(host).tier == WILDCARD]
        return wildcards, max((host.count(".") for host in self._by_host if host.startswith("*.")), default=0)

    def _routes_that_cover(self, host: str) -> list[int]:
        """The byte offsets of the routes that cover this host, in the order given to `write_table`."""
        wildcards, depth = self._patterns
        labels = host.rsplit(".", depth)
        domains = ["*." + ".".join(labels[at:]) for at in range(1, len(labels))]
        hosts = {host, host.partition(".")[0], *domains, *wildcards, "", "*"}
        return sorted(
            at
            for pattern in hosts & self._by_host.keys()
            if host_pattern(pattern).covers(host)
            for at in self._by_host[pattern]
        )

    def _find_by_alias(self, kind: str, alias: str) -> Any:
        """The fields of the first route of this kind and alias, or None."""
        at = self._text.find(f'\n{kind}{{"alias": {_encode(alias)}'.encode())
        return None if at < 0 else self._fields(at)

    def _fields(self, at: int) -> Any:
        return _decode(self._text[at + 2 : self._text.index(b"\n", at + 1)].decode())

    def _all(self, kind: str) -> Iterator[Any]:
        """The fields of each route of this kind."""
        return map(self._fields, self._offsets(kind))

    def _offsets(self, kind: str) -> Iterator[int]:
        """The byte offset of each route of this kind."""
        start = f"\n{kind}".encode()
        at = self._text.find(start)
        while at >= 0:
            yield at
            at = self._text.find(start, at + 1)


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not a file in memory
            raise
        return 0
