"""Builds a pool's routes: from its files, then from servers' labels and `expose`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from ipaddress import ip_address
from typing import NamedTuple

from poolctl.address import parse
from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.section import validated
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.model.server_tables import Probe
from poolctl.config.values.normalise import merged
from poolctl.config.values.plain import FrozenDict, Interpolated
from poolctl.config.values.problems import Finding, KeyPath, Tree
from poolctl.routing.match import sent_host
from poolctl.routing.route import (
    FILE,
    SERVER,
    STICKY,
    AnyRoute,
    BreakerRule,
    ExcludedRoute,
    Header,
    Redirect,
    Route,
    StreamRoute,
    Target,
    Timeouts,
    TrafficLimits,
)

from ._route_values import TAG
from .table import (
    BackendLimit,
    ClientLimit,
    GatewayConfig,
    RouteBreaker,
    RouteConfig,
    RouteSticky,
    RouteTarget,
    StreamBreaker,
    StreamConfig,
    StreamTarget,
)

PREFIX = "route."
# How long a connection to a process of this machine may take.
_CONNECT_SECONDS = 5.0
# Labels that hold lists, their elements separated by commas.
_LISTS = ("methods", "probe_responses", "remove_headers")
_SCHEMES = ("http", "https", "ws", "wss")


class WrittenRoute(NamedTuple):
    """A route as written, with unresolved targets: in a [[route]] table, or in a server's labels or `expose`.

    `server` is the server with the labels or `expose`, None for a table. `key` is the path within the server's table,
    or that of the [[route]] table. `reason` is why the route is not served, or "". If the labels are invalid, `config`
    is None, and `problems` has the errors.
    """

    alias: str
    config: RouteConfig | None
    key: KeyPath
    server: ServerConfig | None = None
    reason: str = ""
    problems: tuple[Finding, ...] = ()


def routes_of(servers: Iterable[ServerConfig], tables: Tables) -> tuple[AnyRoute, ...]:
    """All routes of the pool in order of precedence; empty for a pool without a gateway.

    A route without enabled targets, or with a taken alias or host and path, becomes an ExcludedRoute with the reason.
    """
    if tables.get(GatewayConfig) is None:
        return ()
    servers = list(servers)
    index = ServerIndex(servers)
    routes: list[AnyRoute] = []
    aliases: set[str] = set()
    for written in written_routes(index, tables):
        route = _route_of(written, index)
        if written.alias in aliases and isinstance(route, Route):
            route = _excluded(written, f"the alias {written.alias!r} is taken")
        aliases.add(written.alias)
        routes.append(route)
    routes += (
        _proxied_port_stream(server) for server in servers if server.is_proxied and not server.disabled
    )
    aliases = {server.name for server in servers if server.is_proxied}
    for stream in tables.all(StreamConfig):
        to, reasons = index.resolve(stream.to)
        if to and stream.label not in aliases:
            routes.append(build_stream(stream, to))
        else:
            reason = "; ".join(reasons) if not to else f"the alias {stream.label!r} is taken"
            routes.append(ExcludedRoute(alias=stream.label, reason=reason, provider=FILE))
        aliases.add(stream.label)
    return tuple(routes)


def probed_targets(tables: Tables) -> dict[str, tuple[Target, Probe, str]]:
    """By URL, each probed target outside the pool: the target, its probe, and the Host of requests to it.

    Of several targets with the same URL, the first probed one counts.
    """
    probed: dict[str, tuple[Target, Probe, str]] = {}
    routes: list[RouteConfig | StreamConfig] = [*tables.all(RouteConfig), *tables.all(StreamConfig)]
    for route in routes if tables.get(GatewayConfig) is not None else ():
        host = sent_host(route.host, route.host_header) if isinstance(route, RouteConfig) else ""
        for target in route.to:
            probe = target.health or route.health
            if probe is not None and is_outside(target.to):
                probed.setdefault(target.to, (target_of_url(target), probe, host))
    return probed


def probe_with_host(probe: Probe, host: str) -> Probe:
    """Add a Host header, which applications check, unless the probe has one or `host` is ""."""
    if not host or any(name.lower() == "host" for name in probe.headers):
        return probe
    return probe.model_copy(update={"headers": FrozenDict({"Host": host, **probe.headers})})


def is_outside(target: str) -> bool:
    """Whether a target is an address outside the pool."""
    return ":" in target and not target.startswith(TAG)


class ServerIndex:
    """An index of the pool's servers by name and by tag."""

    def __init__(self, servers: Iterable[ServerConfig]) -> None:
        self.by_name: dict[str, ServerConfig] = {}
        self.by_tag: dict[str, list[ServerConfig]] = {}
        for server in servers:
            self.by_name[server.name] = server
            for tag in server.tags:
                self.by_tag.setdefault(tag, []).append(server)

    def match_target(self, target: str) -> list[ServerConfig] | None:
        """The servers with this name or tag (an empty list if unknown); None for an address outside the pool."""
        if is_outside(target):
            return None
        if target.startswith(TAG):
            return [server for server in self.by_tag.get(target.removeprefix(TAG), ()) if server.listens]
        return [self.by_name[target]] if target in self.by_name else []

    def servers_of(self, route: RouteConfig) -> list[ServerConfig]:
        """The servers that the route leads to."""
        return [server for target in route.to for server in self.match_target(target.to) or ()]

    def resolve(self, targets: Sequence[RouteTarget | StreamTarget]) -> tuple[tuple[Target, ...], list[str]]:
        """Resolve targets to servers and URLs without duplicates; also returns why servers or tags are omitted."""
        resolved: dict[str, Target] = {}
        reasons: list[str] = []
        for target in targets:
            servers = self.match_target(target.to)
            if servers is None:
                resolved.setdefault(target.to, target_of_url(target))
                continue
            if not servers:
                kind = "tag" if target.to.startswith(TAG) else "server"
                reasons.append(f"there is no {kind} {target.to.removeprefix(TAG)!r}")
            for server in servers:
                if not server.listens:
                    reasons.append(f"{server.name} is {kind_without_address(server)}")
                elif server.disabled:
                    reasons.append(f"{server.name} is disabled")
                else:
                    resolved.setdefault(server.name, Target(server=server.name, weight=target.weight))
        return tuple(resolved.values()), reasons


