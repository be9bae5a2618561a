"""Whether two addresses get in each other's way."""

from __future__ import annotations

from poolctl.address.address import Address

LOOPBACKS = frozenset({"127.0.0.1", "::1"})


def overlaps(a: Address, b: Address) -> bool:
    """Whether listeners on both addresses would get in each other's way.

    Host names other than localhost are not resolved: they overlap with themselves and with a wildcard.
    """
    if a.kind != b.kind or a.auto or b.auto:
        return False
    if a.key == b.key:
        return True
    if a.kind != "tcp" or a.port != b.port:
        return False
    return _covers(a, b) or _covers(b, a)


def _covers(a: Address, b: Address) -> bool:
    if a.host == "::" or a.dual:
        # [::] without V6ONLY takes IPv4 as well; `:8080` opens both families.
        return True
    if a.host == "0.0.0.0":
        return not b.is_ipv6 or b.host == "::"
    if a.host == "localhost":
        return b.host in LOOPBACKS
    if a.is_ipv6 and b.is_ipv6:
        a_bare, _, a_zone = a.host.partition("%")
        b_bare, _, b_zone = b.host.partition("%")
        return a_bare == b_bare and not (a_zone and b_zone)
    return False
