"""Writing a route table into a sealed file in memory; `table` reads it.

The file: a header, the entries, the slots. An entry is the length of its key, the length of its value, and both; values
are JSON; a route's JSON omits fields with default values. A slot is the hash of a key and the offset of its entry, 4
bytes each; an empty one is 0, and the slots of keys that collide follow each other.

Keys are the keys of `match.HostPattern`; "@", "~" or "#" and the alias of a route for HTTP, of a stream or of an
excluded route, whose entries follow each other in this order; for a host pattern with many paths "/", its key, NUL and
the path; for patterns with "*" elsewhere than in front "%", their prefix, NUL, and their suffix.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from binascii import crc32
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from .match import DOMAIN, WILDCARD, HostPattern, condition_rank, host_pattern, normal_prefix
from .route import ExcludedRoute, Route, StreamRoute

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
    """A descriptor of a table of these routes, which the caller closes.

    No request takes a stream or an excluded route: they are there for registries; of two with one alias the first.
    Raises ValueError if two routes for HTTP have one alias, and OSError if there is no memory for it.
    """
    content = _Writer(routes, streams, excluded).content(generation)
    fd = os.memfd_create("poolctl-routes", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


# The sort key of the routes of one path: their conditions, then their offsets, which follow the file's order.
_Ranked = tuple[bool, bool, int, int]


class _Writer:
    """Makes the content of a table."""

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
        counts = self._add_others(STREAM, streams), self._add_others(EXCLUDED, excluded)
        for pattern, paths in hosts.items():
            self._add_host(pattern.key, paths)
        domains = [each.text.count(".") + 1 for each in hosts if each.tier == DOMAIN]
        ends = self._add_wildcards([each for each in hosts if each.tier == WILDCARD])
        root = {"labels": max(domains, default=0), "ends": ends, "others": counts}
        self._add(ROOT, json.dumps(root))

    def _add_others(self, kind: str, routes: Iterable[StreamRoute | ExcludedRoute]) -> tuple[int, int]:
        """Add the first route of each alias; return where they begin, and how many they are."""
        start, aliases = len(self._content), set()
        for route in routes:
            if route.alias not in aliases:
                aliases.add(route.alias)
                self._add(kind + route.alias, json.dumps(_changed_fields(route)))
        return start, len(aliases)

    def _add_wildcards(self, patterns: list[HostPattern]) -> list[tuple[int, int]]:
        """Add each pattern, with its rank, under its prefix and suffix; return the lengths of both."""
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
            # Workers of an earlier version need "above": whether other paths are below this one, or may be.
            self._add(f"{PATH}{key}\0{path}", json.dumps({"routes": offsets, "above": True}))
        first = min(offset for offsets in records.values() for offset in offsets)
        self._add(key, json.dumps([depth_of(records), first]))

    def _add(self, key: str, value: str) -> int:
        name, text = key.encode(), value.encode()
        offset = len(self._content)
        self._content += b"%b%b%b" % (ENTRY.pack(len(name), len(text)), name, text)
        self._slots.append(crc32(name) << 32 | offset)
        return offset

    def content(self, generation: int) -> bytearray:
        content = self._content
        content += bytes(-len(content) % 8)
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
    """How many segments the longest of these paths has."""
    return max(path.count("/") if path != "/" else 0 for path in paths)


def _changed_fields(value: Any) -> dict[str, Any]:
    """A value as JSON has it, without the fields that have their defaults."""
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
