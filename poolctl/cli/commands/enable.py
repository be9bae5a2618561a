"""`poolctl enable`: enables servers and starts them."""

from __future__ import annotations

from poolctl.cli.command_line import EXPLICIT_SELECTION, SAVED_CHANGE, Command, CommandRequest
from poolctl.cli.live_change import change
from poolctl.cli.outcome import Outcome
from poolctl.cli.render import of_dependents, servers
from poolctl.control.answers import Item, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MOST_NAMES = 10  # maximum number of servers named in a suggested command

COMMAND = Command(
    "Enable servers and start them.",
    EXPLICIT_SELECTION,
    SAVED_CHANGE,
    section="Lifecycle",
    examples=("poolctl enable --all          every disabled server",),
)


def perform(request: CommandRequest) -> Outcome:
    """Enable servers and start them."""
    return change(
        request,
        lambda result: "\n".join(_lines(result)),
        lambda files, names: files.disable(names, False),
        works_offline=True,
    )


def _lines(result: Result) -> Iterator[str]:
    before, dependents = set(result.unchanged or ()), set(result.dependents or ())
    if enabled := [each for each in result.items if each.name not in before | dependents]:
        ready = f", {sum(each.ready for each in enabled)} ready"
        if all(each.state == "stopped" for each in enabled):
            ready = ""  # the pool has no supervisor
        yield f"{servers(len(enabled))} enabled{ready}{of_dependents(result, 'started')}"
    resting = [
        each
        for each in result.items
        if each.name in before and each.state in ("stopped", "failed") and not each.ready
    ]
    if others := sum(each.name in before for each in result.items) - len(resting):
        yield f"{servers(others)} enabled already"
    if resting:
        yield _start_them(resting)


def _start_them(resting: Sequence[Item]) -> str:
    """The note that these servers were already enabled, but are not running."""
    if len(resting) == 1:
        (one,) = resting
        return f"{one.name} is enabled already, and {one.state}: `poolctl start {one.name}` starts it"
    names = " ".join(each.name for each in resting) if len(resting) <= _MOST_NAMES else "NAME..."
    return f"{servers(len(resting))} enabled already, and not running: `poolctl start {names}` starts them"
