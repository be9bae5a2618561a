"""Checks routes, the gateway's program and its certificates."""

from __future__ import annotations

import contextlib
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
from poolctl.config.model.server_tables import PROBE_KINDS, Probe, TLSConfig
from poolctl.config.values.problems import Finding, KeyPath, Problem, nearest, shortened_printable
from poolctl.routing.match import DOMAIN, EXACT, LABEL, WILDCARD, covers_path, host_pattern, prefixes
from poolctl.routing.route import FILE, HTTPS, NEEDS_REQUESTS, STICKY, Route, Target
from poolctl.units import format_duration

from ._route_values import TAG
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
# Framing and host fields, set by the gateway: a second value could enable request smuggling.
OWN_HEADERS = frozenset(
    {
        "connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate",
        "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
SHOWN_NAMES = 3
# The interval at which HAProxy's counters are read for the breakers.
_COUNTED_SECONDS = 1.0

_HTTPS = ("https://", "https+h2://")


_CHALLENGES = "/.well-known/acme-challenge"


def route_problems(
    servers: Iterable[ServerConfig], tables: Tables, unfinished: NamesOfInvalidServers = NONE
) -> Iterator[Located]:
    """Report the errors in [gateway], the routes and the streams, including routes from servers' labels and `expose`.

    Names and tags in `unfinished` are not reported as unknown: their tables have errors of their own.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return
    index, streams = ServerIndex(servers), tables.all(StreamConfig)
    written = written_routes(index, tables)
    yield from ((route.server, finding) for route in written for finding in route.problems)
    has_streams = streams or "stream" in unfinished.tables
    if not gateway.bind and (
        written or not (has_streams or any(server.is_proxied for server in index.by_name.values()))
    ):
        message = "no listen address is configured for the routes"
        yield None, Finding(("gateway", "bind"), message, f'add one: bind = "{DEFAULT_BIND}"')
    yield from ((None, finding) for finding in _listener_problems(gateway, streams))
    probed = probed_targets(tables)
    configs: list[RouteConfig | StreamConfig] = [*tables.all(RouteConfig), *streams]
    for table in configs:
        for finding in (
            *_target_problems(table, index, gateway, unfinished),
            *_verification_problems(table),
            *_probe_problems(table, probed),
        ):
            yield None, finding._replace(path=(table.table_name, table.index, *finding.path))
    yield from _duplicate_alias_problems(
        ((route, route.config if route.server is None else None) for route in written), index
    )
    yield from _duplicate_alias_problems(
        ((WrittenRoute(stream.label, None, ("stream", stream.index)), stream) for stream in streams), index
    )
    served = [(route, route.config) for route in written if route.config and not route.reason]
    yield from _unreachable_route_problems(
        [(route, config) for route, config in served if not _all_servers_disabled(config, index)]
    )
    paths = [config.path for _, config in served]
    for route, config in served:
        for finding in (
            *_key_problems(config),
            *_header_change_problems(config),
            *_redirect_loops(config, paths),
            *_passthrough_problems(config, index, gateway),
        ):
            yield locate_finding(route, finding)


def locate_finding(written: WrittenRoute, finding: Finding) -> Located:
    """The finding at its place: a key of the route's table, or the server's label that has the key."""
    if written.server is None:
        return None, finding._replace(path=(*written.key, *finding.path))
    name = PREFIX + ".".join(str(part) for part in finding.path)
    path: KeyPath = (*written.key, name) if name in written.server.labels else written.key
    return written.server, finding._replace(path=path)


def _target_problems(
    route: RouteConfig | StreamConfig,
    servers: ServerIndex,
    gateway: GatewayConfig,
    unfinished: NamesOfInvalidServers,
) -> Iterator[Finding]:
    targets: Iterable[RouteTarget | StreamTarget] = route.to
    for index, target in enumerate(targets):
        path: KeyPath = ("to", index)
        text = target.to
        matching = servers.match_target(text)
        if matching is None:
            binds = [route] if isinstance(route, StreamConfig) else gateway.bind
            if is_own_address(text, [parse(bind.bind) for bind in binds]):
                yield Finding(path, f"{text} is an address of the gateway itself", "name a server", text)
        elif text.startswith(TAG):
            tag = text.removeprefix(TAG)
            if not matching and tag not in unfinished.tags:
                yield Finding(path, *_unknown_tag_message(tag, servers), text)
        elif not matching and text not in unfinished.names:
            message, fix = _unknown_server_message(text, servers, isinstance(route, StreamConfig))
            yield Finding(path, message, fix, text)
        elif matching and not matching[0].listens:
            kind = kind_without_address(matching[0])
            message = f"{shortened_printable(text)!r} is {kind}, which has no address"
            yield Finding(path, message, "name a server that listens", text)


def _listeners(
    gateway: GatewayConfig | None, streams: Iterable[StreamConfig]
) -> Iterator[tuple[KeyPath, GatewayListener | StreamConfig]]:
    """The tables with an address that clients connect to, each with its path in the file."""
    for index, listener in enumerate(gateway.bind if gateway else ()):
        yield ("gateway", "bind", index), listener
    for stream in streams:
        yield ("stream", stream.index), stream


def _listener_problems(gateway: GatewayConfig, streams: Iterable[StreamConfig]) -> Iterator[Finding]:
    """Report keys of a Unix socket's file at other addresses, and where the PROXY protocol cannot be accepted."""
    for place, table in _listeners(gateway, streams):
        address, path = parse(table.bind), (*place, "accept_proxy_protocol")
        for key in ("mode", "owner"):
            if key in table.model_fields_set and address.kind != "unix":
                yield no_socket_file((*place, key), address)
        if not table.accept_proxy_protocol:
            continue
        if address.kind == "unix":
            message = "the PROXY protocol is not accepted on a Unix socket"
            fix = (
                'take it out, and let the proxy send X-Forwarded-For: trusted_proxies = ["unix"] in [gateway]'
            )
            yield Finding(path, message, fix)
        elif not gateway.trusted_proxies:
            message = "no proxy is trusted, so that no connection may begin with the PROXY protocol"
            yield Finding(path, message, 'add trusted_proxies = ["10.0.0.0/8"] to [gateway]')


def _verification_problems(route: RouteConfig | StreamConfig) -> Iterator[Finding]:
    """Report keys for the certificate of a target without one, or without verification."""
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
                reason = (
                    "no certificates that can be used" if isinstance(error, ssl.SSLError) else error.strerror
                )
                yield Finding(("to", index, "ca"), f"{target.ca}: {reason}", "name a PEM file")


def _probe_problems(
    route: RouteConfig | StreamConfig, probed: Mapping[str, tuple[Target, Probe, str]]
) -> Iterator[Finding]:
    """Report probes without effect, unsupported kinds of probes, and probes that conflict with those in `probed`."""
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
    speaks_h2 = any(target.to.startswith(("h2c://", "https+h2://")) for target in targets)
    allowed = ("tcp",) if speaks_h2 or isinstance(route, StreamConfig) else ("http", "tcp")
    for path, probe in probes:
        for key in (*PROBE_KINDS, "body"):
            if probe is not None and getattr(probe, key) and key not in allowed:
                kind = "a stream" if isinstance(route, StreamConfig) else "a target outside the pool"
                kind = "a target that speaks HTTP/2" if speaks_h2 else kind
                fix = f"allowed is {' or '.join(allowed)}"
                yield Finding((*path, key), f"{kind} is not probed by {key}", fix)
    for index, target in enumerate(targets):
        probe = target.health or route.health
        if probe is not None and target.to in probed and probed[target.to][1] != probe:
            path = ("health",) if target.health is None else ("to", index, "health")
            message = f"{shortened_printable(target.to)} is probed in another way by an earlier target"
            yield Finding(path, message, "write the same in both, or in one of them")


def _unknown_server_message(name: str, servers: ServerIndex, is_stream: bool) -> tuple[str, str]:
    message = f"there is no server {shortened_printable(name)!r}"
    near = nearest(name, tuple(servers.by_name) if len(servers.by_name) <= 1000 else ())
    if name in servers.by_tag:
        return message, f'{name!r} is a tag: write "{TAG}{name}"'
    if near:
        return message, f"did you mean {near!r}?"
    address = f"{shortened_printable(name)}:PORT" if is_stream else f"http://{shortened_printable(name)}:PORT"
    if "." in name or name == "localhost":
        return message, f'if it is a host, write the port too: "{address}"'
    return message, f"name a server of this pool, or write {'HOST:PORT' if is_stream else 'a URL'}"


def _unknown_tag_message(tag: str, servers: ServerIndex) -> tuple[str, str]:
    if tag in servers.by_tag:
        kind = "jobs" if all(server.job for server in servers.by_tag[tag]) else "servers without an address"
        return f"only {kind} have the tag {shortened_printable(tag)!r}", "give it to a server that listens"
    message = f"no server has the tag {shortened_printable(tag)!r}"
    if tag in servers.by_name:
        return message, f'{tag!r} is a server: write "{tag}"'
    near = nearest(tag, tuple(servers.by_tag) if len(servers.by_tag) <= 1000 else ())
    return message, f'did you mean "{TAG}{near}"?' if near else "give it to the servers that are meant"


def is_own_address(target: str, binds: Iterable[Address]) -> bool:
    """Whether the target is an address of the gateway, so that requests would loop."""
    address = parse(target.rpartition("://")[2])
    is_local = address.host in ("localhost", "::1") or address.host.startswith("127.")
    return any(
        bind.key == address.key or (is_local and bind.is_wildcard and bind.port == address.port)
        for bind in binds
    )


def _key_problems(route: RouteConfig) -> Iterator[Finding]:
    """Report keys without effect beside the other keys of the route, and values that it cannot have with them."""
    limit, client, backend, sticky = route.limit, route.limit.per_client, route.backend_limit, route.sticky
    breaker: StreamBreaker = route.breaker  # for mypy, an inherited key has the types that may be given
    no_rate = "a burst without a rate has no effect", "add requests_per_second"
    rules: tuple[tuple[KeyPath, object, str, str], ...] = (
        (
            ("backend_limit", "queue"), backend.queue and not backend.concurrency,
            "a queue without a limit is never used", "add concurrency",
        ),
        (("limit", "burst"), limit.burst and not limit.requests_per_second, *no_rate),
        (("limit", "per_client", "burst"), client.burst and not client.requests_per_second, *no_rate),
        (
            ("breaker", "window"), breaker.rate and breaker.window < _COUNTED_SECONDS,
            "failures are counted once a second", 'write window = "1s", or more',
        ),
        (
            ("sticky", "same_site"), sticky and sticky.same_site == "none" and not sticky.secure,
            "browsers refuse a cookie with same_site = none that is not secure", "add secure = true",
        ),
        *(
            (
                (key,), route.redirect and getattr(route, key),
                f"a route that redirects asks no server, and {key} has no effect",
                "take one of them out, or make two routes of it",
            )
            for key in ("to", "register", "waiting_page", "probe_responses")
        ),
    )  # fmt: skip
    yield from (Finding(path, message, fix) for path, is_wrong, message, fix in rules if is_wrong)


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


def _redirect_loops(route: RouteConfig, paths: Sequence[str]) -> Iterator[Finding]:
    """Report a redirect to itself. `paths` are the paths of all routes."""
    to = re.split("[?#]", route.redirect.to)[0] if route.redirect is not None else ""
    takes_all = to.startswith("/") and not route.methods and covers_path(route.path, to)
    if takes_all and sum(covers_path(path, to) for path in paths) == 1:
        message = f"the route redirects {shortened_printable(to)} to itself for ever"
        fix = f'add a route with path = "{shortened_printable(to)}" for what is there'
        yield Finding(("redirect",), message, fix, to)


def _passthrough_problems(
    route: RouteConfig, index: ServerIndex, gateway: GatewayConfig
) -> Iterator[Finding]:
    """Report a route that no listener serves, because all listeners pass TLS to the servers."""
    if not gateway.bind or any(listener.tls is not True for listener in gateway.bind):
        return
    servers = [server for server in index.servers_of(route) if not server.disabled and server.listens]
    is_whole_host = bool(route.host) and route.path == "/"
    by_name_alone = is_whole_host and not any(_is_set(getattr(route, key)) for key in NEEDS_REQUESTS)
    if not (by_name_alone and route.policy != STICKY and servers and all(server.tls for server in servers)):
        message = "no listener can serve it: with tls = true they only pass whole hosts to servers with tls"
        yield Finding(_key(route), message, "give a listener a certificate: tls = { cert = …, key = … }")


def _is_set(value: object) -> bool:
    if isinstance(value, RouteLimit) and _is_set(value.per_client):
        return True
    if isinstance(value, ClientLimit):
        return bool(value.concurrency or value.requests_per_second)
    return bool(value.concurrency if isinstance(value, BackendLimit) else value)


def _duplicate_alias_problems(
    routes: Iterable[tuple[WrittenRoute, RouteConfig | StreamConfig | None]], index: ServerIndex
) -> Iterator[Located]:
    """Report each route or stream with the alias of an earlier one. Routes of labels come without a table."""
    first: dict[str, WrittenRoute] = {}
    for route, table in routes:
        named_after = table.to[0].to if table and not table.alias and table.to else None
        if named_after and index.match_target(named_after) == []:
            continue  # it has a name once the target is known
        other = first.setdefault(route.alias, route)
        if other is route:
            continue
        alias = shortened_printable(route.alias)
        if table is None or table.alias:
            message = f"the alias {alias!r} is taken by {_name_of(other)}"
            fix = f"add another {'alias' if route.server is None else f'label {PREFIX}alias'}"
        else:
            message = f"it is called {alias!r} after its first target, and so is {_name_of(other)}"
            fix = 'give it a name of its own: alias = "…"'
        yield locate_finding(route, Finding(("alias",), message, fix, route.alias))


def _name_of(written: WrittenRoute) -> str:
    """A short reference to this route for messages about other routes, such as `route[2]`."""
    if written.server is not None:
        return f"the route in the {written.key[0]} of {written.server.name!r}"
    return f"{written.key[0]}[{written.key[1]}]"


def _all_servers_disabled(route: RouteConfig, index: ServerIndex) -> bool:
    """Whether all targets are disabled servers, so that another route may have the same host and path."""
    servers = index.servers_of(route)
    has_url = any(is_outside(target.to) for target in route.to)
    return bool(servers) and not has_url and all(server.disabled for server in servers)


def _unreachable_route_problems(served: list[tuple[WrittenRoute, RouteConfig]]) -> Iterator[Located]:
    """Report the routes that never get a request because another route takes all their requests."""
    groups: dict[tuple[str, str], list[tuple[WrittenRoute, RouteConfig]]] = {}
    for written, table in served:
        groups.setdefault((table.host, table.path), []).append((written, table))
    unconditional = {
        place: written
        for place, group in groups.items()
        for written, table in reversed(group)
        if not (table.methods or table.headers or _redirects_to_https(table))
    }
    for (host, path), group in groups.items():
        better_host = _overriding_route(host, path, unconditional)
        group.sort(
            key=lambda pair: (not _redirects_to_https(pair[1]), not pair[1].methods, -len(pair[1].headers))
        )
        for index, (written, table) in enumerate(group):
            earlier = group[max(0, index - MAX_COMPARED) : index]
            winner = next(
                (other for other, other_table in earlier if _covers_conditions_of(other_table, table)), None
            )
            if winner is not None:
                message = (
                    f"never reached: {_name_of(winner)} has the same host and path, and takes its requests"
                )
                fix = "change its path or conditions, or take it out"
                yield locate_finding(written, Finding(_key(table), message, fix))
            elif better_host is not None:
                other = better_host.config.host if better_host.config else ""
                name = _name_of(better_host)
                message = f"never reached: the host {other!r} of {name} comes first, and takes its requests"
                fix = "write the host out, or give the other one a path"
                yield locate_finding(written, Finding(("host",), message, fix))


def _redirects_to_https(route: RouteConfig) -> bool:
    """Whether the route redirects to https, and so matches only requests that arrive without TLS."""
    return route.redirect is not None and route.redirect.to == HTTPS


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
    host: str, path: str, unconditional: dict[tuple[str, str], WrittenRoute]
) -> WrittenRoute | None:
    """A route that takes every request for `host` and `path` because its own host has precedence; else None.

    Only a WILDCARD host is overridden. `unconditional` has the routes without conditions such as methods, by host and
    path.
    """
    if host_pattern(host).tier != WILDCARD:
        return None
    labels = host.split(".")
    covering = [] if "*" in labels[0] or len(labels) == 1 else [labels[0]]
    covering += [
        f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels)) if "*" not in "".join(labels[at:])
    ]
    for other in covering:
        if host_pattern(other).tier in (LABEL, DOMAIN):
            for prefix in prefixes(path, path.count("/")):
                if route := unconditional.get((other, prefix)):
                    return route
    return None


