"""Checks routes, the gateway's program and its certificates."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from poolctl.address import Address, parse
from poolctl.config.checks.certificate_checks import certificate_names, check_certificates, names_cover
from poolctl.config.checks.external_checks import check_socket_owner, check_user
from poolctl.config.files.read_file import read_text
from poolctl.config.model.pool_tables import NONE, Located, NamesOfInvalidServers, Tables
from poolctl.config.model.server_keys import ServerConfig, no_socket_file
from poolctl.config.model.server_tables import Probe, TLSConfig
from poolctl.config.values.problems import Finding, KeyPath, Problem, nearest, shortened_printable
from poolctl.routing.match import DOMAIN, EXACT, LABEL, WILDCARD, covers_path, host_pattern, prefixes
from poolctl.routing.route import FILE, HTTPS, NEEDS_REQUESTS, STICKY, Route
from poolctl.units import format_duration

from ._route_values import TAG, UNIX
from .program import INSTALL, WHEEL, program_of_wheel, program_path, program_problem, user_of_program
from .routes import (
    PREFIX,
    ServerIndex,
    WrittenRoute,
    is_outside,
    kind_without_address,
    probed_targets,
    routes_of,
    written_routes,
)
from .settings import unverifiable_address
from .table import (
    DEFAULT_BIND,
    BackendLimit,
    ClientLimit,
    GatewayConfig,
    GatewayListener,
    RouteConfig,
    RouteLimit,
    RouteTarget,
    RouteTimeouts,
    StreamBreaker,
    StreamConfig,
    StreamTarget,
)

MAX_COMPARED = 200
# These fields say where a request ends and which host it is for: a second one could turn one request into two.
OWN_HEADERS = frozenset(
    {
        "connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate",
        "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
SHOWN_NAMES = 3
# How often HAProxy's counters are read, which decide about breakers.
_COUNTED_SECONDS = 1.0

_HTTPS = ("https://", "https+h2://")


_CHALLENGES = "/.well-known/acme-challenge"


def route_problems(
    servers: Iterable[ServerConfig], tables: Tables, unfinished: NamesOfInvalidServers = NONE
) -> Iterator[Located]:
    """Report the errors in [gateway], the routes and the streams, including routes from servers' labels and `expose`.

    References to names and tags in `unfinished` are not reported as unknown: their tables have errors of their own.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return
    known = ServerIndex(servers)
    written = written_routes(known, tables)
    yield from ((each.server, finding) for each in written for finding in each.problems)
    has_streams = tables.all(StreamConfig) or "stream" in unfinished.tables
    if not gateway.bind and (
        written or not (has_streams or any(each.is_proxied for each in known.by_name.values()))
    ):
        message = "no listen address is configured for the routes"
        yield None, Finding(("gateway", "bind"), message, f'add one: bind = "{DEFAULT_BIND}"')
    for problems in (_proxy_protocol_problems, _socket_file_problems):
        yield from ((None, finding) for finding in problems(gateway, tables.all(StreamConfig)))
    probed = probed_targets(tables)
    routes: list[RouteConfig | StreamConfig] = [*tables.all(RouteConfig), *tables.all(StreamConfig)]
    for route in routes:
        for finding in (
            *_target_problems(route, known, gateway, unfinished),
            *_verification_problems(route),
            *_probe_problems(route, probed),
        ):
            yield None, finding._replace(path=(route.table_name, route.index, *finding.path))
    yield from _duplicate_alias_problems(
        ((each, each.config if each.server is None else None) for each in written), known
    )
    streams = (
        (WrittenRoute(each.label, None, ("stream", each.index)), each) for each in tables.all(StreamConfig)
    )
    yield from _duplicate_alias_problems(streams, known)
    served = [(each, each.config) for each in written if each.config and not each.reason]
    yield from _unreachable_route_problems(
        [each for each in served if not _all_servers_disabled(each[1], known)]
    )
    paths = [config.path for _, config in served]
    for each, config in served:
        for finding in (
            *_limit_problems(config),
            *_header_change_problems(config),
            *_redirect_problems(config, paths),
            *_cookie_problems(config),
            *_copied_tls_problems(config, known, gateway),
        ):
            yield locate_finding(each, finding)


