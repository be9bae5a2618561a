"""Builds HAProxy's configuration from the settings and routes of the gateway.

Routes are considered in the order of `routing.match`; the first route that matches a request serves it. Needs HAProxy
2.8.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlsplit

from poolctl.routing import match
from poolctl.routing.context import CONTEXT_FIELD, context_value
from poolctl.routing.networks import EVERY
from poolctl.routing.route import IP_HASH, Route, StreamRoute, Target, Timeouts

from ..program import user_and_group
from ..settings import HTTP, Endpoint, GatewaySettings
from .access_log import access_log_rules
from .choice import ROUTES, choice_rules, reading_rules, route_entries, use_backend_rules
from .forwarding import forwarding_rules
from .limits import (
    REFUSE_FILE,
    REFUSE_UPLOADS,
    UNAVAILABLE,
    body_rules,
    head_rules,
    limit_rules,
    loads_refusal,
    queue_rules,
    route_table,
)
from .listeners import HaproxyListener, misdirected_request_rules, proxy_protocol_rules
from .sleeping import PAGE, PAGE_FILE, SLEEPING, WAKING, answers_for_sleeping, sleeping_rules
from .syntax import (
    argument,
    comment,
    duration,
    line_groups,
    literal,
    longest_duration,
    matches,
    network_groups,
    quoted,
    unique_name,
)

# Stands for an unknown address: nothing listens there.
PLACEHOLDER_ADDRESS = "ipv4@127.0.0.1:1"
# HAProxy must start even if a name cannot be resolved.
_RESOLVED_AT_START = "init-addr last,libc,none"
# HAProxy's name of each policy. "sticky" without a cookie is round-robin; with one the cookie chooses.
_HAPROXY_POLICIES = {
    "round-robin": "roundrobin",
    "weighted": "roundrobin",
    "sticky": "roundrobin",
    "least-connections": "leastconn",
    "ip-hash": "source",
    "random-two": "random(2)",
    "first": "first",
}
# The stick table that counts failures by "BACKEND/SERVER": responses with the statuses below or those of the breaker.
FAILURES = "failures"
_FAILURES_SIZE, FAILURES_KEY_BYTES = "100k", 256  # longer keys are truncated
_ALWAYS_FAILURES = (502, 503, 504)
# The map that counts HAProxy's own responses 502 by "BACKEND/SERVER".
UNANSWERED = "unanswered.map"
# Take a server out of rotation when it refuses a connection, until a probe succeeds: the supervisor notices the exit of
# its process a little later.
PASSIVE_CHECK = "check observe layer4 error-limit 1 on-error mark-down rise 1 inter 1d downinter 100ms"
WAIT = ":wait"  # ends the name of the server at which connections wait for another server
# Effectively unlimited, so that only the program's own limits apply.
_OWN_LIMITS = "24d"
_ONCE_REPLACED = (
    "    option idle-close-on-response",
    "    http-after-response set-header Connection close if { stopping } !{ status 101 }",
)
# Requests that may be executed twice (RFC 9110 §9.2.2).
_IDEMPOTENT = "{ method GET HEAD OPTIONS PUT DELETE TRACE }"


# A replaced process forwards further requests of its clients to the next process, which has the new rules and
# addresses. NEXT is the name of the backend section, of its server, and of the listener there. The headers authenticate
# the forwarding process, and tell whether the client uses TLS.
NEXT = "next"
_NEXT_KEY, _NEXT_TLS = "X-Poolctl-Next", "X-Poolctl-TLS"


class ProcessPlaces(NamedTuple):
    """The runtime socket and the logs of a process, in HAProxy's syntax.

    At `next_bind`, which is the address `next`, it accepts requests that the process before it passes on with `key`; ""
    if requests are not passed on.
    """

    runtime: str = ""
    log: str = "stderr"
    access_log: str = "stdout"
    next_bind: str = ""
    next: str = ""
    key: str = ""


class HaproxyServer(NamedTuple):
    """A server of a backend. `key` is that of its target, `address` and `options` are in HAProxy's syntax."""

    name: str
    key: str
    address: str
    options: str
    weight: int
    cookie: str

    def with_address(self, addresses: Mapping[str, str]) -> HaproxyServer:
        """A copy with the address of its host name, if HAProxy would resolve that at its start."""
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
    """The `backend` section of an HTTP route or a TCP stream; `lines` excludes the `server` lines.

    A route with TLS passthrough has a second section, with `passes_tls`.
    """

    name: str
    alias: str
    is_stream: bool
    lines: tuple[str, ...]
    servers: tuple[HaproxyServer, ...]
    passes_tls: bool = False


