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
from math import ceil
from typing import NamedTuple
from urllib.parse import urlsplit

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.route_backends import sticky_value
from poolctl.features.gateway.process.settings import Endpoint, GatewaySettings, ListenerSettings, ServerFacts
from poolctl.json_form import Table
from poolctl.routing import match
from poolctl.routing.decision import EVERY
from poolctl.routing.route import HTTPS, Route, StreamRoute, Timeouts, TrafficLimits

from .engine import POLICIES

# How long the first byte of a body may take whose size is not known.
_BODY_BEGINS = "10s"
# The longest time that HAProxy supports, in place of no limit.
_NO_LIMIT = "24d"
# Responses that HAProxy itself sends.
_TOO_MANY = "status 429 content-type text/plain string 'Too Many Requests'"
_UNAVAILABLE = "status 503 content-type text/plain string 'Service Unavailable'"
_LENGTH_REQUIRED = "status 411 content-type text/plain string 'Length Required'"
_MISDIRECTED = "status 421 content-type text/plain string 'Misdirected Request'"
# The end of a certificate's key (see `_identifier_of_certificates`) if the certificate asks for a client certificate.
_DEMANDS = "+"
_NETWORKS_A_LINE = 20
# Part of the names of binds on which trusted proxies report their clients.
_REPORTING = "accept-proxy-protocol"
_is_host_name = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*").fullmatch
# In place of names, for a certificate that has no names: no client asks for this one.
_NO_NAME = "-"
READY, DRAIN, MAINTENANCE = "ready", "drain", "maint"
# The address of a server whose address is not known: nothing listens there.
_NOWHERE = "ipv4@127.0.0.1:1"
# A name that cannot be resolved must not keep the others from being served.
_RESOLVED_AT_START = "init-addr last,libc,none"
# HAProxy closes the connections of idle clients at random moments of this time after SIGUSR1.
CLOSE_SPREAD_SECONDS = 1.0
# With one of these lines a backend gets no servers at run time: HAProxy knows neither their cookie nor their place.
_FIXED = ("    cookie ", "    balance first")


class HaproxyCertificate(NamedTuple):
    """A listener's TLS certificate: the file with certificate and key, and the rules for client certificates.

    `names` are the host names in the certificate. HAProxy reads them from `file` itself, unless a certificate of the
    same listener asks for a client certificate.
    """

    file: str
    ca_file: str = ""
    client_auth: str = "none"
    min_version: str = "1.2"
    ciphers: str = ""
    names: tuple[str, ...] = ()

    @property
    def asks_for_certificate(self) -> bool:
        """Whether clients are asked for a certificate."""
        return self.client_auth != "none"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host names for which this certificate is presented (SNI); IP addresses are excluded (RFC 6066 §3)."""
        given = dict.fromkeys(name.lower().rstrip(".") for name in self.names)
        found = [name for name in given if _is_host_name(name) and not name.replace(".", "").isdigit()]
        return (*found,) or (_NO_NAME,)

    @property
    def crt_list_line(self) -> str:
        """The certificate's line in a crt-list file."""
        options = [f"ssl-min-ver TLSv{self.min_version}"]
        if self.asks_for_certificate:
            options.append(f"verify {self.client_auth} ca-file {self.ca_file}")
        if self.ciphers:
            options.append(f"ciphers {self.ciphers}")
        return f"{self.file} [{' '.join(options)}]"