def locate_finding(written: WrittenRoute, finding: Finding) -> Located:
    """The finding and its location: the route's key in the file, or the server's label that defines the route."""
    if written.server is None:
        return None, finding._replace(path=(*written.key, *finding.path))
    name = PREFIX + ".".join(str(part) for part in finding.path)
    path: KeyPath = (*written.key, name) if name in written.server.labels else written.key
    return written.server, finding._replace(path=path)


def _target_problems(
    route: RouteConfig | StreamConfig,
    known: ServerIndex,
    gateway: GatewayConfig,
    unfinished: NamesOfInvalidServers,
) -> Iterator[Finding]:
    targets: Iterable[RouteTarget | StreamTarget] = route.to
    for index, target in enumerate(targets):
        path: KeyPath = ("to", index)
        text = target.to
        found = known.servers_or_none_if_outside(text)
        if found is None:
            binds = [route] if isinstance(route, StreamConfig) else gateway.bind
            if is_own_address(text, [parse(bind.bind) for bind in binds]):
                yield Finding(path, f"{text} is an address of the gateway itself", "name a server", text)
        elif text.startswith(TAG):
            tag = text.removeprefix(TAG)
            if not found and tag not in unfinished.tags:
                yield Finding(path, *_unknown_tag_message(tag, known), text)
        elif not found and text not in unfinished.names:
            yield Finding(path, *_unknown_server_message(text, known, isinstance(route, StreamConfig)), text)
        elif found and not found[0].listens:
            message = (
                f"{shortened_printable(text)!r} is {kind_without_address(found[0])}, which has no address"
            )
            yield Finding(path, message, "name a server that listens", text)


def _listeners(
    gateway: GatewayConfig | None, streams: Iterable[StreamConfig]
) -> Iterator[tuple[KeyPath, GatewayListener | StreamConfig]]:
    """The tables with an address that clients connect to, each with its path in the file."""
    for index, listener in enumerate(gateway.bind if gateway else ()):
        yield ("gateway", "bind", index), listener
    for stream in streams:
        yield ("stream", stream.index), stream


def _socket_file_problems(gateway: GatewayConfig, streams: Iterable[StreamConfig]) -> Iterator[Finding]:
    """Report keys for the file of a Unix socket that are wrong, or are set for another kind of address."""
    for place, each in _listeners(gateway, streams):
        address = parse(each.bind)
        for key in ("mode", "owner"):
            if key in each.model_fields_set and address.kind != "unix":
                yield no_socket_file((*place, key), address)


def _proxy_protocol_problems(gateway: GatewayConfig, streams: Iterable[StreamConfig]) -> Iterator[Finding]:
    """Report the addresses where the PROXY protocol cannot be accepted."""
    for place, each in _listeners(gateway, streams):
        if not each.accept_proxy_protocol:
            continue
        path: KeyPath = (*place, "accept_proxy_protocol")
        if each.bind.lower().startswith(UNIX):
            message = "the PROXY protocol is not accepted on a Unix socket"
            fix = (
                'take it out, and let the proxy send X-Forwarded-For: trusted_proxies = ["unix"] in [gateway]'
            )
            yield Finding(path, message, fix)
        elif not gateway.trusted_proxies:
            message = "no proxy is trusted, so that no connection may begin with the PROXY protocol"
            yield Finding(path, message, 'add trusted_proxies = ["10.0.0.0/8"] to [gateway]')


def _verification_problems(route: RouteConfig | StreamConfig) -> Iterator[Finding]:
    """Report keys for certificates of targets that have none, or whose certificate is not verified."""
    for index, target in enumerate(route.to if isinstance(route, RouteConfig) else ()):
        for key, value in (("ca", target.ca), ("sni", target.sni), ("verify", not target.verify)):
            path = ("to", index, key)
            if value and not target.to.startswith(_HTTPS):
                yield Finding(
                    path, f"{key} is for an https:// target", 'take it out, or write to = "https://HOST"'
                )
            elif key == "ca" and target.ca and not target.verify:
                yield Finding(path, "ca has no effect with verify = false", "take one of them out")


def _authority_problems(route: RouteConfig) -> Iterator[Finding]:
    """Report files of CA certificates that cannot be used. Blocks."""
    import ssl  # late: most files name none

    for index, target in enumerate(route.to):
        if target.ca:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(target.ca)
            except OSError as error:
                what = (
                    "no certificates that can be used" if isinstance(error, ssl.SSLError) else error.strerror
                )
                message = f"{target.ca}: {what}"
                yield Finding(("to", index, "ca"), message, "name a PEM file")


