"""`poolctl metrics`: prints the pool's metrics in the format of Prometheus."""

from __future__ import annotations

from poolctl.cli.command_line import OUTPUT, SELECTION, Command, CommandRequest, flag
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.supervisor_requests import ask_for
from poolctl.control.server_answers import MetricsResult, StatsResult

COMMAND = Command(
    "Print the pool's metrics for Prometheus.",
    SELECTION,
    OUTPUT,
    flag("--openmetrics", "Use the OpenMetrics format."),
    section="Look",
)


def perform(request: CommandRequest) -> Outcome:
    """The metrics as text; with -o json the selected servers with their figures. Raises NoSupervisor."""
    pool = find_pool(request)
    if request.output:
        return Outcome.of(ask_for(StatsResult, request, pool, "stats"))
    options = {"openmetrics": bool(request.get("openmetrics"))}
    result = ask_for(MetricsResult, request, pool, more=options)
    return Outcome.of(result, text=None if result.exit_code else result.text)