class HaproxyListener(NamedTuple):
    """An address where HAProxy accepts connections, in HAProxy's syntax.

    For a stream's listener `alias` is the alias of its route. The file `crt_list` is generated from `certificates`.
    """

    binds: tuple[str, ...]
    alias: str = ""
    crt_list: str = ""
    certificates: tuple[HaproxyCertificate, ...] = ()
    accept_proxy: bool = False

    @property
    def asks_for_certificate(self) -> bool:
        """Whether clients are asked for a certificate, at least for some hosts."""
        return any(each.asks_for_certificate for each in self.certificates)

    @property
    def name(self) -> str:
        """The name in the listener's `bind` lines, by which rules select this listener; "" if no rule needs it."""
        return "-".join([_REPORTING] * self.accept_proxy + [self.crt_list] * self.asks_for_certificate)

    @property
    def files(self) -> Mapping[str, str]:
        """The contents of the files that the listener's binds read, by file name."""
        if not self.certificates:
            return {}
        if not self.asks_for_certificate:
            return {self.crt_list: "".join(f"{each.crt_list_line}\n" for each in self.certificates)}
        # A line with names of its own does not apply to the names that HAProxy finds in the certificate, so that the
        # rules find the certificate that was shown to the client.
        lines = [f"{each.crt_list_line} {' '.join(each.hosts)}\n" for each in self.certificates]
        shown: dict[str, list[int]] = {}
        for number, each in enumerate(self.certificates):
            for name in each.hosts:
                shown.setdefault(name, []).append(number)
        found = "".join(
            f"{name} {self._identifier_of_certificates(numbers)}\n" for name, numbers in shown.items()
        )
        return {self.crt_list: "".join(lines), f"{self.crt_list}.map": found}

    def bind_lines(self, *, http2: bool = False) -> Iterator[str]:
        """The listener's `bind` lines; with `http2`, clients that speak TLS may choose HTTP/2."""
        protocols = "h2,http/1.1" if http2 else "http/1.1"
        tls = f" ssl crt-list {self.crt_list} alpn {protocols}" if self.certificates else ""
        # In TLS 1.3 a session could be resumed for another name without a check of the client's certificate.
        tls += " no-tls-tickets" if self.asks_for_certificate else ""
        for bind in self.binds:
            yield f"    bind {bind}{f' name {self.name}' if self.name else ''}{tls}"

    def sni_mismatch_variable_rules(self) -> Iterator[str]:
        """Yield rules that set txn.shown and txn.wanted; none if no certificate asks for a client certificate.

        txn.shown identifies the certificate for the host in the TLS handshake, txn.wanted the one for the host of the
        request. If the latter asks for a client certificate and the two differ, a rule elsewhere refuses the request:
        a client could avoid the demand by naming another host in the handshake (RFC 9110 §7.4).
        """
        if not self.asks_for_certificate:
            return
        here = f"{{ so_name {self.name} }}"
        by_name = f"map_str({self.crt_list}.map)"
        by_pattern = _quoted(
            f"regsub(^[^.]*,*),map_str({self.crt_list}.map,{self._identifier_of_certificates([0])})"
        )
        # HAProxy compares the name as it was sent, including a final dot.
        for variable, name in (("shown", "ssl_fc_sni,lower"), ("wanted", "var(txn.host)")):
            known = f"{{ var(txn.{variable}) -m found }}"
            yield f"    http-request set-var(txn.{variable}) {name},{by_name} if {here}"
            yield f"    http-request set-var(txn.{variable}) {name},{by_pattern} if {here} !{known}"
            default = self._identifier_of_certificates([0])
            yield f"    http-request set-var(txn.{variable}) str({default}) if {here} !{known}"

    def _identifier_of_certificates(self, numbers: Sequence[int]) -> str:
        """Return the text that identifies, in HAProxy's rules, the certificates with these indexes in `certificates`.

        The text is the numbers joined by ".". It ends in "+" if one of the certificates asks for a client certificate.
        """
        demands = any(self.certificates[number].asks_for_certificate for number in numbers)
        return f"{'.'.join(map(str, numbers))}{_DEMANDS if demands else ''}"


def _proxy_protocol_rules(listeners: Iterable[HaproxyListener], trusted: Sequence[str]) -> Iterator[str]:
    """Rules that expect the PROXY protocol from trusted proxies, on the listeners that accept it."""
    names = dict.fromkeys(each.name for each in listeners if each.accept_proxy)
    for networks in _network_groups(trusted) if names else ():
        here = f"{{ so_name {' '.join(names)} }}"
        yield f"    tcp-request connection expect-proxy layer4 if {here} {{ src {networks} }}"


def _network_groups(networks: Sequence[str]) -> Iterator[str]:
    """The networks, separated by spaces, in groups of at most _NETWORKS_A_LINE."""
    if EVERY in networks:
        networks = ("0.0.0.0/0", "::/0")
    for start in range(0, len(networks), _NETWORKS_A_LINE):
        yield " ".join(networks[start : start + _NETWORKS_A_LINE])


