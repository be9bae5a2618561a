"""`poolctl status`: prints the pool's state in one line, and its problems."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, Selection, examples, with_options
from poolctl.cli.outcome import Outcome, outcome_of
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import (
    AT_REST,
    count_ready_and_expected,
    duration,
    gateway_line,
    printable,
    server_count_text,
    stack_lines,
    terminal_width_or_zero,
)
from poolctl.cli.supervisor_requests import CRASH_LOOP, Request, ask_for
from poolctl.control.answers import Item, StatusResult, ended_text
from poolctl.control.client import NoSupervisor, SupervisorFailed
from poolctl.exit_codes import NOT_AS_DESIRED
from poolctl.json_form import Table
from poolctl.units import format_size

# Docker's HEALTHCHECK accepts only 0 and 1.
UNHEALTHY = 1

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand, epilog=examples("poolctl status && echo all is well"))
@with_options
def status(
    place: Place,
    selection: Selection,
    output: Form = None,
    healthcheck: Annotated[
        bool,
        typer.Option("--healthcheck", help="Exit with 1 instead of 3, as container health checks expect."),
    ] = False,
) -> Outcome:
    """Show whether every enabled server is ready (exit 0) or not (3).

    Exit 0: all servers that should run are ready; 3: not all, or no supervisor. A table that cannot be served, such as
    gateway or metrics, is a warning.
    """
    if not healthcheck:
        return _status(place, selection, output)
    try:
        outcome = _status(place, selection, output)
    except Exception as error:
        outcome = outcome_of(error) or Outcome.failed(UNHEALTHY, str(error))
    outcome.exit_code = min(outcome.exit_code, UNHEALTHY)
    return outcome


def _status(place: Place, selection: Selection, output: str | None) -> Outcome:
    pool = find_pool(place)
    try:
        result = ask_for(StatusResult, Request("status", place, selection), pool)
    except NoSupervisor:
        from poolctl.cli.offline import select_from_files, summary_of

        items = select_from_files(selection, pool)
        return Outcome(
            items,
            exit_code=NOT_AS_DESIRED,
            message=_no_supervisor_line(items, pool),
            extra={"summary": summary_of(items, pool)},
        )
    except SupervisorFailed as failed:
        return Outcome(
            exit_code=NOT_AS_DESIRED,
            message=failed.message,
            warnings=[failed.hint],
            extra={"summary": {"servers": 0, "ready": 0, "states": {}}},
        )
    outcome = Outcome.of(result)
    if result.summary is None:
        outcome.extra["summary"] = {"servers": 0, "ready": 0, "states": {}}
        return outcome
    summary = outcome.extra["summary"]
    outcome.message = "\n".join(_summary_lines(result.items, summary))
    if place.verbose and not output:
        outcome.message += "".join(f"\n    {line}" for line in _process_lines(summary))
        outcome.message += "".join(
            f"\n    {line}"
            for line in _stacks_of_hung(
                Request("show", place, selection, command="status"), pool, result.items
            )
        )
    if result.gateway is not None:
        outcome.extra["gateway"] = result.gateway
        outcome.message += f"\n{gateway_line(result.gateway, terminal_width_or_zero(sys.stdout))}"
    if summary.get("calm"):
        outcome.warnings.append(CRASH_LOOP)
    outcome.warnings += summary.get("not_served") or ()
    return outcome


def _process_lines(summary: Table) -> list[str]:
    """A line for each of the pool's own processes, with its pid and its memory."""
    rows = [
        (
            process["name"],
            f"pid {process['pid']}",
            format_size(process["memory_bytes"]) if process.get("memory_bytes") else "-",
        )
        for process in summary.get("processes") or ()
    ]
    names, pids = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    return [f"{name.ljust(names)}  {pid.ljust(pids)}  {memory}" for name, pid, memory in rows]


def _stacks_of_hung(request: Request, pool: PoolRef, items: Sequence[Item]) -> list[str]:
    """For each server that is not ready, the stacks of its last worker that hung or was not ready in time."""
    late = {item.name for item in items if not item.ready and item.state not in AT_REST}
    if not late:
        return []
    from poolctl.control.server_answers import ShowResult

    details = ask_for(ShowResult, request, pool).items
    return [
        line
        for detail in details
        if detail.name in late and detail.stacks
        for line in stack_lines(detail.stacks)
    ]


def _no_supervisor_line(items: Sequence[Item], pool: PoolRef) -> str:
    from poolctl.control.other_users import running_elsewhere
    from poolctl.runners.left_overs import left_over_text, left_overs

    if remains := left_overs(pool.directory):
        return f"no supervisor is running, {left_over_text(entry.label for entry in remains)}; `poolctl stop` ends them"
    if other := pool.files and running_elsewhere(pool.files[0]):
        return f"no supervisor is running for this user; {other} runs a pool of this file"
    return f"no supervisor is running, {server_count_text(len(items))} stopped"


def _summary_lines(items: Sequence[Item], summary: Table) -> list[str]:
    ended = [item for item in items if item.ended]
    resting = {
        state: sum(item.state == state and not item.ready and not item.ended for item in items)
        for state in AT_REST
    } | {"ended": len(ended)}
    words = [
        f"{server_count_text(*count_ready_and_expected(items))} ready",
        *(f"{n} {state}" for state, n in resting.items() if n),
    ]
    uptime = max((item.uptime_seconds for item in items), default=0)
    if uptime:
        words.append(f"up {duration(uptime)}")
    name = f"{summary['name']}: " if summary.get("name") else ""
    lines = [name + ", ".join(words)]
    not_ready = [item for item in items if not item.ready and item.state not in AT_REST]
    ended_by_default = [item for item in ended if not item.on_demand]
    width = max((len(item.name) for item in [*not_ready, *ended_by_default]), default=0)
    lines += [f"  {item.name.ljust(width)}  {item.state}" for item in not_ready]
    for item in ended_by_default:
        assert item.ended is not None
        why = ended_text(item.ended["status"], item.last_line or "", 'restart = "always" restarts it')
        lines.append(f"  {item.name.ljust(width)}  {printable(why)}")
    return lines
