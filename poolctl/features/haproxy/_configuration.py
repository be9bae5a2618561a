"""Builds HAProxy's configuration from the supervisor's settings and routes, and commands to update a running HAProxy.

Routes are considered in the order of `routing.match`; the first route that matches a request serves it. Needs HAProxy
2.6.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlsplit

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.route_backends import READY as RANK_READY
from poolctl.features.gateway.process.backends.route_backends import SLEEPING as RANK_SLEEPING
from poolctl.features.gateway.process.backends.route_backends import sticky_value
from poolctl.features.gateway.process.settings import Endpoint, GatewaySettings, ListenerSettings, ServerFacts
from poolctl.json_form import Table
from poolctl.routing import match
from poolctl.routing.decision import EVERY
from poolctl.routing.route import HTTPS, IP_HASH, Route, StreamRoute, Timeouts, TrafficLimits, passable

from ._access_log import access_log_rules
from ._forwarding import forwarding_rules
from ._limits import UNAVAILABLE, body_rules, limit_rules, queue_rules, route_table
from ._listeners import HaproxyCertificate, HaproxyListener, misdirected_request_rules, proxy_protocol_rules
from ._sleeping import ASLEEP, PAGE, PAGE_FILE, SLEEPING, STARTS, WAKING, answers_for_sleeping, sleeping_rules
from ._syntax import duration, literal, longest_duration, network_groups, quoted, unique_name
from .engine import POLICIES

READY, DRAIN, MAINTENANCE = "ready", "drain", "maint"
# The address of a server whose address is not known: nothing listens there.
_NOWHERE = "ipv4@127.0.0.1:1"
# A name that cannot be resolved must not keep the others from being served.
_RESOLVED_AT_START = "init-addr last,libc,none"
# HAProxy closes the connections of idle clients at random moments of this time after SIGUSR1.
CLOSE_SPREAD_SECONDS = 1.0
# With one of these lines a backend gets no servers at run time: HAProxy knows neither their cookie nor their place.
_FIXED = ("    cookie ", "    balance first")


class HaproxyServer(NamedTuple):
    """A server of a backend: `key` is the key of its target, `address` and `options` are in HAProxy's syntax.

    A server's canary has the same key; `canary` is its own name.
    """

    name: str
    key: str
    address: str
    options: str
    weight: int
    cookie: str
    canary: str = ""

    def with_address(self, addresses: Mapping[str, str]) -> HaproxyServer:
        """A copy with the address of its host name, if it has one that HAProxy would resolve when it starts."""
        if not self.options.startswith(_RESOLVED_AT_START):
            return self
        name, _, port = self.address.rpartition(":")
        endpoint = Endpoint("tcp", addresses[name], int(port)) if name in addresses else None
        options = self.options.removeprefix(_RESOLVED_AT_START).lstrip()
        return self._replace(address=_address_of(endpoint), options=options)

    def line(self, *, disabled: bool) -> str:
        """The line of the server in its backend."""
        words = ["    server", self.name, self.address, self.arguments]
        words += [f"cookie {self.cookie}"] if self.cookie else []
        words += ["disabled"] if disabled else []
        return " ".join(filter(None, words))

    @property
    def arguments(self) -> str:
        """The options after the address in the `server` line."""
        return " ".join(filter(None, (self.options, f"weight {self.weight}" if self.weight != 1 else "")))


class HaproxyBackend(NamedTuple):
    """The `backend` section of an HTTP route or a TCP stream; `lines` has the section without its `server` lines.

    An HTTP route whose TLS is passed to its servers has a second section, with `passes_tls`.
    """

    name: str
    alias: str
    is_stream: bool
    lines: tuple[str, ...]
    servers: tuple[HaproxyServer, ...]
    passes_tls: bool = False


class HaproxyConfiguration(NamedTuple):
    """A configuration in its parts: `lines` come before the backends; `files` are crt-lists and maps by file name.

    `canary_shares` are the entries of the map CANARIES.
    """

    lines: tuple[str, ...]
    backends: tuple[HaproxyBackend, ...]
    files: Mapping[str, str]
    canary_shares: Mapping[str, str] = MappingProxyType({})

    def text(self, disabled: Iterable[tuple[str, str]] = ()) -> str:
        """The text of the main file.

        The servers in `disabled`, pairs of backend name and server name, get no traffic.
        """
        resting = frozenset(disabled)
        found = [*self.lines]
        for backend in self.backends:
            found += ["", *backend.lines]
            found += [
                server.line(disabled=(backend.name, server.name) in resting) for server in backend.servers
            ]
        return "\n".join([*found, ""])

    def servers_by_line_number(self) -> Iterator[tuple[int, RefusableServer]]:
        """Yield each server with the number of its line in `text`."""
        number = len(self.lines)
        for backend in self.backends:
            number += 1 + len(backend.lines)
            for server in backend.servers:
                number += 1
                yield number, (backend.name, server)

    def with_addresses(self, addresses: Mapping[str, str]) -> HaproxyConfiguration:
        """A copy in which servers have these addresses of their host names, or one at which nothing listens."""
        backends = (
            backend._replace(servers=tuple(each.with_address(addresses) for each in backend.servers))
            for backend in self.backends
        )
        return self._replace(backends=tuple(backends))

    def without(self, refused: Collection[RefusableServer]) -> HaproxyConfiguration:
        """A copy without these servers."""
        backends = (
            backend._replace(
                servers=tuple(each for each in backend.servers if (backend.name, each) not in refused)
            )
            for backend in self.backends
        )
        return self._replace(backends=tuple(backends))


# A backend's name and one of its servers.
RefusableServer = tuple[str, HaproxyServer]


_HEAVIEST = 256
CANARIES = "canaries.map"


class Canary(NamedTuple):
    """A server's canary: its name, where it listens, and the share of the server's requests that it gets."""

    name: str
    endpoint: Endpoint
    share: float


NO_CANARIES: Mapping[str, Canary] = MappingProxyType({})


def _route_backend(
    route: Route,
    names: set[str],
    endpoints: Mapping[str, Endpoint | None],
    applications: Collection[str],
    canaries: Mapping[str, Canary],
) -> HaproxyBackend:
    name = unique_name(f"route:{route.alias}", names)
    lines = [
        f"backend {name}",
        *_access_and_redirect_rules(route),
        *sleeping_rules(route, name),
        *body_rules(route.max_body_bytes),
        *queue_rules(route.backend_limit, len(route.to)),
        *limit_rules(route, name),
        *_balance(route),
        *_reuse(route, applications),
    ]
    if route.buffer_requests:
        # Without this, the time-out of the request's head would apply to the buffered part of its body, too.
        lines += [
            "    option http-buffer-request",
            f"    timeout http-request {duration(route.timeouts.idle)}",
        ]
    if route.sticky_cookie:
        secure = " secure" if route.sticky_secure else ""
        same_site = f"attr SameSite={route.sticky_same_site}"
        lines.append(f"    cookie {route.sticky_cookie} insert indirect nocache httponly{secure} {same_site}")
    times = route.timeouts
    lines += [
        f"    timeout connect {duration(times.connect)}",
        f"    timeout server {longest_duration((times.head, times.idle))}",
        f"    timeout tunnel {duration(times.idle)}",
    ]
    lines += [
        *_retries(route),
        *_http_rewrite_rules(route),
        *_canary_rules(route, name, canaries),
    ]
    servers = _servers(route, endpoints, route.backend_limit, applications, canaries)
    return HaproxyBackend(name, route.alias, False, tuple(lines), servers)


def _passing_backend(
    route: Route, names: set[str], endpoints: Mapping[str, Endpoint | None]
) -> HaproxyBackend | None:
    """The section that passes TLS to the route's servers; None if they have none, or a rule needs to see requests."""
    found = [endpoints.get(target.server) for target in route.to]
    if not passable(route, tls=True) or not all(each is not None and each.tls for each in found):
        return None
    name = unique_name(f"tls:{route.alias}", names)
    lines = [f"backend {name}", "    mode tcp", f"    balance {POLICIES[route.policy]}"]
    if route.allow and EVERY not in route.allow:
        lines += [f"    acl client_is_allowed src {networks}" for networks in network_groups(route.allow)]
        lines.append("    tcp-request content reject unless client_is_allowed")
    lines += [
        f"    timeout connect {duration(route.timeouts.connect)}",
        f"    timeout server {duration(route.timeouts.idle)}",
    ]
    plain = {key: each and each._replace(tls=False) for key, each in endpoints.items()}
    servers = _servers(
        replace(route, backend_limit=None), plain, None, [target.server for target in route.to]
    )
    return HaproxyBackend(name, route.alias, False, tuple(lines), servers, passes_tls=True)