class HaproxyServer(NamedTuple):
    """A server of a backend: `key` is the key of its target, `address` and `options` are in HAProxy's syntax."""

    name: str
    key: str
    address: str
    options: str
    weight: int
    cookie: str

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
    """The `backend` section of an HTTP route or a TCP stream; `lines` has the section without its `server` lines."""

    name: str
    alias: str
    is_stream: bool
    lines: tuple[str, ...]
    servers: tuple[HaproxyServer, ...]


class HaproxyConfiguration(NamedTuple):
    """A configuration in its parts: `lines` come before the backends; `files` are crt-lists and maps by file name."""

    lines: tuple[str, ...]
    backends: tuple[HaproxyBackend, ...]
    files: Mapping[str, str]

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


def _unique_name(text: str, taken: set[str]) -> str:
    """Return a name that HAProxy allows, resembles the text and is not in `taken`; adds it to `taken`."""
    wanted = found = re.sub(r"[^A-Za-z0-9_.:-]", "_", text)
    number = 1
    while found in taken:
        number += 1
        found = f"{wanted}:{number}"
    taken.add(found)
    return found


def _quoted(text: str) -> str:
    """The text as one word of a configuration, quoted if necessary. It must not contain line breaks."""
    return text if re.fullmatch(r"[A-Za-z0-9_./:@=,+-]+", text) else "'" + text.replace("'", "'\\''") + "'"


def _literal(text: str) -> str:
    """The text, escaped for places where HAProxy expands formats."""
    return text.replace("%", "%%")


def _duration(seconds: float) -> str:
    """The time in HAProxy's syntax; 0 means no limit."""
    return f"{max(1, round(seconds * 1000))}ms" if seconds else _NO_LIMIT


def _longest_duration(times: Iterable[float]) -> str:
    """The longest of several time limits in HAProxy's syntax; a limit of 0 means no limit."""
    found = [*times]
    return _duration(0.0 if 0.0 in found else max(found))


_HEAVIEST = 256
_MOST_CLIENTS = 32_768


def _route_backend(route: Route, names: set[str], endpoints: Mapping[str, Endpoint | None]) -> HaproxyBackend:
    name = _unique_name(f"route:{route.alias}", names)
    lines = [
        f"backend {name}",
        *_access_and_redirect_rules(route),
        *_body_limit(route.max_body_bytes),
        *_client_limit(route.client_limit, name),
        *_balance(route.policy),
    ]
    if route.sticky_cookie:
        lines.append(f"    cookie {route.sticky_cookie} insert indirect nocache httponly attr SameSite=Lax")
    times = route.timeouts
    lines += [
        f"    timeout connect {_duration(times.connect)}",
        f"    timeout server {_longest_duration((times.head, times.idle))}",
        f"    timeout tunnel {_duration(times.idle)}",
    ]
    lines += [
        *_route_limit(route.limit),
        *_queue_limit(route.backend_limit, len(route.to)),
        *_retries(route),
        *_http_rewrite_rules(route),
    ]
    servers = _servers(route, endpoints, route.backend_limit)
    return HaproxyBackend(name, route.alias, False, tuple(lines), servers)


def _stream_backend(
    route: StreamRoute,
    listener: HaproxyListener,
    names: set[str],
    endpoints: Mapping[str, Endpoint | None],
    trusted: Sequence[str] = (),
) -> HaproxyBackend:
    name = _unique_name(f"stream:{route.alias}", names)
    lines = [
        f"listen {name}",
        "    mode tcp",
        *listener.bind_lines(),
        *_proxy_protocol_rules([listener], trusted),
    ]
    lines += _balance(route.policy)
    if route.max_connections:
        lines.append(f"    maxconn {route.max_connections}")
    lines += [
        f"    timeout connect {_duration(route.timeouts.connect)}",
        f"    timeout client {_duration(route.idle_seconds)}",
        f"    timeout server {_duration(route.idle_seconds)}",
    ]
    return HaproxyBackend(name, route.alias, True, tuple(lines), _servers(route, endpoints, None))


def _balance(policy: str) -> Iterator[str]:
    yield f"    balance {POLICIES[policy]}"
    if policy == "ip-hash":
        yield "    hash-type consistent"


