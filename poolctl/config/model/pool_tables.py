"""The tables of a file other than its servers, and the interface by which features check their own tables.

A feature's tables are in modules of the feature, which are imported only when a file has such a table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import Field

from poolctl.address import Address
from poolctl.config.model.section import Section, Table, checked
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.values.other_tools import OTHER_TABLES
from poolctl.config.values.problems import Finding, KeyPath, Tree, misspelt, plain_word
from poolctl.config.values.toml_text import key_text
from poolctl.config.values.value_types import (
    Bind,
    FileCount,
    FilePath,
    Handlers,
    MetricsPath,
    Name,
    PortRange,
    PositiveOrNone,
    Size,
)
from poolctl.feature import features
from poolctl.routing.route import AnyRoute

AnyTable = TypeVar("AnyTable", bound=Table)


class PoolSettings(Section, frozen=True):
    """The table [pool]."""

    table = "pool"

    name: Name | None = None
    """The name of the pool. Left out: derived from the path of the file."""
    port_range: PortRange = Field(default="20000-29999", validate_default=True)
    """The range from which `auto` chooses ports."""
    handlers: Handlers | None = None
    """"module:function" that returns a mapping of applications by handler_key, for servers without an app."""

    def to_dict(self) -> dict[str, Tree]:
        """The settings as they would be written in a file, without unset keys."""
        return super().to_dict() | {"port_range": "-".join(map(str, self.port_range))}


class MetricsTable(Table, frozen=True):
    """[metrics]: the endpoint for a Prometheus server."""

    table_name: ClassVar[str] = "metrics"

    bind: Bind = "127.0.0.1:9464"
    """The address that Prometheus reads."""
    path: MetricsPath = "/metrics"
    """The path at which the metrics are served."""


class EventsTable(Table, frozen=True):
    """[events]: the file to which the pool's events are logged."""

    table_name: ClassVar[str] = "events"

    path: FilePath | None = None
    """The file. Left out: events.jsonl in the state directory; "-", "/dev/stdout" and "/dev/stderr": the same, of at
    most 2 MiB.
    """
    max_size: Size = Field(default="10MiB", validate_default=True)
    """The size at which the file is rotated."""
    keep: FileCount = 5
    """Number of rotated files that are kept."""
    max_age: PositiveOrNone = Field(default=None, validate_default=True)
    """The age at which the file is rotated. Left out: never."""

    @classmethod
    def with_derived_values(cls, table: dict[str, Tree]) -> dict[str, Tree]:
        from poolctl.config.values.normalise import with_own_log_file

        return with_own_log_file(table)


MODELS: dict[str, type[Table]] = {"metrics": MetricsTable, "events": EventsTable}


@cache
def table_names() -> tuple[str, ...]:
    """Return the names of all tables that a configuration file may have, except pool, defaults and server."""
    return *MODELS, *(name for feature in features() for name in feature.tables)


def model_of_table(name: str) -> type[Table] | None:
    """The class of the table with this name; None for an unknown table."""
    if name in MODELS:
        return MODELS[name]
    models = (feature.load(feature.tables[name]) for feature in features() if name in feature.tables)
    return next(models, None)


def file_tables() -> tuple[str, ...]:
    """The names of all tables that a configuration file may have."""
    return "pool", "defaults", "server", *table_names()


@cache
def is_listed(name: str) -> bool:
    """Whether a file has a list of tables with this name, written [[name]] in TOML."""
    model = model_of_table(name)
    return name == "server" or (model is not None and model.listed)


def meant_table(name: str) -> str:
    """The table that was meant by a misspelt name, or by the name that another tool uses; "" if unknown."""
    names, word = file_tables(), plain_word(name)
    foreign_matches = (
        table for table, words in OTHER_TABLES.items() if table in names and word in words.split()
    )
    return misspelt(name, names) or next(foreign_matches, "")


def header(name: str, prefix: KeyPath = ()) -> str:
    """The header of the table with this name in TOML, below the tables `prefix`: [pool], [[server]]."""
    dotted_name = ".".join(map(key_text, (*map(str, prefix), name)))
    return f"[[{dotted_name}]]" if is_listed(name) else f"[{dotted_name}]"