def _probe_problems(route: RouteConfig | StreamConfig, every: Mapping[str, Probe]) -> Iterator[Finding]:
    """Report probes that have no effect, that the route's targets do not support, or that conflict with other probes.

    `every` maps each probed address outside the pool to the probe that is used for it.
    """
    targets: list[RouteTarget | StreamTarget] = [*route.to]
    outside = [is_outside(target.to) for target in targets]
    if route.health is not None and not any(outside):
        message = "health probes targets outside the pool, and there is none"
        yield Finding(("health",), message, "write it in the table of the server")
    for index, target in enumerate(targets):
        if target.health is not None and not outside[index]:
            message = f"{shortened_printable(target.to)} is probed as its own table says"
            yield Finding(("to", index, "health"), message, "write health in the table of the server")
    probes: list[tuple[KeyPath, Probe | None]] = [(("health",), route.health)]
    probes += [(("to", index, "health"), target.health) for index, target in enumerate(targets)]
    speaks_h2 = any(each.to.startswith(("h2c://", "https+h2://")) for each in targets)
    allowed = ("tcp",) if speaks_h2 or isinstance(route, StreamConfig) else ("http", "tcp")
    for path, probe in probes:
        for key in ("http", "tcp", "exec", "body"):
            if probe is not None and getattr(probe, key) and key not in allowed:
                what = "a stream" if isinstance(route, StreamConfig) else "a target outside the pool"
                what = "a target that speaks HTTP/2" if speaks_h2 else what
                message = f"{what} is not probed by {key}"
                yield Finding((*path, key), message, f"allowed is {' or '.join(allowed)}")
    for index, target in enumerate(targets):
        probe = target.health or route.health
        if probe is not None and target.to in every and every[target.to] != probe:
            path = ("health",) if target.health is None else ("to", index, "health")
            message = f"{shortened_printable(target.to)} is probed in another way by an earlier target"
            yield Finding(path, message, "write the same in both, or in one of them")


def _unknown_server_message(name: str, known: ServerIndex, is_stream: bool) -> tuple[str, str]:
    message = f"there is no server {shortened_printable(name)!r}"
    near = nearest(name, tuple(known.by_name) if len(known.by_name) <= 1000 else ())
    if name in known.by_tag:
        return message, f'{name!r} is a tag: write "{TAG}{name}"'
    if near:
        return message, f"did you mean {near!r}?"
    address = f"{shortened_printable(name)}:PORT" if is_stream else f"http://{shortened_printable(name)}:PORT"
    if "." in name or name == "localhost":
        return message, f'if it is a host, write the port too: "{address}"'
    return message, f"name a server of this pool, or write {'HOST:PORT' if is_stream else 'a URL'}"


def _unknown_tag_message(tag: str, known: ServerIndex) -> tuple[str, str]:
    if tag in known.by_tag:
        having = "jobs" if all(each.job for each in known.by_tag[tag]) else "servers without an address"
        return f"only {having} have the tag {shortened_printable(tag)!r}", "give it to a server that listens"
    if tag in known.by_name:
        return f"no server has the tag {shortened_printable(tag)!r}", f'{tag!r} is a server: write "{tag}"'
    near = nearest(tag, tuple(known.by_tag) if len(known.by_tag) <= 1000 else ())
    fix = f'did you mean "{TAG}{near}"?' if near else "give it to the servers that are meant"
    return f"no server has the tag {shortened_printable(tag)!r}", fix


def is_own_address(target: str, binds: Iterable[Address]) -> bool:
    """Whether the target is an address of the gateway itself, which would send requests to itself for ever."""
    address = parse(target.rpartition("://")[2])
    is_local = address.host in ("localhost", "::1") or address.host.startswith("127.")
    return any(
        bind.key == address.key or (is_local and bind.is_wildcard and bind.port == address.port)
        for bind in binds
    )