def route_warnings(servers: Iterable[ServerConfig], tables: Tables, *, complete: bool) -> Iterator[Located]:
    """Warnings about routes that do not work as expected, or are not served at all.

    Unless `complete`, servers may be missing because of errors: routes with an unknown target are skipped.
    """
    index = ServerIndex(servers)
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        for server in index.by_name.values():
            label = next((name for name in server.labels if name.startswith(PREFIX)), None)
            if label is not None:
                message = "the label has no effect: the pool has no gateway"
                yield server, Finding(("labels", label), message, "add [gateway], or take the label out")
        return
    for finding in _shared_timeout_warnings(gateway.timeouts):
        yield None, finding._replace(path=("gateway", *finding.path))
    written = written_routes(index, tables)
    # The machines of [proxmox] bring routes of their own.
    needs_routes = complete and gateway.bind and "proxmox" not in tables.by_name()
    if index.by_name and not written and needs_routes:
        message = "the gateway has no route, so that every request gets 404"
        yield None, Finding(("gateway",), message, 'add a [[route]] with to = "NAME", or take [gateway] out')
    served = [(route, route.config) for route in written if route.config and not route.reason]
    if gateway.threads > 1 and any(_is_set(config.limit) for _, config in served):
        message = "with several threads the limits of requests are approximate"
        yield None, Finding(("gateway", "threads"), message, "write threads = 1 for exact ones")
    for route, config in served:
        targets, reasons = index.resolve(config.to)
        if not complete and any(index.match_target(target.to) == [] for target in config.to):
            continue
        leads = targets or config.register or config.redirect
        if not leads and (route.server is None or not route.server.disabled):
            message = f"the route {route.alias!r} is not served: {'; '.join(reasons)}"
            yield locate_finding(route, Finding(("to",), message, "enable a server, or name another target"))
        for finding in (*_no_effect_warnings(config, index, gateway), *_hidden_challenges(config, served)):
            yield locate_finding(route, finding)
        if config.path != "/" and not config.strip_path:
            for server in index.servers_of(config):
                if server.http.root_path == config.path and not server.command:
                    path = config.path
                    message = f"it is put before {path} of the route, so that the app gets {path}{path}/…"
                    fix = "take it out, and add strip_path = true to the route"
                    yield server, Finding(("http", "root_path"), message, fix)


