"""Whether a request may go to a worker with its connection, decided by its head alone: alike in gateway and worker."""

from __future__ import annotations

from ..http.canonical_head import CanonicalHead
from .match import normal_host
from .normal_path import normal_path
from .route_table import Match, RouteTable


def passed_match(head: CanonicalHead, table: RouteTable) -> Match | None:
    """The match of a request whose connection may be passed to any of `Match.servers`; None if the proxy answers it.

    That is so without a route, on a route that needs the proxy, and for a path that is not in normal form: a worker
    would see it as it was sent.
    """
    path = "/" if head.path == b"*" else head.path.decode("ascii")
    if normal_path(path) != path:
        return None
    # Without headers: a match that depends on one does not pass.
    match = table.find(normal_host(head.host.decode("ascii")), path, head.method.decode("ascii"))
    return match if match is not None and match.passes else None


def passed_host(host: str, table: RouteTable) -> Match | None:
    """The match of a host of which every request goes to the same servers: a TLS connection to it may be passed."""
    match = table.find(normal_host(host), "/")
    if match is None or not match.passes or not match.whole_host or match.route.probe_responses:
        return None  # the gateway has to see each request
    return match