def _passing_frontend(
    settings: GatewaySettings,
    listeners: Iterable[HaproxyListener],
    routes: Sequence[Route],
    sections: Mapping[str, HaproxyBackend],
) -> Iterator[str]:
    """The frontend that passes TLS by the server name in the ClientHello (SNI), and closes all other connections."""
    yield from ("", f"frontend {_PASSING}", "    mode tcp")
    yield from (line for each in listeners for line in each.bind_lines())
    yield f"    timeout client {longest_duration([each.timeouts.idle for each in routes] or [Timeouts().idle])}"
    yield f"    tcp-request inspect-delay {duration(settings.head_seconds)}"
    host = quoted(r"regsub(\.$,)")
    yield f"    tcp-request content set-var(sess.host) req.ssl_sni,lower,{host}"
    yield "    tcp-request content set-var(sess.name) var(sess.host)"
    yield "    tcp-request content set-var(sess.label) var(sess.host),field(1,.)"
    yield "    tcp-request content accept if { req.ssl_hello_type 1 }"
    yield "    tcp-request content reject"
    for route in routes:
        # A host of which another route takes a part is not passed.
        section = sections.get(route.alias)
        whole = replace(route, path="/", methods=(), headers=(), redirect=None)
        if not route.redirects_to_https:
            yield f"    use_backend {section.name if section else _NOT_PASSED}{_condition(whole, 'sess')}"
    yield f"    default_backend {_NOT_PASSED}"
    yield from ("", f"backend {_NOT_PASSED}", "    mode tcp")


def _stream_backend(
    route: StreamRoute,
    listener: HaproxyListener,
    names: set[str],
    endpoints: Mapping[str, Endpoint | None],
    trusted: Sequence[str] = (),
) -> HaproxyBackend:
    name = unique_name(f"stream:{route.alias}", names)
    lines = [
        f"listen {name}",
        "    mode tcp",
        *listener.bind_lines(),
        *proxy_protocol_rules([listener], trusted),
    ]
    lines += _balance(route)
    if route.max_connections:
        lines.append(f"    maxconn {route.max_connections}")
    lines += [
        f"    timeout connect {duration(route.timeouts.connect)}",
        f"    timeout client {duration(route.idle_seconds)}",
        f"    timeout server {duration(route.idle_seconds)}",
    ]
    return HaproxyBackend(name, route.alias, True, tuple(lines), _servers(route, endpoints, None))


