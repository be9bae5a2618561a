"""The section of a route in a configuration for HAProxy: its servers, and how they are used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from urllib.parse import urlsplit

from ...routing.match import is_ip_address
from ...routing.networks import EVERY
from ...routing.route import Limit, Route, StreamRoute, Target
from ..backends import sticky_value
from ..endpoint import Endpoint
from .haproxy_parts import (
    NETWORKS_A_LINE,
    TOO_MANY,
    UNAVAILABLE,
    HaproxyBackend,
    HaproxyListener,
    HaproxyServer,
    Names,
    duration,
    literal,
    longest,
    quoted,
    reporting,
)

_HEAVIEST = 256
_MOST_CLIENTS = 32_768
# "sticky" without a cookie is round-robin in both engines; with one the cookie chooses.
_POLICIES = {
    "round-robin": "roundrobin",
    "weighted": "roundrobin",
    "sticky": "roundrobin",
    "least-connections": "leastconn",
    "ip-hash": "source",
    "random-two": "random(2)",
    "first": "first",
}


def backend_of(route: Route, names: Names, endpoints: Mapping[str, Endpoint]) -> HaproxyBackend:
    """The backend of a route."""
    name = names.of(f"route:{route.alias}")
    lines = [
        f"backend {name}",
        *_admission(route),
        *_of_client(route.client_limit, name),
        *_balance(route.policy),
    ]
    if route.sticky_cookie:
        lines.append(f"    cookie {route.sticky_cookie} insert indirect nocache httponly attr SameSite=Lax")
    times = route.timeouts
    lines += [
        f"    timeout connect {duration(times.connect)}",
        f"    timeout server {longest((times.head, times.idle))}",
        f"    timeout tunnel {duration(times.idle)}",
    ]
    lines += [*_limits(route.limit), *_waiting(route.backend_limit), *_retries(route), *_changes(route)]
    servers = _servers(route, endpoints, route.backend_limit)
    return HaproxyBackend(name, route.alias, False, tuple(lines), servers)


def stream_of(
    route: StreamRoute,
    listener: HaproxyListener,
    names: Names,
    endpoints: Mapping[str, Endpoint],
    trusted: Sequence[str] = (),
) -> HaproxyBackend:
    """The listener of a stream, with its servers."""
    name = names.of(f"stream:{route.alias}")
    lines = [f"listen {name}", "    mode tcp", *listener.lines(), *reporting([listener], trusted)]
    lines += _balance(route.policy)
    if route.max_connections:
        lines.append(f"    maxconn {route.max_connections}")
    lines += [
        f"    timeout connect {duration(route.timeouts.connect)}",
        f"    timeout client {duration(route.idle_seconds)}",
        f"    timeout server {duration(route.idle_seconds)}",
    ]
    return HaproxyBackend(name, route.alias, True, tuple(lines), _servers(route, endpoints, None))


def _balance(policy: str) -> Iterator[str]:
    yield f"    balance {_POLICIES[policy]}"
    if policy == "ip-hash":
        yield "    hash-type consistent"


def _admission(route: Route) -> Iterator[str]:
    """Which clients are refused, and where all others are sent."""
    if route.allow and EVERY not in route.allow:
        for start in range(0, len(route.allow), NETWORKS_A_LINE):
            networks = " ".join(route.allow[start : start + NETWORKS_A_LINE])
            yield f"    acl client_is_allowed var(txn.client) -m ip {networks}"
        yield "    http-request deny deny_status 403 unless client_is_allowed"
    if route.redirect is not None:
        to, status = route.redirect.to, route.redirect.status
        where = literal(to)
        if route.only_plain:
            yield "    http-request deny deny_status 400 unless { var(txn.host) -m found }"
            where = "https://%[var(txn.host)]%[pathq]"
        elif not (parts := urlsplit(to)).path and not parts.query:
            where += "%[pathq]"
        yield f"    http-request redirect location {quoted(where)} code {status}"


def _of_client(limit: Limit | None, table: str) -> Iterator[str]:
    """The limit of each client, for IPv6 of each client network. Refused requests do not count."""
    if limit is None:
        return
    client = "var(txn.client),ipmask(32,64)"
    refuse = f"    http-request return {TOO_MANY} hdr retry-after 1"
    rate = limit.requests_per_second
    seconds = ceil(1 / rate) if 0 < rate < 1 else 1
    stored = f"expire {seconds + 1}s store http_req_rate({seconds}s),conn_cur"
    yield f"    stick-table type ipv6 size {_MOST_CLIENTS} {stored}"
    if limit.concurrency:
        yield f"{refuse} if {{ {client},table_conn_cur({table}) ge {limit.concurrency} }}"
    if rate:
        yield f"{refuse} if {{ {client},table_http_req_rate({table}) ge {max(1, round(rate * seconds))} }}"
    yield f"    http-request track-sc0 {client}"


def _limits(limit: Limit | None) -> Iterator[str]:
    refuse = f"    http-request return {UNAVAILABLE} hdr retry-after 1"
    if limit is not None and limit.concurrency:
        yield f"{refuse} if {{ be_conn gt {limit.concurrency} }}"
    if limit is not None and limit.requests_per_second:
        yield f"{refuse} if {{ be_sess_rate gt {max(1, round(limit.requests_per_second))} }}"


def _waiting(limit: Limit | None) -> Iterator[str]:
    """How long a request waits for a backend that has as many as it may have."""
    if limit is not None and limit.concurrency:
        yield f"    timeout queue {duration(limit.queue_seconds if limit.queue else 0.001)}"


def _retries(route: Route) -> Iterator[str]:
    """A request that was not sent goes to another server; one that was, only if it may be repeated.

    One without a byte of an answer is repeated once in any case: a server that stops closes idle connections, perhaps
    at the moment at which it is sent.
    """
    failures = " junk-response response-timeout 502 503 504" if route.retries else ""
    yield f"    retries {route.retries or 1}"
    yield f"    retry-on conn-failure empty-response{failures}"
    yield "    http-request disable-l7-retry unless { method GET HEAD OPTIONS PUT DELETE TRACE }"


def _changes(route: Route) -> Iterator[str]:
    if route.strip_path and route.path != "/":
        prefix = quoted(f"^{re.escape(route.path)}/?(.*)$")
        yield f"    http-request replace-path {prefix} '/\\1'"
    if route.host_header:
        yield f"    http-request set-header Host {quoted(literal(route.host_header))}"
    for name in (*(header.name for header in route.set_headers), *route.remove_headers):
        alike = re.sub(r"[-_]", "[-_]", re.escape(name).replace(r"\-", "-"))
        yield f"    http-request del-header {quoted(f'^{alike}$')} -m reg"
    for header in (*route.set_headers, *route.add_headers):
        yield f"    http-request add-header {quoted(header.name)} {quoted(literal(header.value))}"
    for header in route.response_headers:
        yield f"    http-after-response set-header {quoted(header.name)} {quoted(literal(header.value))}"


def _servers(
    route: Route | StreamRoute, endpoints: Mapping[str, Endpoint], limit: Limit | None
) -> tuple[HaproxyServer, ...]:
    names, weights = Names(), dict[Target, int]()
    for target in route.to:
        found = next((each for each in weights if each.key == target.key), target)
        weights[found] = weights.get(found, 0) + target.weight
    heaviest = max(weights.values(), default=1)
    servers = []
    for target, weight in weights.items():
        scaled = weight if heaviest <= _HEAVIEST else max(1, weight * _HEAVIEST // heaviest)
        endpoint = endpoints.get(target.server) if target.server else Endpoint.of_url(target.url)
        options = [*_options(endpoint)]
        if limit is not None and limit.concurrency:
            options += [f"maxconn {limit.concurrency}", f"maxqueue {limit.queue or 1}"]
        if target.url and route.breaker.failures:
            # Only connections are observed: answers could take out the last server, as HAProxy knows no share for them.
            options.append(
                f"check inter {duration(route.breaker.open_seconds)} fall 2 rise 1 observe layer4 "
                f"error-limit {route.breaker.failures} on-error mark-down"
            )
        name = names.of(target.key.partition("://")[2] or target.key)
        sticky = sticky_value(target.key) if isinstance(route, Route) and route.sticky_cookie else ""
        servers.append(
            HaproxyServer(name, target.key, address_of(endpoint), " ".join(options), scaled, sticky)
        )
    return tuple(servers)


def address_of(endpoint: Endpoint | None) -> str:
    """The address of a server; one whose own is not known yet has one that answers nothing."""
    if endpoint is not None and endpoint.kind == "unix":
        return quoted(f"unix@{endpoint.path}")
    if endpoint is None or endpoint.kind == "none" or not endpoint.port:
        return "ipv4@127.0.0.1:1"
    family = "ipv6@" if ":" in endpoint.host else ""
    return f"{family}{endpoint.host.strip('[]')}:{endpoint.port}"


def _options(endpoint: Endpoint | None) -> Iterator[str]:
    if endpoint is None:
        return
    if re.search(r"[A-Za-z]", endpoint.host) and ":" not in endpoint.host:
        yield "init-addr last,libc,none"  # a name that cannot be resolved now must not keep the others from serving
    if endpoint.tls and endpoint.server_name:
        name = endpoint.server_name
        sni = "" if is_ip_address(name) or ":" in name else f" sni str({name}) check-sni {name}"
        yield f"ssl verify required ca-file @system-ca{sni} verifyhost {name}"
    elif endpoint.tls:
        yield "ssl verify none"
