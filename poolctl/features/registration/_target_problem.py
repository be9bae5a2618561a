"""Where a registered service must not be: at an address of the pool's own, or where no service is.

A route would lead everyone who may use it there: to commands over the control socket, to the metrics, to the
credentials that cloud providers serve on link-local addresses, or in a circle.
"""

from __future__ import annotations

import contextlib
import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from poolctl.address import Address, parse
from poolctl.config import Tables, named_addresses
from poolctl.control.pool_paths import SOCKET_NAME

Ip = IPv4Address | IPv6Address

HINT = "name the service's own address"
# Names of this machine that a resolver may not know.
_LOOPBACK_NAMES = ("localhost", ".localhost", "ip6-localhost", "ip6-loopback")


def target_problem(url: str, tables: Tables) -> str:
    """Why no service may be registered at this URL; "" if one may. Blocks: a host name is resolved."""
    target = parse(url.rpartition("://")[2])
    if target.kind == "unix":
        return _socket_problem(url, target, tables)
    ips = addresses_of(target.host)
    for ip in ips:
        if ip.is_link_local:
            return f"{url} is a link-local address"
        if ip.is_multicast or ip.is_unspecified:
            return f"{url} is no address of a service"
    for name, own in named_addresses(tables):
        if own is not None and own.kind == "tcp" and own.port == target.port and _may_reach(target, ips, own):
            return f"{url} is an address of {_words(name)}"
    return ""


def addresses_of(host: str) -> list[Ip]:
    """The addresses of a host; empty for a name that cannot be resolved. Blocks."""
    with contextlib.suppress(ValueError):
        return [_plain(ip_address(host.partition("%")[0]))]
    if host.endswith(_LOOPBACK_NAMES):
        return [IPv4Address("127.0.0.1"), IPv6Address("::1")]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [_plain(ip_address(str(sockaddr[0]).partition("%")[0])) for *_, sockaddr in found]


def _plain(ip: Ip) -> Ip:
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def _may_reach(target: Address, ips: list[Ip], own: Address) -> bool:
    """Whether a connection to the target may reach this address of the pool itself, which has the same port."""
    if target.host == own.host:
        return True
    if own.is_wildcard:
        return any(map(_is_of_this_machine, ips))
    return not set(ips).isdisjoint(addresses_of(own.host))


def _is_of_this_machine(ip: Ip) -> bool:
    if ip.is_loopback:
        return True
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True


def _socket_problem(url: str, target: Address, tables: Tables) -> str:
    path = os.path.realpath(target.key.removeprefix("unix:"))
    # A directory with a control socket is a pool's runtime directory.
    if os.path.lexists(os.path.join(os.path.dirname(path), SOCKET_NAME)):
        return f"{url} is a socket of poolctl's own"
    for name, own in named_addresses(tables):
        if own is not None and own.kind == "unix" and _is_same(path, own.key.removeprefix("unix:")):
            return f"{url} is an address of {_words(name)}"
    return ""


def _is_same(path: str, other: str) -> bool:
    try:
        return os.path.realpath(other) == path or os.path.samefile(path, other)
    except OSError:
        return False


def _words(table: str) -> str:
    return "the gateway itself" if table == "[gateway]" else f"the pool's own {table}"
