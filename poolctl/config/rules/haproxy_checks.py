"""Features of poolctl's own gateway in routes and [gateway] that HAProxy does not support."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from poolctl.config.model.gateway_tables import GatewayConfig, RouteConfig, StreamConfig
from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.rules.route_checks import Located, on_route
from poolctl.config.rules.routes import Known, written_routes
from poolctl.config.values.problems import Finding

_TAKE_OUT = "take it out, or let poolctl's own gateway serve"
# Keys of routes; the last key of each path may be a table.
KEYS_OF_ROUTES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("waiting_page",), "HAProxy shows no waiting page: its clients wait"),
    (("probe_responses",), "HAProxy does not answer probes for a sleeping server"),
    (("context_headers",), "HAProxy does not send the route's context"),
    (("max_body_size",), "HAProxy does not limit the size of bodies"),
    (("timeouts", "total"), "HAProxy has no limit for a whole request"),
    (("breaker", "statuses"), "HAProxy's breaker counts connections that fail, and no answers"),
    (("limit", "queue"), "HAProxy has queues for backends, not for routes"),
    (("limit", "burst"), "HAProxy has no bursts: it counts the requests of the last second"),
    (("limit", "per_client", "burst"), "HAProxy has no bursts: it counts the requests of the last second"),
    (("backend_limit", "requests_per_second"), "HAProxy does not limit the rate of requests to one backend"),
)


def haproxy_problems(servers: Iterable[ServerKeys], tables: Tables) -> Iterator[Located]:
    """Features that these servers and tables ask of the gateway, and that HAProxy does not support."""
    if tables.gateway is None:
        return
    for finding in _of_gateway(tables.gateway):
        yield None, finding
    if tables.operator is not None and tables.operator.url is not None:
        yield None, Finding(("operator", "url"), "HAProxy informs no operator of requests", _TAKE_OUT)
    for each in written_routes(Known(servers), tables):
        for finding in _of_route(each.config) if each.config and not each.reason else ():
            yield on_route(each, finding)
    for stream in tables.streams:
        for finding in _of_stream(stream):
            yield None, finding


def _of_gateway(gateway: GatewayConfig) -> Iterator[Finding]:
    if gateway.access_log:
        yield Finding(("gateway", "access_log"), "HAProxy does not write this log", _TAKE_OUT)
    for index, listener in enumerate(gateway.bind):
        place = ("gateway", "bind", index, "tls")
        if listener.tls is True:
            message = "HAProxy terminates TLS, and passes no connections: it needs a certificate"
            yield Finding(place, message, "write tls = { cert = …, key = … }")
        for number, tls in enumerate(() if isinstance(listener.tls, bool) else listener.tls):
            if tls.password_env:
                message = "HAProxy cannot read a key with a password at the start of a pool"
                yield Finding(
                    (*place, number, "password_env"), message, "store the key without one, mode 0600"
                )


def _of_route(route: RouteConfig) -> Iterator[Finding]:
    if route.mode == "pass":
        message = 'mode = "pass", and HAProxy proxies every connection'
        yield Finding(("mode",), message, 'write mode = "auto"')
    for path, message in KEYS_OF_ROUTES:
        value: object = route
        for key in path:
            value = getattr(value, key)
        if value:
            yield Finding(path, message, _TAKE_OUT)


def _of_stream(stream: StreamConfig) -> Iterator[Finding]:
    place = ("stream", stream.index)
    if stream.protocol == "udp":
        yield Finding((*place, "protocol"), "HAProxy has no streams of UDP", _TAKE_OUT)
    if stream.timeouts.total:
        message = "HAProxy has no limit for a whole connection"
        yield Finding((*place, "timeouts", "total"), message, _TAKE_OUT)
