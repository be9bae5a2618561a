"""The tables of a file besides its servers: pool, metrics, events. Most files have few of them.

Tables of features have modules of their own, imported when a file has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from poolctl.config.model.section import Section, Table, field
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.values.problems import Path, Tree
from poolctl.feature import features

if TYPE_CHECKING:
    from poolctl.config.values.table_types import Handlers, MetricsPath, PortRange
    from poolctl.config.values.value_types import (
        Bind,
        FileCount,
        FilePath,
        Name,
        Positive,
        Size,
    )

AnyTable = TypeVar("AnyTable", bound=Table)

KINDS = "poolctl.config.values.table_types"
_NAMES = ("metrics", "events")


class PoolSettings(Section):
    """The table [pool]."""

    name: Name | None = field(None, "The name of the pool. Left out: derived from the path of the file.")
    port_range: PortRange = field((20000, 29999), "The range from which `auto` chooses ports.")
    handlers: Handlers | None = field(
        None,
        '"module:function" that returns a mapping of applications by handler_key, for servers without an '
        "app.",
    )

    def to_dict(self) -> dict[str, Tree]:
        """The settings as a file would have them, unset keys left out."""
        return super().to_dict() | {"port_range": "-".join(map(str, self.port_range))}


class MetricsTable(Table):
    """[metrics]: the endpoint for a Prometheus server."""

    table_name: ClassVar[str] = "metrics"

    bind: Bind = field("127.0.0.1:9464", "The address that Prometheus reads.")
    path: MetricsPath = field("/metrics", "The path at which the metrics are served.")


class EventsTable(Table):
    """[events]: the journal."""

    table_name: ClassVar[str] = "events"
    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: FilePath | None = field(None, "The file. Left out: events.jsonl in the state directory.")
    max_size: Size = field(10 * 1024 * 1024, "The size at which the file is rotated.")
    keep: FileCount = field(5, "Number of rotated files that are kept.")
    max_age: Positive | None = field(None, "The age at which the file is rotated. Left out: never.")


MODELS: dict[str, type[Table]] = {"metrics": MetricsTable, "events": EventsTable}
# The names of lists in the `Tables` of earlier versions, which take over these values.
_FORMER_NAMES = {"routes": "route", "streams": "stream"}


@cache
def table_names() -> tuple[str, ...]:
    """The names of all tables of files besides pool, defaults and server."""
    return *_NAMES, *(name for feature in features() for name in feature.tables)


def model_of_table(name: str) -> type[Table] | None:
    """The model of this table; None for an unknown table."""
    if name in MODELS:
        return MODELS[name]
    found = (feature.load(feature.tables[name]) for feature in features() if name in feature.tables)
    return next(found, None)


def is_listed(name: str) -> bool:
    """Whether files have a list of these tables."""
    model = model_of_table(name)
    return model is not None and model.listed


class Tables:
    """The tables in force, constructed from a mapping by name; immutable."""

    def __init__(self, **tables: Table | tuple[Table, ...] | None) -> None:
        self._tables: dict[str, Any] = {
            _FORMER_NAMES.get(name, name): table for name, table in tables.items() if table
        }

    @property
    def metrics(self) -> MetricsTable | None:
        """[metrics]."""
        return self._tables.get("metrics")

    @property
    def events(self) -> EventsTable | None:
        """[events]."""
        return self._tables.get("events")

    @property
    def routes(self) -> int:
        """The number of tables that are routes: a pool may consist of them alone."""
        return sum(table.is_route for _, table in self)

    @property
    def stop_seconds(self) -> float:
        """Maximum time that a stop takes for the tables when every server has been stopped."""
        return sum(table.stop_seconds for _, table in self)

    def get(self, model: type[AnyTable]) -> AnyTable | None:
        """The table of this model; None where the files have none."""
        return self._tables.get(model.table_name)

    def all(self, model: type[AnyTable]) -> tuple[AnyTable, ...]:
        """The tables of this model, of which files have a list."""
        tables: tuple[AnyTable, ...] = self._tables.get(model.table_name, ())
        return tables

    def __iter__(self) -> Iterator[tuple[Path, Table]]:
        """Each table with its place in files."""
        for name, found in self.by_name().items():
            if isinstance(found, tuple):
                yield from (((name, index), table) for index, table in enumerate(found))
            else:
                yield (name,), found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tables) and other._tables == self._tables

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Tables({', '.join(f'{name}={table!r}' for name, table in self._tables.items())})"

    def by_name(self) -> dict[str, Table | tuple[Table, ...]]:
        """The existing tables by their names in files."""
        return dict(self._tables)

    def to_dict(self) -> dict[str, Tree]:
        """The tables as a file could have them; no secret is among them, as files hold none."""
        return {
            name: [each.to_dict() for each in table] if isinstance(table, tuple) else table.to_dict()
            for name, table in sorted(self.by_name().items(), key=lambda each: isinstance(each[1], tuple))
        }


def pool_variables(
    servers: Iterable[ServerKeys], tables: Tables, defaults: Mapping[str, Tree] | None = None
) -> frozenset[str]:
    """The variables named by `*_env` keys: they hold secrets of the pool, and are not passed to servers by default."""
    found = set(_named(defaults or {}))
    for _, table in tables:
        found.update(_named(table))
    # Of a server only its certificate has such a key; `env` is a table of names that are its own.
    for server in servers:
        if server.tls and server.tls is not True and server.tls.password_env:
            found.add(server.tls.password_env)
    return frozenset(found)


def _named(table: Section | Mapping[str, Tree]) -> Iterator[str]:
    # Their documents are not searched: the documents of many routes would take seconds.
    for key, value in table if isinstance(table, Section) else table.items():
        if isinstance(value, str):
            if key.endswith("_env"):
                yield value
        elif key != "env":
            for each in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(each, (Section, dict)):
                    yield from _named(each)