def _limit_problems(route: RouteConfig) -> Iterator[Finding]:
    """Report limits that never apply."""
    if route.backend_limit.queue and not route.backend_limit.concurrency:
        message = "a queue without a limit is never used"
        yield Finding(("backend_limit", "queue"), message, "add concurrency")
    bursts: tuple[tuple[KeyPath, ClientLimit], ...] = (
        (("limit",), route.limit),
        (("limit", "per_client"), route.limit.per_client),
    )
    for path, limit in bursts:
        if limit.burst and not limit.requests_per_second:
            message = "a burst without a rate has no effect"
            yield Finding((*path, "burst"), message, "add requests_per_second")
    breaker: StreamBreaker = route.breaker  # for mypy, an inherited key has the types that may be given
    if breaker.rate and breaker.window < _COUNTED_SECONDS:
        message = "failures are counted once a second"
        yield Finding(("breaker", "window"), message, 'write window = "1s", or more')


def _header_change_problems(route: RouteConfig) -> Iterator[Finding]:
    places: list[tuple[KeyPath, str]] = [
        ((key, name), name)
        for key in ("add_headers", "set_headers", "response_headers")
        for name in getattr(route, key)
    ]
    places += [(("remove_headers", index), name) for index, name in enumerate(route.remove_headers)]
    for path, name in places:
        # CGI and WSGI read both forms alike.
        plain = name.lower().replace("_", "-")
        if plain in OWN_HEADERS:
            fix = "write host_header" if plain == "host" and path[0] != "response_headers" else "take it out"
            yield Finding(path, f"the gateway itself sets the header {name}", fix, name)
        elif plain == "set-cookie" and path[0] == "response_headers":
            message = "it would replace every cookie that the application sets"
            yield Finding(path, message, "set it in the application", name)
        elif path[0] != "remove_headers" and not getattr(route, str(path[0]))[name]:
            fix = f'write remove_headers = ["{name}"]' if path[0] == "set_headers" else "take it out"
            yield Finding(path, "HAProxy sends no header without a value", fix, name)


def _redirect_problems(route: RouteConfig, paths: Sequence[str]) -> Iterator[Finding]:
    """Report keys without effect, and a redirect to itself; `paths` has the path of each route."""
    if route.redirect is not None:
        to = re.split("[?#]", route.redirect.to)[0]
        takes_all = to.startswith("/") and not route.methods and covers_path(route.path, to)
        if takes_all and sum(covers_path(path, to) for path in paths) == 1:
            message = f"the route redirects {shortened_printable(to)} to itself for ever"
            fix = f'add a route with path = "{shortened_printable(to)}" for what is there'
            yield Finding(("redirect",), message, fix, to)
        for key in ("to", "register", "waiting_page", "probe_responses"):
            if getattr(route, key):
                message = f"a route that redirects asks no server, and {key} has no effect"
                yield Finding((key,), message, "take one of them out, or make two routes of it")


def _cookie_problems(route: RouteConfig) -> Iterator[Finding]:
    if route.sticky is not None and route.sticky.same_site == "none" and not route.sticky.secure:
        message = "browsers refuse a cookie with same_site = none that is not secure"
        yield Finding(("sticky", "same_site"), message, "add secure = true")


def _copied_tls_problems(route: RouteConfig, known: ServerIndex, gateway: GatewayConfig) -> Iterator[Finding]:
    """Report a route that no listener serves, because all listeners forward TLS to the servers."""
    if not gateway.bind or any(each.tls is not True for each in gateway.bind):
        return
    servers = [each for each in known.servers_of(route) if not each.disabled and each.listens]
    is_whole_host = bool(route.host) and route.path == "/"
    by_name_alone = is_whole_host and not any(_is_used(getattr(route, key)) for key in NEEDS_REQUESTS)
    if not (by_name_alone and route.policy != STICKY and servers and all(server.tls for server in servers)):
        message = "no listener can serve it: with tls = true they only pass whole hosts to servers with tls"
        yield Finding(_key(route), message, "give a listener a certificate: tls = { cert = …, key = … }")


def _is_used(value: object) -> bool:
    if isinstance(value, RouteLimit) and _is_used(value.per_client):
        return True
    if isinstance(value, ClientLimit):
        return bool(value.concurrency or value.requests_per_second)
    return bool(value.concurrency if isinstance(value, BackendLimit) else value)