def _access_and_redirect_rules(route: Route) -> Iterator[str]:
    """Rules that refuse clients outside `route.allow`, and that redirect requests if the route is a redirect."""
    if route.allow and EVERY not in route.allow:
        for networks in _network_groups(route.allow):
            yield f"    acl client_is_allowed var(txn.client) -m ip {networks}"
        yield "    http-request deny deny_status 403 unless client_is_allowed"
    if route.redirect is not None:
        to, status = route.redirect.to, route.redirect.status
        where = _literal(to)
        if route.redirects_to_https:
            yield "    http-request deny deny_status 400 unless { var(txn.host) -m found }"
            where = "https://%[var(txn.host)]%[pathq]"
        elif not (parts := urlsplit(to)).path and not parts.query:
            where += "%[pathq]"
        yield f"    http-request redirect location {_quoted(where)} code {status}"


def _client_limit(limit: TrafficLimits | None, table: str) -> Iterator[str]:
    """Rules that limit each client, by IPv4 address or /64 IPv6 network. Refused requests are not counted."""
    if limit is None:
        return
    client = "var(txn.client),ipmask(32,64)"
    refuse = f"    http-request return {_TOO_MANY} hdr retry-after 1"
    rate = limit.requests_per_second
    seconds = ceil(1 / rate) if 0 < rate < 1 else 1
    stored = f"expire {seconds + 1}s store http_req_rate({seconds}s),conn_cur"
    yield f"    stick-table type ipv6 size {_MOST_CLIENTS} {stored}"
    if limit.concurrency:
        yield f"{refuse} if {{ {client},table_conn_cur({table}) ge {limit.concurrency} }}"
    if rate:
        yield f"{refuse} if {{ {client},table_http_req_rate({table}) ge {max(1, round(rate * seconds))} }}"
    yield f"    http-request track-sc0 {client}"


def _route_limit(limit: TrafficLimits | None) -> Iterator[str]:
    refuse = f"    http-request return {_UNAVAILABLE} hdr retry-after 1"
    if limit is not None and limit.concurrency:
        yield f"{refuse} if {{ be_conn gt {limit.concurrency} }}"
    if limit is not None and limit.requests_per_second:
        yield f"{refuse} if {{ be_sess_rate gt {max(1, round(limit.requests_per_second))} }}"


def _queue_limit(limit: TrafficLimits | None, backends: int) -> Iterator[str]:
    """Lines that limit how many requests wait for busy backends, and how long; nothing without a concurrency limit.

    HAProxy's `maxqueue` refuses none: what does not fit into a server's queue waits in that of all servers.
    """
    if limit is None or not limit.concurrency:
        return
    yield f"    timeout queue {_duration(limit.queue_seconds if limit.queue else 0.001)}"
    if limit.queue:
        refuse = f"    http-request return {_UNAVAILABLE} hdr retry-after 1"
        yield f"{refuse} if {{ queue ge {limit.queue * backends} }}"


def _body_limit(most_bytes: int) -> Iterator[str]:
    """Rules that refuse a larger body, and one whose head does not have its size, as HAProxy does not count it."""
    if most_bytes:
        unknown = "!{ req.fhdr(content-length) -m found }"
        yield f"    http-request deny deny_status 413 if {{ req.body_size gt {most_bytes} }}"
        yield f"    http-request wait-for-body time {_BODY_BEGINS} at-least 1 if {unknown}"
        yield f"    http-request return {_LENGTH_REQUIRED} if {unknown} {{ req.body_len gt 0 }}"


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
        prefix = _quoted(f"^{re.escape(route.path)}/?(.*)$")
        yield f"    http-request replace-path {prefix} '/\\1'"
    if route.host_header:
        yield f"    http-request set-header Host {_quoted(_literal(route.host_header))}"
    for name in (*(header.name for header in route.set_headers), *route.remove_headers):
        alike = re.sub(r"[-_]", "[-_]", re.escape(name).replace(r"\-", "-"))
        yield f"    http-request del-header {_quoted(f'^{alike}$')} -m reg"
    for header in (*route.set_headers, *route.add_headers):
        yield f"    http-request add-header {_quoted(header.name)} {_quoted(_literal(header.value))}"
    for header in route.response_headers:
        yield f"    http-after-response set-header {_quoted(header.name)} {_quoted(_literal(header.value))}"


