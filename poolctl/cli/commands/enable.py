"""`poolctl enable`: enable servers and start them."""

from __future__ import annotations

from poolctl.cli.command import CHANGES, EXPLICIT_SELECTION, SAVED_CHANGE, Command
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.live_change import change
from poolctl.cli.outcome import Outcome
from poolctl.cli.render import servers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolctl.control.answers import Item

COMMAND = Command(
    "Enable servers and start them.",
    EXPLICIT_SELECTION,
    SAVED_CHANGE,
    section=CHANGES,
    examples=("poolctl enable --all          every disabled server",),
)


def perform(request: CommandRequest) -> Outcome:
    """Enable servers and start them."""
    return change(request, _report, lambda files, names: files.disable(names, False), works_offline=True)


def _report(items: Sequence[Item]) -> str:
    ready = sum(item.ready for item in items)
    return f"{servers(len(items))} enabled, {ready} ready"