class HaproxyConfiguration(NamedTuple):
    """A configuration: `lines` come before the backends; `files` are crt-lists and other files, by name.

    `maps` are the entries of the maps that change at run time, by file name.
    """

    lines: tuple[str, ...]
    backends: tuple[HaproxyBackend, ...]
    files: Mapping[str, str]
    maps: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    def text(self, disabled: Iterable[tuple[str, str]] = ()) -> str:
        """The text of the main file. The servers in `disabled`, by backend and server name, get no traffic."""
        places = frozenset(disabled)
        lines = [*self.lines]
        for backend in self.backends:
            lines += ["", *backend.lines]
            lines += [
                server.line(disabled=(backend.name, server.name) in places) for server in backend.servers
            ]
        return "\n".join([*lines, ""])

    @property
    def sections(self) -> dict[str, HaproxyBackend]:
        """The backends by name."""
        return {backend.name: backend for backend in self.backends}

    @property
    def all_files(self) -> dict[str, str]:
        """The texts of all files besides the main one, by file name."""
        texts = {
            name: "".join(f"{key} {value}\n" for key, value in entries.items())
            for name, entries in self.maps.items()
        }
        return {**self.files, **texts}

    def servers_by_line_number(self) -> Iterator[tuple[int, RefusableServer]]:
        """Yield each server with the number of its line in `text`."""
        number = len(self.lines)
        for backend in self.backends:
            number += 1 + len(backend.lines)
            for server in backend.servers:
                number += 1
                yield number, (backend.name, server)

    def with_addresses(self, addresses: Mapping[str, str]) -> HaproxyConfiguration:
        """A copy in which host names are replaced by these addresses, or by one where nothing listens."""
        return self._with_servers(
            (server.with_address(addresses) for server in backend.servers) for backend in self.backends
        )

    def without(self, refused: Collection[RefusableServer]) -> HaproxyConfiguration:
        """A copy without these servers."""
        return self._with_servers(
            (server for server in backend.servers if (backend.name, server) not in refused)
            for backend in self.backends
        )

    def _with_servers(self, servers: Iterable[Iterable[HaproxyServer]]) -> HaproxyConfiguration:
        pairs = zip(self.backends, servers, strict=True)
        return self._replace(backends=tuple(backend._replace(servers=(*new,)) for backend, new in pairs))


# A backend's name and one of its servers.
RefusableServer = tuple[str, HaproxyServer]


_MAX_WEIGHT = 256


def sticky_value(key: str, number: int = 0) -> str:
    """The value of sticky cookies for a target, which does not reveal its key.

    `number` is that of a process of a proxied server.
    """
    text = f"{key} {number}" if number else key
    return blake2b(text.encode(), digest_size=8).hexdigest()


class ServerAddresses(NamedTuple):
    """The addresses of targets. `endpoints` are those of the pool's servers, by name.

    `processes` and `numbered` are those of the processes of each proxied server: see ServerFacts. `waiting` has the
    address, in HAProxy's syntax, where connections wait for a target that may not run.
    """

    endpoints: Mapping[str, Endpoint | None]
    processes: Mapping[str, Sequence[str]] = {}
    waiting: Mapping[str, str] = {}
    numbered: Mapping[str, Sequence[str]] = {}

    def endpoint(self, target: Target) -> Endpoint | None:
        """The address of this target; None if it is not known yet."""
        return self.endpoints.get(target.server) if target.server else Endpoint.of_url(target.url)


