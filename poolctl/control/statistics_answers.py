"""Answers of a supervisor about the statistics of its servers."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import Item, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsHistory:
    """Samples at each interval, oldest first; None where the figure is unknown (see Stats)."""

    interval_seconds: float
    requests_per_second: tuple[float | None, ...]
    latency_p99_seconds: tuple[float | None, ...]
    memory_bytes: tuple[int | None, ...]
    errors_per_second: tuple[float | None, ...] | None = None  # on request


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """The figures of one worker; the figures that workers count are left out if it counts none (see Stats)."""

    id: str
    pid: int | None
    phase: str
    memory_bytes: int | None
    cpu_percent: float | None
    loop_lag_seconds: float | None
    requests_total: int | None = None
    errors_total: int | None = None
    in_flight: int | None = None
    connections: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The figures of a server over all its workers, None if unknown; `counted` is False for programs."""

    requests_total: int | None
    requests_per_second: float | None
    responses_total: dict[str, int] | None
    errors_total: int | None
    disconnects_total: int | None
    in_flight: int | None
    connections: int | None
    connections_total: int | None
    websockets: int | None
    latency_p50_seconds: float | None
    latency_p99_seconds: float | None
    memory_bytes: int | None
    cpu_percent: float | None
    loop_lag_seconds: float | None
    wakes_total: int
    restarts_total: int
    counted: bool
    history: StatsHistory
    workers: tuple[WorkerStats, ...]
    errors_per_second: float | None = None  # on request


@dataclass(frozen=True, kw_only=True)
class Measured(Item):
    """A server with its figures."""

    stats: Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsResult(Result):
    """The answer of `stats`."""

    items: tuple[Measured, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The status and availability of a server, as Pool.monitor reports them."""

    status: str
    latency_seconds: float | None
    uptime_seconds: float
    downtime_seconds: float
    rise_seconds: float
    fall_seconds: float
    rises: int
    falls: int
    sli: float | None
    message: str


@dataclass(frozen=True, kw_only=True)
class Monitored(Item):
    """A server with its snapshot."""

    monitor: Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorResult(Result):
    """The answer of `monitor`."""

    items: tuple[Monitored, ...] = ()
