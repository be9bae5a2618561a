"""The limit of each client of a route."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from poolctl.routing.route import Limit

from .limiter import Limiter

# Maximum number of clients; the one without a request for the longest time makes room for another.
MOST_CLIENTS = 32_768
# A client of IPv6 has a network of its own, in which it may choose any address (RFC 6177).
_IPV6_CLIENT_BITS = 64


class ClientLimits:
    """The limiter of each client, by its address; of IPv6 by the network of 64 bits.

    Clients of a Unix socket have no address, and no limit.
    """

    def __init__(self, limit: Limit, *, most: int = MOST_CLIENTS) -> None:
        self.limit = limit
        self._most = most
        self._limiters: OrderedDict[str, Limiter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._limiters)

    def limiter(self, client: str) -> Limiter | None:
        """The limiter of the client with this address; None if it has no limit."""
        key = _key(client)
        if not key:
            return None
        found = self._limiters.get(key)
        if found is None:
            if len(self._limiters) >= self._most:
                self._limiters.popitem(last=False)  # its requests in flight keep using that limiter
            found = self._limiters[key] = Limiter(self.limit)
        else:
            self._limiters.move_to_end(key)
        return found


@lru_cache(maxsize=4096)
def _key(client: str) -> str:
    try:
        address = ip_address(client)
    except ValueError:
        return client
    if not isinstance(address, IPv6Address):
        return client
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{int(address) >> (128 - _IPV6_CLIENT_BITS):x}::"