class _Backends:
    """Makes the backend sections of one configuration, with unique names."""

    def __init__(
        self, settings: GatewaySettings, addresses: ServerAddresses, keys: Mapping[str, str], log: str
    ) -> None:
        self._settings = settings
        self._addresses = addresses
        self._keys = keys
        self._log = log
        self._names = set[str]()

    def route(self, route: Route) -> HaproxyBackend:
        """The section of an HTTP route."""
        name, times = unique_name(f"route:{route.alias}", self._names), route.timeouts
        # The requests that it takes. Not its targets, which change at run time.
        taken = [
            f"{route.host or '*'}{route.path}",
            *route.methods,
            *(header.name for header in route.headers),
        ]
        lines = [f"backend {name}", comment(" ".join(taken)), *_access_and_redirect_rules(route)]
        if route.redirect is not None:
            return HaproxyBackend(name, route.alias, False, (*lines, *_response_rules(route)), ())
        lines += [
            *_with_comment("waiting_page", sleeping_rules(route, name)),
            *_with_comment("max_body_size", body_rules(route.max_body_bytes)),
            *_with_comment("backend_limit", queue_rules(route.backend_limit, len(route.to))),
            *_with_comment("limit", limit_rules(route, name)),
            *_with_comment("policy", _balance(route)),
        ]
        if route.to and all(target.server in self._keys for target in route.to):
            # Applications of the pool never close idle connections first. By default HAProxy sends a client's first
            # request on a new connection: one that is too large to be repeated must not meet a closing one.
            lines.append("    http-reuse always")
        if route.buffer_requests:
            # Otherwise the timeout for the request's head would also apply to the buffered part of its body.
            lines += [
                comment("buffer_requests"),
                "    option http-buffer-request",
                f"    timeout http-request {duration(times.idle)}",
            ]
        if route.sticky_cookie:
            options = f"{' secure' if route.sticky_secure else ''} attr SameSite={route.sticky_same_site}"
            cookie = f"    cookie {quoted(route.sticky_cookie)} insert indirect nocache httponly{options}"
            lines += [comment("sticky"), cookie]
        failures = (status for status in route.breaker.statuses if status not in _ALWAYS_FAILURES)
        is_app = any(target.server in self._keys for target in route.to)
        # Applied once a server is chosen, so that no server gets the key of another.
        context_rules = [f"    http-send-name-header {CONTEXT_FIELD}"] if is_app else []
        lines += [
            comment("timeouts"),
            f"    timeout connect {duration(times.connect)}",
            f"    timeout server {longest_duration((times.head, times.idle))}",
            f"    timeout tunnel {duration(times.idle)}",
            *_retries(route, self._addresses),
            *_h2_rules(route, self._addresses),
            *_http_rewrite_rules(route),
            *_response_rules(route),
            *context_rules,
            *_with_comment("breaker.statuses", _failure_rules(failures)),
            comment("to"),  # also if no service is registered yet
        ]
        servers = _servers(route, self._addresses, self._settings.version, self._keys)
        return HaproxyBackend(name, route.alias, False, tuple(lines), servers)

    def passthrough(self, route: Route) -> HaproxyBackend | None:
        """The section that passes TLS to the route's servers; None if one has no TLS, or a rule needs the requests."""
        endpoints = self._addresses.endpoints
        targets = [endpoints.get(target.server) for target in route.to]
        if not (route.takes_whole_hosts and targets and all(target and target.tls for target in targets)):
            return None
        name = unique_name(f"tls:{route.alias}", self._names)
        lines = [f"backend {name}", "    mode tcp", f"    balance {_HAPROXY_POLICIES[route.policy]}"]
        if route.allow and EVERY not in route.allow:
            lines += [f"    acl client_is_allowed src {networks}" for networks in network_groups(route.allow)]
            lines.append("    tcp-request content reject unless client_is_allowed")
        lines += [
            f"    timeout connect {duration(route.timeouts.connect)}",
            f"    timeout server {duration(route.timeouts.idle)}",
        ]
        stream = StreamRoute(alias=route.alias, bind="", to=route.to)
        plain = {key: endpoint and endpoint._replace(tls=False) for key, endpoint in endpoints.items()}
        addresses = ServerAddresses(plain, waiting=self._addresses.waiting)
        servers = _servers(stream, addresses, self._settings.version)
        return HaproxyBackend(name, route.alias, False, tuple(lines), servers, passes_tls=True)

    def stream(self, route: StreamRoute, listener: HaproxyListener) -> HaproxyBackend:
        """The section of a stream, which listens itself."""
        name, trusted = unique_name(f"stream:{route.alias}", self._names), self._settings.trusted_proxies
        lines = [
            f"listen {name}",
            comment(route.bind),
            f"    mode {route.protocol}",
            *listener.bind_lines(),
            *proxy_protocol_rules([listener], trusted),
        ]
        if route.protocol == HTTP:
            lines += [
                *head_rules(self._settings.table.max_head_size, self._log),
                *forwarding_rules(trusted, needs_client=False),
                # Without time limits: the program has its own.
                f"    timeout http-request {_OWN_LIMITS}",
                f"    timeout http-keep-alive {_OWN_LIMITS}",
                "    http-reuse safe",
                "    retries 3",
                "    retry-on conn-failure empty-response",
                *_single_execution_rules(),
                *_ONCE_REPLACED,
                *_h2_rules(route, self._addresses),
            ]
        else:
            lines.append("    no option abortonclose")  # a client may close its side and still read
        lines += [
            *_balance(route),
            *([f"    maxconn {route.max_connections}"] if route.max_connections else []),
            f"    timeout connect {duration(route.timeouts.connect)}",
            f"    timeout client {duration(route.timeouts.idle)}",
            f"    timeout server {duration(route.timeouts.idle)}",
            comment("to"),
        ]
        servers = _servers(route, self._addresses, self._settings.version)
        return HaproxyBackend(name, route.alias, True, tuple(lines), servers)


def _with_comment(key: str, lines: Iterable[str]) -> list[str]:
    """The lines below a comment with the configuration key that they implement; nothing without lines."""
    implementing = [*lines]
    return [comment(key), *implementing] if implementing else []


def _passthrough_frontend(
    settings: GatewaySettings,
    listeners: Sequence[HaproxyListener],
    routes: Sequence[Route],
    sections: Mapping[str, HaproxyBackend],
) -> Iterator[str]:
    """The frontend that passes TLS by the server name in the ClientHello (SNI), and closes other connections."""
    yield from ("", f"frontend {_PASSTHROUGH}", "    mode tcp")
    yield from (line for listener in listeners for line in listener.bind_lines())
    yield from proxy_protocol_rules(listeners, settings.trusted_proxies)
    yield f"    timeout client {longest_duration([route.timeouts.idle for route in routes] or [Timeouts().idle])}"
    yield f"    tcp-request inspect-delay {duration(settings.table.head_timeout)}"
    host = quoted(r"regsub(\.$,)")
    yield f"    tcp-request content set-var(sess.host) req.ssl_sni,lower,{host}"
    yield "    tcp-request content set-var(sess.name) var(sess.host)"
    yield "    tcp-request content set-var(sess.label) var(sess.host),field(1,.)"
    yield "    tcp-request content accept if { req.ssl_hello_type 1 }"
    yield "    tcp-request content reject"
    for route in routes:
        # Do not pass through a host with several routes: their paths cannot be read.
        section = sections.get(route.alias)
        whole = replace(route, path="/", methods=(), headers=(), redirect=None)
        if not route.redirects_to_https:
            yield from use_backend_rules(section.name if section else _NOT_PASSED, whole, "sess")
    yield f"    default_backend {_NOT_PASSED}"
    yield from ("", f"backend {_NOT_PASSED}", "    mode tcp")


