"""`poolctl disable`: stops servers, and keeps them stopped until they are enabled."""

from __future__ import annotations

from poolctl.cli.command_line import EXPLICIT_SELECTION, SAVED_CHANGE, Command, CommandRequest
from poolctl.cli.live_change import change
from poolctl.cli.outcome import Outcome
from poolctl.cli.render import of_dependents, servers
from poolctl.control.answers import Result

COMMAND = Command(
    "Stop servers, and keep them stopped until enabled.",
    EXPLICIT_SELECTION,
    SAVED_CHANGE,
    section="Lifecycle",
    examples=("poolctl disable users --save  also after the next start",),
)


def perform(request: CommandRequest) -> Outcome:
    """Stop servers, and keep them stopped until they are enabled."""
    return change(
        request,
        _disabled_line,
        lambda files, names: files.disable(names, True),
        works_offline=True,
    )


def _disabled_line(result: Result) -> str:
    disabled = sum(each.state == "disabled" for each in result.items)
    return f"{servers(disabled, len(result.items))} disabled{of_dependents(result, 'stopped')}"
