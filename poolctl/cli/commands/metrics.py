"""`poolctl metrics`: the figures of the pool as Prometheus reads them."""

from __future__ import annotations

from poolctl.cli.command import OBSERVE, OUTPUT, SELECTION, Command, flag
from poolctl.cli.command_request import CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.remote import ask

COMMAND = Command(
    "Print the pool's metrics for Prometheus.",
    SELECTION,
    OUTPUT,
    flag("openmetrics", "--openmetrics", help="Use the OpenMetrics format."),
    section=OBSERVE,
)


def perform(request: CommandRequest) -> Outcome:
    """The text; as JSON, the selected servers with their figures. Raises NoSupervisor."""
    pool = find_pool(request)
    if request.output:
        return ask(request, pool, "stats")
    outcome = ask(request, pool, more={"openmetrics": bool(request.get("openmetrics"))})
    outcome.items = []
    return outcome