def _hidden_challenges(
    route: RouteConfig, served: Sequence[tuple[WrittenRoute, RouteConfig]]
) -> Iterator[Finding]:
    """Warn if a route with a host takes ACME challenges away from this route for all hosts (RFC 8555 §8.3)."""
    if route.host or not route.path.startswith(_CHALLENGES):
        return
    answered = {other.host for _, other in served if other.path.startswith(_CHALLENGES)}
    hidden = [
        other.host for _, other in served if other.host not in answered and _CHALLENGES.startswith(other.path)
    ]
    if hidden:
        message = f"a route with a host comes first: challenges for {hidden[0]} go to its application"
        yield Finding(("path",), message, f'add host = "{hidden[0]}", with a route for each host', route.path)


def _shared_timeout_warnings(timeouts: RouteTimeouts) -> Iterator[Finding]:
    """Warn if `head` and `idle` differ: HAProxy has one limit for both, and the longer one applies."""
    head, idle = timeouts.head, timeouts.idle
    if head != idle:
        longer, shorter = ("head", "idle") if not head or (idle and head > idle) else ("idle", "head")
        limit = getattr(timeouts, longer)
        path = ("timeouts", longer if longer in timeouts.model_fields_set else shorter)
        message = f"HAProxy has one limit for head and idle, and {longer} is the longer one"
        yield Finding(path, message, f'write {shorter} = "{format_duration(limit)}" as well')


