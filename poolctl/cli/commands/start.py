"""`poolctl start`: starts the selected servers and their dependencies, and a supervisor if needed."""

from __future__ import annotations

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, NoDeps, Selection, Wait, examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import address_lines, printable, ready_line, serves_line
from poolctl.cli.supervisor_requests import Request, ask_or_launch, notify_systemd_of_keeper_pid

_RETRYING_STATES = ("starting", "backoff")
_MAX_NAMES = 3

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl start                 everything",
        "poolctl start users 'api-*'   these, and their dependencies",
        "poolctl start --tag api --timeout 1m",
    ),
)
@with_options
def start(
    place: Place, selection: Selection, wait: Wait, output: Form = None, no_deps: NoDeps = False
) -> Outcome:
    """Start servers; return when each is ready."""
    pool = find_pool(place)
    options = {"wait": not wait.no_wait, "deps": not no_deps}
    result = ask_or_launch(Request("start", place, selection, options, wait.timeout), pool)
    if not result.ended:
        notify_systemd_of_keeper_pid(pool, ready=not result.exit_code)
    failed = {error.name for error in result.errors}
    addresses = address_lines(item for item in result.items if item.name not in failed)
    lines = [ready_line(result, waited=not wait.no_wait), *addresses]
    outcome = Outcome.of(result, "\n".join(filter(None, lines)))
    retrying = [
        printable(server.name)
        for server in result.items
        if server.name in failed and server.state in _RETRYING_STATES
    ]
    if retrying:
        listed, names = f"{len(retrying)} servers", ""
        if len(retrying) <= _MAX_NAMES:
            listed, names = ", ".join(retrying), " " + " ".join(retrying)
        outcome.notes.append(f"poolctl keeps trying to start {listed}; poolctl stop{names} ends that")
    if result.gateway is not None and result.items:
        outcome.message = f"{outcome.message}\n{serves_line(result.gateway)}".rstrip()
    return outcome
