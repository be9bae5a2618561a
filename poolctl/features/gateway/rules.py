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
    found: list[Kind] = []
    for index, table in enumerate(tables):
        if INDEX in table:
            findings.append(Finding((name, index, INDEX), f"unknown key {INDEX!r}", "take it out"))
        made = _validated(kind, table, (name, index), findings)
        if isinstance(made, RouteConfig) and (missing := _name_of_missing_key(made)):
            message, hint = f"{missing!r} is missing", f"add {missing} = …"
            if missing == "to":
                hint += ", or register = true for services that register themselves, or redirect = …"
            findings.append(Finding((name, index, missing), message, hint))
        elif made is not None:
            found.append(made.model_copy(update={"index": index}))
    return tuple(found)


def _name_of_missing_key(route: RouteConfig) -> str:
    """The name of a required key that the route lacks; "" if it has all of them."""
    return (
        "" if route.to or route.redirect else "to" if not route.register else "" if route.alias else "alias"
    )


def _validated(
    kind: type[Kind], given: dict[str, Tree], path: KeyPath, findings: list[Finding]
) -> Kind | None:
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    own: list[Finding] = []
    found = validated(kind, table, own)
    findings += [each._replace(path=(*path, *each.path)) for each in own]
    return None if own else found


class GatewayRules(TableRules):
    """Builds [gateway], [[route]] and [[stream]], and checks them against the other tables and the servers."""

    tables_of_proxied: ClassVar[Mapping[str, Tree]] = {"stream": []}

    def build_interdependent_tables(
        self, raw: Mapping[str, Tree], findings: list[Finding]
    ) -> dict[str, Tree]:
        own: list[Finding] = []
        given = raw.get("gateway", {})
        gateway = _validated(GatewayConfig, given, ("gateway",), own)
        if gateway is not None and "bind" not in given and "gateway" not in raw and "route" not in raw:
            gateway = gateway.model_copy(update={"bind": ()})  # streams have addresses of their own
        defaults = gateway.defaults_of_routes() if gateway else {}
        routes = _list_of(
            RouteConfig, "route", [merged(defaults, each) for each in raw.get("route", ())], own
        )
        streams = _list_of(StreamConfig, "stream", raw.get("stream", ()), own)
        # In a short form the key is not written, so the path ends before it.
        findings += [
            each._replace(path=each.path[:-1])
            if each.path[-3::2] in (("to", "to"), ("bind", "bind"))
            else each
            for each in own
        ]
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