def target_of_url(target: RouteTarget | StreamTarget) -> Target:
    """A route's target outside the pool."""
    if isinstance(target, StreamTarget):
        return Target(url=target.to, weight=target.weight)
    ca, sni = target.ca or "", target.sni or ""
    return Target(url=target.to, weight=target.weight, ca=ca, sni=sni, verify=target.verify)


def written_routes(index: ServerIndex, tables: Tables) -> list[WrittenRoute]:
    """Return the routes as written: first from [[route]] tables, then from servers' labels, then from `expose`."""
    routes = [WrittenRoute(table.label, table, ("route", table.index)) for table in tables.all(RouteConfig)]
    gateway = tables.get(GatewayConfig)
    defaults = gateway.defaults_of_routes() if gateway else {}
    for server in index.by_name.values():
        if any(name.startswith(PREFIX) for name in server.labels):
            routes.append(_route_of_labels(server, defaults))
    aliases = {route.alias for route in routes}
    by_place = {
        (config.host, config.path): route
        for route in reversed(routes)
        if (config := route.config) and (config.register or config.redirect or index.resolve(config.to)[0])
    }
    for server in index.by_name.values():
        place = None if server.derived_expose or not server.listens else _public_host_and_path(server)
        if place is None:
            continue
        host, path = place
        other = by_place.get(place)
        if other is not None and other.config and server in index.servers_of(other.config):
            continue
        alias = server.name if server.name not in aliases else f"{server.name}@{host}"
        config = _validated_route(merged(defaults, {"alias": alias, "host": host, "path": path}), server, [])
        if config is not None and alias not in aliases:
            aliases.add(alias)
            reason = f"{host}{path} is taken by the route {other.alias!r}" if other else ""
            routes.append(WrittenRoute(alias, config, ("expose",), server, reason))
            if not server.disabled:
                by_place.setdefault(place, routes[-1])
    return routes


