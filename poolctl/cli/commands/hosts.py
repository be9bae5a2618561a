"""`poolctl hosts`: the gateway's backends with their breakers."""

from __future__ import annotations

from poolctl.cli.command import INSPECT, OUTPUT, Command
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.remote import ask

COMMAND = Command("List the gateway's backends and their breakers.", OUTPUT, section=INSPECT)
COLUMNS = ("host", "state", "since", "until", "breaker", "why")


def perform(request: CommandRequest) -> Outcome:
    """The supervisor's answer; an empty table has its header too. Raises NoSupervisor."""
    result = ask(request, find_pool(request))
    as_table = request.output in ("", "table", "wide") and not result.exit_code
    return Outcome.of(result, text="  ".join(COLUMNS).upper() + "\n" if as_table else None)