class Tables:
    """The tables of the active configuration, by name. Immutable."""

    def __init__(self, **tables: Table | tuple[Table, ...] | None) -> None:
        self._tables: dict[str, Any] = {name: table for name, table in tables.items() if table}

    @property
    def routes(self) -> int:
        """The number of tables that are routes. A pool may consist only of routes."""
        return sum(table.is_route for _, table in self)

    @property
    def stop_seconds(self) -> float:
        """Return the sum of the tables' `stop_seconds`: the most time that features need after all servers stopped."""
        return sum(table.stop_seconds for _, table in self)

    def get(self, model: type[AnyTable]) -> AnyTable | None:
        """The table of the class `model`; None if the files do not have it."""
        return self._tables.get(model.table_name)

    def all(self, model: type[AnyTable]) -> tuple[AnyTable, ...]:
        """All tables of the class `model`, which files define as a list; () if there are none."""
        tables: tuple[AnyTable, ...] = self._tables.get(model.table_name, ())
        return tables

    def __iter__(self) -> Iterator[tuple[KeyPath, Table]]:
        """The path of each table, such as `("route", 0)`, and the table."""
        for name, value in self.by_name().items():
            if isinstance(value, tuple):
                yield from (((name, index), table) for index, table in enumerate(value))
            else:
                yield (name,), value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tables) and other._tables == self._tables

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Tables({', '.join(f'{name}={table!r}' for name, table in self._tables.items())})"

    def by_name(self) -> dict[str, Table | tuple[Table, ...]]:
        """Return a new dictionary of the tables that the files have, by table name, such as "metrics"."""
        return dict(self._tables)

    def to_dict(self) -> dict[str, Tree]:
        """The tables as they would be written in files; they contain no secrets."""
        return {
            name: [entry.to_dict() for entry in table] if isinstance(table, tuple) else table.to_dict()
            for name, table in sorted(self.by_name().items(), key=lambda item: isinstance(item[1], tuple))
        }


def secret_variable_names(
    servers: Iterable[ServerConfig], tables: Tables, defaults: Mapping[str, Tree] | None = None
) -> frozenset[str]:
    """The variables named by `*_env` keys: they hold secrets of the pool, and are not passed to servers by default."""
    names = set(_env_key_values(defaults or {}))
    for _, table in tables:
        names.update(_env_key_values(table))
    # In a server only the TLS table has such a key; the names in `env` are the server's own variables.
    for server in servers:
        if server.tls and server.tls is not True and server.tls.password_env:
            names.add(server.tls.password_env)
    return frozenset(names)


def _env_key_values(table: Section | Mapping[str, Tree]) -> Iterator[str]:
    # Searches the tables, not the results of their `to_dict`, which would take seconds for many routes.
    for key, value in table if isinstance(table, Section) else table.items():
        if isinstance(value, str):
            if key.endswith("_env"):
                yield value
        elif key != "env":
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(inner, (Section, dict)):
                    yield from _env_key_values(inner)


# The server that the finding concerns; if None, the finding's path starts with a table of the file.
Located = tuple[ServerConfig | None, Finding]


class NamesOfInvalidServers(NamedTuple):
    """The names and tags of invalid servers, so that references to these servers are not reported as well.

    `tables` has the name of each array of tables, such as "route" for [[route]], that contains an invalid table.
    """

    names: Collection[str] = ()
    tags: Collection[str] = ()
    tables: Collection[str] = ()


NONE = NamesOfInvalidServers()


class BoundAddress(NamedTuple):
    """An address that a table binds, the path of its key, and the table's name in messages."""

    path: KeyPath
    name: str
    address: Address


