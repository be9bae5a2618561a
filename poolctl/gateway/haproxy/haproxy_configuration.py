"""A configuration for HAProxy that serves the same routes: a pure function from values to text.

Routes are considered in the order of `routing.match`; the first route that matches a request serves it. Needs HAProxy
2.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...routing.match import DEFAULT, DOMAIN, EXACT, LABEL, host_pattern, in_order, normal_host, normal_prefix
from ...routing.networks import EVERY
from ...routing.route import HTTPS, Route, StreamRoute, Timeouts
from ..endpoint import Endpoint
from ..settings import GatewaySettings
from .haproxy_backends import backend_of, stream_of
from .haproxy_parts import (
    DEMANDS,
    EVERYWHERE,
    MISDIRECTED,
    NETWORKS_A_LINE,
    UNAVAILABLE,
    HaproxyConfiguration,
    HaproxyListener,
    Names,
    duration,
    longest,
    quoted,
    reporting,
)  # fmt: skip

# Fields through which applications trust a proxy's report.
_REPORTS = "^(forwarded|proxy|x[-_](forwarded|poolctl)[-_].*|x[-_]real[-_]ip)$"  # see http.client_report
# Fields that are not trusted from trusted proxies either.
_NEVER_BELIEVED = "^(proxy|x_forwarded[-_].*|x-forwarded_.*|x[-_]poolctl[-_].*|x[-_]real[-_]ip)$"
# Paths that backends read in two ways, and characters that no path may contain.
_AMBIGUOUS = r"//|;|%2f|%5c"
_FORBIDDEN = r"%0[0-9a-f]|%1[0-9a-f]|%7f|[\\]"
_MOST_PROXIES = 8  # on the way from a client
_NORMALIZATIONS = (
    "percent-to-uppercase strict", "percent-decode-unreserved strict", "path-strip-dot", "path-strip-dotdot full",
)  # fmt: skip
_IP_ADDRESS = r"(^\[|(^|\.)[0-9]+$)"
NO_ROUTE = "no-route"
# Up to this number it is as fast to try one route after the other, and the configuration is one file.
_FEW_ROUTES = 16
MAP = "routes.map"
_LOOK_UP = (
    "    http-request set-var(txn.place) var(txn.host),concat(,txn.path)",
    f"    use_backend %[var(txn.place),map_beg({MAP})] if {{ var(txn.place),map_beg({MAP}) -m found }}",
)


def configuration_of(
    settings: GatewaySettings,
    listeners: Sequence[HaproxyListener],
    routes: Iterable[Route],
    streams: Iterable[StreamRoute],
    endpoints: Mapping[str, Endpoint],
) -> HaproxyConfiguration:
    """The configuration for these routes. `endpoints` are the endpoints of the pool's servers, by name."""
    ordered, names = in_order(routes), Names()
    backends = [(route, backend_of(route, names, endpoints)) for route in ordered]
    fronts = [each for each in listeners if not each.alias]
    resumes = not any(each.demands for each in listeners)
    lines = [*_global(settings, resumes=resumes), *_defaults(settings, ordered)]
    mapped = _of_map(ordered) if fronts else frozenset[str]()
    if fronts:
        lines += ["", "frontend gateway"]
        lines += [line for each in fronts for line in each.lines(http2=settings.http2)]
        lines += reporting(fronts, settings.trusted_proxies)
        # A client may send its next request at the moment of a reload: it is answered, and then the connection closed.
        lines += ["    option idle-close-on-response", *_decisions(settings, fronts, ordered)]
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
        stream_of(stream, binds[stream.alias], names, endpoints, settings.trusted_proxies)
        for stream in streams
        if stream.alias in binds
    ]
    files = {name: text for each in listeners for name, text in each.files.items()}
    if mapped:
        files[MAP] = "".join(
            f"{_place(route)} {section.name}\n" for route, section in backends if route.alias in mapped
        )
    return HaproxyConfiguration(tuple(lines), tuple(sections), files)


def _of_map(routes: Sequence[Route]) -> frozenset[str]:
    """The aliases of routes found by a map: routes of exact hosts without conditions, if there are many.

    No other route can come before one of these but by a longer path, and a map finds the longest.
    """
    exact = [each for each in routes if host_pattern(each.host).tier == EXACT]
    conditioned = {
        normal_host(each.host) for each in exact if each.methods or each.headers or each.only_plain
    }
    found = [each.alias for each in exact if normal_host(each.host) not in conditioned]
    return frozenset(found if len(found) > _FEW_ROUTES else ())


def _place(route: Route) -> str:
    """The beginning of the route's key in the map: the host, and the path with a slash at its end."""
    prefix = normal_prefix(route.path)
    return f"{normal_host(route.host)}{prefix if prefix == '/' else f'{prefix}/'}"


def _global(settings: GatewaySettings, *, resumes: bool) -> Iterator[str]:
    yield "global"
    yield "    # normalize-uri is experimental in all versions so far."
    yield "    expose-experimental-directives"
    yield "    default-path config"
    # It allocates memory for each descriptor that it may have, which some systems do not limit.
    yield "    fd-hard-limit 500000"
    yield "    no strict-limits"
    if settings.max_connections:
        yield f"    maxconn {settings.max_connections}"
    yield f"    hard-stop-after {duration(settings.drain_seconds)}"
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
    yield f"    timeout client {longest([each.timeouts.idle for each in routes] or [Timeouts().idle])}"
    yield f"    timeout connect {duration(Timeouts().connect)}"
    yield f"    timeout server {duration(Timeouts().idle)}"
    yield f"    http-error {UNAVAILABLE} hdr retry-after 5"


