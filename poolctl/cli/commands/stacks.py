"""`poolctl stacks`: prints the current stacks of the workers' threads and tasks."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Selection, examples, forms, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import printable, styled
from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.control.server_answers import StacksResult
from poolctl.runners.stack_report import WorkerStacks

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand, epilog=examples("poolctl stacks users          where it hangs, the innermost call first")
)
@with_options
def show_stacks(
    place: Place,
    selection: Selection,
    output: Annotated[
        str | None, forms(fields=("name", "worker", "pid", "source", "problem", "place"))
    ] = None,
) -> Outcome:
    """Show what the threads and tasks of workers do now.

    The workers keep serving. A worker with a blocked event loop answers, too.
    """
    result = ask_for(StacksResult, Request("stacks", place, selection), find_pool(place))
    outcome = Outcome.of(result)
    if output in (None, "table", "wide") and not outcome.errors:
        outcome.text = "\n".join(_text(item) for item in result.items)
    elif output == "name":
        outcome.text = "".join(f"{printable(item.worker)}\n" for item in result.items)
    return outcome


def _text(stacks: WorkerStacks) -> str:
    pid = "" if stacks.pid is None else f" (pid {stacks.pid})"
    heading = f"{printable(stacks.worker)}{pid}"
    lines = [styled(heading, "bold", sys.stdout), *(f"  {printable(line)}" for line in stacks.lines())]
    return "\n".join(lines) + "\n"
