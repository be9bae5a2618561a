"""Decides from request head and peer whether a connection may be passed to a worker; used by gateway and workers."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ..http.messages import RequestHead
from .match import normal_host
from .normal_path import normalize_path
from .route import Route, passable
from .route_table import Match, RouteTable


def passable_match(head: RequestHead, table: RouteTable) -> Match | None:
    """The match of a request whose connection may be passed to the match's `servers`; None if the proxy must answer.

    The proxy must answer if no route matches, if the route needs the proxy, or if the path is invalid or has dot
    segments, which a worker might not resolve.
    """
    sent = "/" if head.path == b"*" else head.path.decode("ascii")
    path = normalize_path(sent)
    if path is None or not path.as_sent:
        return None
    # No headers: a match that depends on a header does not pass.
    match = table.find(normal_host(head.host.decode("ascii")), path.normal, head.method.decode("ascii"))
    return match if match is not None and match.passes else None


def can_pass_peer_to_worker(route: Route, peer: str, *, trusted: bool) -> bool:
    """Whether a connection from this peer may be passed to a worker of the route.

    True for a route without an `allow` list. Otherwise the peer must be in the list and not be a `trusted` proxy, which
    forwards requests of many clients. The gateway keeps all other connections, and checks the client of each request.
    """
    return not route.allow or (not trusted and is_within(peer, route.allow))


def passable_tls_host_match(host: str, table: RouteTable) -> Match | None:
    """The match for a TLS connection to this host, if all requests for the host go to the same servers; else None."""
    match = table.find(normal_host(host), "/", secure=True)
    return match if match is not None and match.whole_host and passable(match.route, tls=True) else None


# In place of a network: every peer; the peers on Unix sockets, which have no address.
EVERY, UNIX_PEERS = "*", "unix"


@lru_cache(maxsize=4096)
def is_within(address: str, networks: tuple[str, ...]) -> bool:
    """Whether the address is in one of the networks. "*" contains every address; the address "" is in no network."""
    try:
        given = ip_address(address)
    except ValueError:
        return False
    if isinstance(given, IPv6Address):
        given = given.ipv4_mapped or given
    return EVERY in networks or any(given in _network(each) for each in networks if each != UNIX_PEERS)


@lru_cache(maxsize=1024)
def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text, strict=False)