def _duplicate_alias_problems(
    named: Iterable[tuple[WrittenRoute, RouteConfig | StreamConfig | None]], known: ServerIndex
) -> Iterator[Located]:
    """Report each route, or stream, that has the alias of an earlier one. Only those in the file have a table."""
    first: dict[str, WrittenRoute] = {}
    for each, config in named:
        named_after = config.to[0].to if config and not config.alias and config.to else None
        if named_after and known.servers_or_none_if_outside(named_after) == []:
            continue  # it has a name once the target is known
        other = first.setdefault(each.alias, each)
        if other is not each:
            label = "alias" if each.server is None else f"label {PREFIX}alias"
            message, fix = _taken_alias_message(each.alias, _name_of(other), label, config)
            yield locate_finding(each, Finding(("alias",), message, fix, each.alias))


def _taken_alias_message(
    alias: str, other: str, label: str, route: RouteConfig | StreamConfig | None
) -> tuple[str, str]:
    if route is None or route.alias:
        return f"the alias {shortened_printable(alias)!r} is taken by {other}", f"add another {label}"
    message = f"it is called {shortened_printable(alias)!r} after its first target, and so is {other}"
    return message, 'give it a name of its own: alias = "…"'


def _name_of(written: WrittenRoute) -> str:
    """A short reference to this route for messages about other routes, such as `route[2]`."""
    if written.server is not None:
        return f"the route in the {written.key[0]} of {written.server.name!r}"
    return f"{written.key[0]}[{written.key[1]}]"


def _all_servers_disabled(route: RouteConfig, known: ServerIndex) -> bool:
    """Whether all servers of the route are disabled, so that another route may have the same host and path."""
    found = [known.servers_or_none_if_outside(target.to) for target in route.to]
    return (
        None not in found and any(found) and all(server.disabled for each in found for server in each or ())
    )


def _unreachable_route_problems(served: list[tuple[WrittenRoute, RouteConfig]]) -> Iterator[Located]:
    """Report the routes that never get a request because another route takes all their requests."""
    groups: dict[tuple[str, str], list[tuple[WrittenRoute, RouteConfig]]] = {}
    for each in served:
        groups.setdefault((each[1].host, each[1].path), []).append(each)
    everything = {
        (host, path): route
        for (host, path), group in groups.items()
        if (route := next((each for each, its in group if not _has_conditions(its)), None))
    }
    for (host, path), group in groups.items():
        before = _overriding_route(host, path, everything)
        ordered = sorted(
            group,
            key=lambda each: (not _redirects_to_https(each[1]), not each[1].methods, -len(each[1].headers)),
        )
        for index, (route, config) in enumerate(ordered):
            earlier = ordered[max(0, index - MAX_COMPARED) : index]
            taken = next((other for other, its in earlier if _covers_conditions_of(its, config)), None)
            if taken is not None:
                message = (
                    f"never reached: {_name_of(taken)} has the same host and path, and takes its requests"
                )
                yield locate_finding(
                    route, Finding(_key(config), message, "change its path or conditions, or take it out")
                )
            elif before is not None:
                other = before.config.host if before.config else ""
                message = f"never reached: the host {other!r} of {_name_of(before)} comes first, and takes its requests"
                yield locate_finding(
                    route, Finding(("host",), message, "write the host out, or give the other one a path")
                )


def _redirects_to_https(route: RouteConfig) -> bool:
    """Whether the route redirects to https, and so matches only requests that arrive without TLS."""
    return route.redirect is not None and route.redirect.to == HTTPS


def _has_conditions(route: RouteConfig) -> bool:
    return bool(route.methods or route.headers) or _redirects_to_https(route)


def _key(config: RouteConfig) -> KeyPath:
    return ("path",) if config.path != "/" else ("host",) if config.host else ()


def _covers_conditions_of(first: RouteConfig, second: RouteConfig) -> bool:
    """Whether all requests that meet the conditions of the second route also meet the first route's."""
    if _redirects_to_https(first) and not _redirects_to_https(second):
        return False
    if first.methods and not (second.methods and set(second.methods) <= set(first.methods)):
        return False
    headers = {name.lower(): value for name, value in second.headers.items()}
    return all(
        name.lower() in headers and value in ("", headers[name.lower()])
        for name, value in first.headers.items()
    )