def _canary_name(server: str) -> str:
    return unique_name(f"{server}:canary", set())


def _canary_rules(route: Route, section: str, canaries: Mapping[str, Canary]) -> Iterator[str]:
    """Lines that send a share of the requests to canaries: the map CANARIES has how many of a thousand.

    A client with a sticky cookie stays where it is. HAProxy skips the rule while the canary is in maintenance.
    """
    kept = f" !{{ req.cook({route.sticky_cookie}) -m found }}" if route.sticky_cookie else ""
    names = [_canary_name(target.server) for target in route.to if target.server in canaries]
    for number, name in enumerate(names):
        share = f"str({section}/{name}),map_str_int({CANARIES},0)"
        yield f"    http-request set-var(txn.share_{number}) {share}"
    for number, name in enumerate(names):
        yield f"    use-server {name} if {{ rand(1000),sub(txn.share_{number}) lt 0 }}{kept}"


def _canary_shares(route: Route, section: str, canaries: Mapping[str, Canary]) -> Iterator[tuple[str, str]]:
    """The entries of the map CANARIES for this route. A rule decides about what the rules before it have left."""
    total, left = sum(target.weight for target in route.to), 1.0
    for target in route.to:
        if (canary := canaries.get(target.server)) is not None:
            share = canary.share * target.weight / total
            yield f"{section}/{_canary_name(target.server)}", str(round(1000 * share / left))
            left -= share


def _balance(route: Route | StreamRoute) -> Iterator[str]:
    # A stream knows no client but its peer.
    by_client = "hash var(txn.client)" if isinstance(route, Route) and route.policy == IP_HASH else ""
    yield f"    balance {by_client or POLICIES[route.policy]}"
    if route.policy == IP_HASH:
        yield "    hash-type consistent"


def _reuse(route: Route, applications: Collection[str]) -> Iterator[str]:
    """The line that lets any request use an idle connection, if no target of the route closes idle ones by itself.

    Otherwise, as by default, the first request of a client's connection is sent on a new one: if it cannot be repeated,
    it must not meet a connection that the backend is closing.
    """
    if route.to and all(target.server in applications for target in route.to):
        yield "    http-reuse always"


def _access_and_redirect_rules(route: Route) -> Iterator[str]:
    """Rules that refuse clients outside `route.allow`, and that redirect requests if the route is a redirect."""
    if route.allow and EVERY not in route.allow:
        for networks in network_groups(route.allow):
            yield f"    acl client_is_allowed var(txn.client) -m ip {networks}"
        yield "    http-request deny deny_status 403 unless client_is_allowed"
    if route.redirect is not None:
        to, status = route.redirect.to, route.redirect.status
        where = literal(to)
        if route.redirects_to_https:
            yield "    http-request deny deny_status 400 unless { var(txn.host) -m found }"
            where = "https://%[var(txn.host)]%[pathq]"
        elif not (parts := urlsplit(to)).path and not parts.query:
            where += "%[pathq]"
        yield f"    http-request redirect location {quoted(where)} code {status}"


def _retries(route: Route) -> Iterator[str]:
    """Lines that retry a failed request on another server: always if it was not sent, otherwise only if idempotent.

    Even without retries in the route, an idempotent request is sent once more if the server closed the connection
    without a response: a stopping server closes idle connections, perhaps just when the request is sent.
    """
    failures = " junk-response response-timeout 502 503 504" if route.retries else ""
    yield f"    retries {route.retries or 1}"
    yield f"    retry-on conn-failure empty-response{failures}"
    yield "    http-request disable-l7-retry unless { method GET HEAD OPTIONS PUT DELETE TRACE }"


def _http_rewrite_rules(route: Route) -> Iterator[str]:
    if route.strip_path and route.path != "/":
        prefix = quoted(f"^{re.escape(route.path)}/?(.*)$")
        yield f"    http-request replace-path {prefix} '/\\1'"
        yield from _prefix_rules(route.path)
    if route.host_header:
        yield f"    http-request set-header Host {quoted(literal(route.host_header))}"
    for name in (*(header.name for header in route.set_headers), *route.remove_headers):
        alike = re.sub(r"[-_]", "[-_]", re.escape(name).replace(r"\-", "-"))
        yield f"    http-request del-header {quoted(f'^{alike}$')} -m reg"
    for header in (*route.set_headers, *route.add_headers):
        yield f"    http-request add-header {quoted(header.name)} {quoted(literal(header.value))}"
    for header in route.response_headers:
        yield f"    http-after-response set-header {quoted(header.name)} {quoted(literal(header.value))}"


def _prefix_rules(prefix: str) -> Iterator[str]:
    """Rules that tell the backend the prefix that it does not see, and give it back to the backend's Location.

    A Location with the prefix is from an application that knows it; one on another host is none of the route's.
    """
    told = quoted(f"%[req.fhdr(x-forwarded-prefix)]{literal(prefix)}")
    yield f"    http-request set-header X-Forwarded-Prefix {told}"
    yield "    http-request set-var(txn.authority) req.fhdr(host)"
    place = "res.fhdr(location)"
    path, host = _quoted_converter("^https?://[^/?#]*"), f"{_quoted_converter('^https?://')},field(1,/)"
    has_prefix = _test(f"{place},{path}", "reg", f"^{re.escape(prefix)}([/?#]|$)")
    same_host = f"{{ {place},{host},strcmp(txn.authority) eq 0 }}"
    added = literal(prefix)
    for pattern, value, condition in (
        ("^(/.*)$", rf"{added}\1", _test(place, "reg", "^/([^/]|$)")),
        ("^(https?://[^/?#]+)(.*)$", rf"\1{added}\2", same_host),
    ):
        change = f"replace-header Location {quoted(pattern)} {quoted(value)}"
        yield f"    http-response {change} if {condition} !{has_prefix}"