def _no_effect_warnings(
    route: RouteConfig, servers: ServerIndex, gateway: GatewayConfig
) -> Iterator[Finding]:
    """Report keys that do not have the expected effect."""
    if route.timeouts != gateway.timeouts:
        yield from _shared_timeout_warnings(route.timeouts)
    for index, target in enumerate(route.to):
        sni = target.sni or ""
        if is_outside(target.to) and (
            message := unverifiable_address(target.to, sni=sni, verify=target.verify)
        ):
            yield Finding(("to", index), message, 'write sni = "NAME", a name in the certificate')
    if "*" in route.path:
        plain = route.path.partition("*")[0].rstrip("/") or "/"
        message = f"* in {shortened_printable(route.path)} stands for itself: the path is a prefix"
        yield Finding(("path",), message, f'write "{shortened_printable(plain)}"', route.path)
    for index, path in enumerate(route.probe_responses):
        if not covers_path(route.path, path):
            prefix = shortened_printable(route.path)
            message = f"{shortened_printable(path)} is outside the route's path {prefix}"
            fix = f"write a path under {prefix}, or move it to the route that has it"
            yield Finding(("probe_responses", index), message, fix, path)
    if all(server.scale.min for server in servers.servers_of(route)):
        for key in ("waiting_page", "probe_responses"):
            if getattr(route, key):
                message = f"{key} has no effect: no server of the route may sleep"
                yield Finding((key,), message, "give a server scale = { min = 0, idle = … }, or take it out")