def _overriding_route(
    host: str, path: str, everything: dict[tuple[str, str], WrittenRoute]
) -> WrittenRoute | None:
    """Return a route that takes every request for `host` and `path` because its own host has precedence; else None.

    Only a WILDCARD host is overridden. `everything` maps hosts and paths to routes without conditions such as methods.
    """
    pattern = host_pattern(host)
    if pattern.tier != WILDCARD:
        return None
    first, _, rest = host.partition(".")
    covering = [] if "*" in first or not rest else [first]
    labels = host.split(".")
    covering += [
        f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels)) if "*" not in "".join(labels[at:])
    ]
    for other in covering:
        if host_pattern(other).tier in (LABEL, DOMAIN):
            for prefix in prefixes(path, path.count("/")):
                if found := everything.get((other, prefix)):
                    return found
    return None


def route_warnings(servers: Iterable[ServerConfig], tables: Tables, *, complete: bool) -> Iterator[Located]:
    """Warnings about routes that do not work as expected, or are not served at all.

    If `complete` is false, servers may be missing because of errors: routes with an unknown target are skipped.
    """
    known = ServerIndex(servers)
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        for server in known.by_name.values():
            label = next((name for name in server.labels if name.startswith(PREFIX)), None)
            if label is not None:
                message = "the label has no effect: the pool has no gateway"
                yield server, Finding(("labels", label), message, "add [gateway], or take the label out")
        return
    for finding in _joined_timeouts(gateway.timeouts):
        yield None, finding._replace(path=("gateway", *finding.path))
    written = written_routes(known, tables)
    # The machines of [proxmox] bring routes of their own.
    may_have_none = not complete or not gateway.bind or "proxmox" in tables.by_name()
    if known.by_name and not written and not may_have_none:
        message = "the gateway has no route, so that every request gets 404"
        yield None, Finding(("gateway",), message, 'add a [[route]] with to = "NAME", or take [gateway] out')
    served = [(each, each.config) for each in written if each.config and not each.reason]
    if gateway.threads > 1 and any(_is_used(config.limit) for _, config in served):
        message = "with several threads the limits of requests are approximate"
        yield None, Finding(("gateway", "threads"), message, "write threads = 1 for exact ones")
    for each, config in served:
        targets, reasons = known.resolve_targets_with_reasons(config.to)
        if not complete and any(known.servers_or_none_if_outside(target.to) == [] for target in config.to):
            continue
        leads = targets or config.register or config.redirect
        if not leads and (each.server is None or not each.server.disabled):
            message = f"the route {each.alias!r} is not served: {'; '.join(reasons)}"
            yield locate_finding(each, Finding(("to",), message, "enable a server, or name another target"))
        for finding in (*_no_effect_warnings(config, known, gateway), *_hidden_challenges(config, served)):
            yield locate_finding(each, finding)
        if config.path != "/" and not config.strip_path:
            for server in known.servers_of(config):
                if server.http.root_path == config.path and not server.command:
                    path = config.path
                    message = f"it is put before {path} of the route, so that the app gets {path}{path}/…"
                    fix = "take it out, and add strip_path = true to the route"
                    yield server, Finding(("http", "root_path"), message, fix)


def _hidden_challenges(
    route: RouteConfig, served: Sequence[tuple[WrittenRoute, RouteConfig]]
) -> Iterator[Finding]:
    """The warning of a route for every host to the answers of ACME (RFC 8555, 8.3), if a host's own route hides it."""
    if route.host or not route.path.startswith(_CHALLENGES):
        return
    own = {other.host for _, other in served if other.path.startswith(_CHALLENGES)}
    hidden = [
        other.host for _, other in served if other.host not in own and _CHALLENGES.startswith(other.path)
    ]
    if hidden:
        message = f"a route with a host comes first: challenges for {hidden[0]} go to its application"
        yield Finding(("path",), message, f'add host = "{hidden[0]}", with a route for each host', route.path)


def _joined_timeouts(timeouts: RouteTimeouts) -> Iterator[Finding]:
    """Report two limits of which the longer one applies: HAProxy has one for the time without data from a backend."""
    head, idle = timeouts.head, timeouts.idle
    if head != idle:
        longer, shorter = ("head", "idle") if not head or (idle and head > idle) else ("idle", "head")
        limit = getattr(timeouts, longer)
        path = ("timeouts", longer if longer in timeouts.model_fields_set else shorter)
        message = f"HAProxy has one limit for head and idle, and {longer} is the longer one"
        yield Finding(path, message, f'write {shorter} = "{format_duration(limit)}" as well')


