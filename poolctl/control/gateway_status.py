"""The part of an answer that describes the gateway."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStats:
    """What the gateway's process does; None is unknown.

    Passed requests are those that workers have served on connections from the gateway. A stream's connections count as
    proxied requests; refused ones may have had no route. Latencies are those of proxied requests, rates are those of
    the last seconds.
    """

    requests_total: int
    passed_total: int
    proxied_total: int
    refused_total: int
    errors_total: int
    requests_per_second: float | None
    errors_per_second: float | None
    latency_p50_seconds: float | None
    latency_p99_seconds: float | None
    connections: int | None
    memory_bytes: int | None
    cpu_percent: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """The gateway of a pool: `state` is running, starting or failed; `problem` describes any part not served.

    `addresses` are URLs, with tcp:// and udp:// for streams; `routes` does not count excluded ones. `stats` are left
    out where they were not asked for.
    """

    state: str
    problem: str = ""
    pid: int | None
    addresses: tuple[str, ...]
    routes: int
    uptime_seconds: float
    restarts: int
    stats: GatewayStats | None = None