def check_program_and_certificates(
    servers: Iterable[ServerConfig], tables: Tables, env: Mapping[str, str], now: datetime
) -> Iterator[Finding]:
    """Findings about HAProxy, users and certificates, with full key paths. Blocks on files."""
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return
    names: dict[str, list[str]] = {}  # of the certificates of each listener
    servers = list(servers)
    yield from map(_as_warning, _wheel_warnings(gateway))
    if gateway.user:
        yield from check_user(("gateway", "user"), gateway.user)
    yield from map(_as_warning, _shared_user_warnings(gateway, servers))
    for index, listener in enumerate(gateway.bind):
        for number, tls in enumerate(_certificates(listener)):
            findings = check_certificates(tls, env, now)
            place = ("gateway", "bind", index, "tls", number)
            yield from (finding._replace(path=(*place, *finding.path[1:])) for finding in findings)
            if all(finding.is_warning for finding in findings):
                of_listener = names.setdefault(listener.bind, [])
                with contextlib.suppress(Problem):
                    of_listener += certificate_names(read_text(tls.cert))
    for route in tables.all(RouteConfig):
        for problem in _authority_problems(route):
            yield problem._replace(path=("route", route.index, *problem.path))
    for path, table in _listeners(gateway, tables.all(StreamConfig)):
        if table.owner:
            yield from check_socket_owner((*path, "owner"), table.owner)
    yield from map(_as_warning, _missing_certificate_warnings(tables, servers, names))