def _no_effect_warnings(route: RouteConfig, known: ServerIndex, gateway: GatewayConfig) -> Iterator[Finding]:
    """Report keys that are allowed but do not have the expected effect."""
    if route.timeouts != gateway.timeouts:
        yield from _joined_timeouts(route.timeouts)
    for index, target in enumerate(route.to):
        if target.to.startswith(_HTTPS) and (
            message := unverifiable_address(target.to, sni=target.sni or "", verify=target.verify)
        ):
            yield Finding(("to", index), message, 'write sni = "NAME", a name in the certificate')
    if "*" in route.path:
        plain = route.path.partition("*")[0].rstrip("/") or "/"
        message = f"* in {shortened_printable(route.path)} stands for itself: the path is a prefix"
        yield Finding(("path",), message, f'write "{shortened_printable(plain)}"', route.path)
    for index, path in enumerate(route.probe_responses):
        if not covers_path(route.path, path):
            message = (
                f"{shortened_printable(path)} is outside the route's path {shortened_printable(route.path)}"
            )
            fix = f"write a path under {shortened_printable(route.path)}, or move it to the route that has it"
            yield Finding(("probe_responses", index), message, fix, path)
    if all(server.scale.min for server in known.servers_of(route)):
        for key in ("waiting_page", "probe_responses"):
            if getattr(route, key):
                message = f"{key} has no effect: no server of the route may sleep"
                yield Finding((key,), message, "give a server scale = { min = 0, idle = … }, or take it out")


def check_program_and_certificates(
    servers: Iterable[ServerConfig], tables: Tables, env: Mapping[str, str], now: datetime
) -> tuple[list[Finding], list[Finding]]:
    """Return errors and warnings about certificates and users, with full key paths; and warnings about HAProxy.

    Blocks on files.
    """
    problems: list[Finding] = []
    warnings = [*_wheel_warnings(tables)]
    names: dict[str, list[str]] = {}  # of the certificates of each listener
    gateway = tables.get(GatewayConfig)
    if gateway and gateway.user:
        wrong, doubtful = _check_user(gateway.user)
        problems += wrong
        warnings += doubtful
    servers = list(servers)
    if gateway:
        warnings += _shared_user_warnings(user_of_program(gateway.user), servers)
    for index, listener in enumerate(gateway.bind if gateway else ()):
        for number, tls in enumerate(_certificates(listener)):
            wrong, doubtful = check_certificates(tls, env, now)
            place = ("gateway", "bind", index, "tls", number)
            problems += [each._replace(path=(*place, *each.path[1:])) for each in wrong]
            warnings += [each._replace(path=(*place, *each.path[1:])) for each in doubtful]
            if not wrong:
                names.setdefault(listener.bind, []).extend(_names_of(tls))
    for route in tables.all(RouteConfig):
        problems += [
            problem._replace(path=("route", route.index, *problem.path))
            for problem in _authority_problems(route)
        ]
    for of_table, each in _listeners(gateway, tables.all(StreamConfig)):
        if each.owner:
            wrong, doubtful = check_socket_owner((*of_table, "owner"), each.owner)
            problems += wrong
            warnings += doubtful
    return problems, [*warnings, *_missing_certificate_warnings(tables, servers, names)]


def _shared_user_warnings(user: str, servers: Iterable[ServerConfig]) -> Iterator[Finding]:
    """Yield a warning if servers run as the user, or "user:group", that HAProxy of a pool of root changes to."""
    name = user.partition(":")[0]
    if sharing := [
        server.name for server in servers if server.user and server.user.partition(":")[0] == name
    ]:
        message = f"HAProxy shares the user {name!r} with {', '.join(sharing)}: they are not isolated from each other"
        yield Finding(("gateway", "user"), message, "name a user for HAProxy alone", name)


def _check_user(user: str) -> tuple[list[Finding], list[Finding]]:
    path = ("gateway", "user")
    problems, warnings = check_user(path, user)
    if user.partition(":")[0] == "root" and os.geteuid() == 0:
        message = "HAProxy, which every client reaches, runs with the rights of root"
        warnings.append(Finding(path, message, "take it out, or name an ordinary user", user))
    return problems, warnings


