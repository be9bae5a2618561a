"""`poolctl health`: shows the health of servers and of the gateway's routes."""

from __future__ import annotations

from enum import StrEnum
from types import SimpleNamespace
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import examples, forms, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import latency, set_table_text
from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.control.server_answers import HealthReportItem, HealthResult
from poolctl.json_form import field_names
from poolctl.routing.route_health import FULL, SIMPLE, SUMMARY
from poolctl.units import format_duration

COLUMNS = {
    FULL: ("name", "kind", "status", "uptime", "latency", "detail"),
    SUMMARY: ("name", "kind", "status", "uptime", "latency"),
    SIMPLE: ("name", "kind", "status"),
}

app = typer.Typer(add_completion=False)


class Depth(StrEnum):
    """The level of detail of the report."""

    FULL = FULL
    SUMMARY = SUMMARY
    SIMPLE = SIMPLE


@app.command(cls=PoolCommand, epilog=examples("poolctl health --depth simple -o json"))
@with_options
def health(
    place: Place,
    depth: Annotated[
        Depth,
        typer.Option(
            "--depth", metavar="DEPTH", help="full, summary (without addresses and errors) or simple."
        ),
    ] = Depth.FULL,
    routes: Annotated[bool, typer.Option("--routes", help="The routes only.")] = False,
    output: Annotated[str | None, forms(fields=field_names(HealthReportItem))] = None,
) -> Outcome:
    """Show the health of the servers and the gateway's routes.

    Exit 3: a route does not serve, or a server that should run is not ready. A route is napping if the next request
    wakes it, error if it has failed for good, and unknown without an answer yet, or if it is stopped, disabled or
    drained on purpose.
    """
    options = {"depth": depth.value, "routes": routes}
    result = ask_for(HealthResult, Request("health", place, options=options), find_pool(place))
    names = (item.name for item in result.items)
    lines = [_health_row(item) for item in result.items]
    return set_table_text(Outcome.of(result), output, lines, COLUMNS[depth], names)


def _health_row(health: HealthReportItem) -> SimpleNamespace:
    return SimpleNamespace(
        name=health.name,
        kind=health.kind,
        status=health.status,
        uptime=format_duration(round(health.uptime_seconds)) if health.uptime_seconds else "",
        latency=latency(health.latency_seconds),
        detail=health.detail or "",
    )
