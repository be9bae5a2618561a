"""The route table: routes in one sealed file in memory, which processes map and read without parsing it.

It is a constant hash, like cdb's: a process finds the entries of a host, or of an alias, by their keys and decodes only
those. The file never changes: a change of the routes makes a new file with a higher generation. A process may read the
old table until it closes it.

The file: a header, the entries, the slots. An entry is the length of its key, the length of its value, and both; values
are JSON; a route's JSON omits fields with default values. A slot is the hash of a key and the offset of its entry, 4
bytes each; an empty one is 0, and the slots of keys that collide follow each other.

The keys, and what their entries hold:

- "@" + alias: a route for HTTP; these entries come first
- "~" + alias: a stream; these entries come second
- "#" + alias: an excluded route; these entries come third
- the `key` of a `match.HostPattern` with at most FEW_PATHS paths: the offsets of its routes, by path
- the `key` of a HostPattern with more paths: the number of segments of its longest path, and its lowest offset
- "/" + the `key` of a HostPattern with more paths + NUL + path: the offsets of the pattern's routes with this path
- "%" + prefix + NUL + suffix: the host patterns of the tier WILDCARD that begin with the prefix and end with the suffix
- "!": values for the table as a whole
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import struct
from binascii import crc32
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

from poolctl.platform import memory_file

from ..json_form import from_json
from .match import (
    DEFAULT,
    DOMAIN,
    EXACT,
    LABEL,
    WILDCARD,
    HostPattern,
    condition_rank,
    host_pattern,
    is_ip_address,
    missing_condition,
    normal_prefix,
    prefixes,
    wildcard_covers_host,
)
from .normal_path import readings
from .route import ExcludedRoute, Route, StreamRoute, passable

MAGIC = b"poolctl1"
HEADER = struct.Struct("=8sQQQQQ")  # magic, generation, routes, end of the entries, slots, size of the file
ENTRY = struct.Struct("=II")
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
MOST_BYTES = (1 << 32) - 1  # an offset is half a slot

ALIAS, PATH, ENDS, ROOT = "@", "/", "%", "!"
STREAM, EXCLUDED = "~", "#"
# A host pattern with more paths keeps each under a key of its own.
FEW_PATHS = 32


def write_table(
    routes: Iterable[Route],
    generation: int,
    *,
    streams: Iterable[StreamRoute] = (),
    excluded: Iterable[ExcludedRoute] = (),
) -> int:
    """Write a table of these routes; returns its descriptor, which the caller closes.

    Streams and excluded routes match no request, but can be listed. Of streams with one alias only the first is stored,
    likewise of excluded routes. Raises ValueError if HTTP routes have one alias, OSError if memory is exhausted.
    """
    content = _Writer(routes, streams, excluded).finish_content(generation)
    return memory_file("poolctl-routes", content, SEALS)


# The sort key of the routes of one path: their conditions, then their offsets, which follow the file's order.
_Ranked = tuple[bool, bool, int, int]


class _Writer:
    def __init__(
        self, routes: Iterable[Route], streams: Iterable[StreamRoute], excluded: Iterable[ExcludedRoute]
    ) -> None:
        self._content = bytearray(HEADER.size)
        self._slots: list[int] = []
        hosts: dict[HostPattern, dict[str, list[_Ranked]]] = {}
        aliases: set[str] = set()
        for route in routes:
            if route.alias in aliases:
                raise ValueError(f"two routes have the alias {route.alias}")
            aliases.add(route.alias)
            offset = self._add(ALIAS + route.alias, json.dumps(_changed_fields(route)))
            paths = hosts.setdefault(host_pattern(route.host), {})
            paths.setdefault(normal_prefix(route.path), []).append((*condition_rank(route), offset))
        self._routes = len(aliases)
        counts = self._add_unmatched_routes(STREAM, streams), self._add_unmatched_routes(EXCLUDED, excluded)
        for pattern, paths in hosts.items():
            self._add_host(pattern.key, paths)
        domains = [each.text.count(".") + 1 for each in hosts if each.tier == DOMAIN]
        ends = self._add_wildcards([each for each in hosts if each.tier == WILDCARD])
        root = {"labels": max(domains, default=0), "ends": ends, "others": counts}
        self._add(ROOT, json.dumps(root))

    def _add_unmatched_routes(
        self, kind: str, routes: Iterable[StreamRoute | ExcludedRoute]
    ) -> tuple[int, int]:
        """Add an entry for the first route of each alias; return the first entry's offset and the number of entries."""
        start, aliases = len(self._content), set()
        for route in routes:
            if route.alias not in aliases:
                aliases.add(route.alias)
                self._add(kind + route.alias, json.dumps(_changed_fields(route)))
        return start, len(aliases)

    def _add_wildcards(self, patterns: list[HostPattern]) -> list[tuple[int, int]]:
        """Add the patterns, grouped by prefix and suffix; return each pair of a prefix's and its suffix's length."""
        found: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for rank, pattern in enumerate(sorted(patterns, key=lambda each: -each.weight)):
            both = pattern.text.partition("*")[0], pattern.text.rpartition("*")[2]
            found.setdefault(both, []).append((rank, pattern.text))
        for (head, tail), ranked in found.items():
            self._add(f"{ENDS}{head}\0{tail}", json.dumps(ranked))
        return sorted({(len(head), len(tail)) for head, tail in found})

    def _add_host(self, key: str, paths: dict[str, list[_Ranked]]) -> None:
        records = {path: [each[-1] for each in sorted(ranked)] for path, ranked in paths.items()}
        if len(records) <= FEW_PATHS:
            self._add(key, json.dumps(records))
            return
        for path, offsets in records.items():
            self._add(f"{PATH}{key}\0{path}", json.dumps(offsets))
        first = min(offset for offsets in records.values() for offset in offsets)
        self._add(key, json.dumps([depth_of(records), first]))

    def _add(self, key: str, value: str) -> int:
        name, text = key.encode(), value.encode()
        offset = len(self._content)
        self._content += b"%b%b%b" % (ENTRY.pack(len(name), len(text)), name, text)
        self._slots.append(crc32(name) << 32 | offset)
        return offset

    def finish_content(self, generation: int) -> bytearray:
        content = self._content
        end, count = len(content), 1 << (len(self._slots) * 2 - 1).bit_length()
        size = end + count * 8
        if size > MOST_BYTES:
            raise ValueError("the routes are more than a table can hold")
        slots = [0] * count
        for slot in self._slots:
            at = (slot >> 32) & (count - 1)
            while slots[at]:
                at = (at + 1) & (count - 1)
            slots[at] = slot
        content += struct.pack(f"={count}Q", *slots)
        HEADER.pack_into(content, 0, MAGIC, generation, self._routes, end, count, size)
        return content


