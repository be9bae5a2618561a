"""`poolctl wait`: waits until the selected servers are ready, stopped, healthy, or in a given state."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic, sleep
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, Selection, Timeout, examples, one_of, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import server_count_text
from poolctl.cli.supervisor_requests import Request, ask
from poolctl.control.answers import Item, Result
from poolctl.control.client import NoSupervisor, SupervisorEnded
from poolctl.exit_codes import TIMED_OUT
from poolctl.states import State

# The interval at which a missing supervisor is looked for: one stat(2) each time.
POLL_SECONDS = 0.05

GOALS = ("ready", "stopped", "healthy", "running", *State)
app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples("poolctl wait users --for ready --timeout 30s", "poolctl wait --for stopped"),
)
@with_options
def wait(
    place: Place,
    selection: Selection,
    output: Form = None,
    timeout: Timeout = None,
    goal: Annotated[
        str,
        typer.Option("--for", metavar="GOAL", help="ready, stopped, healthy, or any state.", **one_of(GOALS)),
    ] = "ready",
) -> Outcome:
    """Wait until servers are ready, stopped, healthy, or in a state.

    While no supervisor runs it keeps trying; stopped is then satisfied at once. Exits with 124 after the timeout.
    """
    deadline = None if timeout is None else monotonic() + timeout
    pool = find_pool(place)
    selected: list[Item] | None = None
    while True:
        remaining = None if deadline is None else max(0.0, deadline - monotonic())
        try:
            result = ask(Request("wait", place, selection, {"for": goal}, remaining), pool)
        except SupervisorEnded:
            continue  # the next call shows whether there is a new supervisor
        except NoSupervisor:
            if selected is None:
                from poolctl.cli.offline import select_from_files

                selected = select_from_files(selection, pool) if pool.files else []
            if goal == "stopped":
                return Outcome(selected, message=f"{server_count_text(len(selected))} stopped")
            if remaining == 0:
                message = f"not {goal} in time: no supervisor is running for this pool"
                outcome = Outcome.failed(TIMED_OUT, message, "poolctl start")
                outcome.items = [*selected]
                return outcome
            sleep(POLL_SECONDS if remaining is None else min(POLL_SECONDS, remaining))
            continue
        return Outcome.of(result, "" if result.exit_code else _arrived_line(goal, result))


def _arrived_line(goal: str, result: Result) -> str:
    items: Sequence[Item] = result.items
    if goal in ("ready", "healthy", "running"):
        # The wait skips disabled servers and resting servers that start on demand.
        items = [item for item in items if item.state not in ("disabled", "stopped")]
    asleep = 0
    if goal in ("ready", "healthy"):
        asleep = sum(item.state == "sleeping" and not item.ready for item in items)
    line = f"{server_count_text(len(items) - asleep)} {goal}"
    return f"{line} ({asleep} sleeping)" if asleep else line
