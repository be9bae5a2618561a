"""Whether a request may go to a worker with its connection, decided by its head alone: alike in gateway and worker."""

from __future__ import annotations

from typing import NamedTuple

from ..http.message_head import RequestHead, canonical_head
from .match import normal_host
from .networks import is_within
from .normal_path import read_path
from .route import Route, passable
from .route_table import Match, RouteTable

_MOST_KNOWN = 128
_LONGEST_KNOWN = 512  # in bytes; longer heads have cookies, and are seldom the same


class PassedRequest(NamedTuple):
    """A request that may be passed."""

    head: RequestHead
    match: Match


class PassedRequests:
    """`passed_match` for the first bytes of connections, of which most begin like others before: these are known."""

    def __init__(self) -> None:
        self._table: RouteTable | None = None
        self._known: dict[bytes, PassedRequest] = {}

    def find(self, data: bytes, table: RouteTable) -> PassedRequest | None:
        """The request with which these bytes begin; None if its head is not canonical, or it is not passed."""
        if table is not self._table:
            self._table = table
            self._known.clear()
        found = self._known.get(data)
        if found is None:
            head = canonical_head(data)
            match = None if head is None else passed_match(head, table)
            if head is None or match is None:
                return None
            found = PassedRequest(head, match)
            if len(data) <= _LONGEST_KNOWN:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[data] = found
        return found


def passed_match(head: RequestHead, table: RouteTable) -> Match | None:
    """The match of a request whose connection may be passed to any of `Match.servers`; None if the proxy answers it.

    The proxy answers a request without a route, on a route that needs the proxy, or with dot segments in its path,
    which a worker would see unchanged.
    """
    sent = "/" if head.path == b"*" else head.path.decode("ascii")
    path = read_path(sent)
    if path is None or not path.as_sent:
        return None
    # No headers: a match that depends on a header does not pass.
    match = table.find(normal_host(head.host.decode("ascii")), path.normal, head.method.decode("ascii"))
    return match if match is not None and match.passes else None


def admits(route: Route, peer: str, *, trusted: bool) -> bool:
    """Whether a connection of this peer may be passed on the route, as far as clients' addresses decide it.

    With `allow` that is certain of clients that come directly: a trusted proxy forwards requests of all kinds of
    clients, and the proxy answers clients that are not allowed.
    """
    return not route.allow or (not trusted and is_within(peer, route.allow))


def passed_host(host: str, table: RouteTable) -> Match | None:
    """The match of a host of which every request goes to the same servers: a TLS connection to it may be passed."""
    match = table.find(normal_host(host), "/", secure=True)
    return match if match is not None and match.whole_host and passable(match.route, tls=True) else None
