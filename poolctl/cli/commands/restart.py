"""`poolctl restart`: replaces the processes of the selected servers without refusing a connection."""

from __future__ import annotations

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import (
    CallerEnv,
    Form,
    NoDeps,
    Selection,
    Wait,
    caller_env,
    examples,
    with_options,
)
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import last_run_outcome_line, ready_line, server_count_text, still_running_text
from poolctl.cli.supervisor_requests import Request, ask_or_launch, notify_systemd_of_keeper_pid
from poolctl.control.answers import Result

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl restart --tag api     new processes are ready before old ones end",
        "poolctl restart --not users   all but this",
    ),
)
@with_options
def restart(
    place: Place,
    selection: Selection,
    wait: Wait,
    output: Form = None,
    no_deps: NoDeps = False,
    env: CallerEnv = False,
) -> Outcome:
    """Replace servers without refusing a connection."""
    pool = find_pool(place)
    options = {"wait": not wait.no_wait, "deps": not no_deps, **caller_env(env)}
    result = ask_or_launch(Request("restart", place, selection, options, wait.timeout), pool)
    if not result.ended:
        notify_systemd_of_keeper_pid(pool, ready=not result.exit_code)
    if result.errors:
        return Outcome.of(result, _restarted_line(result))
    return Outcome.of(result, _done_line(result, waited=not wait.no_wait))


def _done_line(result: Result, *, waited: bool) -> str:
    jobs = [item for item in result.items if item.next_run_at]
    skipped = result.unchanged or ()
    lines = []
    if len(jobs) < len(result.items) or not jobs:
        lines.append(ready_line(result, waited=waited, restarted=True))
    lines += [
        last_run_outcome_line(item) if waited and item.last_run else f"{item.name}: runs"
        for item in jobs
        if item.name not in skipped
    ]
    if any(item.name in skipped for item in jobs):
        lines.append("jobs with a schedule were left alone: poolctl restart NAME runs one")
    return "\n".join(lines)


def _restarted_line(result: Result) -> str:
    """A line such as `2 of 3 servers restarted; c still runs`, or "" without servers.

    Only replaced servers count: if a replacement failed, the old process is still ready.
    """
    failed = {error.name for error in result.errors}
    items = [item for item in result.items if item.name not in (result.unchanged or ())]
    restarted = [item for item in items if item.ready and item.name not in failed]
    line = f"{server_count_text(len(restarted), len(items))} restarted{still_running_text(result)}"
    return line if items else ""