def depth_of(paths: Iterable[str]) -> int:
    """The number of segments in the longest of these paths."""
    return max(path.count("/") if path != "/" else 0 for path in paths)


def _changed_fields(value: Any) -> dict[str, Any]:
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
        return _changed_fields(field)
    return [_in_json(each) for each in field] if isinstance(field, tuple) else field


_LONGEST_HOST = 255  # the result for a longer host, which cannot be a name, is not kept


class TableError(ValueError):
    """The descriptor holds no route table, or a damaged table."""


class Match(NamedTuple):
    """The route that a request matched, and whether the request's connection may be passed to a worker.

    `passes` is true if the route allows passing, and every request for the same host and path matches this route.
    `whole_host` is true if every TLS request for the same host matches this route. `servers` are the names of the
    servers that a passed connection may go to.
    """

    route: Route
    passes: bool
    whole_host: bool
    servers: frozenset[str]


class _Candidate:
    """A route, and its Match for requests for which no other host pattern or route with conditions was tried before."""

    def __init__(self, route: Route, *, alone: bool) -> None:
        self.route = route
        self.has_conditions = bool(route.methods or route.headers)
        servers = frozenset(target.server for target in route.to if target.server)
        whole_host = alone and not self.has_conditions and normal_prefix(route.path) == "/"
        self.match = Match(route, passable(route), whole_host, servers)


class _HostRoutes:
    """The routes of one host pattern; each is decoded at its first lookup."""

    __slots__ = ("alone", "candidates", "complete", "depth", "key", "offsets")

    def __init__(self, key: str, value: dict[str, list[int]] | list[int]) -> None:
        self.key = key
        self.candidates: dict[str, tuple[_Candidate, ...]] = {}
        self.complete = isinstance(value, dict)  # otherwise each path has an entry of its own
        if isinstance(value, dict):
            self.offsets = value
            self.alone = len(value) == 1  # it has one path
            self.depth = depth_of(value)
        else:
            self.alone, self.depth = False, value[0]


