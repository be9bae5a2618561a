"""The addresses of the tables besides the servers: which they are, and which of them are taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from poolctl.address import Address, parse
from poolctl.config.model.pool_tables import Tables
from poolctl.config.rules.conflicts import conflicts
from poolctl.config.values.problems import Finding, Path

if TYPE_CHECKING:
    from poolctl.config.model.gateway_tables import StreamConfig


def own_addresses(tables: Tables) -> Iterator[tuple[str, Address]]:
    """The names of the tables whose `bind` is one address, each with this address."""
    for name, table in tables.by_name().items():
        bind = getattr(table, "bind", None)
        if isinstance(bind, str):
            yield name, parse(bind)


def _addresses(tables: Tables) -> Iterator[tuple[Path, str, Address]]:
    """The addresses of the tables for connections, each with its place and the table's name."""
    for name, address in own_addresses(tables):
        yield (name, "bind"), f"[{name}]", address
    for index, listener in enumerate(tables.gateway.bind if tables.gateway else ()):
        yield ("gateway", "bind", index), "[gateway]", parse(listener.bind)
    for stream in tables.streams:
        if stream.protocol == "tcp":
            yield _place(stream), _name(stream), parse(stream.bind)


def _place(stream: StreamConfig) -> Path:
    return "stream", stream.index, "bind"


def _name(stream: StreamConfig) -> str:
    return f"[[stream]] {stream.label}"


def named_addresses(tables: Tables) -> list[tuple[str, Address | None]]:
    """The addresses of the tables for connections, as `conflicts` takes them."""
    return [(name, address) for _, name, address in _addresses(tables)]


def overlapping(
    tables: Tables, servers: list[tuple[str, Address | None]]
) -> Iterator[tuple[Path, str, Finding]]:
    """(the place of the table, the other server's or table's name, the finding) for each address that is taken."""
    own = [*_addresses(tables)]
    datagrams = [
        (_place(stream), _name(stream), parse(stream.bind))
        for stream in tables.streams
        if stream.protocol == "udp"
    ]
    for among, tables_there in ((servers, own), ([], datagrams)):
        together = [*among, *((name, address) for _, name, address in tables_there)]
        for second, first, finding in conflicts(together) if tables_there else ():
            if second >= len(among) and finding.path == ("bind",):
                yield tables_there[second - len(among)][0], together[first][0], finding
