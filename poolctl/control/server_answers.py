"""Answers of a supervisor about its servers: details, stacks, statistics, health and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import ErrorEntry, Item, Result
from poolctl.json_form import Table
from poolctl.runners.stack_report import WorkerStacks


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The last result of a worker's probe."""

    kind: str
    status: str
    message: str
    latency_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDetails:
    """One worker, as `show` reports it."""

    id: str
    pid: int | None
    phase: str
    health: str
    resting: bool
    probes: tuple[ProbeResult, ...]
    # Seconds since the epoch; missing for a worker that an earlier supervisor has started.
    placed_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOverrides:
    """The changes that commands have made to a server and that override its configuration; None if unchanged."""

    workers: int | None = None
    disabled: bool | None = None
    drained: bool | None = None
    added: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteToServer:
    """A route to the server; `protocol` is http or tcp. For tcp, `host` is the gateway's address."""

    alias: str
    protocol: str
    host: str
    path: str


@dataclass(frozen=True, kw_only=True)
class ServerDescription(Item):
    """A server with its effective configuration and the origin of each value. `routes` is None without a gateway."""

    config: Table
    origin: dict[str, str] | None
    routes: tuple[RouteToServer, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ServerDetails(ServerDescription):
    """A running server, as `show` reports it."""

    overrides: LiveOverrides
    endpoints: tuple[str, ...]
    generation: int
    worker_list: tuple[WorkerDetails, ...]
    complaint: str
    preload_problem: str
    certificate_expires: str | None
    failure: ErrorEntry | None
    # A WorkerStacks: the stacks of the last worker that hung or was not ready in time.
    stacks: Table | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowResult(Result):
    """The answer of `show`."""

    items: tuple[ServerDetails, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StacksResult(Result):
    """The answer of `stacks`: one item for each worker of the selected servers."""

    items: tuple[WorkerStacks, ...] = ()  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult(Result):
    """The answer of `exec`: how to run a command in place of the selected server; None unless one is selected."""

    spec: Table | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsHistory:
    """The statistics of a server in each past interval, oldest first; None for an unknown value."""

    interval_seconds: float
    requests_per_second: tuple[float | None, ...]
    latency_p99_seconds: tuple[float | None, ...]
    memory_bytes: tuple[int | None, ...]
    errors_per_second: tuple[float | None, ...] | None = None  # on request


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """The figures of one worker; `requests_total` and later fields are left out if the worker counts no requests."""

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
class ServerStats:
    """A server's statistics, summed over its workers; None means unknown. `counted`: whether requests are counted."""

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
class MeasuredServer(Item):
    """A server with its statistics."""

    stats: ServerStats


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsResult(Result):
    """The answer of `stats`."""

    items: tuple[MeasuredServer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAvailability:
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
class MonitoredServer(Item):
    """A server with its status and availability."""

    monitor: ServerAvailability


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorResult(Result):
    """The answer of `monitor`."""

    items: tuple[MonitoredServer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsResult(Result):
    """The answer of `metrics`."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReportItem:
    """The health of one route or server (see route_health), without fields that the requested depth leaves out.

    `kind` is "route" or "server". If a route and a server have the same name, the server's gets the suffix " (server)".
    A latency that was not measured is null in JSON.
    """

    name: str
    kind: str
    status: str
    uptime_seconds: float | None = None
    latency_seconds: float | None = None
    detail: str | None = None

    def finish_json(self, table: Table) -> None:
        """If the report has an uptime but no latency, set `latency_seconds` to null."""
        if self.uptime_seconds is not None:
            table.setdefault("latency_seconds", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthResult(Result):
    """The answer of `health`."""

    items: tuple[HealthReportItem, ...] = ()  # type: ignore[assignment]