def _quoted_converter(pattern: str) -> str:
    """The converter that removes what matches."""
    return quoted(f'regsub("{pattern}",)')


def _servers(
    route: Route | StreamRoute,
    endpoints: Mapping[str, Endpoint | None],
    limit: TrafficLimits | None,
    applications: Collection[str] = (),
    canaries: Mapping[str, Canary] = NO_CANARIES,
) -> tuple[HaproxyServer, ...]:
    names, servers = set[str](), []
    heaviest = max((target.weight for target in route.to), default=1)
    # With fine weights, the server of a canary can leave the canary its share beside other servers.
    is_shared = len(route.to) > 1 and any(target.server in canaries for target in route.to)
    for target in route.to:
        fits = heaviest <= _HEAVIEST and not is_shared
        scaled = target.weight if fits else max(1, target.weight * _HEAVIEST // heaviest)
        canary = canaries.get(target.server)
        if canary is not None and is_shared:
            scaled = round(scaled * (1 - canary.share))
        endpoint = endpoints.get(target.server) if target.server else Endpoint.of_url(target.url)
        options = [*_options(endpoint)]
        if limit is not None and limit.concurrency:
            options += [f"maxconn {limit.concurrency}", f"maxqueue {limit.queue or 1}"]
        if target.url and route.breaker.failures:
            # Only connections are observed: answers could take out the last server, since HAProxy does not limit the
            # share of servers that are taken out.
            options.append(
                f"check inter {duration(route.breaker.open_seconds)} fall 2 rise 1 observe layer4 "
                f"error-limit {route.breaker.failures} on-error mark-down"
            )
        if isinstance(route, Route) and target.server not in applications:
            options.append(_idle_connections(route.timeouts))
        name = unique_name(target.key.partition("://")[2] or target.key, names)
        sticky = sticky_value(target.key) if isinstance(route, Route) and route.sticky_cookie else ""
        servers.append(
            HaproxyServer(name, target.key, _address_of(endpoint), " ".join(options), scaled, sticky)
        )
        if canary is not None:
            options = [*_options(canary.endpoint), *options[len([*_options(endpoint)]) :]]
            cookie = sticky_value(canary.name) if sticky else ""
            address, words = _address_of(canary.endpoint), " ".join(options)
            # Without weight it gets only the requests that its rule sends to it.
            servers.append(
                HaproxyServer(_canary_name(target.server), target.key, address, words, 0, cookie, canary.name)
            )
    return tuple(servers)


def _address_of(endpoint: Endpoint | None) -> str:
    """The address of a server in HAProxy's syntax; if it is not known yet, one at which nothing listens."""
    if endpoint is not None and endpoint.kind == "unix":
        return quoted(f"unix@{endpoint.path}")
    if endpoint is None or not endpoint.port:
        return _NOWHERE
    family = "ipv6@" if ":" in endpoint.host else ""
    return f"{family}{endpoint.host.strip('[]')}:{endpoint.port}"


def _options(endpoint: Endpoint | None) -> Iterator[str]:
    if endpoint is None:
        return
    if _has_host_name(endpoint):
        yield _RESOLVED_AT_START
    if endpoint.tls and endpoint.server_name:
        name = endpoint.server_name
        sni = "" if match.is_ip_address(name) or ":" in name else f" sni str({name}) check-sni {name}"
        yield f"ssl verify required ca-file {quoted(_authorities_file())}{sni} verifyhost {name}"
    elif endpoint.tls:
        yield "ssl verify none"


def _idle_connections(times: Timeouts) -> str:
    # HAProxy closes half of the idle connections in each interval, from the third one on.
    return f"pool-purge-delay {round(times.keep_alive * 1000 / 8)}ms"


def _has_host_name(endpoint: Endpoint) -> bool:
    return bool(re.search(r"[A-Za-z]", endpoint.host)) and ":" not in endpoint.host


def _authorities_file() -> str:
    """The file or directory of the system's CA certificates: not every HAProxy finds them by itself (@system-ca)."""
    known = ssl.get_default_verify_paths()
    return known.cafile or known.capath or known.openssl_cafile


# Paths that backends read in two ways, and characters that no path may contain.
_AMBIGUOUS = r"//|;|%2f|%5c"
_FORBIDDEN = r"%0[0-9a-f]|%1[0-9a-f]|%7f|[\\]"
_NORMALIZATIONS = (
    "percent-to-uppercase strict", "percent-decode-unreserved strict", "path-strip-dot", "path-strip-dotdot full",
)  # fmt: skip
_IP_ADDRESS = r"(^\[|(^|\.)[0-9]+$)"
_FRONTEND, NO_ROUTE = "gateway", "no-route"
_PASSING, _NOT_PASSED = "passing", "not-passed"
# Up to this number it is as fast to try one route after the other, and the configuration is one file.
_FEW_ROUTES = 16
_MAP = "routes.map"
_LOOK_UP = (
    "    http-request set-var(txn.place) var(txn.host),concat(,txn.path)",
    f"    use_backend %[var(txn.place),map_beg({_MAP})] if {{ var(txn.place),map_beg({_MAP}) -m found }}",
)


def configuration_of(
    settings: GatewaySettings,
    listeners: Sequence[HaproxyListener],
    routes: Iterable[Route],
    streams: Iterable[StreamRoute],
    endpoints: Mapping[str, Endpoint | None],
    applications: Collection[str] = (),
    canaries: Mapping[str, Canary] = NO_CANARIES,
    log_target: str = "stdout",
) -> HaproxyConfiguration:
    """The configuration for these routes.

    `endpoints` are the endpoints of the pool's servers, by name. `applications` are those whose workers end no idle
    connection. `canaries` are by server. The access log, if there is one, is written to `log_target`.
    """
    ordered, names = match.in_order(routes), set[str]()
    backends = [(route, _route_backend(route, names, endpoints, applications, canaries)) for route in ordered]
    fronts = [each for each in listeners if not (each.alias or each.passes_tls)]
    passing = [each for each in listeners if each.passes_tls]
    passed = [_passing_backend(route, names, endpoints) for route in ordered] if passing else []
    resumes = not any(each.asks_for_certificate for each in listeners)
    lines = [*_global(settings, resumes=resumes), *_defaults(settings, ordered)]
    mapped = _mapped_aliases(ordered) if fronts else frozenset[str]()
    if fronts:
        lines += ["", f"frontend {_FRONTEND}"]
        lines += [line for each in fronts for line in each.bind_lines(http2=settings.http2)]
        lines += proxy_protocol_rules(fronts, settings.trusted_proxies)
        if settings.access_log:
            lines += access_log_rules(log_target, as_json=settings.access_log_as_json)
        # After SIGUSR1, as if the process that runs HAProxy is killed, a client may send its next request: it is
        # answered, and then the connection closed. `close-spread-time` alone leaves that to chance. A WebSocket stays.
        lines += [
            "    option idle-close-on-response",
            "    http-after-response set-header Connection close if { stopping } !{ status 101 }",
            *_request_rules_before_routing(settings, fronts, ordered),
        ]
        if mapped:
            lines += _LOOK_UP
        lines += [
            f"    use_backend {section.name}{_condition(route)}"
            for route, section in backends
            if route.alias not in mapped
        ]
        lines += [
            f"    default_backend {NO_ROUTE}",
            "",
            f"backend {NO_ROUTE}",
            "    http-request return status 404 content-type text/plain string 'Not Found'",
        ]
    if passing:
        by_alias = {each.alias: each for each in passed if each is not None}
        lines += _passing_frontend(settings, passing, ordered, by_alias)
    for route, section in backends:
        if table := [*route_table(route, section.name)]:
            lines += ["", *table]
    sections = [section for _, section in backends] + [each for each in passed if each is not None]
    binds = {each.alias: each for each in listeners if each.alias}
    sections += [
        _stream_backend(stream, binds[stream.alias], names, endpoints, settings.trusted_proxies)
        for stream in streams
        if stream.alias in binds
    ]
    files = {name: text for each in listeners for name, text in each.files.items()}
    if mapped:
        files[_MAP] = "".join(
            f"{_map_key(route)} {section.name}\n" for route, section in backends if route.alias in mapped
        )
    if any(map(answers_for_sleeping, ordered)):
        files[SLEEPING] = ""
    if any(route.waiting_page for route in ordered):
        files |= {WAKING: "", PAGE_FILE: PAGE}
    shares = dict(
        pair for route, section in backends for pair in _canary_shares(route, section.name, canaries)
    )
    if shares:
        files[CANARIES] = ""
    return HaproxyConfiguration(tuple(lines), tuple(sections), files, shares)


def _mapped_aliases(routes: Sequence[Route]) -> frozenset[str]:
    """The aliases of the routes that HAProxy looks up in a map file; empty if too few routes are suitable.

    A route is suitable if its host has no wildcard, and no route of the host has a condition other than the path.
    """
    exact = [each for each in routes if match.host_pattern(each.host).tier == match.EXACT]
    conditioned = {
        match.normal_host(each.host)
        for each in exact
        if each.methods or each.headers or each.redirects_to_https
    }
    found = [each.alias for each in exact if match.normal_host(each.host) not in conditioned]
    return frozenset(found if len(found) > _FEW_ROUTES else ())


def _map_key(route: Route) -> str:
    """Return the key of the route in HAProxy's map file, a prefix of requests: host and path, ending in a slash."""
    prefix = match.normal_prefix(route.path)
    return f"{match.normal_host(route.host)}{prefix if prefix == '/' else f'{prefix}/'}"


def _global(settings: GatewaySettings, *, resumes: bool) -> Iterator[str]:
    yield "global"
    yield "    # normalize-uri is experimental in all versions so far."
    yield "    expose-experimental-directives"
    yield "    default-path config"
    yield f"    nbthread {settings.threads}"
    # HAProxy allocates memory for each descriptor that it may open, and some systems do not limit their number.
    yield "    fd-hard-limit 500000"
    yield "    no strict-limits"
    if settings.max_connections:
        yield f"    maxconn {settings.max_connections}"
    yield f"    close-spread-time {duration(CLOSE_SPREAD_SECONDS)}"
    yield "    ssl-default-bind-options ssl-min-ver TLSv1.2"
    if not resumes:
        yield "    tune.ssl.cachesize 0"  # sessions of listeners without tickets
    # The space that HAProxy reserves for its additions counts, too.
    yield f"    tune.bufsize {max(16_384, settings.max_head_bytes) + 1024}"
    yield "    tune.maxrewrite 1024"


def _defaults(settings: GatewaySettings, routes: Sequence[Route]) -> Iterator[str]:
    yield from ("", "defaults", "    mode http", "    option redispatch 1", "    retries 3")
    yield "    option abortonclose"  # as our own engine gives up the request of a client that has left
    yield f"    timeout http-request {duration(settings.head_seconds)}"
    if settings.keep_alive_seconds:
        yield f"    timeout http-keep-alive {duration(settings.keep_alive_seconds)}"
    else:
        yield "    option httpclose"
    yield f"    timeout client {longest_duration([each.timeouts.idle for each in routes] or [Timeouts().idle])}"
    yield f"    timeout connect {duration(Timeouts().connect)}"
    yield f"    timeout server {duration(Timeouts().idle)}"
    yield f"    http-error {UNAVAILABLE} hdr retry-after 5"


def _request_rules_before_routing(
    settings: GatewaySettings, fronts: Sequence[HaproxyListener], routes: Sequence[Route]
) -> Iterator[str]:
    """Rules that refuse invalid requests and set the variables for routing: host, the host's first label, and path."""
    yield f"    http-request deny deny_status 400 if {{ path -m reg -i {quoted(_FORBIDDEN)} }}"
    for step in _NORMALIZATIONS:
        yield f"    http-request normalize-uri {step}"
    if any(each.path != "/" for each in routes):
        yield f"    http-request deny deny_status 404 if {{ path -m reg -i {quoted(_AMBIGUOUS)} }}"
    field = settings.header_for_host.lower()
    no_dot = quoted(r"regsub(\.$,)")
    yield f"    http-request set-var(txn.host) req.fhdr({field}),host_only,lower,{no_dot}"
    yield from misdirected_request_rules(fronts)
    yield f"    http-request set-var(txn.name) var(txn.host) unless {{ var(txn.host) -m reg {quoted(_IP_ADDRESS)} }}"
    yield "    http-request set-var(txn.label) var(txn.name),field(1,.)"
    yield "    http-request set-var(txn.path) path,concat(/)"
    needs_client = bool(settings.access_log) or any(
        each.allow or each.client_limit or each.policy == IP_HASH for each in routes
    )
    yield from forwarding_rules(settings.trusted_proxies, needs_client=needs_client)


def _condition(route: Route, scope: str = "txn") -> str:
    """Return the condition " if …" that a request must meet to take the route, or "" if every request may take it."""
    tests = []
    pattern = match.host_pattern(route.host)
    if pattern.tier == match.EXACT:
        tests.append(_test(f"var({scope}.host)", "str", pattern.text))
    elif pattern.tier == match.LABEL:
        tests.append(_test(f"var({scope}.label)", "str", pattern.text))
    elif pattern.tier == match.DOMAIN:
        tests += [
            _test(f"var({scope}.name)", "end", f".{pattern.text}"),
            "!" + _test(f"var({scope}.name)", "beg", "."),
        ]
    elif pattern.tier != match.DEFAULT:
        expression = ".+".join(map(re.escape, pattern.text.split("*")))
        tests.append(_test(f"var({scope}.host)", "reg", f"^{expression}$"))
    if (prefix := match.normal_prefix(route.path)) != "/":
        tests.append(_test("var(txn.path)", "beg", f"{prefix}/"))
    if route.redirects_to_https:
        tests.append("!" + _test("req.hdr(x-forwarded-proto,1)", "str -i", HTTPS))
    if route.methods:
        tests.append(_test("method", "str", *route.methods))
    for header in route.headers:
        fetch = f"req.fhdr({header.name})"
        tests.append(_test(fetch, "str", header.value) if header.value else f"{{ {fetch} -m found }}")
    return " if " + " ".join(tests) if tests else ""


def _test(fetch: str, method: str, *values: str) -> str:
    return f"{{ {fetch} -m {method} -- {' '.join(map(quoted, values))} }}"


class HaproxySetup(NamedTuple):
    """A configuration with the states of its servers, the contents of its files, and its sockets.

    `states` are by backend and server name. `bundles` (certificates with keys) and `authorities` (CA certificates) are
    by file name. `descriptors` are the sockets in the `bind` lines as pairs of descriptor number and inode, because a
    number may be reused for another socket. `maps` are the entries of the maps that change at run time, by file name.
    """

    configuration: HaproxyConfiguration
    states: Mapping[tuple[str, str], str]
    bundles: Mapping[str, bytes]
    authorities: Mapping[str, bytes]
    descriptors: tuple[tuple[int, int], ...]
    maps: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    @property
    def shows_waiting_page(self) -> bool:
        """Whether requests for the waiting page may have to wake a server."""
        return WAKING in self.configuration.files and ASLEEP in self.maps.get(SLEEPING, {}).values()

    @property
    def files(self) -> dict[str, bytes]:
        """The contents of all files but the main one, by file name."""
        entries = {
            name: "".join(f"{key} {value}\n" for key, value in found.items())
            for name, found in self.maps.items()
        }
        texts = {**self.configuration.files, **entries}
        encoded = {name: text.encode(errors="surrogateescape") for name, text in texts.items()}
        return {**encoded, **self.bundles, **self.authorities}

    @property
    def text(self) -> str:
        """The main configuration file, in which servers that are not ready get no traffic."""
        return self.configuration.text(place for place, state in self.states.items() if state != READY)

    def without(self, refused: Collection[RefusableServer]) -> HaproxySetup:
        """A copy without these servers."""
        if not refused:
            return self
        places = {(backend, server.name) for backend, server in refused}
        states = {place: state for place, state in self.states.items() if place not in places}
        return self._replace(configuration=self.configuration.without(refused), states=states)

    @property
    def frontends(self) -> list[str]:
        """The names of the sections that accept connections."""
        streams = [each.name for each in self.configuration.backends if each.is_stream]
        known = [name for name in (_FRONTEND, _PASSING) if f"frontend {name}" in self.configuration.lines]
        return [*known, *streams]

    @property
    def used_targets(self) -> frozenset[str]:
        """The keys of the targets that get requests, and the names of canaries that do."""
        return frozenset(
            server.canary or server.key
            for backend in self.configuration.backends
            for server in backend.servers
            if self.states[backend.name, server.name] != MAINTENANCE
        )

    @property
    def descriptor_numbers(self) -> list[int]:
        """The numbers of the descriptors in the `bind` lines."""
        return [number for number, _ in self.descriptors]

    def drain_commands(self) -> list[str]:
        """Return the runtime commands that set servers to draining, which the configuration file cannot express."""
        return [_state_command(place, state) for place, state in self.states.items() if state == DRAIN]


class HeldListener(NamedTuple):
    """A listener with its sockets; `route` is None unless it is the listener of a stream."""

    settings: ListenerSettings
    route: StreamRoute | None
    sockets: list[socket.socket]


class CertificateContents(NamedTuple):
    """A certificate as the supervisor read it: the contents of the certificate, key and optional CA files."""

    tls: Table
    contents: list[bytes]


def setup_of(
    settings: GatewaySettings,
    held: Sequence[HeldListener],
    certificates: Mapping[tuple[str, tuple[str, ...]], CertificateContents],
    routes: Sequence[Route],
    servers: Mapping[str, ServerFacts],
    backends: Backends,
    addresses: Mapping[str, str],
    log_descriptor: int | None = None,
) -> HaproxySetup:
    """Build the setup by which HAProxy serves these listeners and routes.

    The keys of `certificates` are a listener's address and the certificate's host names. `addresses` are those of the
    `host_names`, as far as they are known; HAProxy itself would resolve a name when it starts, and wait for the answer.
    `log_descriptor` is where it writes the access log.
    """
    bundles: dict[str, bytes] = {}
    authorities: dict[str, bytes] = {}
    listeners = []
    for each in held:
        of_listener = [
            (names, kept) for (bind, names), kept in certificates.items() if bind == each.settings.bind
        ]
        listeners.append(_listener(each, of_listener, bundles, authorities))
    streams = [each.route for each in held if each.route is not None]
    endpoints = {name: _endpoint(facts) for name, facts in servers.items()}
    applications = [name for name, facts in servers.items() if facts.is_app]
    canaries = {
        name: Canary(facts.canary, Endpoint.of_server(facts.canary_bind, facts.tls), facts.canary_share)
        for name, facts in servers.items()
        if facts.canary
    }
    log_target = f"fd@{log_descriptor}"
    made = configuration_of(
        settings, listeners, routes, streams, endpoints, applications, canaries, log_target
    )
    made = made.with_addresses(addresses)
    states = _states(made, routes, streams, backends)
    maps = {SLEEPING: _sleeping_sections(made, routes, backends), CANARIES: made.canary_shares}
    maps = {name: entries for name, entries in maps.items() if name in made.files}
    numbers = [sock.fileno() for each in held for sock in each.sockets]
    numbers += [] if log_descriptor is None else [log_descriptor]
    descriptors = tuple((number, os.fstat(number).st_ino) for number in numbers)
    return HaproxySetup(made, states, bundles, authorities, descriptors, maps)


def host_names(routes: Iterable[Route | StreamRoute], servers: Mapping[str, ServerFacts]) -> frozenset[str]:
    """The host names in the addresses of these servers, and of the routes' targets outside the pool."""
    endpoints = [_endpoint(facts) for facts in servers.values()]
    endpoints += [Endpoint.of_url(target.url) for route in routes for target in route.to if target.url]
    return frozenset(each.host for each in endpoints if each is not None and _has_host_name(each))


def _listener(
    held: HeldListener,
    certificates: Sequence[tuple[tuple[str, ...], CertificateContents]],
    bundles: dict[str, bytes],
    authorities: dict[str, bytes],
) -> HaproxyListener:
    """Return the listener in HAProxy's syntax; adds the contents of its files to `bundles` and `authorities`."""
    found = []
    for names, (tls, (cert, key, *rest)) in certificates:
        name = f"certificate-{len(bundles) + 1}.pem"
        bundles[name] = cert if key == cert else cert.rstrip(b"\n") + b"\n" + key
        ca = f"{name}.ca" if rest else ""
        authorities.update({ca: rest[0]} if rest else {})
        found.append(
            HaproxyCertificate(name, ca, tls["client_auth"], tls["min_version"], tls["ciphers"] or "", names)
        )
    numbers = [sock.fileno() for sock in held.sockets]
    binds = tuple(f"fd@{number}" for number in numbers)
    crt_list = f"listener-{numbers[0]}.crt-list"
    passes_tls = held.settings.tls and not found
    return HaproxyListener(
        binds, held.settings.alias, crt_list, tuple(found), held.settings.accept_proxy, passes_tls
    )


def _states(
    configuration: HaproxyConfiguration,
    routes: Sequence[Route],
    streams: Sequence[StreamRoute],
    backends: Backends,
) -> Mapping[tuple[str, str], str]:
    """HAProxy states by (backend, server). A backend uses its ready servers, else starting ones, else sleeping ones."""
    known: dict[tuple[bool, str], Route | StreamRoute] = {(False, each.alias): each for each in routes}
    known |= {(True, each.alias): each for each in streams}
    states = {}
    for section in configuration.backends:
        members = backends.of(known[section.is_stream, section.alias]).members
        usable = {each.key: each.backend for each in members if each.backend.blocked is None}
        best = min((backend.rank for backend in usable.values()), default=0)
        draining = {each.key for each in members if each.backend.draining}
        for server in section.servers:
            backend = usable.get(server.key)
            usable_now = backend is not None and backend.rank == best and server.address != _NOWHERE
            state = READY if usable_now else MAINTENANCE
            # A rule sends requests to a draining canary, too.
            drained = MAINTENANCE if server.canary else DRAIN
            states[section.name, server.name] = drained if server.key in draining else state
    return states


def _sleeping_sections(
    configuration: HaproxyConfiguration, routes: Sequence[Route], backends: Backends
) -> Mapping[str, str]:
    """The entries of the map SLEEPING: the sections whose best servers sleep or start."""
    known = {each.alias: each for each in routes}
    found = {}
    for section in configuration.backends:
        if section.is_stream or not answers_for_sleeping(known[section.alias]):
            continue
        members = backends.of(known[section.alias]).members
        best = min(
            (each.backend.rank for each in members if each.backend.blocked is None), default=RANK_READY
        )
        if best != RANK_READY:
            found[section.name] = ASLEEP if best == RANK_SLEEPING else STARTS
    return found


def _endpoint(facts: ServerFacts) -> Endpoint | None:
    with contextlib.suppress(ValueError):
        return Endpoint.of_server(facts.bind, facts.tls)
    return None


def runtime_commands(before: HaproxySetup, after: HaproxySetup) -> list[str] | None:
    """The runtime commands that change one setup into the other; None if HAProxy has to be restarted."""
    old, new = before.configuration, after.configuration
    if (old.lines, old.files, before.descriptors, before.authorities, before.bundles.keys()) != (
        new.lines, new.files, after.descriptors, after.authorities, after.bundles.keys()
    ):  # fmt: skip
        return None
    if [each._replace(servers=()) for each in old.backends] != [
        each._replace(servers=()) for each in new.backends
    ]:
        return None
    commands: list[str] = []
    for name, content in after.bundles.items():
        if before.bundles[name] != content:
            commands += _certificate_commands(name, content)
    for name, entries in after.maps.items():
        commands += _map_commands(name, before.maps.get(name, {}), entries)
    added: set[tuple[str, str]] = set()
    for previous, backend in zip(old.backends, new.backends, strict=True):
        found = _backend_update_commands(previous, backend)
        if found is None:
            return None
        commands += found
        names = {each.name for each in previous.servers}
        added |= {(backend.name, each.name) for each in backend.servers if each.name not in names}
    for place, state in after.states.items():
        known = MAINTENANCE if place in added else before.states.get(place)
        if known != state:
            commands.append(_state_command(place, state))
    # A server gets traffic before another loses it: a request between two commands needs one that can serve.
    return sorted(commands, key=_takes_traffic_away)


def _map_commands(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for key, value in after.items():
        if before.get(key) != value:
            yield f"{'set' if key in before else 'add'} map {name} {key} {value}"
    for key in before.keys() - after.keys():
        yield f"del map {name} {key}"


def _takes_traffic_away(command: str) -> bool:
    return command.startswith("del server ") or command.endswith((f" state {MAINTENANCE}", f" state {DRAIN}"))


def _backend_update_commands(before: HaproxyBackend, after: HaproxyBackend) -> list[str] | None:
    old, new = ({each.name: each for each in backend.servers} for backend in (before, after))
    if old.keys() != new.keys() and any(line.startswith(_FIXED) for line in after.lines):
        return None
    commands: list[str] = []
    for name, server in old.items():
        place = f"{after.name}/{name}"
        if name not in new:
            commands += [f"set server {place} state {MAINTENANCE}", f"del server {place}"]
            continue
        found = [*_server_update_commands(place, server, new[name])]
        if None in found:
            return None
        commands += filter(None, found)
    for name, server in new.items():
        if name not in old:
            place = f"{after.name}/{name}"
            commands.append(f"add server {place} {server.address} {server.arguments}".rstrip())
            commands += [f"enable health {place}"] if "check " in server.options else []
    return commands


def _server_update_commands(place: str, before: HaproxyServer, after: HaproxyServer) -> Iterator[str | None]:
    if (before.key, before.options, before.cookie) != (after.key, after.options, after.cookie):
        yield None
    if before.weight != after.weight:
        yield f"set server {place} weight {after.weight}"
    if before.address != after.address:
        host, _, port = after.address.rpartition(":")
        host = host.rpartition("@")[2]
        # A path of a socket, or a name to be resolved, cannot be set at run time.
        if "unix@" in before.address + after.address or host.strip("0123456789abcdef.:"):
            yield None
        yield f"set server {place} addr {host} port {port}"


def _state_command(place: tuple[str, str], state: str) -> str:
    return f"set server {'/'.join(place)} state {state}"


def _certificate_commands(name: str, content: bytes) -> list[str]:
    # An empty line ends the payload of a command.
    lines = "\n".join(line for line in content.decode("ascii", "replace").splitlines() if line.strip())
    return [f"set ssl cert {name} <<\n{lines}\n", f"commit ssl cert {name}"]
