"""[gateway], [[route]] and [[stream]] of files become their tables, or findings.

Few pools have a gateway: this module is imported when a file has one of these tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from poolctl.config.model.section import Table, validated
from poolctl.config.values.normalise import merged
from poolctl.config.values.problems import Finding, Path, Tree

from .table import INDEX, GatewayConfig, RouteConfig, StreamConfig

Kind = TypeVar("Kind", bound=Table)


def gateway_tables(raw: Mapping[str, Tree], findings: list[Finding]) -> dict[str, Tree]:
    """The valid tables of the file, by name; problems of the other tables are added to the findings."""
    own: list[Finding] = []
    given = raw.get("gateway", {})
    gateway = _validated(GatewayConfig, given, ("gateway",), own)
    if gateway is not None and "bind" not in given and "gateway" not in raw and "route" not in raw:
        gateway = gateway.but(bind=())  # streams have addresses of their own
    defaults = gateway.defaults_of_routes() if gateway else {}
    routes = _list_of(RouteConfig, "route", [merged(defaults, each) for each in raw.get("route", ())], own)
    streams = _list_of(StreamConfig, "stream", raw.get("stream", ()), own)
    # The key of a short form is not written.
    findings += [
        each._replace(path=each.path[:-1]) if each.path[-3::2] in (("to", "to"), ("bind", "bind")) else each
        for each in own
    ]
    return {"gateway": gateway, "route": routes, "stream": streams}


def _list_of(
    kind: type[Kind], name: str, tables: Iterable[dict[str, Tree]], findings: list[Finding]
) -> tuple[Kind, ...]:
    found: list[Kind] = []
    for index, table in enumerate(tables):
        if INDEX in table:
            findings.append(Finding((name, index, INDEX), f"unknown key {INDEX!r}", "take it out"))
        made = _validated(kind, table, (name, index), findings)
        if isinstance(made, RouteConfig) and (missing := _missing(made)):
            message, hint = f"{missing!r} is missing", f"add {missing} = …"
            if missing == "to":
                hint += ", or register = true for services that register themselves, or redirect = …"
            findings.append(Finding((name, index, missing), message, hint))
        elif made is not None:
            found.append(made.but(index=index))
    return tuple(found)


def _missing(route: RouteConfig) -> str:
    """The name of a required key that the route lacks; "" if it has all of them."""
    return (
        "" if route.to or route.redirect else "to" if not route.register else "" if route.alias else "alias"
    )


def _validated(kind: type[Kind], given: dict[str, Tree], path: Path, findings: list[Finding]) -> Kind | None:
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    own: list[Finding] = []
    found = validated(kind, table, own)
    findings += [each._replace(path=(*path, *each.path)) for each in own]
    return None if own else found
