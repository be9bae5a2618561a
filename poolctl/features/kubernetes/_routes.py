"""Compiles the pool's routes into HTTPRoutes of the Gateway API, or into Ingresses, one for each route."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from poolctl.config import Finding, Section, ServerConfig
from poolctl.config.model.pool_tables import Located, Tables
from poolctl.features.gateway.route_checks import locate_finding
from poolctl.features.gateway.routes import ServerIndex, WrittenRoute, written_routes
from poolctl.features.gateway.table import GatewayConfig, RouteConfig, RouteTimeouts
from poolctl.json_form import Table
from poolctl.routing.match import DOMAIN, LABEL, WILDCARD, host_pattern, is_ip_address
from poolctl.routing.route import HTTPS

from ._keys import is_label, secret_keys
from ._objects import SharedSettings, digest_of
from .table import Kubernetes

# Keys that are compiled; the second set only into an HTTPRoute, because an Ingress has no equivalent.
ROUTE_MAPPED = frozenset(("alias", "host", "path", "to", "policy", "timeouts"))
HTTP_ROUTE_ONLY = frozenset((
    "methods", "headers", "strip_path", "host_header", "add_headers", "set_headers", "remove_headers",
    "response_headers", "redirect",
))  # fmt: skip
# Ignored with a warning: the route serves without it.
ROUTE_IGNORED: Mapping[str, str] = {
    "retries": "the cluster's gateway retries as it is set up to",
    "buffer_requests": "the cluster's gateway buffers as it is set up to",
    "repeatable": "the cluster's gateway decides which requests it repeats",
    "breaker": "the cluster sends requests to ready workers",
    "health": "the probes of the servers decide",
    "waiting_page": "no server sleeps on a cluster",
    "probe_responses": "no server sleeps on a cluster",
}
# Refused, because traffic or safety depends on it: the reason and the fix.
ROUTE_UNSUPPORTED: Mapping[str, tuple[str, str]] = {
    "register": ("a cluster's backends are Services", "name the servers in `to`"),
    "sticky": ("no standard field keeps a client with its backend", "set it up at the cluster's gateway"),
    "allow": ("no standard field restricts the clients' addresses", "restrict them at the cluster's gateway"),
    "max_body_size": ("no standard field limits a body", "limit it at the cluster's gateway"),
    "limit": ("no standard field limits requests", "limit them at the cluster's gateway"),
    "backend_limit": ("no standard field limits requests", "use limits of the server's own"),
}
_POLICIES = ("round-robin", "weighted")
_SIMILAR_POLICIES = ("least-connections", "random-two")
_HEADERS = ("headers", "add_headers", "set_headers", "response_headers")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
_MAX = 16  # backends, headers of one kind, and matches of a rule
_MAX_VALUE_LENGTH = 4096
_PLAIN_LISTENER, _TLS_LISTENER = "http", "https"  # names of the Gateway's listeners
_host = re.compile(r"(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_path = re.compile(r"(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})+")


class CompiledRoutes(NamedTuple):
    """The objects of the routes. `ignored` are keys without effect on a cluster; `warnings` name omitted routes."""

    routes: list[Table]
    problems: list[Located]
    ignored: list[Located]
    warnings: list[str]


def compile_routes(
    servers: Sequence[ServerConfig],
    moved: Mapping[str, ServerConfig],
    tables: Tables,
    pool: SharedSettings,
    wave: int,
    hidden: Sequence[str] = (),
) -> CompiledRoutes:
    """Compile the routes from files, labels and `expose` to Kubernetes objects; no routes if one has a problem.

    `moved` has the servers by name, with their addresses in the cluster. All routes are in the last `wave`: an Ingress
    without a load balancer is never healthy. `hidden` are values of environment variables, which must not appear in a
    Kubernetes object.
    """
    compiled = CompiledRoutes([], list(_problems_of_gateway(tables)), [], [])
    if tables.get(GatewayConfig) is None:
        finding = Finding(("labels",), "they have no effect: the pool has no gateway", "add [gateway]")
        for server in servers:
            if any(name.startswith("route.") for name in server.labels):
                compiled.ignored.append((server, finding))
        return compiled
    index = ServerIndex(servers)
    served: list[tuple[WrittenRoute, RouteConfig, list[tuple[str, int]]]] = []
    for written in written_routes(index, tables):
        config = written.config
        to, reasons = index.resolve(config.to) if config else ((), [])
        reason = written.reason or ("" if to or (config and config.redirect) else "; ".join(reasons))
        if config is None or reason:
            compiled.warnings.append(f"the route {written.alias} is not exported: {reason}")
            continue
        headers = {key: dict(getattr(config, key)) for key in _HEADERS if getattr(config, key)}
        for finding in (*_unsupported(config, to, pool), *secret_keys(headers, hidden)):
            compiled.problems.append(locate_finding(written, finding))
        compiled.ignored.extend(locate_finding(written, key) for key in _ignored_keys(config, pool))
        served.append((written, config, [(target.server, target.weight) for target in to if target.server]))
    only_plain = {(config.host, config.path) for _, config, _ in served if _redirects_to_https(config)}
    for written, config, backends in () if compiled.problems else served:
        name = _route_object_name(pool, written.alias)
        ports = [(name, moved[name].address.port or 0, weight) for name, weight in backends]
        if pool.settings.ingress_class is not None:
            spec = _ingress_spec(config, pool.settings, backends[0][0])
            manifest = pool.manifest("networking.k8s.io/v1", "Ingress", name, wave=wave, spec=spec)
        else:
            listener = ""
            if (config.host, config.path) in only_plain:
                listener = _PLAIN_LISTENER if _redirects_to_https(config) else _TLS_LISTENER
            parent = _parent_reference(str(pool.settings.gateway), listener)
            spec = _http_route_spec(config, parent, ports)
            manifest = pool.manifest("gateway.networking.k8s.io/v1", "HTTPRoute", name, wave=wave, spec=spec)
        compiled.routes.append(manifest)
    return compiled


def _problems_of_gateway(tables: Tables) -> Iterator[Located]:
    gateway = tables.get(GatewayConfig)
    if gateway is not None and gateway.header_for_host.lower() != "host":
        fix = "leave it out"
        yield None, Finding(("gateway", "header_for_host"), "a cluster's gateway routes by Host alone", fix)


def _redirects_to_https(config: RouteConfig) -> bool:
    return config.redirect is not None and config.redirect.to == HTTPS


def _unsupported(config: RouteConfig, to: Collection[Any], pool: SharedSettings) -> Iterator[Finding]:
    for key, (reason, fix) in ROUTE_UNSUPPORTED.items():
        if _is_used(config, key):
            yield Finding((key,), reason, fix)
    if config.policy not in (*_POLICIES, *_SIMILAR_POLICIES):
        fix = f"use {' or '.join(_POLICIES)}"
        yield Finding(("policy",), f"no standard field chooses backends by {config.policy}", fix)
    for target in to:
        if not target.server:
            yield Finding(("to",), f"{target.url} is not a Service", "lead the route to servers of the pool")
    pattern = host_pattern(config.host)
    if config.host and (
        pattern.tier in (LABEL, WILDCARD) or is_ip_address(config.host) or not _host.fullmatch(config.host)
    ):
        fix = 'write the whole name, or "*.example.com"'
        yield Finding(("host",), f"no object of a cluster matches the host {config.host!r}", fix)
    if not _path.fullmatch(config.path) or re.search("//|%2f", config.path.lower()):
        fix = "use letters, digits, hyphens and single slashes"
        yield Finding(("path",), f"no object of a cluster matches the path {config.path!r}", fix)
    if pool.settings.ingress_class is not None:
        yield from _unsupported_by_ingress(config, to)
    else:
        yield from _unsupported_by_http_route(config, to)


def _unsupported_by_ingress(config: RouteConfig, to: Collection[Any]) -> Iterator[Finding]:
    for key in sorted(HTTP_ROUTE_ONLY):
        if _is_used(config, key):
            yield Finding((key,), "an Ingress has no equal", "use gateway instead of ingress_class")
    if len(to) > 1:
        fix = "use gateway instead of ingress_class, or lead it to one server"
        yield Finding(("to",), "an Ingress leads to one Service", fix)


def _unsupported_by_http_route(config: RouteConfig, to: Collection[Any]) -> Iterator[Finding]:
    for method in config.methods:
        if method not in _METHODS:
            yield Finding(("methods",), f"an HTTPRoute has no method {method}", "leave it out")
    for key in _HEADERS:
        headers: Mapping[str, str] = getattr(config, key)
        for name, value in headers.items():
            if not value or len(value) > _MAX_VALUE_LENGTH:
                fix = f"write a value, of {_MAX_VALUE_LENGTH} characters at most"
                yield Finding((key,), f"an HTTPRoute has no header {name} with this value", fix)
    counted = (*HTTP_ROUTE_ONLY - {"redirect", "host_header", "strip_path", "methods"},)
    for key, number in (*((key, len(getattr(config, key))) for key in sorted(counted)), ("to", len(to))):
        if number > _MAX:
            yield Finding((key,), f"an HTTPRoute has no more than {_MAX}", "use several routes")
    if config.host_header and not _host.fullmatch(config.host_header):
        fix = "write a name without a port"
        yield Finding(("host_header",), f"an HTTPRoute has no host {config.host_header!r}", fix)
    if config.redirect is None or config.redirect.to == HTTPS:
        return
    if re.search(r"[?#]", config.redirect.to):
        fix = "leave the query out"
        yield Finding(("redirect",), "an HTTPRoute redirects to a path alone", fix)
    url = urlsplit(config.redirect.to)
    if url.scheme and not _host.fullmatch(url.hostname or ""):
        yield Finding(("redirect",), "an HTTPRoute redirects to host names alone", "write a host name")


def _is_used(config: RouteConfig, key: str) -> bool:
    """Whether the route or the defaults of routes set the key to a value that has an effect."""
    value = getattr(config, key)
    if isinstance(value, Section):
        return bool(value.model_fields_set)
    return bool(value) and value != RouteConfig.model_fields[key].default


def _ignored_keys(config: RouteConfig, pool: SharedSettings) -> Iterator[Finding]:
    for key, reason in ROUTE_IGNORED.items():
        if _is_used(config, key):
            yield Finding((key,), reason)
    if config.policy in _SIMILAR_POLICIES:
        yield Finding(("policy",), "the cluster's gateway chooses the backend")
    is_ingress = pool.settings.ingress_class is not None
    if is_ingress and host_pattern(config.host).tier == DOMAIN:
        yield Finding(("host",), "an Ingress matches one label in the place of *")
    mapped = set() if is_ingress else {"total"}
    if names := sorted(config.timeouts.model_fields_set - mapped):
        yield Finding(("timeouts",), f"{', '.join(names)}: the cluster's gateway has limits of its own")


def _route_object_name(pool: SharedSettings, alias: str) -> str:
    name = f"{pool.name}-{alias}"
    if is_label(name):
        return name
    plain = re.sub(r"[^a-z0-9]+", "-", alias.lower()).strip("-")[:30]
    return f"{pool.name}-{plain}-{digest_of({'alias': alias})}"


def _parent_reference(gateway: str, listener: str) -> Table:
    namespace, _, name = gateway.rpartition("/")
    return {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        **({"namespace": namespace} if namespace else {}),
        "name": name,
        **({"sectionName": listener} if listener else {}),
    }


def _http_route_spec(config: RouteConfig, parent: Table, backends: Iterable[tuple[str, int, int]]) -> Table:
    path = {"type": "PathPrefix", "value": config.path}
    headers = [
        {"type": "Exact", "name": name, "value": value} for name, value in sorted(config.headers.items())
    ]
    condition = {"path": path, **({"headers": headers} if headers else {})}
    matches = [{**condition, "method": method} for method in config.methods] or [condition]
    filters = list(_filters(config))
    weighted = config.policy == "weighted"
    refs = [
        {"group": "", "kind": "Service", "name": name, "port": port, "weight": weight if weighted else 1}
        for name, port, weight in backends
    ]
    rest = {
        **({"filters": filters} if filters else {}),
        **({} if config.redirect else {"backendRefs": refs}),
        **_timeouts_field(config.timeouts),
    }
    # A rule that replaces a prefix has one match (Gateway API, HTTPPathModifier).
    groups = [[match] for match in matches] if config.strip_path else [matches]
    return {
        "parentRefs": [parent],
        **({"hostnames": [config.host]} if config.host else {}),
        "rules": [{"matches": group, **rest} for group in groups],
    }


def _filters(config: RouteConfig) -> Iterator[Table]:
    def listed(headers: Mapping[str, str]) -> list[Table]:
        return [{"name": name, "value": value} for name, value in sorted(headers.items())]

    changes = {
        **({"set": listed(config.set_headers)} if config.set_headers else {}),
        **({"add": listed(config.add_headers)} if config.add_headers else {}),
        **({"remove": list(dict.fromkeys(config.remove_headers))} if config.remove_headers else {}),
    }
    if changes:
        yield {"type": "RequestHeaderModifier", "requestHeaderModifier": changes}
    if config.response_headers:
        modifier = {"set": listed(config.response_headers)}
        yield {"type": "ResponseHeaderModifier", "responseHeaderModifier": modifier}
    rewrite: Table = {}
    if config.host_header and not config.redirect:
        rewrite["hostname"] = config.host_header
    if config.strip_path and config.path != "/" and not config.redirect:
        rewrite["path"] = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
    if rewrite:
        yield {"type": "URLRewrite", "urlRewrite": rewrite}
    if config.redirect is not None:
        redirect: Table = {"statusCode": config.redirect.status}
        if config.redirect.to == HTTPS:
            redirect |= {"scheme": "https", "port": 443}
        else:
            url = urlsplit(config.redirect.to)
            if url.hostname:
                redirect |= {"scheme": url.scheme.lower(), "hostname": url.hostname.lower()}
            if url.port is not None:
                redirect["port"] = url.port
            if url.path:
                redirect["path"] = {"type": "ReplaceFullPath", "replaceFullPath": url.path}
        yield {"type": "RequestRedirect", "requestRedirect": redirect}


def _timeouts_field(timeouts: RouteTimeouts) -> Table:
    """Return {"timeouts": …} for a rule of an HTTPRoute, with a duration as in GEP-2257; {} without a time limit."""
    if not timeouts.total:
        return {}
    left, parts = max(1, round(timeouts.total * 1000)), []
    for unit, milliseconds in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        number, left = divmod(left, milliseconds)
        parts += [f"{number}{unit}"] if number else []
    return {"timeouts": {"request": "".join(parts)}}


def _ingress_spec(config: RouteConfig, settings: Kubernetes, server: str) -> Table:
    backend = {"service": {"name": server, "port": {"name": "http"}}}
    path = {"path": config.path, "pathType": "Prefix", "backend": backend}
    host = {"host": config.host} if config.host else {}
    hosts = {"hosts": [config.host]} if config.host else {}
    return {
        "ingressClassName": settings.ingress_class,
        **({"tls": [{**hosts, "secretName": settings.ingress_tls}]} if settings.ingress_tls else {}),
        "rules": [{**host, "http": {"paths": [path]}}],
    }