def _decisions(
    settings: GatewaySettings, fronts: Sequence[HaproxyListener], routes: Sequence[Route]
) -> Iterator[str]:
    """The refusals, and the variables that the routes compare: the host, its first label, and the path."""
    yield f"    http-request deny deny_status 400 if {{ path -m reg -i {quoted(_FORBIDDEN)} }}"
    for step in _NORMALIZATIONS:
        yield f"    http-request normalize-uri {step}"
    if any(each.path != "/" for each in routes):
        yield f"    http-request deny deny_status 404 if {{ path -m reg -i {quoted(_AMBIGUOUS)} }}"
    field = settings.header_for_host.lower()
    no_dot = quoted(r"regsub(\.$,)")
    yield f"    http-request set-var(txn.host) req.fhdr({field}),host_only,lower,{no_dot}"
    if any(each.demands for each in fronts):
        yield from (line for each in fronts for line in each.misdirected())
        same = "{ var(txn.wanted),strcmp(txn.shown) eq 0 }"
        yield f"    http-request return {MISDIRECTED} if {{ var(txn.wanted) -m end {DEMANDS} }} !{same}"
    yield f"    http-request set-var(txn.name) var(txn.host) unless {{ var(txn.host) -m reg {quoted(_IP_ADDRESS)} }}"
    yield "    http-request set-var(txn.label) var(txn.name),field(1,.)"
    yield "    http-request set-var(txn.path) path,concat(/)"
    yield from _reports(settings.trusted_proxies)
    if any(each.allow or each.client_limit for each in routes):
        yield from _client(settings.trusted_proxies)


def _reports(trusted: Sequence[str]) -> Iterator[str]:
    """Replace clients' claims about other clients, and extend the reports of trusted proxies."""
    trusted = EVERYWHERE if "*" in trusted else trusted
    for start in range(0, len(trusted), NETWORKS_A_LINE):
        networks = " ".join(trusted[start : start + NETWORKS_A_LINE])
        yield f"    http-request set-var(txn.trusted) bool(true) if {{ src {networks} }}"
    unless = " unless { var(txn.trusted) -m bool }" if trusted else ""
    yield f"    http-request del-header {quoted(_REPORTS)} -m reg{unless}"
    if trusted:
        yield f"    http-request del-header {quoted(_NEVER_BELIEVED)} -m reg"
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
    host = quoted('regsub("[^][A-Za-z0-9._:-]",,g)')
    yield f"    http-request set-var(txn.said) req.fhdr(host),{host}"
    forwarded = 'for=%[var(txn.node)];proto=%[var(txn.scheme)];host="%[var(txn.said)]"'
    yield f"    http-request add-header Forwarded {quoted(forwarded)}"


def _client(trusted: Sequence[str]) -> Iterator[str]:
    """The client's address: the last address on the way here that is not a trusted proxy's."""
    yield "    http-request set-var(txn.client) src"
    if EVERY in trusted:
        return  # otherwise any client could claim an address
    for start in range(0, len(trusted), NETWORKS_A_LINE):
        networks = " ".join(trusted[start : start + NETWORKS_A_LINE])
        yield f"    acl client_is_proxy var(txn.client) -m ip {networks}"
    for hop in range(2, _MOST_PROXIES + 2) if trusted else ():
        # The last address belongs to this connection's peer.
        yield f"    http-request set-var(txn.client) req.hdr_ip(x-forwarded-for,-{hop}) if client_is_proxy"


def _condition(route: Route) -> str:
    """When the route takes a request that no route before it has taken."""
    tests = []
    pattern = host_pattern(route.host)
    if pattern.tier == EXACT:
        tests.append(_test("var(txn.host)", "str", pattern.text))
    elif pattern.tier == LABEL:
        tests.append(_test("var(txn.label)", "str", pattern.text))
    elif pattern.tier == DOMAIN:
        tests += [_test("var(txn.name)", "end", f".{pattern.text}"), "!" + _test("var(txn.name)", "beg", ".")]
    elif pattern.tier != DEFAULT:
        expression = ".+".join(map(re.escape, pattern.text.split("*")))
        tests.append(_test("var(txn.host)", "reg", f"^{expression}$"))
    if (prefix := normal_prefix(route.path)) != "/":
        tests.append(_test("var(txn.path)", "beg", f"{prefix}/"))
    if route.only_plain:
        tests.append("!" + _test("req.hdr(x-forwarded-proto,1)", "str -i", HTTPS))
    if route.methods:
        tests.append(_test("method", "str", *route.methods))
    for header in route.headers:
        fetch = f"req.fhdr({header.name})"
        tests.append(_test(fetch, "str", header.value) if header.value else f"{{ {fetch} -m found }}")
    return " if " + " ".join(tests) if tests else ""


def _test(fetch: str, method: str, *values: str) -> str:
    return f"{{ {fetch} -m {method} -- {' '.join(map(quoted, values))} }}"
