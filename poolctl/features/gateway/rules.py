"""Creates the tables [gateway], [[route]] and [[stream]], and checks them against each other and the servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, TypeVar

from poolctl.address import parse
from poolctl.config.model.pool_tables import BoundAddress, Located, TableRules, Tables
from poolctl.config.model.section import Table, validated
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.values.normalise import merged
from poolctl.config.values.problems import Finding, KeyPath, Tree

from .route_checks import (
    check_program_and_certificates,
    route_problems,
    route_warnings,
    startup_problems,
)
from .routes import routes_of
from .table import INDEX, GatewayConfig, RouteConfig, StreamConfig

Kind = TypeVar("Kind", bound=Table)


def _list_of(
    kind: type[Kind], name: str, tables: Iterable[dict[str, Tree]], findings: list[Finding]
) -> tuple[Kind, ...]:
    entries: list[Kind] = []
    for index, table in enumerate(tables):
        if INDEX in table:
            findings.append(Finding((name, index, INDEX), f"unknown key {INDEX!r}", "take it out"))
        entry = _validated(kind, table, (name, index), findings)
        if isinstance(entry, RouteConfig) and not (entry.to or entry.redirect or entry.register):
            hint = "add to = …, or register = true for services that register themselves, or redirect = …"
            findings.append(Finding((name, index, "to"), "'to' is missing", hint))
        elif isinstance(entry, RouteConfig) and not (entry.to or entry.redirect or entry.alias):
            findings.append(Finding((name, index, "alias"), "'alias' is missing", "add alias = …"))
        elif entry is not None:
            entries.append(entry.model_copy(update={"index": index}))
    return tuple(entries)


def _validated(
    kind: type[Kind], table: dict[str, Tree], path: KeyPath, findings: list[Finding]
) -> Kind | None:
    problems: list[Finding] = []
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    section = validated(kind, values, problems)
    findings += [problem._replace(path=(*path, *problem.path)) for problem in problems]
    return None if problems else section


class GatewayRules(TableRules):
    """Builds [gateway], [[route]] and [[stream]], and checks them against the other tables and the servers."""

    tables_of_proxied: ClassVar[Mapping[str, Tree]] = {"stream": []}

    def build_interdependent_tables(
        self, raw: Mapping[str, Tree], findings: list[Finding]
    ) -> dict[str, Tree]:
        problems: list[Finding] = []
        gateway = _validated(GatewayConfig, raw.get("gateway", {}), ("gateway",), problems)
        if gateway is not None and "gateway" not in raw and "route" not in raw:
            gateway = gateway.model_copy(update={"bind": ()})  # streams have addresses of their own
        defaults = gateway.defaults_of_routes() if gateway else {}
        merged_routes = [merged(defaults, route) for route in raw.get("route", ())]
        routes = _list_of(RouteConfig, "route", merged_routes, problems)
        streams = _list_of(StreamConfig, "stream", raw.get("stream", ()), problems)
        for problem in problems:
            # In a short form the key is implicit, so the path ends before it.
            is_short = problem.path[-3::2] in (("to", "to"), ("bind", "bind"))
            findings.append(problem._replace(path=problem.path[:-1]) if is_short else problem)
        return {"gateway": gateway, "route": routes, "stream": streams}

    problems = staticmethod(route_problems)
    warnings = staticmethod(route_warnings)
    check = staticmethod(check_program_and_certificates)
    routes = staticmethod(routes_of)

    def startup_problems(self, servers: Iterable[ServerConfig], tables: Tables) -> Iterator[Located]:
        from .refusals import refusals  # late: it is needed only where the pool is started

        servers = list(servers)
        yield from startup_problems(servers, tables)
        yield from refusals(servers, tables)

    def listed_bind_addresses(self, tables: Tables) -> Iterator[BoundAddress]:
        gateway = tables.get(GatewayConfig)
        for index, listener in enumerate(gateway.bind if gateway else ()):
            yield BoundAddress(("gateway", "bind", index), "[gateway]", parse(listener.bind))
        for stream in tables.all(StreamConfig):
            place, name = ("stream", stream.index, "bind"), f"[[stream]] {stream.label}"
            yield BoundAddress(place, name, parse(stream.bind))

    def complete_schema(self, definitions: dict[str, dict[str, Tree]]) -> None:
        """Require a target in a route: instead of `to`, it may have `redirect`, or `register` and `alias`."""
        registrable = {"properties": {"register": {"const": True}}, "required": ["register", "alias"]}
        definitions["RouteConfig"]["anyOf"] = [{"required": ["to"]}, {"required": ["redirect"]}, registrable]
