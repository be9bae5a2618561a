"""`poolctl health`: shows the health of servers and of the gateway's routes."""

from __future__ import annotations

from types import SimpleNamespace

from poolctl.cli.command_line import OUTPUT, Command, CommandRequest, Option, flag, validate_choice
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import latency, set_table_text
from poolctl.cli.supervisor_requests import ask_for
from poolctl.control.server_answers import HealthReportItem, HealthResult
from poolctl.json_form import field_names
from poolctl.routing.route_health import DEPTHS, FULL, SIMPLE, SUMMARY
from poolctl.units import format_duration

COLUMNS = {
    FULL: ("name", "kind", "status", "uptime", "latency", "detail"),
    SUMMARY: ("name", "kind", "status", "uptime", "latency"),
    SIMPLE: ("name", "kind", "status"),
}

COMMAND = Command(
    "Show the health of the servers and the gateway's routes.",
    Option(
        "--depth",
        "DEPTH",
        "full, summary (without addresses and errors) or simple. Default: full.",
        words=DEPTHS,
    ),
    flag("--routes", "The routes only."),
    OUTPUT,
    section="Look",
    fields=tuple(field_names(HealthReportItem)),
    examples=("poolctl health --depth simple -o json",),
    notes=(
        "Exit 3: a route does not serve, or a server that should run is not ready.",
        "napping: the next request wakes it; error: it has failed for good;",
        "unknown: no answer yet, or stopped, disabled or drained on purpose.",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Print the health of routes and servers. Raises NoSupervisor."""
    depth = validate_choice("--depth", request.get("depth") or FULL, DEPTHS)
    result = ask_for(
        HealthResult,
        request,
        find_pool(request),
        more={"depth": depth, "routes": bool(request.get("routes"))},
    )
    names = (each.name for each in result.items)
    lines = [_health_row(each) for each in result.items]
    return set_table_text(request, Outcome.of(result), lines, COLUMNS[depth], names)


def _health_row(health: HealthReportItem) -> SimpleNamespace:
    return SimpleNamespace(
        name=health.name,
        kind=health.kind,
        status=health.status,
        uptime=format_duration(round(health.uptime_seconds)) if health.uptime_seconds else "",
        latency=latency(health.latency_seconds),
        detail=health.detail or "",
    )
