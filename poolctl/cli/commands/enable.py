"""`poolctl enable`: enable servers and start them."""

from __future__ import annotations

from poolctl.cli.command import EXPLICIT_SELECTION, LIFECYCLE, SAVED_CHANGE, Command
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.live_change import change
from poolctl.cli.outcome import Outcome
from poolctl.cli.render import servers

COMMAND = Command(
    "Enable servers and start them.",
    EXPLICIT_SELECTION,
    SAVED_CHANGE,
    section=LIFECYCLE,
    examples=("poolctl enable --all          every disabled server",),
)


def perform(request: CommandRequest) -> Outcome:
    """Enable servers and start them."""
    return change(
        request,
        lambda items: f"{servers(len(items))} enabled, {sum(each.ready for each in items)} ready",
        lambda files, names: files.disable(names, False),
        dependents="started",
        works_offline=True,
    )