def _servers(
    route: Route | StreamRoute, endpoints: Mapping[str, Endpoint | None], limit: TrafficLimits | None
) -> tuple[HaproxyServer, ...]:
    names, servers = set[str](), []
    heaviest = max((target.weight for target in route.to), default=1)
    for target in route.to:
        scaled = target.weight if heaviest <= _HEAVIEST else max(1, target.weight * _HEAVIEST // heaviest)
        endpoint = endpoints.get(target.server) if target.server else Endpoint.of_url(target.url)
        options = [*_options(endpoint)]
        if limit is not None and limit.concurrency:
            options += [f"maxconn {limit.concurrency}", f"maxqueue {limit.queue or 1}"]
        if target.url and route.breaker.failures:
            # Only connections are observed: answers could take out the last server, since HAProxy does not limit the
            # share of servers that are taken out.
            options.append(
                f"check inter {_duration(route.breaker.open_seconds)} fall 2 rise 1 observe layer4 "
                f"error-limit {route.breaker.failures} on-error mark-down"
            )
        name = _unique_name(target.key.partition("://")[2] or target.key, names)
        sticky = sticky_value(target.key) if isinstance(route, Route) and route.sticky_cookie else ""
        servers.append(
            HaproxyServer(name, target.key, _address_of(endpoint), " ".join(options), scaled, sticky)
        )
    return tuple(servers)


def _address_of(endpoint: Endpoint | None) -> str:
    """The address of a server in HAProxy's syntax; if it is not known yet, one at which nothing listens."""
    if endpoint is not None and endpoint.kind == "unix":
        return _quoted(f"unix@{endpoint.path}")
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
        yield f"ssl verify required ca-file {_quoted(_authorities_file())}{sni} verifyhost {name}"
    elif endpoint.tls:
        yield "ssl verify none"


def _has_host_name(endpoint: Endpoint) -> bool:
    return bool(re.search(r"[A-Za-z]", endpoint.host)) and ":" not in endpoint.host


def _authorities_file() -> str:
    """The file or directory of the system's CA certificates: not every HAProxy finds them by itself (@system-ca)."""
    known = ssl.get_default_verify_paths()
    return known.cafile or known.capath or known.openssl_cafile


# Header fields in which applications expect a proxy's report.
_REPORTS = "^(forwarded|proxy|x[-_](forwarded|poolctl)[-_].*|x[-_]real[-_]ip)$"  # see http.client_report
# Header fields that are removed even if a trusted proxy has sent them.
_NEVER_BELIEVED = "^(proxy|x_forwarded[-_].*|x-forwarded_.*|x[-_]poolctl[-_].*|x[-_]real[-_]ip)$"
# Paths that backends read in two ways, and characters that no path may contain.
_AMBIGUOUS = r"//|;|%2f|%5c"
_FORBIDDEN = r"%0[0-9a-f]|%1[0-9a-f]|%7f|[\\]"
_MOST_PROXIES = 8  # on the way from a client
_NORMALIZATIONS = (
    "percent-to-uppercase strict", "percent-decode-unreserved strict", "path-strip-dot", "path-strip-dotdot full",
)  # fmt: skip
_IP_ADDRESS = r"(^\[|(^|\.)[0-9]+$)"
_FRONTEND, NO_ROUTE = "gateway", "no-route"
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
) -> HaproxyConfiguration:
    """The configuration for these routes. `endpoints` are the endpoints of the pool's servers, by name."""
    ordered, names = match.in_order(routes), set[str]()
    backends = [(route, _route_backend(route, names, endpoints)) for route in ordered]
    fronts = [each for each in listeners if not each.alias]
    resumes = not any(each.asks_for_certificate for each in listeners)
    lines = [*_global(settings, resumes=resumes), *_defaults(settings, ordered)]
    mapped = _mapped_aliases(ordered) if fronts else frozenset[str]()
    if fronts:
        lines += ["", f"frontend {_FRONTEND}"]
        lines += [line for each in fronts for line in each.bind_lines(http2=settings.http2)]
        lines += _proxy_protocol_rules(fronts, settings.trusted_proxies)
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
    sections = [section for _, section in backends]
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
    return HaproxyConfiguration(tuple(lines), tuple(sections), files)


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
    # HAProxy allocates memory for each descriptor that it may open, and some systems do not limit their number.
    yield "    fd-hard-limit 500000"
    yield "    no strict-limits"
    if settings.max_connections:
        yield f"    maxconn {settings.max_connections}"
    yield f"    close-spread-time {_duration(CLOSE_SPREAD_SECONDS)}"
    yield "    ssl-default-bind-options ssl-min-ver TLSv1.2"
    if not resumes:
        yield "    tune.ssl.cachesize 0"  # sessions of listeners without tickets
    # The space that HAProxy reserves for its additions counts, too.
    yield f"    tune.bufsize {max(16_384, settings.max_head_bytes) + 1024}"
    yield "    tune.maxrewrite 1024"


