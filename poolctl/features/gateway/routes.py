"""The routes of a pool: from its files, then from its servers' labels and `expose`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    """A route as written in a [[route]] table, or in a server's labels or `expose`; its targets are not resolved yet.

    For a table, `server` is None, and `key` is the path to the table in the file. For labels and `expose`, `server` is
    the server that has them, and `key` is the path within the server's table. `reason` is why the route is not served,
    or "". If the labels are invalid, `config` is None, and `problems` has the errors.
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
    known = ServerIndex(servers)
    found: list[AnyRoute] = []
    aliases: set[str] = set()
    for written in written_routes(known, tables):
        made = _route_of(written, known)
        if written.alias in aliases and isinstance(made, Route):
            made = _excluded(written, f"the alias {written.alias!r} is taken")
        aliases.add(written.alias)
        found.append(made)
    found += (_port_of(server) for server in servers if server.is_proxied and not server.disabled)
    aliases = {server.name for server in servers if server.is_proxied}
    for stream in tables.all(StreamConfig):
        to, reasons = known.resolve_targets_with_reasons(stream.to)
        if to and stream.label not in aliases:
            found.append(build_stream(stream, to))
        else:
            reason = "; ".join(reasons) if not to else f"the alias {stream.label!r} is taken"
            found.append(ExcludedRoute(alias=stream.label, reason=reason, provider=FILE))
        aliases.add(stream.label)
    return tuple(found)


def probed_targets(tables: Tables) -> dict[str, Probe]:
    """The probes of targets outside the pool, by the target's URL; targets without a probe are left out."""
    return {target.to: probe for target, probe, _ in _probed(tables)}


def probes_as_sent(tables: Tables) -> dict[str, tuple[Target, Probe]]:
    """The same with the targets, and the Host that requests to them have (see `probe_with_host`)."""
    return {
        target.to: (target_of_url(target), probe_with_host(probe, host))
        for target, probe, host in _probed(tables)
    }


def _probed(tables: Tables) -> Iterator[tuple[RouteTarget | StreamTarget, Probe, str]]:
    """Yield the first target with each probed URL, with its probe and the Host of requests to it."""
    found = set[str]()
    routes: list[RouteConfig | StreamConfig] = [*tables.all(RouteConfig), *tables.all(StreamConfig)]
    for route in routes if tables.get(GatewayConfig) is not None else ():
        host = sent_host(route.host, route.host_header) if isinstance(route, RouteConfig) else ""
        for target in route.to:
            probe = target.health or route.health
            if probe is not None and is_outside(target.to) and target.to not in found:
                found.add(target.to)
                yield target, probe, host


def probe_with_host(probe: Probe, host: str) -> Probe:
    """The probe with this Host ("": none), unless its own headers have one: applications check it."""
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

    def servers_or_none_if_outside(self, target: str) -> list[ServerConfig] | None:
        """The servers with this name or tag (an empty list if unknown); None for an address outside the pool."""
        if target.startswith(TAG):
            return [each for each in self.by_tag.get(target.removeprefix(TAG), ()) if each.listens]
        if ":" in target:
            return None
        server = self.by_name.get(target)
        return [] if server is None else [server]

    def servers_of(self, route: RouteConfig) -> list[ServerConfig]:
        """The servers that the route leads to."""
        return [server for target in route.to for server in self.servers_or_none_if_outside(target.to) or ()]

    def resolve_targets_with_reasons(
        self, wanted: Sequence[RouteTarget | StreamTarget]
    ) -> tuple[tuple[Target, ...], list[str]]:
        """Resolve `wanted` to servers and URLs without duplicates; also returns why servers or tags are omitted."""
        found: dict[str, Target] = {}
        reasons: list[str] = []
        for each in wanted:
            servers = self.servers_or_none_if_outside(each.to)
            if servers is None:
                found.setdefault(each.to, target_of_url(each))
                continue
            if not servers:
                what = "tag" if each.to.startswith(TAG) else "server"
                reasons.append(f"there is no {what} {each.to.removeprefix(TAG)!r}")
            for server in servers:
                if not server.listens:
                    reasons.append(f"{server.name} is {kind_without_address(server)}")
                elif server.disabled:
                    reasons.append(f"{server.name} is disabled")
                else:
                    found.setdefault(server.name, Target(server=server.name, weight=each.weight))
        return tuple(found.values()), reasons


def target_of_url(target: RouteTarget | StreamTarget) -> Target:
    """A target outside the pool, as routes have it."""
    found = Target(url=target.to, weight=target.weight)
    if isinstance(target, StreamTarget):
        return found
    return replace(found, ca=target.ca or "", sni=target.sni or "", verify=target.verify)