def _route_of_labels(server: ServerConfig, defaults: dict[str, Tree]) -> WrittenRoute:
    table: dict[str, Tree] = {}
    for name, text in server.labels.items():
        if not name.startswith(PREFIX):
            continue
        *parents, key = name.removeprefix(PREFIX).split(".")
        inner = table
        for parent in parents:
            child = inner.setdefault(parent, {})
            inner = child if isinstance(child, dict) else {}
        inner[key] = tuple(part.strip() for part in text.split(",")) if key in _LISTS else Interpolated(text)
    problems: list[Finding] = []
    config = None
    forbidden = [key for key in ("to", "register") if key in table]
    if forbidden:
        problems.append(Finding((forbidden[0],), "the route of a server leads to that server", "take it out"))
    else:
        config = _validated_route(merged(defaults, table), server, problems)
    if not server.listens:
        message = f"{kind_without_address(server)} has no address that a route could lead to"
        problems.append(Finding((), message, "take out the labels"))
    for number, problem in enumerate(problems):
        name = ".".join(str(part) for part in problem.path if not isinstance(part, int))
        problems[number] = problem._replace(path=("labels", PREFIX + name) if name else ("labels",))
    alias = table.get("alias")
    label = str(alias) if isinstance(alias, str) and alias else server.name
    reason = "; ".join(problem.message for problem in problems)
    return WrittenRoute(label, None if problems else config, ("labels",), server, reason, tuple(problems))


def kind_without_address(server: ServerConfig) -> str:
    """The kind of a server without an address, for messages: "a job" or "a program without a port"."""
    return "a job" if server.job else "a program without a port"


def _validated_route(
    table: dict[str, Tree], server: ServerConfig, findings: list[Finding]
) -> RouteConfig | None:
    return validated(RouteConfig, {**table, "to": (server.name,)}, findings)


def _public_host_and_path(server: ServerConfig) -> tuple[str, str] | None:
    """Return host and path of the URL `expose`; None for localhost, an IP address, or the server's own host or port."""
    scheme, separator, rest = server.expose.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        return None
    authority, _, path = rest.partition("/")
    authority = authority.rpartition("@")[2].lower()
    host, colon, port = authority.partition(":")
    if not host or host.startswith("[") or host in ("localhost", server.address.host):
        return None
    if colon and (port == "auto" or port == str(server.address.port)):
        return None
    try:
        ip_address(host)
    except ValueError:
        return host.removesuffix("."), f"/{path.partition('?')[0].partition('#')[0]}".rstrip("/") or "/"
    return None


def _route_of(written: WrittenRoute, index: ServerIndex) -> Route | ExcludedRoute:
    config = written.config
    if config is None or written.reason:
        return _excluded(written, written.reason)
    to, reasons = index.resolve(config.to)
    if not (to or config.register or config.redirect):
        return _excluded(written, "; ".join(reasons))
    return build_route(written.alias, config, to, FILE if written.server is None else SERVER)


def _cookie_of_target(first: str) -> str:
    """The name of the sticky cookie of routes with this first target.

    With one name for all, each route of a host would replace the cookie of the others, and move their clients. A name
    made from all targets would change when one is added.
    """
    return f"poolctl_backend_{blake2b(first.encode(), digest_size=4).hexdigest()}"


