"""`poolctl list`: lists the selected servers, from the supervisor or else from the files."""

from __future__ import annotations

import sys

from poolctl.cli.command_line import FIELDS, OUTPUT, SELECTION, UPTIME, Command, CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import FIGURES, footer_of, terminal_width_or_zero
from poolctl.cli.supervisor_requests import selected

COMMAND = Command(
    "List servers.",
    SELECTION,
    OUTPUT,
    section="Look",
    fields=(*FIELDS, UPTIME, *FIGURES),
    examples=(
        "poolctl list -o wide",
        "poolctl list --state failed --state backoff -o name",
        "poolctl list -o json          for scripts; other commands take -o json too",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """The selected servers with their current state, from the supervisor; those in the files if none runs."""
    pool = find_pool(request)
    measured = request.output == "wide" or not {*FIGURES}.isdisjoint(request.output.split(","))
    result = selected(request, pool, measured=measured)
    outcome, gateway = Outcome.of(result, form="table"), result.gateway
    if not outcome.items and request.output not in ("json", "jsonl"):
        outcome.notes.append(
            "the pool has no servers" if request.selector().selects_all else "no server matches"
        )
    if gateway is not None:
        outcome.extra["gateway"] = gateway
        if sys.stdout.isatty():
            outcome.footer = footer_of(gateway, terminal_width_or_zero(sys.stdout))
    return outcome
