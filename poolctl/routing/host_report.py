"""A host behind the gateway as `poolctl hosts` shows it."""

from __future__ import annotations

from ..frozen_value import Value


class HostReport(Value):
    """One host. `since` and `until` are times (ISO 8601, UTC), "" for none.

    `state` is active, disabled or draining, as it was ordered; `available` whether it gets requests now, and `why` the
    reason if it does not. `breaker` is "" before the first request. `connections` are those that the workers of a
    server have, and the gateway's own to any other host; `in_flight` are requests that it proxies, `waiting` those in
    the queues of its routes.
    """

    host: str
    routes: tuple[str, ...] = ()
    state: str = "active"
    since: str = ""
    until: str = ""
    available: bool = True
    why: str = ""
    breaker: str = ""
    connections: int = 0
    in_flight: int = 0
    waiting: int = 0
    requests: int = 0
    errors: int = 0