def _sent_name(name: str, server: str, route: Route | StreamRoute, keys: Mapping[str, str]) -> str:
    """The target's name in HAProxy: with a key a `context_value`, which the server's workers recognize."""
    return context_value(name, keys[server], route.alias) if server in keys else name


def _failure_rules(statuses: Iterable[int]) -> Iterator[str]:
    """Rules that count the responses of each server with these statuses; HAProxy itself counts only classes."""
    if groups := [*line_groups([*map(str, statuses)])]:
        yield from (f"    acl is_failure status {group}" for group in groups)
        yield "    http-response set-var(txn.server) srv_name if is_failure"
        yield f"    http-response track-sc2 be_name,concat(/,txn.server) table {FAILURES} if is_failure"
        yield "    http-response sc-inc-gpc0(2) if is_failure"


def _balance(route: Route | StreamRoute) -> Iterator[str]:
    # The client of a stream is its peer.
    by_client = "hash var(txn.client)" if isinstance(route, Route) and route.policy == IP_HASH else ""
    yield f"    balance {by_client or _HAPROXY_POLICIES[route.policy]}"
    if route.policy == IP_HASH:
        yield "    hash-type consistent"


def _access_and_redirect_rules(route: Route) -> Iterator[str]:
    """Rules that refuse clients outside `route.allow`, and that redirect requests if the route is a redirect."""
    if route.allow and EVERY not in route.allow:
        yield comment("allow")
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
        yield comment("redirect")
        yield f"    http-request redirect location {quoted(where)} code {status}"


def _retries(route: Route, addresses: ServerAddresses) -> Iterator[str]:
    """Retry a failed request on another server: always if it was not sent, otherwise only if it is idempotent.

    Even without configured retries, an idempotent request is retried once if the server closed the connection without a
    response, because a stopping server may close an idle connection just then. If connections can wait for a target,
    one more retry leads to its waiting listener after the stopped server refused the connection.
    """
    failures = " junk-response response-timeout 502 503 504" if route.retries else ""
    waits = any(target.key in addresses.waiting for target in route.to)
    yield comment("retries")
    yield f"    retries {max(route.retries, 1) + waits}"
    yield f"    retry-on conn-failure empty-response{failures}"
    if not route.repeatable:
        yield comment(
            "A request that must not be executed twice has a connection of its own: without `repeatable`."
        )
        yield from _single_execution_rules()


def _single_execution_rules() -> Iterator[str]:
    """Rules for requests that must not be executed twice: they are not retried, and each has a connection of its own.

    If a server dies while it answers on a reused connection, HAProxy does not answer: it closes an HTTP/1.1 connection,
    or resets an HTTP/2 stream with REFUSED_STREAM ("not processed"), and browsers repeat the request. On a new
    connection the client gets 502. HAProxy finds idle connections by their name, which is unique for these requests
    (see `_connection_name`).

    Upgrades are exempt, because they need their `Connection` field, as are NTLM and Negotiate, which authenticate
    connections.
    """
    yield f"    http-request disable-l7-retry unless {_IDEMPOTENT}"
    authenticates_connection = "{ status 401 } { res.hdr(www-authenticate) -m beg -i ntlm nego }"
    yield f"    http-response set-var(sess.bound) bool(true) if {authenticates_connection}"
    is_exempt = "{ req.fhdr(upgrade) -m found } || { var(sess.bound) -m bool }"
    yield f"    http-request set-var(txn.once) rand unless {_IDEMPOTENT} || {is_exempt}"
    yield "    http-request set-header Connection close if { var(txn.once) -m found }"


def _h2_rules(route: Route | StreamRoute, addresses: ServerAddresses) -> Iterator[str]:
    """The rule that announces trailers to gRPC servers: HAProxy passes them on."""
    if any((endpoint := addresses.endpoint(target)) is not None and endpoint.h2 for target in route.to):
        yield "    http-request set-header TE trailers"


def _connection_name(
    route: Route | StreamRoute, endpoint: Endpoint | None, version: tuple[int, int]
) -> Iterator[str]:
    """The option by which idle connections to this endpoint have the name `txn.once`.

    HAProxy 2.8 has only the SNI for that, which it sends to servers with TLS.
    """
    if route.repeatable if isinstance(route, Route) else route.protocol != HTTP:
        return
    if version >= (3, 0):
        yield "pool-conn-name var(txn.once)"
    elif endpoint is None or not endpoint.tls:
        yield "sni var(txn.once)"