def _as_warning(finding: Finding) -> Finding:
    return finding._replace(is_warning=True)


def _shared_user_warnings(gateway: GatewayConfig, servers: Iterable[ServerConfig]) -> Iterator[Finding]:
    """Warn if HAProxy of a pool of root runs as root, or as the user of a server."""
    path, user = ("gateway", "user"), user_of_program(gateway.user)
    name = user.partition(":")[0]
    if name == "root":
        message = "HAProxy, which every client reaches, runs with the rights of root"
        yield Finding(path, message, "take it out, or name an ordinary user", user)
    if sharing := [
        server.name for server in servers if server.user and server.user.partition(":")[0] == name
    ]:
        message = f"HAProxy shares the user {name!r} with {', '.join(sharing)}: they are not isolated from each other"
        yield Finding(path, message, "name a user for HAProxy alone", name)


def startup_problems(servers: Iterable[ServerConfig], tables: Tables) -> Iterator[Located]:
    """Report HAProxy if it cannot run on this machine, and limits that it does not have."""
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return
    servers = list(servers)
    if problem := program_problem(program_path(gateway.program)):
        owner, path = _place_of_gateway(servers, gateway, tables)
        yield owner, Finding(path, *problem)
    for index, listener in enumerate(gateway.bind):
        for number, tls in enumerate(_certificates(listener)):
            if tls.password_env and shutil.which("openssl") is None:
                path = ("gateway", "bind", index, "tls", number, "password_env")
                message = "the program openssl, which decrypts the key for HAProxy, is not installed"
                fix = "apt install openssl, or store the key without a password, mode 0600"
                yield None, Finding(path, message, fix)
    message, fix = (
        "HAProxy has no limit for a whole request",
        "take it out: head and idle limit the time without data",
    )
    if gateway.timeouts.total:
        yield None, Finding(("gateway", "timeouts", "total"), message, fix)
    for written in written_routes(ServerIndex(servers), tables):
        if written.config and written.config.timeouts.total not in (0.0, gateway.timeouts.total):
            yield locate_finding(written, Finding(("timeouts", "total"), message, fix))