class TableRules:
    """Builds and checks the tables of a feature. A feature subclasses it, and overrides the methods that it needs."""

    # Tables, as in a file, that every pool with proxied servers needs.
    tables_of_proxied: ClassVar[Mapping[str, Tree]] = {}

    def build_interdependent_tables(
        self, raw: Mapping[str, Tree], findings: list[Finding]
    ) -> dict[str, Tree]:
        """Validate the tables in `raw` that depend on other tables of their feature. The caller validates the rest.

        Return {name: table}, with None for an invalid table. Problems are added to `findings`.
        """
        return {}

    def problems(
        self, servers: Iterable[ServerConfig], tables: Tables, unfinished: NamesOfInvalidServers
    ) -> Iterable[Located]:
        """Problems found by comparing the tables with each other and with the servers."""
        return ()

    def warnings(
        self, servers: Iterable[ServerConfig], tables: Tables, *, complete: bool
    ) -> Iterable[Located]:
        """Problems that do not prevent a start. `complete` is false if invalid servers are missing from `servers`."""
        return ()

    def startup_problems(self, servers: Iterable[ServerConfig], tables: Tables) -> Iterable[Located]:
        """Problems that prevent a pool of these servers and tables from starting here. Blocks on the disk."""
        return ()

    def check(
        self, servers: Iterable[ServerConfig], tables: Tables, env: Mapping[str, str], now: datetime
    ) -> Iterable[Finding]:
        """Check files, variables and the like that tables refer to. Blocks on the disk."""
        return ()

    def routes(self, servers: Iterable[ServerConfig], tables: Tables) -> Iterable[AnyRoute] | None:
        """Return the routes of servers and tables in order of precedence; None if the subclass defines no routes."""
        return None

    def listed_bind_addresses(self, tables: Tables) -> Iterable[BoundAddress]:
        """Return the addresses of each list `bind`, as in [gateway], and of each array of tables, as in [[stream]].

        The address of a single table with a string `bind` is left out, because `scalar_bind_addresses` finds it.
        """
        return ()

    def complete_schema(self, definitions: dict[str, dict[str, Tree]]) -> None:
        """Add rules unknown to pydantic to the JSON Schemas of the tables."""


def rules_of(names: Iterable[str], labels: Iterable[str] = ()) -> Iterator[TableRules]:
    """The rules of features that define one of these tables, or use one of these server labels."""
    names, labels = set(names), [*labels]
    for feature in features():
        used = not names.isdisjoint(feature.tables) or any(
            label.startswith(feature.labels) for label in labels
        )
        if feature.rules and used:
            rules: TableRules = feature.load(feature.rules)()
            yield rules


def all_rules() -> Iterator[TableRules]:
    """The rules of all features."""
    for feature in features():
        if feature.rules:
            rules: TableRules = feature.load(feature.rules)()
            yield rules


def routes_of(servers: Iterable[ServerConfig], tables: Tables) -> tuple[AnyRoute, ...] | None:
    """The routes of these servers and tables in order of precedence; None for a pool without a gateway."""
    by_feature = [rules.routes(servers, tables) for rules in rules_of(tables.by_name())]
    defined = [routes for routes in by_feature if routes is not None]
    return tuple(route for routes in defined for route in routes) if defined else None


def build_tables(
    raw: Mapping[str, Tree], findings: list[Finding], servers: Iterable[ServerConfig] = ()
) -> Tables:
    """The valid tables of the merged files. Problems of invalid tables are added to the findings.

    Tables that `servers` need to be reached, such as [gateway], get their defaults if they are missing.
    """
    if any(server.is_proxied for server in servers):
        raw = {
            **{name: value for rules in all_rules() for name, value in rules.tables_of_proxied.items()},
            **raw,
        }
    values: dict[str, Tree] = {}
    for rules in rules_of(raw):
        values |= rules.build_interdependent_tables(raw, findings)
    for name in table_names():
        if name in raw and name not in values and (model := model_of_table(name)) is not None:
            if model.listed:
                values[name] = _list_of(model, raw[name], (name,), findings, values)
            else:
                values[name] = _table(model, raw[name], (name,), findings, values)
    return Tables(**values)


def _list_of(
    model: type[Table],
    raw_tables: list[dict[str, Tree]],
    path: KeyPath,
    findings: list[Finding],
    others: Mapping[str, Tree],
) -> tuple[Table, ...]:
    labels: set[str] = set()
    tables: list[Table] = []
    for index, raw in enumerate(raw_tables):
        table = _table(model, raw, (*path, index), findings, others)
        if table is not None:
            tables.append(table)
            if table.label in labels:
                place = (*path, index, *(("name",) if "name" in table.model_fields_set else ()))
                findings.append(Finding(place, f"the name {table.label!r} is taken", 'add name = "…"'))
            labels.add(table.label)
    return tuple(tables)


def _table(
    model: type[Table],
    raw: dict[str, Tree],
    path: KeyPath,
    findings: list[Finding],
    others: Mapping[str, Tree],
) -> Table | None:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    problems: list[Finding] = []
    table = checked(model, model.with_derived_values(values), problems)
    if table is not None and not problems:
        problems += table.findings_against_other_tables(others)
    for problem in problems:
        # Even an invalid address may be a secret.
        found = "" if problem.path[:1] == ("url",) else problem.found
        findings.append(problem._replace(path=(*path, *problem.path), found=found))
    return None if problems else table
