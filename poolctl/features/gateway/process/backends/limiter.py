"""Limits for a route, a backend or each client: requests in flight, requests per second, and a bounded queue."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from poolctl.routing.route import TrafficLimits

# While a backend's health is warn, it gets this share of its requests per second.
WARN_SHARE = 0.5
# Retry-After when only the end of a request in flight can make room.
_BUSY_RETRY_SECONDS = 1.0
# Rounding errors of the times of requests, far below the time between two of them.
_EPSILON_SECONDS = 1e-9
# Maximum number of clients. At the maximum, a new client replaces the client whose last request is longest ago.
MOST_CLIENTS = 32_768
# An IPv6 client has its own /64 network, and may use any address in it (RFC 6177).
_IPV6_CLIENT_BITS = 64


class RequestLimiter:
    """Limits the number of requests in flight, and the rate of requests with a burst.

    For the rate it stores a single number: the time at which the token bucket is full again (GCRA, as in redis-cell).
    This is exact and cheap. `limit` and `share` (the fraction of the rate to grant) may be replaced at any time.
    """

    def __init__(self, limit: TrafficLimits) -> None:
        self.limit = limit
        self.share = 1.0
        self.in_flight = 0
        self._full_at = float("-inf")

    def seconds_until_admission(self, now: float) -> float:
        """0 if a request may begin now, else the seconds until the next attempt (an estimate if `is_full`)."""
        if self.is_full:
            return _BUSY_RETRY_SECONDS
        rate = self.limit.requests_per_second * self.share
        if rate <= 0:
            return 0.0
        missing = self._full_at - (self.burst - 1) / rate - now
        return missing if missing > _EPSILON_SECONDS else 0.0

    @property
    def is_full(self) -> bool:
        """Whether the maximum number of requests is in flight."""
        return 0 < self.limit.concurrency <= self.in_flight

    @property
    def burst(self) -> float:
        """How many requests may begin at once: the limit's `burst` or, if 0, the requests of one second; at least 1."""
        limit = self.limit
        return max(1.0, float(limit.burst) if limit.burst > 0 else limit.requests_per_second * self.share)

    def count_admission(self, now: float) -> None:
        """Count a request that begins, after `seconds_until_admission` returned 0."""
        self.in_flight += 1
        rate = self.limit.requests_per_second * self.share
        if rate > 0:
            self._full_at = max(self._full_at, now) + 1 / rate

    def leave(self) -> None:
        """Count the end of a request."""
        self.in_flight -= 1


class ClientLimits:
    """The limiter of each client, by address; for IPv6 by 64-bit network.

    Clients of a Unix socket have no address, and no limit.
    """

    def __init__(self, limit: TrafficLimits, *, most: int = MOST_CLIENTS) -> None:
        self.limit = limit
        self._most = most
        self._limiters: OrderedDict[str, RequestLimiter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._limiters)

    def limiter(self, client: str) -> RequestLimiter | None:
        """The limiter of the client with this address; None for "", the address of clients of a Unix socket."""
        key = _key(client)
        if not key:
            return None
        found = self._limiters.get(key)
        if found is None:
            if len(self._limiters) >= self._most:
                self._limiters.popitem(last=False)  # its requests in flight keep using that limiter
            found = self._limiters[key] = RequestLimiter(self.limit)
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
