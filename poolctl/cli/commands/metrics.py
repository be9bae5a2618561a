"""`poolctl metrics`: the figures of the pool as Prometheus reads them."""

from __future__ import annotations

from poolctl.cli.command import OBSERVE, OUTPUT, SELECTION, Command, flag
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_place
from poolctl.cli.remote import ask
from poolctl.cli.request import Request

COMMAND = Command(
    "Print the pool's metrics for Prometheus.",
    SELECTION,
    OUTPUT,
    flag("openmetrics", "--openmetrics", help="Use the OpenMetrics format."),
    section=OBSERVE,
)


def perform(request: Request) -> Outcome:
    """The text; as JSON, the selected servers with their figures. Raises NoSupervisor."""
    place = find_place(request)
    if request.output:
        return ask(request, place, "stats")
    outcome = ask(request, place, more={"openmetrics": bool(request.get("openmetrics"))})
    outcome.items = []
    return outcome
