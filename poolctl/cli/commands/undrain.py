"""`poolctl undrain`: puts drained servers back into rotation."""

from __future__ import annotations

from poolctl.cli.command_line import EXPLICIT_SELECTION, OUTPUT, SAVE, TIMEOUT, Command, CommandRequest
from poolctl.cli.live_change import change
from poolctl.cli.outcome import Outcome
from poolctl.cli.render import servers
from poolctl.control.answers import Result

COMMAND = Command(
    "Put drained servers back into rotation.",
    EXPLICIT_SELECTION,
    OUTPUT,
    TIMEOUT,
    SAVE,
    section="Lifecycle",
    examples=("poolctl undrain --all         every drained server",),
)


def perform(request: CommandRequest) -> Outcome:
    """Put drained servers back into rotation."""
    return change(request, _undrained_line)


def _undrained_line(result: Result) -> str:
    return f"{servers(sum(each.ready for each in result.items), len(result.items))} in rotation"
