"""`poolctl undrain`: put drained servers back into rotation."""

from __future__ import annotations

from poolctl.cli.command import CHANGES, EXPLICIT_SELECTION, OUTPUT, SAVE, TIMEOUT, Command
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.live_change import change
from poolctl.cli.outcome import Outcome
from poolctl.cli.render import servers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolctl.control.answers import Item

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


def _report(items: Sequence[Item]) -> str:
    done = sum(item.ready for item in items)
    return f"{servers(done, len(items))} in rotation"
