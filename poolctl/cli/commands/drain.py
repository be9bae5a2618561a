"""`poolctl drain`: takes servers out of rotation."""

from __future__ import annotations

from poolctl.cli.command_line import EXPLICIT_SELECTION, OUTPUT, SAVE, TIMEOUT, Command, CommandRequest
from poolctl.cli.live_change import change
from poolctl.cli.outcome import Outcome
from poolctl.cli.render import servers
from poolctl.control.answers import Result

COMMAND = Command(
    "Take servers out of rotation; they keep answering.",
    EXPLICIT_SELECTION,
    OUTPUT,
    TIMEOUT,
    SAVE,
    section="Lifecycle",
    examples=("poolctl drain users           then: poolctl undrain users",),
)


def perform(request: CommandRequest) -> Outcome:
    """Take servers out of rotation."""
    return change(request, _drained_line)


def _drained_line(result: Result) -> str:
    drained = sum(each.state == "draining" for each in result.items)
    return f"{servers(drained, len(result.items))} out of rotation"