def build_route(alias: str, config: RouteConfig, to: tuple[Target, ...], provider: str) -> Route:
    """Create the route that `config` describes, with these resolved targets."""
    sticky = config.sticky or RouteSticky()
    cookie = sticky.cookie or _cookie_of_target(config.to[0].to if config.to else alias)
    times = config.timeouts
    return Route(
        alias=alias,
        to=to,
        host=config.host,
        path=config.path,
        methods=config.methods,
        headers=_headers(config.headers),
        policy=config.policy,
        provider=provider,
        strip_path=config.strip_path,
        host_header=config.host_header,
        add_headers=_headers(config.add_headers),
        set_headers=_headers(config.set_headers),
        remove_headers=tuple(name.lower() for name in config.remove_headers),
        response_headers=_headers(config.response_headers),
        sticky_cookie=cookie if config.sticky or config.policy == STICKY else "",
        sticky_secure=sticky.secure,
        sticky_same_site=sticky.same_site.capitalize(),
        retries=config.retries,
        limit=_limit(config.limit),
        backend_limit=_backend_limit(config.backend_limit),
        client_limit=_limit(config.limit.per_client),
        redirect=Redirect(to=config.redirect.to, status=config.redirect.status) if config.redirect else None,
        allow=tuple(map(str, config.allow)),
        buffer_requests=config.buffer_requests,
        repeatable=config.repeatable,
        max_body_bytes=config.max_body_size or 0,
        timeouts=Timeouts(
            connect=times.connect,
            head=times.head,
            idle=times.idle,
            keep_alive=times.keep_alive,
        ),
        breaker=_breaker(config.breaker),
        waiting_page=config.waiting_page,
        probe_responses=config.probe_responses,
    )


def build_stream(config: StreamConfig, to: tuple[Target, ...]) -> StreamRoute:
    """Create the stream that `config` describes, with these resolved targets."""
    times = config.timeouts
    return StreamRoute(
        alias=config.label,
        bind=parse(config.bind).bind,
        to=to,
        policy=config.policy,
        accept_proxy=config.accept_proxy_protocol,
        max_connections=config.max_connections,
        timeouts=Timeouts(connect=times.connect, head=0.0, idle=times.idle),
        breaker=_breaker(config.breaker),
    )


def _excluded(written: WrittenRoute, reason: str) -> ExcludedRoute:
    host = written.config.host if written.config else ""
    provider = FILE if written.server is None else SERVER
    return ExcludedRoute(alias=written.alias, reason=reason, host=host, provider=provider)


def _proxied_port_stream(server: ServerConfig) -> StreamRoute:
    """The stream that forwards the port of a proxied server to its processes, without time limits."""
    times = Timeouts(connect=_CONNECT_SECONDS, head=0.0, idle=0.0)
    return StreamRoute(
        alias=server.name,
        bind=server.address.bind,
        to=(Target(server=server.name),),
        protocol=server.forward,
        policy="least-connections",
        provider=SERVER,
        timeouts=times,
    )


def _headers(headers: dict[str, str]) -> tuple[Header, ...]:
    return tuple(Header(name=name.lower(), value=value) for name, value in headers.items())


def _limit(limit: ClientLimit) -> TrafficLimits | None:
    concurrency, rate = limit.concurrency, limit.requests_per_second
    if not (concurrency or rate):
        return None
    return TrafficLimits(concurrency=concurrency, requests_per_second=rate, burst=limit.burst)


def _backend_limit(limit: BackendLimit) -> TrafficLimits | None:
    if not limit.concurrency:
        return None
    return TrafficLimits(concurrency=limit.concurrency, queue=limit.queue, queue_seconds=limit.queue_timeout)


def _breaker(table: StreamBreaker) -> BreakerRule:
    rule = BreakerRule(
        failures=table.failures,
        rate=table.rate,
        minimum_requests=table.minimum_requests,
        window_seconds=table.window,
        open_seconds=table.open_for,
        probes=table.probes,
    )
    if isinstance(table, RouteBreaker):
        rule = replace(rule, statuses=tuple(sorted({*table.statuses})), max_open=table.max_open)
    return rule
