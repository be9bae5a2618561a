"""Answers of a supervisor about its metrics and the health of its pool."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import Result
from poolctl.json_form import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsResult(Result):
    """The answer of `metrics`."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """The health of one route or server; see route_health.RouteHealth. What its depth does not show is left out.

    `kind` is "route" or "server"; the name of a server is followed by " (server)" if a route is called so. A latency
    that was not measured is null in JSON.
    """

    name: str
    kind: str
    status: str
    uptime_seconds: float | None = None
    latency_seconds: float | None = None
    detail: str | None = None

    def finish_json(self, table: Table) -> None:
        """See to_json."""
        if self.uptime_seconds is not None:
            table.setdefault("latency_seconds", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthResult(Result):
    """The answer of `health`."""

    items: tuple[HealthReport, ...] = ()  # type: ignore[assignment]
