"""`poolctl hosts`: the gateway's backends with their breakers."""

from __future__ import annotations

from poolctl.cli.command import INSPECT, OUTPUT, Command
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.supervisor_requests import gateway_table

COMMAND = Command("List the gateway's backends and their breakers.", OUTPUT, section=INSPECT)


def perform(request: CommandRequest) -> Outcome:
    """The supervisor's answer. Raises NoSupervisor."""
    return gateway_table(request, ("host", "state", "since", "until", "breaker", "why"))