def written_routes(known: ServerIndex, tables: Tables) -> list[WrittenRoute]:
    """Return the routes as written: first from [[route]] tables, then from servers' labels, then from `expose`."""
    found = [WrittenRoute(each.label, each, ("route", each.index)) for each in tables.all(RouteConfig)]
    gateway = tables.get(GatewayConfig)
    defaults = gateway.defaults_of_routes() if gateway else {}
    for server in known.by_name.values():
        if any(name.startswith(PREFIX) for name in server.labels):
            found.append(_route_of_labels(server, defaults))
    aliases = {each.alias for each in found}
    places = {
        (each.config.host, each.config.path): each
        for each in reversed(found)
        if each.config
        and (
            each.config.register
            or each.config.redirect
            or known.resolve_targets_with_reasons(each.config.to)[0]
        )
    }
    for server in known.by_name.values():
        exposed = None if server.derived_expose or not server.listens else _public_host_and_path(server)
        if exposed is None:
            continue
        host, path = exposed
        there = places.get(exposed)
        if there is not None and there.config and server in known.servers_of(there.config):
            continue
        alias = server.name if server.name not in aliases else f"{server.name}@{host}"
        config = _validated_route(merged(defaults, {"alias": alias, "host": host, "path": path}), server, [])
        if config is not None and alias not in aliases:
            aliases.add(alias)
            reason = f"{host}{path} is taken by the route {there.alias!r}" if there else ""
            found.append(WrittenRoute(alias, config, ("expose",), server, reason))
            if not server.disabled:
                places.setdefault(exposed, found[-1])
    return found


def _route_of_labels(server: ServerConfig, defaults: dict[str, Tree]) -> WrittenRoute:
    table: dict[str, Tree] = {}
    for name, text in server.labels.items():
        if not name.startswith(PREFIX):
            continue
        *above, key = name.removeprefix(PREFIX).split(".")
        inner = table
        for part in above:
            below = inner.setdefault(part, {})
            inner = below if isinstance(below, dict) else {}
        inner[key] = tuple(part.strip() for part in text.split(",")) if key in _LISTS else Interpolated(text)
    own: list[Finding] = []
    config = None
    others = [key for key in ("to", "register") if key in table]
    if others:
        own.append(Finding((others[0],), "the route of a server leads to that server", "take it out"))
    else:
        config = _validated_route(merged(defaults, table), server, own)
    if not server.listens:
        message = f"{kind_without_address(server)} has no address that a route could lead to"
        own.append(Finding((), message, "take out the labels"))
    problems = []
    for each in own:
        name = ".".join(str(part) for part in each.path if not isinstance(part, int))
        problems.append(each._replace(path=("labels", PREFIX + name) if name else ("labels",)))
    alias = table.get("alias")
    label = str(alias) if isinstance(alias, str) and alias else server.name
    reason = "; ".join(each.message for each in own)
    return WrittenRoute(label, None if own else config, ("labels",), server, reason, tuple(problems))


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


def _route_of(written: WrittenRoute, known: ServerIndex) -> Route | ExcludedRoute:
    config = written.config
    if config is None or written.reason:
        return _excluded(written, written.reason)
    to, reasons = known.resolve_targets_with_reasons(config.to)
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
        context_headers=config.context_headers,
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


def _port_of(server: ServerConfig) -> StreamRoute:
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


def _headers(given: dict[str, str]) -> tuple[Header, ...]:
    return tuple(Header(name=name.lower(), value=value) for name, value in given.items())


def _limit(given: ClientLimit) -> TrafficLimits | None:
    if not (given.concurrency or given.requests_per_second):
        return None
    return TrafficLimits(
        concurrency=given.concurrency, requests_per_second=given.requests_per_second, burst=given.burst
    )


def _backend_limit(given: BackendLimit) -> TrafficLimits | None:
    if not given.concurrency:
        return None
    return TrafficLimits(concurrency=given.concurrency, queue=given.queue, queue_seconds=given.queue_timeout)


def _breaker(given: StreamBreaker) -> BreakerRule:
    rule = BreakerRule(
        failures=given.failures,
        rate=given.rate,
        minimum_requests=given.minimum_requests,
        window_seconds=given.window,
        open_seconds=given.open_for,
        probes=given.probes,
    )
    if isinstance(given, RouteBreaker):
        rule = replace(rule, statuses=tuple(sorted({*given.statuses})), max_open=given.max_open)
    return rule