def _place_of_gateway(
    servers: Iterable[ServerConfig], gateway: GatewayConfig, tables: Tables
) -> tuple[ServerConfig | None, KeyPath]:
    """Where the gateway is written: [gateway], or the first table that needs it (a route, stream or proxied server)."""
    # A [gateway] that is made for streams or proxied servers alone has only the key `bind`, which is empty.
    is_written = gateway.model_fields_set and (gateway.bind or gateway.model_fields_set != {"bind"})
    if gateway.program:
        return None, ("gateway", "program")
    if not is_written:
        listed: list[RouteConfig | StreamConfig] = [*tables.all(RouteConfig), *tables.all(StreamConfig)]
        for table in listed:
            return None, (table.table_name, table.index)
        for server in servers:
            if server.is_proxied:
                return server, ("socket",)
    return None, ("gateway",)


def _wheel_warnings(gateway: GatewayConfig) -> Iterator[Finding]:
    """Warn if TLS is terminated by the wheel's executable."""
    if program_path(gateway.program) != program_of_wheel():
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


def _missing_certificate_warnings(
    tables: Tables, servers: list[ServerConfig], names: Mapping[str, list[str]]
) -> Iterator[Finding]:
    """Report hosts of routes for which a listener has no certificate.

    These are only warnings, because another listener may serve the host. `names` has the host names in the certificates
    of each listener.
    """
    if not names:
        return
    places = {table.label: ("route", table.index, "host") for table in tables.all(RouteConfig)}
    routes = [
        route
        for route in routes_of(servers, tables)
        if isinstance(route, Route) and host_pattern(route.host).tier in (EXACT, DOMAIN)
    ]
    for listener, covered_names in names.items():
        uncovered = [route for route in routes if not names_cover(covered_names, route.host)]
        if not uncovered:
            continue
        first, hosts = uncovered[0], list(dict.fromkeys(route.host for route in uncovered))
        more = ", …" if len(covered_names) > SHOWN_NAMES else ""
        shown = f"{', '.join(covered_names[:SHOWN_NAMES])}{more}"
        its_names = f"its names are {shown}" if covered_names else "it names no host"
        others = len(hosts) - SHOWN_NAMES
        more = f" and {others} more host{'s' * (others > 1)}" if others > 0 else ""
        message = f"{listener} has no certificate for {', '.join(hosts[:SHOWN_NAMES])}{more}: {its_names}"
        path = places[first.alias] if first.provider == FILE else ("gateway", "bind")
        yield Finding(path, message, "add one to the list of its tls", first.host)