def startup_problems(servers: Iterable[ServerConfig], tables: Tables) -> Iterator[Located]:
    """Report HAProxy if it cannot run on this machine, and limits that it does not have."""
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return
    servers = list(servers)
    yield from _program_problems(servers, gateway, tables)
    yield from ((None, finding) for finding in _password_problems(gateway))
    message, fix = (
        "HAProxy has no limit for a whole request",
        "take it out: head and idle limit the time without data",
    )
    if gateway.timeouts.total:
        yield None, Finding(("gateway", "timeouts", "total"), message, fix)
    for written in written_routes(ServerIndex(servers), tables):
        if written.config and written.config.timeouts.total not in (0.0, gateway.timeouts.total):
            yield locate_finding(written, Finding(("timeouts", "total"), message, fix))


def _password_problems(gateway: GatewayConfig) -> Iterator[Finding]:
    for index, listener in enumerate(gateway.bind):
        for number, tls in enumerate(_certificates(listener)):
            if tls.password_env and shutil.which("openssl") is None:
                path = ("gateway", "bind", index, "tls", number, "password_env")
                message = "the program openssl, which decrypts the key for HAProxy, is not installed"
                yield Finding(
                    path, message, "apt install openssl, or store the key without a password, mode 0600"
                )


def _program_problems(
    servers: Iterable[ServerConfig], gateway: GatewayConfig, tables: Tables
) -> Iterator[Located]:
    """Report a HAProxy that cannot run, at the first table that needs it: a route, a stream or a proxied server."""
    if problem := program_problem(program_path(gateway.program)):
        listed = [*(("route", each.index) for each in tables.all(RouteConfig))]
        listed += [("stream", each.index) for each in tables.all(StreamConfig)]
        proxied = next((server for server in servers if server.is_proxied), None)
        # A [gateway] that is made for streams or proxied servers alone has only the key `bind`, which is empty.
        is_written = gateway.model_fields_set and (gateway.bind or gateway.model_fields_set != {"bind"})
        if gateway.program:
            yield None, Finding(("gateway", "program"), *problem)
        elif listed and not is_written:
            yield None, Finding(listed[0], *problem)
        elif proxied and not is_written:
            yield proxied, Finding(("socket",), *problem)
        else:
            yield None, Finding(("gateway",), *problem)


def _wheel_warnings(tables: Tables) -> Iterator[Finding]:
    """Report TLS that is terminated by a program from a wheel."""
    gateway = tables.get(GatewayConfig)
    if gateway is None or program_path(gateway.program) != program_of_wheel():
        return
    for index, listener in enumerate(gateway.bind):
        if _certificates(listener):
            message = (
                f"TLS is terminated by HAProxy of the wheel {WHEEL}, "
                "with an OpenSSL that updates of the system do not reach"
            )
            yield Finding(("gateway", "bind", index, "tls"), message, INSTALL)
            return


def _certificates(listener: GatewayListener) -> tuple[TLSConfig, ...]:
    return () if isinstance(listener.tls, bool) else listener.tls


def _names_of(tls: TLSConfig) -> list[str]:
    try:
        return certificate_names(read_text(tls.cert))
    except Problem:
        return []


def _missing_certificate_warnings(
    tables: Tables, servers: list[ServerConfig], names: Mapping[str, list[str]]
) -> Iterator[Finding]:
    """Report hosts of routes for which a listener has no certificate.

    These are only warnings, because another listener may serve the host. `names` maps each listener to the host names
    of its certificates.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None or not names:
        return
    places = {each.label: ("route", each.index, "host") for each in tables.all(RouteConfig)}
    routes = [each for each in routes_of(servers, tables) if isinstance(each, Route)]
    missing: dict[str, list[Route]] = {}  # by listener
    for route in routes:
        if host_pattern(route.host).tier not in (EXACT, DOMAIN):
            continue
        for owner, known in names.items():
            if not names_cover(known, route.host):
                missing.setdefault(owner, []).append(route)
    for owner, without in missing.items():
        certified = names[owner]
        first, hosts = without[0], list(dict.fromkeys(each.host for each in without))
        its_names = f"its names are {_listed(certified)}" if certified else "it names no host"
        others = len(hosts) - SHOWN_NAMES
        more = f" and {others} more host{'s' * (others > 1)}" if others > 0 else ""
        message = f"{owner} has no certificate for {', '.join(hosts[:SHOWN_NAMES])}{more}: {its_names}"
        path = places[first.alias] if first.provider == FILE else ("gateway", "bind")
        yield Finding(path, message, "add one to the list of its tls", first.host)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")
