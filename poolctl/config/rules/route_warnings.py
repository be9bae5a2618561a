"""Warnings of routes that are served otherwise than one may expect, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from poolctl.config.model.gateway_tables import RouteConfig
from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.rules.route_checks import Located, on_route, servers_of
from poolctl.config.rules.routes import PREFIX, Known, written_routes
from poolctl.config.values.problems import Finding, printable
from poolctl.routing.match import covers_path


def route_warnings(
    servers: Iterable[ServerKeys], tables: Tables, *, complete: bool = True
) -> Iterator[Located]:
    """Routes that are served otherwise than one may expect, or not at all.

    Unless the servers are `complete`, one that is not among them is reported with the problems.
    """
    known = Known(servers)
    if tables.gateway is None:
        for server in known.by_name.values():
            label = next((name for name in server.labels if name.startswith(PREFIX)), None)
            if label is not None:
                message = "the label has no effect: the pool has no gateway"
                yield server, Finding(("labels", label), message, "add [gateway], or take the label out")
        return
    plain = all(not each.tls for each in tables.gateway.bind)
    for each in written_routes(known, tables):
        if each.config is None or each.reason:
            continue
        targets, reasons = known.targets(each.config.to)
        if not complete and any(known.servers(target.to) == [] for target in each.config.to):
            continue
        leads = targets or each.config.register or each.config.redirect
        if not leads and (each.server is None or not each.server.disabled):
            message = f"the route {each.alias!r} is not served: {'; '.join(reasons)}"
            yield on_route(each, Finding(("to",), message, "enable a server, or name another target"))
        for finding in _without_effect(each.config, known):
            yield on_route(each, finding)
        secure = [
            server.name for server in servers_of(each.config, known) if server.tls and not server.disabled
        ]
        if secure and plain and each.key != ("expose",):
            message = f"{printable(secure[0])} speaks TLS, and no address of [gateway] does: its requests are proxied"
            hint = "give an address of [gateway] tls, or take tls from the server: the gateway then passes connections"
            yield on_route(each, Finding(("to",), message, hint))


def _without_effect(route: RouteConfig, known: Known) -> Iterator[Finding]:
    """Keys that are allowed, but do not have the effect that one may expect."""
    if "*" in route.path:
        plain = route.path.partition("*")[0].rstrip("/") or "/"
        message = f"* in {printable(route.path)} stands for itself: the path is a prefix"
        yield Finding(("path",), message, f'write "{printable(plain)}"', route.path)
    for index, path in enumerate(route.probe_responses):
        if not covers_path(route.path, path):
            message = f"{printable(path)} is outside the route's path {printable(route.path)}"
            fix = f"write a path under {printable(route.path)}, or move it to the route that has it"
            yield Finding(("probe_responses", index), message, fix, path)
    if all(server.scale.min for server in servers_of(route, known)):
        for key in ("waiting_page", "probe_responses"):
            if getattr(route, key):
                message = f"{key} has no effect: no server of the route may sleep"
                yield Finding((key,), message, "give a server scale = { min = 0, idle = … }, or take it out")
