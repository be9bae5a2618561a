"""Networks of addresses, as in `allow` and `trusted_proxies`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

EVERY = "*"
UNIX = "unix"  # as one of `trusted_proxies`: the peers of Unix sockets, which have no address


@lru_cache(maxsize=4096)
def is_within(address: str, networks: tuple[str, ...]) -> bool:
    """Whether the address is in one of the networks. "*" contains every address; the address "" is in no network."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    return EVERY in networks or any(ip in _network(network) for network in networks if network != UNIX)


def in_every_form(networks: Sequence[str]) -> list[str]:
    """Return the networks with cleared host bits, and each IPv4 network also in its IPv4-mapped IPv6 form.

    `192.0.2.0/24` also yields `::ffff:192.0.2.0/120` (RFC 4291 §2.5.5.2), which dual-stack sockets report. If "*" is
    among them, the result is only "*"; "unix" is kept.
    """
    if EVERY in networks:
        return [EVERY]
    forms = [network for network in networks if network == UNIX]
    for network in (_network(text) for text in networks if text != UNIX):
        forms.append(str(network))
        if isinstance(network, IPv4Network):
            forms.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return forms


@lru_cache(maxsize=1024)
def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text, strict=False)
