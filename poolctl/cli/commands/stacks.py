"""`poolctl stacks`: prints the current stacks of the workers' threads and tasks."""

from __future__ import annotations

import sys

from poolctl.cli.command_line import OUTPUT, SELECTION, Command, CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import coloured, paint, printable
from poolctl.cli.supervisor_requests import ask_for
from poolctl.control.server_answers import StacksResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.runners.stack_report import WorkerStacks

COMMAND = Command(
    "Show what the threads and tasks of workers do now.",
    SELECTION,
    OUTPUT,
    section="Look",
    fields=("name", "worker", "pid", "source", "problem", "place"),
    notes=("The workers go on; one whose event loop hangs answers as well.",),
    examples=("poolctl stacks users          where it hangs, the innermost call first",),
)


def perform(request: CommandRequest) -> Outcome:
    """The supervisor's answer. Raises NoSupervisor."""
    result = ask_for(StacksResult, request, find_pool(request))
    outcome = Outcome.of(result)
    if request.output in ("", "table", "wide") and not outcome.errors:
        colours = coloured(sys.stdout)
        outcome.text = "\n".join(_text(each, colours) for each in result.items)
    elif request.output == "name":
        outcome.text = "".join(f"{printable(each.worker)}\n" for each in result.items)
    return outcome


def _text(stacks: WorkerStacks, colours: bool) -> str:
    head = f"{printable(stacks.worker)} (pid {stacks.pid})"
    lines = [paint(head, "1") if colours else head, *(f"  {printable(line)}" for line in stacks.lines())]
    return "\n".join(lines) + "\n"