def _defaults(settings: GatewaySettings, routes: Sequence[Route]) -> Iterator[str]:
    yield from ("", "defaults", "    mode http", "    option redispatch 1", "    retries 3")
    yield "    option abortonclose"  # as our own engine gives up the request of a client that has left
    yield f"    timeout http-request {_duration(settings.head_seconds)}"
    if settings.keep_alive_seconds:
        yield f"    timeout http-keep-alive {_duration(settings.keep_alive_seconds)}"
    else:
        yield "    option httpclose"
    yield f"    timeout client {_longest_duration([each.timeouts.idle for each in routes] or [Timeouts().idle])}"
    yield f"    timeout connect {_duration(Timeouts().connect)}"
    yield f"    timeout server {_duration(Timeouts().idle)}"
    yield f"    http-error {_UNAVAILABLE} hdr retry-after 5"


def _request_rules_before_routing(
    settings: GatewaySettings, fronts: Sequence[HaproxyListener], routes: Sequence[Route]
) -> Iterator[str]:
    """Rules that refuse invalid requests and set the variables for routing: host, the host's first label, and path."""
    yield f"    http-request deny deny_status 400 if {{ path -m reg -i {_quoted(_FORBIDDEN)} }}"
    for step in _NORMALIZATIONS:
        yield f"    http-request normalize-uri {step}"
    if any(each.path != "/" for each in routes):
        yield f"    http-request deny deny_status 404 if {{ path -m reg -i {_quoted(_AMBIGUOUS)} }}"
    field = settings.header_for_host.lower()
    no_dot = _quoted(r"regsub(\.$,)")
    yield f"    http-request set-var(txn.host) req.fhdr({field}),host_only,lower,{no_dot}"
    if any(each.asks_for_certificate for each in fronts):
        yield from (line for each in fronts for line in each.sni_mismatch_variable_rules())
        same = "{ var(txn.wanted),strcmp(txn.shown) eq 0 }"
        yield f"    http-request return {_MISDIRECTED} if {{ var(txn.wanted) -m end {_DEMANDS} }} !{same}"
    yield f"    http-request set-var(txn.name) var(txn.host) unless {{ var(txn.host) -m reg {_quoted(_IP_ADDRESS)} }}"
    yield "    http-request set-var(txn.label) var(txn.name),field(1,.)"
    yield "    http-request set-var(txn.path) path,concat(/)"
    yield from _forwarding_headers(settings.trusted_proxies)
    if any(each.allow or each.client_limit for each in routes):
        yield from _client_address(settings.trusted_proxies)