def _http_rewrite_rules(route: Route) -> Iterator[str]:
    if route.strip_path and route.path != "/":
        prefix = quoted(f"^{re.escape(route.path)}/?(.*)$")
        yield comment("strip_path")
        yield f"    http-request replace-path {prefix} '/\\1'"
        yield from _prefix_rules(route.path)
    if route.host_header:
        yield comment("host_header")
        yield f"    http-request set-header Host {quoted(literal(route.host_header))}"
    for key, names in (
        ("set_headers", [header.name for header in route.set_headers]),
        ("remove_headers", route.remove_headers),
    ):
        for name in names:
            alike = re.sub(r"[-_]", "[-_]", re.escape(name).replace(r"\-", "-"))
            yield comment(f"{key}.{name}")
            yield f"    http-request del-header {quoted(f'^{alike}$')} -m reg"
    for key, headers in (("set_headers", route.set_headers), ("add_headers", route.add_headers)):
        for header in headers:
            yield comment(f"{key}.{header.name}")
            yield f"    http-request add-header {quoted(header.name)} {quoted(literal(header.value))}"


def _response_rules(route: Route) -> Iterator[str]:
    for header in route.response_headers:
        yield comment(f"response_headers.{header.name}")
        yield f"    http-after-response set-header {quoted(header.name)} {quoted(literal(header.value))}"


def _prefix_rules(prefix: str) -> Iterator[str]:
    """Rules that report the removed prefix to the backend, and add it to the Location of responses.

    A Location with the prefix, or on another host, is not changed.
    """
    added, location = literal(prefix), "res.fhdr(location)"
    yield f"    http-request set-header X-Forwarded-Prefix {quoted(f'%[req.fhdr(x-forwarded-prefix)]{added}')}"
    yield "    http-request set-var(txn.authority) req.fhdr(host)"
    without_origin, without_scheme = (quoted(f'regsub("^https?://{end}",)') for end in ("[^/?#]*", ""))
    has_prefix = matches(f"{location},{without_origin}", "reg", f"^{re.escape(prefix)}([/?#]|$)")
    same_host = f"{{ {location},{without_scheme},field(1,/),strcmp(txn.authority) eq 0 }}"
    for pattern, value, condition in (
        ("^(/.*)$", rf"{added}\1", matches(location, "reg", "^/([^/]|$)")),
        ("^(https?://[^/?#]+)(.*)$", rf"\1{added}\2", same_host),
    ):
        change = f"replace-header Location {quoted(pattern)} {quoted(value)}"
        yield f"    http-response {change} if {condition} !{has_prefix}"


