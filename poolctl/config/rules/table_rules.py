"""The rules of a feature between its tables, other tables and the servers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from poolctl.address import Address
from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.model.server_sections import Probe
from poolctl.config.values.problems import Finding, Path, Tree
from poolctl.feature import features
from poolctl.routing.route import AnyRoute

# The server whose keys the finding concerns; if None, the finding's path starts with a table of the file.
Located = tuple[ServerKeys | None, Finding]


class Unfinished(NamedTuple):
    """Names and tags of servers that have problems of their own: references to them may be right.

    `tables`: the lists with tables that have problems of their own.
    """

    names: Collection[str] = ()
    tags: Collection[str] = ()
    tables: Collection[str] = ()


NONE = Unfinished()


class BoundAddress(NamedTuple):
    """An address that a table binds: its place in the file, and the name of the table in messages."""

    path: Path
    name: str
    address: Address
    datagrams: bool = False


class TableRules:
    """The rules between a feature's tables; the base of a feature's class, which overrides the methods it needs."""

    def made(self, raw: Mapping[str, Tree], findings: list[Finding]) -> dict[str, Tree]:
        """The feature's valid tables by their names; problems of the others are added to the findings.

        Tables missing in the result are validated one by one.
        """
        return {}

    def problems(
        self, servers: Iterable[ServerKeys], tables: Tables, unfinished: Unfinished
    ) -> Iterable[Located]:
        """The problems between the tables and the servers."""
        return ()

    def warnings(self, servers: Iterable[ServerKeys], tables: Tables, *, complete: bool) -> Iterable[Located]:
        """Findings that keep nothing from running; `complete`: no servers are missing because of problems."""
        return ()

    def unusable(self, tables: Tables) -> Iterable[Finding]:
        """Problems that prevent every start. Blocks on the disk."""
        return ()

    def check(
        self, servers: Iterable[ServerKeys], tables: Tables, env: Mapping[str, str], now: datetime
    ) -> tuple[list[Finding], list[Finding]]:
        """Problems and warnings about references outside the files. Blocks on the disk."""
        return [], []

    def routes(self, servers: Iterable[ServerKeys], tables: Tables) -> Iterable[AnyRoute] | None:
        """The routes of these servers and tables in their order of precedence; None if it has none at all."""
        return None

    def probed_targets(self, tables: Tables) -> Mapping[str, Probe]:
        """The probe of each probed target outside the pool, by its URL."""
        return {}

    def addresses(self, tables: Tables) -> Iterable[BoundAddress]:
        """The addresses of the tables, except a `bind` that is a single address."""
        return ()

    def complete_schema(self, definitions: dict[str, dict[str, Tree]]) -> None:
        """Add rules unknown to pydantic to the JSON Schemas of the tables."""


def rules_of(names: Iterable[str], labels: Iterable[str] = ()) -> Iterator[TableRules]:
    """The rules of the features that own one of these tables, or one of these labels of servers."""
    names, labels = set(names), [*labels]
    for feature in features():
        used = not names.isdisjoint(feature.tables) or any(
            label.startswith(feature.labels) for label in labels
        )
        if feature.rules and used:
            rules: TableRules = feature.load(feature.rules)()
            yield rules


def routes_of(servers: Iterable[ServerKeys], tables: Tables) -> tuple[AnyRoute, ...] | None:
    """The routes of these servers and tables in the order of their precedence; None for a pool without a gateway."""
    found = [rules.routes(servers, tables) for rules in rules_of(tables.by_name())]
    routes = [each for each in found if each is not None]
    return tuple(route for each in routes for route in each) if routes else None


def probed_targets(tables: Tables) -> dict[str, Probe]:
    """The probe of each probed target outside the pool, by its URL."""
    return {
        url: probe
        for rules in rules_of(tables.by_name())
        for url, probe in rules.probed_targets(tables).items()
    }