def _forwarding_headers(trusted: Sequence[str]) -> Iterator[str]:
    """Rules that replace forwarding headers sent by clients, and extend those sent by trusted proxies."""
    for networks in _network_groups(trusted):
        yield f"    http-request set-var(txn.trusted) bool(true) if {{ src {networks} }}"
    unless = " unless { var(txn.trusted) -m bool }" if trusted else ""
    yield f"    http-request del-header {_quoted(_REPORTS)} -m reg{unless}"
    if trusted:
        yield f"    http-request del-header {_quoted(_NEVER_BELIEVED)} -m reg"
    yield "    http-request add-header X-Forwarded-For '%[src]' if { src -m found }"
    values = (
        ("X-Forwarded-Proto", "https", "{ ssl_fc }"),
        ("X-Forwarded-Proto", "http", "!{ ssl_fc }"),
        ("X-Forwarded-Host", "%[req.fhdr(host)]", "{ req.fhdr(host) -m found }"),
    )
    for name, value, condition in values:
        there = f" !{{ req.fhdr({name.lower()}) -m found }}" if trusted else ""
        yield f"    http-request set-header {name} '{value}' if {condition}{there}"
    yield "    http-request set-var(txn.node) src"
    yield """    http-request set-var-fmt(txn.node) '"[%[src]]"' if { src -m sub : }"""
    yield "    http-request set-var(txn.node) str(unknown) unless { src -m found }"
    yield "    http-request set-var(txn.scheme) str(http)"
    yield "    http-request set-var(txn.scheme) str(https) if { ssl_fc }"
    host = _quoted('regsub("[^][A-Za-z0-9._:-]",,g)')
    yield f"    http-request set-var(txn.said) req.fhdr(host),{host}"
    forwarded = 'for=%[var(txn.node)];proto=%[var(txn.scheme)];host="%[var(txn.said)]"'
    yield f"    http-request add-header Forwarded {_quoted(forwarded)}"


def _client_address(trusted: Sequence[str]) -> Iterator[str]:
    """Rules that set txn.client to the client's address: the peer's, or the one that trusted proxies report."""
    yield "    http-request set-var(txn.client) src"
    if EVERY in trusted:
        return  # otherwise any client could claim an address
    for networks in _network_groups(trusted):
        yield f"    acl client_is_proxy var(txn.client) -m ip {networks}"
    for hop in range(2, _MOST_PROXIES + 2) if trusted else ():
        # The last address belongs to this connection's peer.
        yield f"    http-request set-var(txn.client) req.hdr_ip(x-forwarded-for,-{hop}) if client_is_proxy"


def _condition(route: Route) -> str:
    """Return the condition " if …" that a request must meet to take the route, or "" if every request may take it."""
    tests = []
    pattern = match.host_pattern(route.host)
    if pattern.tier == match.EXACT:
        tests.append(_test("var(txn.host)", "str", pattern.text))
    elif pattern.tier == match.LABEL:
        tests.append(_test("var(txn.label)", "str", pattern.text))
    elif pattern.tier == match.DOMAIN:
        tests += [_test("var(txn.name)", "end", f".{pattern.text}"), "!" + _test("var(txn.name)", "beg", ".")]
    elif pattern.tier != match.DEFAULT:
        expression = ".+".join(map(re.escape, pattern.text.split("*")))
        tests.append(_test("var(txn.host)", "reg", f"^{expression}$"))
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
    return f"{{ {fetch} -m {method} -- {' '.join(map(_quoted, values))} }}"


class HaproxySetup(NamedTuple):
    """A configuration with the states of its servers, the contents of its files, and its sockets.

    `states` are by backend and server name. `bundles` (certificates with keys) and `authorities` (CA certificates) are
    by file name. `descriptors` are the sockets in the `bind` lines as pairs of descriptor number and inode, because a
    number may be reused for another socket.
    """

    configuration: HaproxyConfiguration
    states: Mapping[tuple[str, str], str]
    bundles: Mapping[str, bytes]
    authorities: Mapping[str, bytes]
    descriptors: tuple[tuple[int, int], ...]

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
        return [_FRONTEND, *streams] if f"frontend {_FRONTEND}" in self.configuration.lines else streams

    @property
    def used_targets(self) -> frozenset[str]:
        """The keys of the targets that get requests."""
        return frozenset(
            server.key
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
) -> HaproxySetup:
    """Build the setup by which HAProxy serves these listeners and routes.

    The keys of `certificates` are a listener's address and the certificate's host names. `addresses` are those of the
    `host_names`, as far as they are known; HAProxy itself would resolve a name when it starts, and wait for the answer.
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
    made = configuration_of(settings, listeners, routes, streams, endpoints).with_addresses(addresses)
    states = _states(made, routes, streams, backends)
    numbers = [sock.fileno() for each in held for sock in each.sockets]
    descriptors = tuple((number, os.fstat(number).st_ino) for number in numbers)
    return HaproxySetup(made, states, bundles, authorities, descriptors)


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
    return HaproxyListener(binds, held.settings.alias, crt_list, tuple(found), held.settings.accept_proxy)


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
            states[section.name, server.name] = DRAIN if server.key in draining else state
    return states


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
