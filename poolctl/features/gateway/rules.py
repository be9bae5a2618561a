"""The rules of [gateway], [[route]] and [[stream]] among each other and with the servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from poolctl.address import parse
from poolctl.config.model.pool_tables import BoundAddress, Located, TableRules, Tables, Unfinished
from poolctl.config.model.section import Probe
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.values.problems import Finding, Tree
from poolctl.routing.route import AnyRoute

from ._validation import gateway_tables
from .table import DEFAULT_BIND, GatewayConfig, StreamConfig


class GatewayRules(TableRules):
    """See TableRules. The modules are imported when they are needed: few commands need more than one."""

    def made(self, raw: Mapping[str, Tree], findings: list[Finding]) -> dict[str, Tree]:
        """See TableRules."""
        return gateway_tables(raw, findings)

    def problems(
        self, servers: Iterable[ServerKeys], tables: Tables, unfinished: Unfinished
    ) -> Iterable[Located]:
        """See TableRules."""
        from .route_checks import route_problems

        return route_problems(servers, tables, unfinished)

    def warnings(self, servers: Iterable[ServerKeys], tables: Tables, *, complete: bool) -> Iterable[Located]:
        """See TableRules."""
        from .route_checks import route_warnings

        return route_warnings(servers, tables, complete=complete)

    def unusable(self, tables: Tables) -> Iterable[Finding]:
        """See TableRules."""
        from ._outside_checks import unusable_engine

        return unusable_engine(tables)

    def check(
        self, servers: Iterable[ServerKeys], tables: Tables, env: Mapping[str, str], now: datetime
    ) -> tuple[list[Finding], list[Finding]]:
        """See TableRules."""
        from ._outside_checks import check_gateway

        return check_gateway(tables, servers, env, now)

    def routes(self, servers: Iterable[ServerKeys], tables: Tables) -> Iterable[AnyRoute]:
        """See TableRules."""
        from .routes import routes_of

        return routes_of(servers, tables)

    def probed_targets(self, tables: Tables) -> Mapping[str, Probe]:
        """See TableRules."""
        from .routes import probed_targets

        return probed_targets(tables)

    def addresses(self, tables: Tables) -> Iterator[BoundAddress]:
        """See TableRules."""
        gateway = tables.get(GatewayConfig)
        for index, listener in enumerate(gateway.bind if gateway else ()):
            yield BoundAddress(("gateway", "bind", index), "[gateway]", parse(listener.bind))
        for stream in tables.all(StreamConfig):
            place, name = ("stream", stream.index, "bind"), f"[[stream]] {stream.label}"
            yield BoundAddress(place, name, parse(stream.bind), stream.protocol == "udp")

    def complete_schema(self, definitions: dict[str, dict[str, Tree]]) -> None:
        """See TableRules: short forms, and a route's keys that stand for each other."""
        tls = definitions["GatewayListener"]["properties"]["tls"]
        kept = {name: tls.pop(name) for name in ("type", "items") if name in tls}
        tls["anyOf"] = [{"type": "boolean"}, kept["items"], kept]
        for table, key in (("GatewayConfig", "bind"), ("RouteConfig", "to"), ("StreamConfig", "to")):
            found = definitions[table]["properties"][key]
            each = {"anyOf": [{"type": "string"}, found.pop("items")]}
            found.pop("type")
            found["anyOf"] = [*each["anyOf"], {"type": "array", "items": each, "minItems": int(key == "to")}]
        definitions["GatewayConfig"]["properties"]["bind"]["default"] = DEFAULT_BIND
        registrable = {"properties": {"register": {"const": True}}, "required": ["register", "alias"]}
        definitions["RouteConfig"]["anyOf"] = [{"required": ["to"]}, registrable]