class RouteTable:
    """A read-only route table, mapped from a file that `write_table` made.

    Up to `cached` decoded hosts, patterns and paths are cached. Any thread may read it, until it is closed.
    """

    def __init__(self, fd: int, *, cached: int = 1024) -> None:
        """Map the table behind a descriptor, which the caller still owns. Raises TableError, OSError."""
        size = os.fstat(fd).st_size
        if size < HEADER.size:
            raise TableError(f"a route table of {size} bytes is cut off")
        if _seals(fd) & SEALS != SEALS:
            raise TableError("the route table is not sealed")
        self._count: int
        self._end: int
        self._map = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        magic, self.generation, self._count, self._end, count, whole = HEADER.unpack_from(self._map)
        if magic != MAGIC:
            self._map.close()
            raise TableError("the descriptor holds no route table")
        if whole != size or self._end + count * 8 != size or count & (count - 1) or not count:
            self._map.close()
            raise TableError(f"the route table has {size} bytes instead of {whole}")
        self._view = memoryview(self._map)
        self._slots = self._view[self._end :].cast("Q")
        self._mask = count - 1
        self._most = cached
        self._groups: dict[str, _HostRoutes | None] = {}
        self._hosts: dict[str, tuple[_HostRoutes, ...]] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Route]:
        """Every route, in the order given to `write_table`; each is decoded when it is reached."""
        for table in self._values(HEADER.size, self._count):
            yield from_json(Route, table)

    def close(self) -> None:
        """Unmap the table. Matches that were found in it stay valid."""
        self._slots.release()
        self._view.release()
        self._map.close()

    def find(
        self,
        host: str,
        path: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        *,
        secure: bool = False,
    ) -> Match | None:
        """The match for a request, or None.

        `secure` is true for a request over TLS. `host` and `path` are in normal form (`normal_host`, `normal_path`),
        and header names in lower case. A path that backends may interpret in several ways matches a route only if all
        its readings match it.
        """
        if "%" not in path and ";" not in path and "//" not in path:
            return self._match(host, path, method, headers, secure=secure)
        found = [self._match(host, reading, method, headers, secure=secure) for reading in readings(path)]
        first = found[0]
        if any(match is None or first is None or match.route.alias != first.route.alias for match in found):
            return None
        return next((match for match in found if match and not match.passes), first)

    def _match(
        self, host: str, path: str, method: str, headers: Mapping[str, str] | None, *, secure: bool
    ) -> Match | None:
        groups = self._hosts.get(host)
        if groups is None:
            groups = self._groups_of(host)
        first = certain = True
        for group in groups:
            for prefix in prefixes(path, group.depth):
                candidates = group.candidates.get(prefix)
                if candidates is None:
                    candidates = self._candidates(group, prefix)
                for each in candidates:
                    if secure and each.route.redirects_to_https:
                        continue
                    if not each.has_conditions or not missing_condition(each.route, method, headers):
                        if first and certain:
                            return each.match
                        return each.match._replace(passes=certain and each.match.passes, whole_host=False)
                    certain = False  # another request may meet its conditions
            first = False
        return None

    def by_alias(self, alias: str) -> Match | None:
        """Return a Match for a known alias, else None. Without a request, `passes` and `whole_host` are false."""
        route = self.get(alias)
        return None if route is None else _Candidate(route, alone=False).match._replace(passes=False)

    # The interface of a registry.

    def get(self, alias: str) -> Route | None:
        """The route of this alias, or None."""
        offset = self._find(ALIAS + alias)
        return None if offset is None else self._route(offset)

    def get_by_host(self, host: str) -> Route | None:
        """The first route with exactly this host and any path; None if there is no such route."""
        offset = self._find(host_pattern(host).key)
        if offset is None:
            return None
        found = self._json(offset)
        first = found[1] if isinstance(found, list) else min(each for its in found.values() for each in its)
        return self._route(first)

    def get_stream(self, alias: str) -> StreamRoute | None:
        """The stream of this alias, or None."""
        offset = self._find(STREAM + alias)
        return None if offset is None else from_json(StreamRoute, self._json(offset))

    def get_excluded(self, alias: str) -> ExcludedRoute | None:
        """Return the route of this alias that is known but not served (excluded); None if there is no such route."""
        offset = self._find(EXCLUDED + alias)
        return None if offset is None else from_json(ExcludedRoute, self._json(offset))

    def streams(self) -> Iterator[StreamRoute]:
        """Every stream, in the order given to `write_table`."""
        return (from_json(StreamRoute, table) for table in self._values(*self._unindexed_entry_ranges[0]))

    def excluded(self) -> Iterator[ExcludedRoute]:
        """Iterate over the routes that are known but not served (excluded), in the order given to `write_table`."""
        return (from_json(ExcludedRoute, table) for table in self._values(*self._unindexed_entry_ranges[1]))

    @property
    def num_streams(self) -> int:
        """The number of streams."""
        return self._unindexed_entry_ranges[0][1]

    @property
    def num_excluded(self) -> int:
        """The number of excluded routes."""
        return self._unindexed_entry_ranges[1][1]

    @cached_property
    def _root(self) -> dict[str, Any]:
        """The value of the entry "!", which describes the whole table. Raises TableError if the entry is missing."""
        offset = self._find(ROOT)
        if offset is None:
            raise TableError("the route table has no root")
        found: dict[str, Any] = self._json(offset)
        return found

    @property
    def _unindexed_entry_ranges(self) -> list[list[int]]:
        """Two pairs, for streams and for excluded routes: the first entry's offset, and the number of entries."""
        found: list[list[int]] = self._root.get("others") or [[0, 0], [0, 0]]
        return found

    def _groups_of(self, host: str) -> tuple[_HostRoutes, ...]:
        """The host patterns that cover a host, in order of precedence."""
        patterns = [HostPattern(EXACT, host)]
        if not is_ip_address(host):
            labels = host.split(".")
            patterns.append(HostPattern(LABEL, labels[0]))
            most = min(self._root["labels"], len(labels) - 1) if labels[0] else 0
            patterns += [HostPattern(DOMAIN, ".".join(labels[-count:])) for count in range(most, 0, -1)]
        patterns += [HostPattern(WILDCARD, each) for each in self._wildcards_of(host)]
        patterns.append(HostPattern(DEFAULT, ""))
        groups = tuple(group for group in (self._group(each.key) for each in patterns) if group is not None)
        if len(host) <= _LONGEST_HOST:
            if len(self._hosts) >= self._most:
                self._hosts.clear()
            self._hosts[host] = groups
        return groups

    def _wildcards_of(self, host: str) -> list[str]:
        """The patterns with "*" that cover a host, in order of precedence."""
        found: list[tuple[int, str]] = []
        for head, tail in self._root["ends"]:
            offset = self._find(f"{ENDS}{host[:head]}\0{host[max(0, len(host) - tail) :]}")
            found += () if offset is None else self._json(offset)
        return [text for _, text in sorted(found) if wildcard_covers_host(text, host)]

    def _group(self, key: str) -> _HostRoutes | None:
        group = self._groups.get(key)
        if group is None:
            offset = self._find(key)
            if offset is None:
                return None
            if len(self._groups) >= self._most:
                self._groups.clear()
            group = self._groups[key] = _HostRoutes(key, self._json(offset))
        return group

    def _candidates(self, group: _HostRoutes, prefix: str) -> tuple[_Candidate, ...]:
        if group.complete:
            offsets = group.offsets.get(prefix, [])
            if not offsets:
                return ()
        else:
            offset = self._find(f"{PATH}{group.key}\0{prefix}")
            if offset is None:
                return ()
            offsets = self._json(offset)
        routes = [self._route(each) for each in offsets]
        alone = group.alone and sum(not each.redirects_to_https for each in routes) == 1
        found = tuple(_Candidate(each, alone=alone) for each in routes)
        if len(group.candidates) >= self._most:
            group.candidates.clear()
        group.candidates[prefix] = found
        return found

    def _find(self, key: str) -> int | None:
        name = key.encode("utf-8", "surrogateescape")
        wanted = crc32(name)
        slots, mask = self._slots, self._mask
        for step in range(mask + 1):
            slot = slots[wanted + step & mask]
            if not slot:
                return None
            if slot >> 32 == wanted:
                offset: int = slot & MOST_BYTES
                start = offset + ENTRY.size
                length, _ = ENTRY.unpack_from(self._map, offset)
                if length == len(name) and self._map[start : start + length] == name:
                    return offset
        raise TableError("the route table has no empty slot")

    def _values(self, at: int, count: int) -> Iterator[Any]:
        for _ in range(count):
            yield self._json(at)
            at += ENTRY.size + sum(ENTRY.unpack_from(self._map, at))

    def _route(self, offset: int) -> Route:
        return from_json(Route, self._json(offset))

    def _json(self, offset: int) -> Any:
        length, size = ENTRY.unpack_from(self._map, offset)
        start = offset + ENTRY.size + length
        if start + size > self._end:
            raise TableError("an entry of the route table goes beyond its end")
        return json.loads(self._map[start : start + size])


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not a file in memory
            raise
        return 0
