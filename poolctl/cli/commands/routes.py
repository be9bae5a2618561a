"""`poolctl routes` and `poolctl hosts`: the gateway's table, and its backends with their breakers."""

from __future__ import annotations

from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_place
from poolctl.cli.remote import ask
from poolctl.cli.request import Request

COLUMNS = {
    "routes": ("alias", "host", "path", "to", "policy", "state"),
    "hosts": ("host", "state", "since", "until", "breaker", "why"),
}


def perform(request: Request) -> Outcome:
    """What the supervisor answers; a table has its header also when it is empty. Raises NoSupervisor."""
    outcome = ask(request, find_place(request))
    if request.output in ("", "table", "wide") and not outcome.exit_code:
        outcome.text = "  ".join(COLUMNS[request.verb]).upper() + "\n"
    return outcome
