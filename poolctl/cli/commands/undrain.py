"""`poolctl undrain`: put drained servers back into rotation."""

from __future__ import annotations

from poolctl.cli.changes.live_change import change
from poolctl.cli.command import CHANGES, EXPLICIT_SELECTION, OUTPUT, SAVE, TIMEOUT, Command
from poolctl.cli.command_request import CommandRequest
from poolctl.cli.outcome import Item, Outcome
from poolctl.cli.plural import servers

COMMAND = Command(
    "Put drained servers back into rotation.",
    EXPLICIT_SELECTION,
    OUTPUT,
    TIMEOUT,
    SAVE,
    section=CHANGES,
    examples=("poolctl undrain --all         every drained server",),
)


def perform(request: CommandRequest) -> Outcome:
    """Put drained servers back into rotation."""
    return change(request, _report)


def _report(items: list[Item]) -> str:
    done = sum(bool(item.get("ready")) for item in items)
    return f"{servers(done, len(items))} in rotation"