def _servers(
    route: Route | StreamRoute,
    addresses: ServerAddresses,
    version: tuple[int, int],
    keys: Mapping[str, str] = {},
) -> tuple[HaproxyServer, ...]:
    names, servers = set[str](), list[HaproxyServer]()
    max_weight = max([_MAX_WEIGHT, *(target.weight for target in route.to)])
    limits, limit = [], route.backend_limit if isinstance(route, Route) else None
    if limit is not None and limit.concurrency:
        limits = [f"maxconn {limit.concurrency}", f"maxqueue {limit.queue or 1}"]
    for target in route.to:
        weight = max(1, target.weight * _MAX_WEIGHT // max_weight)
        endpoint = addresses.endpoint(target)
        options = [*_options(endpoint, target)]
        if isinstance(route, Route) and target.server not in keys:
            # HAProxy closes half of the idle connections in each interval, from the third one on.
            options.append(f"pool-purge-delay {round(route.timeouts.keep_alive * 1000 / 8)}ms")
        options += _connection_name(route, endpoint, version)
        name = unique_name(target.key.partition("://")[2] or target.key, names)
        sticky = sticky_value(target.key) if isinstance(route, Route) and route.sticky_cookie else ""
        places = {_sent_name(name, target.server, route, keys): (_address_of(endpoint), sticky)}
        # Each process of a proxied server is a server in HAProxy. Cookies have its number, which the next process
        # inherits.
        if sticky and (numbered := addresses.numbered.get(target.server)) is not None:
            places = {
                f"{name}:{number}": (address or PLACEHOLDER_ADDRESS, sticky_value(target.key, number))
                for number, address in enumerate(numbered)
            }
        elif (processes := addresses.processes.get(target.server)) is not None:
            places = {f"{name}:{process.rpartition(':')[2]}": (process, "") for process in processes}
        watched = [PASSIVE_CHECK] if target.server and target.key in addresses.waiting else []
        for place, (address, cookie) in places.items():
            arguments = " ".join([*options, *limits, *watched])
            servers.append(HaproxyServer(place, target.key, address, arguments, weight, cookie))
        if (waiting := addresses.waiting.get(target.key)) is not None:
            arguments = " ".join([*(option for option in options if option != _RESOLVED_AT_START), "backup"])
            key = f"{target.key}{WAIT}"
            place = _sent_name(f"{name}{WAIT}", target.server, route, keys)
            # With several processes, a client of an ended process goes to another one instead of waiting for its
            # successor.
            cookie = sticky if len(places) == 1 else ""
            servers.append(HaproxyServer(place, key, waiting, arguments, weight, cookie))
    return tuple(servers)


def _address_of(endpoint: Endpoint | None) -> str:
    """The address in HAProxy's syntax; if it is not known yet, one where nothing listens."""
    if endpoint is not None and endpoint.kind == "unix":
        return quoted(f"unix@{endpoint.path}")
    if endpoint is None or not endpoint.port:
        return PLACEHOLDER_ADDRESS
    family = "ipv6@" if ":" in endpoint.host else ""
    return f"{family}{endpoint.host.strip('[]')}:{endpoint.port}"


def _options(endpoint: Endpoint | None, target: Target) -> Iterator[str]:
    if endpoint is None:
        return
    if has_host_name(endpoint):
        yield _RESOLVED_AT_START
    if endpoint.tls and endpoint.server_name:
        name = target.sni or endpoint.server_name
        sni = "" if match.is_ip_address(name) or ":" in name else f" sni str({name}) check-sni {name}"
        # Not every HAProxy finds the system's CA certificates by itself (@system-ca).
        system = ssl.get_default_verify_paths()
        authorities = quoted(target.ca or system.cafile or system.capath or system.openssl_cafile)
        verified = f"required ca-file {authorities}{sni} verifyhost {name}" if target.verify else f"none{sni}"
        yield f"ssl verify {verified}"
    elif endpoint.tls:
        yield "ssl verify none"
    if endpoint.h2:
        yield "alpn h2" if endpoint.tls else "proto h2"


def has_host_name(endpoint: Endpoint) -> bool:
    """Whether the endpoint's host is a name, not an IP address."""
    return bool(re.search(r"[A-Za-z]", endpoint.host)) and ":" not in endpoint.host


_MIN_BUFFER_BYTES = 16_384  # the buffer also holds heads of responses
# What the gateway adds to a head besides the route's headers: reports about the client, the context, a cookie.
_ADDED_BYTES, _CERTIFICATE_BYTES = 1024, 8192
# How much a client of HTTP/2 may send without an acknowledgement: 10 MB at a round trip of 50 ms take 0.7 s instead of
# 10 s. HAProxy does not store what it has not read.
_UPLOAD_WINDOW_BYTES = 1 << 20
# Characters that no path may contain.
_FORBIDDEN = r"%0[0-9a-f]|%1[0-9a-f]|%7f|[\\]"
_VALID_HOST = r"^[][A-Za-z0-9._~:%!$&'()*+,;=-]*$"
# HAProxy accepts requests that RFC 9112 does not (§3.2, §6.1): without a host, with a body whose length HTTP/1.0 does
# not know, or for something other than a path.
_INVALID = (
    "{ req.ver 1.1 } !{ req.fhdr(host) -m found }",
    f"!{{ req.fhdr(host) -m reg {quoted(_VALID_HOST)} }} {{ req.fhdr(host) -m found }}",
    "{ req.ver 1.0 } { req.fhdr(transfer-encoding) -m found }",
    "!{ url -m beg -i -- / http:// https:// } !{ url -m str -- * } !{ method CONNECT }",
)
_VERSION_NOT_SUPPORTED = "status 505 content-type text/plain string 'HTTP Version Not Supported'"
_NORMALIZATIONS = (
    "percent-to-uppercase strict", "percent-decode-unreserved strict", "path-strip-dot", "path-strip-dotdot full",
)  # fmt: skip
_FRONTEND, NO_ROUTE = "gateway", "no-route"
_PASSTHROUGH, _NOT_PASSED = "passing", "not-passed"


def configuration_of(
    settings: GatewaySettings,
    listeners: Sequence[HaproxyListener],
    routes: Iterable[Route],
    streams: Iterable[StreamRoute],
    addresses: ServerAddresses,
    keys: Mapping[str, str] = {},
    places: ProcessPlaces = ProcessPlaces(),  # noqa: B008  immutable
) -> HaproxyConfiguration:
    """The configuration for these routes. `keys` are those by which workers recognize the gateway, by application."""
    ordered = match.in_order(routes)
    # Sorted by alias, because the order of precedence changes at run time.
    by_alias = sorted(ordered, key=lambda route: route.alias)
    backends = _Backends(settings, addresses, keys, places.log)
    of_routes = {route.alias: backends.route(route) for route in by_alias}
    fronts = [listener for listener in listeners if not (listener.alias or listener.passes_tls)]
    passing = [listener for listener in listeners if listener.passes_tls]
    of_tls = {
        section.alias: section for route in by_alias if passing and (section := backends.passthrough(route))
    }
    binds = {listener.alias: listener for listener in listeners if listener.alias}
    of_streams = [backends.stream(stream, binds[stream.alias]) for stream in streams if stream.alias in binds]
    chosen = [(route, of_routes[route.alias].name) for route in ordered]
    asks_for_certificate = any(listener.asks_for_certificate for listener in listeners)
    refuses_uploads = any(route.max_body_bytes for route in ordered)
    added_bytes = _added_bytes(ordered, asks_for_certificate=asks_for_certificate)
    lines = [
        *_global(settings, places, resumes=not asks_for_certificate, added_bytes=added_bytes),
        *(loads_refusal() if refuses_uploads else ()),
        *_defaults(settings, ordered),
        *(_frontend(settings, fronts, chosen, places) if fronts else ()),
        "",
        f"backend {FAILURES}",
        f"    stick-table type string len {FAILURES_KEY_BYTES} size {_FAILURES_SIZE} store gpc0",
        *(_passthrough_frontend(settings, passing, ordered, of_tls) if passing else ()),
    ]
    for route in by_alias:
        if table := [*route_table(route, of_routes[route.alias].name)]:
            lines += ["", *table]
    files = {name: text for listener in listeners for name, text in listener.files.items()}
    maps: dict[str, Mapping[str, str]] = {}
    if refuses_uploads:
        files[REFUSE_FILE] = REFUSE_UPLOADS
    if fronts:
        files[UNANSWERED] = ""
        if entries := route_entries(chosen):
            maps[ROUTES] = entries
    if any(map(answers_for_sleeping, ordered)):
        maps[SLEEPING] = {}
    if any(route.waiting_page for route in ordered):
        files |= {WAKING: "", PAGE_FILE: PAGE}
    sections = (*of_routes.values(), *of_tls.values(), *of_streams)
    return HaproxyConfiguration(tuple(lines), sections, files, maps)


def _frontend(
    settings: GatewaySettings,
    fronts: Sequence[HaproxyListener],
    chosen: Sequence[tuple[Route, str]],
    places: ProcessPlaces,
) -> Iterator[str]:
    """The frontend of the gateway's listeners, and the sections that belong to it."""
    # Client certificates cannot be passed on.
    passes_on = bool(places.next) and not any(front.asks_for_certificate for front in fronts)
    yield from ("", f"frontend {_FRONTEND}", comment("bind"))
    for front in fronts:
        yield from front.bind_lines(http2=settings.table.http2)
    yield from _with_comment("trusted_proxies", proxy_protocol_rules(fronts, settings.trusted_proxies))
    if settings.table.access_log:
        yield comment("access_log")
        yield from access_log_rules(places.access_log, as_json=settings.table.access_log == "json")
    # Browsers open connections in advance, and would take a 408 for the response to a later request.
    yield "    option http-ignore-probes"
    yield comment("Once replaced, it answers the next request of each client, and closes the connection.")
    yield from _ONCE_REPLACED
    if passes_on:
        yield from _passing_on_rules(places)
    yield from _request_rules_before_routing(settings, fronts, [route for route, _ in chosen], places)
    yield comment("Counters of failures, for the breakers.")
    yield from _failure_rules(_ALWAYS_FAILURES)
    # HAProxy's own responses with 502.
    yield "    http-after-response set-var(txn.broken) srv_name if { status 502 } !{ var(txn.server) -m found }"
    key = "be_name,concat(/,txn.broken)"
    count = f"%[{key}] %[{key},map_str_int({UNANSWERED},0),add(1)]"
    yield f"    http-after-response set-map({UNANSWERED}) {count} if {{ var(txn.broken) -m found }}"
    yield comment("Which route: see routes.map.")
    to_next = f"    use_backend {NEXT} if {{ stopping }} has_next"
    yield from choice_rules(chosen, NO_ROUTE, [to_next] if passes_on else [])
    yield f"    default_backend {NO_ROUTE}"
    if passes_on:  # the server is enabled when this process is replaced
        yield from ("", f"backend {NEXT}")
        yield f"    http-request set-header {_NEXT_KEY} {places.key}"
        yield f"    http-request set-header {_NEXT_TLS} 1 if {{ ssl_fc }}"
        yield f"    server {NEXT} {places.next} send-proxy-v2 disabled"
    yield from ("", f"backend {NO_ROUTE}")
    yield "    http-request return status 404 content-type text/plain string 'Not Found'"


def _added_bytes(routes: Iterable[Route], *, asks_for_certificate: bool) -> int:
    """The maximum number of bytes that the gateway adds to the head of a request or response."""
    added = (
        sum(len(header.name) + len(header.value.encode()) + 16 for header in headers)
        for route in routes
        for headers in ((*route.set_headers, *route.add_headers), route.response_headers)
    )
    return _ADDED_BYTES + _CERTIFICATE_BYTES * asks_for_certificate + max(added, default=0)


def _passing_on_rules(places: ProcessPlaces) -> Iterator[str]:
    """Rules by which a process accepts requests from the replaced one, and passes them on once it is replaced."""
    yield comment(
        "A replaced process passes requests on as they are; the next one accepts them from it alone."
    )
    yield f"    bind {places.next_bind} name {NEXT} accept-proxy"
    yield f"    acl has_next nbsrv({NEXT}) gt 0"
    yield "    http-request allow if { stopping } has_next"
    key = f"{{ req.fhdr({_NEXT_KEY.lower()}) -m str {places.key} }}"
    yield f"    http-request deny deny_status 403 if {{ so_name {NEXT} }} !{key}"
    tls = f"{{ req.fhdr({_NEXT_TLS.lower()}) -m found }}"
    yield f"    http-request set-var(txn.tls) bool(true) if {{ so_name {NEXT} }} {tls}"
    yield "    acl uses_tls var(txn.tls) -m bool"


def _global(
    settings: GatewaySettings, places: ProcessPlaces, *, resumes: bool, added_bytes: int
) -> Iterator[str]:
    yield "global"
    if places.runtime:
        yield f"    stats socket {places.runtime} level admin"
    if settings.user:
        yield comment("user: HAProxy has read its files, with keys, before it changes to it")
        user, group = user_and_group(settings.user)
        yield f"    user {user}"
        yield f"    group {group}"
    yield "    # normalize-uri is experimental in all versions so far."
    yield "    expose-experimental-directives"
    yield "    default-path config"
    yield comment("threads")
    yield f"    nbthread {settings.table.threads}"
    yield comment(
        "HAProxy allocates memory for each descriptor that it may open; some systems do not limit them."
    )
    yield "    fd-hard-limit 500000"
    yield "    no strict-limits"
    if settings.table.max_connections:
        yield comment("max_connections")
        yield f"    maxconn {settings.table.max_connections}"
    yield "    ssl-default-bind-options ssl-min-ver TLSv1.2"
    if not resumes:
        yield "    tune.ssl.cachesize 0"  # sessions of listeners without tickets
    # The longest head takes at most four fifths of a buffer, so that rules see, and refuse, a somewhat longer one.
    head = max(_MIN_BUFFER_BYTES, settings.table.max_head_size)
    yield comment("max_head_size")
    yield f"    tune.bufsize {head + max(head // 4, head // 8 + added_bytes)}"
    yield f"    tune.maxrewrite {added_bytes}"
    yield comment("An upload over HTTP/2 is not held up by round trips.")
    yield f"    tune.h2.fe.initial-window-size {_UPLOAD_WINDOW_BYTES}"


def _defaults(settings: GatewaySettings, routes: Sequence[Route]) -> Iterator[str]:
    yield from ("", "defaults common", "    mode http", "    option redispatch 1", "    retries 3")
    yield "    option abortonclose"  # aborts the request of a client that has disconnected
    yield f"    timeout http-request {duration(settings.table.head_timeout)}"
    if settings.table.keep_alive:
        yield f"    timeout http-keep-alive {duration(settings.table.keep_alive)}"
    else:
        yield "    option httpclose"
    yield f"    timeout client {longest_duration([route.timeouts.idle for route in routes] or [Timeouts().idle])}"
    yield f"    timeout connect {duration(Timeouts().connect)}"
    yield f"    timeout server {duration(Timeouts().idle)}"
    yield f"    http-error {UNAVAILABLE} hdr retry-after 5"


def _request_rules_before_routing(
    settings: GatewaySettings,
    fronts: Sequence[HaproxyListener],
    routes: Sequence[Route],
    places: ProcessPlaces,
) -> Iterator[str]:
    """Rules that refuse invalid requests and set the variables for routing: host and path."""
    yield comment("max_head_size")
    yield from head_rules(
        settings.table.max_head_size, places.log, has_access_log=bool(settings.table.access_log)
    )
    yield comment("Requests that RFC 9112 does not allow.")
    for condition in _INVALID:
        yield f"    http-request deny deny_status 400 if {condition}"
    yield f"    http-request deny {_VERSION_NOT_SUPPORTED} unless {{ req.ver 1.0 1.1 }} or {{ fc_http_major 2 }}"
    yield f"    http-request deny deny_status 400 if {{ path -m reg -i {quoted(_FORBIDDEN)} }}"
    yield comment(
        "The path in its normal form. The query stays as it is: only the application knows its escapes."
    )
    yield "    http-request set-var(txn.query) query"
    yield "    http-request set-pathq %[path] if { var(txn.query) -m len ge 1 }"
    for step in _NORMALIZATIONS:
        yield f"    http-request normalize-uri {step}"
    yield "    http-request set-query %[var(txn.query)] if { var(txn.query) -m len ge 1 }"
    yield from reading_rules()
    unless = ""
    yield comment("header_for_host")
    for field in dict.fromkeys((settings.table.header_for_host.lower(), "host")):
        host = rf"req.fhdr({argument(field)}),host_only,lower,regsub(\.$,)"
        yield f"    http-request set-var(txn.host) {quoted(host)}{unless}"
        unless = " unless { var(txn.host) -m len ge 1 }"
    yield from misdirected_request_rules(fronts)
    needs_client = bool(settings.table.access_log) or any(
        route.allow or route.client_limit or route.policy == IP_HASH for route in routes
    )
    asks = any(front.asks_for_certificate for front in fronts)
    yield comment("trusted_proxies")
    yield from forwarding_rules(
        settings.trusted_proxies, needs_client=needs_client, asks_for_certificate=asks
    )
