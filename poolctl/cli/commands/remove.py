"""`poolctl remove`: stops servers, and removes them from the pool."""

from __future__ import annotations

from poolctl.cli.command_line import EXPLICIT_SELECTION, NO_DEPS, SAVED_CHANGE, Command, CommandRequest
from poolctl.cli.live_change import change
from poolctl.cli.outcome import Outcome

COMMAND = Command(
    "Stop servers, and take them out of the pool.",
    EXPLICIT_SELECTION,
    SAVED_CHANGE,
    NO_DEPS,
    section="Change",
    examples=("poolctl remove docs --save    from the running pool and from its file",),
)


def perform(request: CommandRequest) -> Outcome:
    """Stop the selected servers, and remove them from the pool."""
    return change(
        request,
        lambda result: "\n".join(f"removed {each.name} {each.bind}" for each in result.items),
        lambda files, names: files.remove(names),
        works_offline=True,
        removes=True,
    )
