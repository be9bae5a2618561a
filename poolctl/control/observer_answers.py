"""Answers of a supervisor about its metrics and its dashboard."""

from __future__ import annotations

from poolctl.control.answers import Result
from poolctl.frozen_value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from poolctl.frozen_value import Table


class MetricsResult(Result):
    """Of `metrics`."""

    text: str


class HealthReport(Value):
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

    def to_json(self, *names: str) -> Table:
        """See Value."""
        table = super().to_json(*names)
        if self.uptime_seconds is not None and "latency_seconds" in (names or ("latency_seconds",)):
            table.setdefault("latency_seconds", None)
        return table


class HealthResult(Result):
    """Of `health`."""

    items: tuple[HealthReport, ...] = ()  # type: ignore[assignment]


class HistoryResult(Result):
    """Of `history`: for each figure its values in the ended slots, oldest first, None for unknown ones.

    There are `slots` of `slot_seconds` each, the last of them the present one.
    """

    slot_seconds: float
    slots: int
    series: Table


class DashboardLink(Value):
    """The address of the dashboard, and the token to log in with."""

    url: str
    token: str


class DashboardResult(Result):
    """Of `dashboard`."""

    PRINTED: ClassVar[tuple[str, ...]] = ("dashboard",)

    dashboard: DashboardLink | None = None
