"""Answers of a supervisor about its gateway."""

from __future__ import annotations

from poolctl.control.answers import Result
from poolctl.routing.host_report import HostReport
from poolctl.routing.route import Route
from poolctl.routing.route_report import RouteReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class HostsResult(Result):
    """Of `hosts`, and of `host`, which changes some."""

    items: tuple[HostReport, ...] = ()  # type: ignore[assignment]


class RoutesResult(Result):
    """Of `routes`: every route, the excluded ones too. `generation` is that of the table in force, 0 for none."""

    PRINTED: ClassVar[tuple[str, ...]] = ("generation",)

    items: tuple[RouteReport, ...] = ()  # type: ignore[assignment]
    generation: int = 0


class CandidatesResult(Result):
    """Of `routes` with the operation "explain": the routes that a request may take, of `total` in the table."""

    generation: int = 0
    total: int = 0
    routes: tuple[Route, ...] = ()
