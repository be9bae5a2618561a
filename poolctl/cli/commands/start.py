"""`poolctl start`: starts the selected servers and their dependencies, and a supervisor if needed."""

from __future__ import annotations

from poolctl.cli.command_line import NO_DEPS, SELECTION, WAIT_OPTIONS, Command, CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import address_lines, printable, ready_line, serves_line
from poolctl.cli.supervisor_requests import ask_or_launch, notify_systemd_of_keeper_pid

_RETRYING_STATES = ("starting", "backoff")
_MOST_NAMES = 3

COMMAND = Command(
    "Start servers; return when each is ready.",
    SELECTION,
    WAIT_OPTIONS,
    NO_DEPS,
    section="Lifecycle",
    examples=(
        "poolctl start                 everything",
        "poolctl start users 'api-*'   these, and their dependencies",
        "poolctl start --tag api --timeout 1m",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Start the selected servers; returns when each is ready or has failed, with the reason."""
    pool = find_pool(request)
    result = ask_or_launch(request, pool)
    if not result.ended:
        notify_systemd_of_keeper_pid(pool, ready=not result.exit_code)
    failed = {error.name for error in result.errors}
    found = address_lines(item for item in result.items if item.name not in failed)
    lines = [ready_line(result, waited=not request.get("no_wait")), *found]
    outcome = Outcome.of(result, "\n".join(filter(None, lines)))
    trying = [
        printable(each.name)
        for each in result.items
        if each.name in failed and each.state in _RETRYING_STATES
    ]
    if trying:
        listed, names = f"{len(trying)} servers", ""
        if len(trying) <= _MOST_NAMES:
            listed, names = ", ".join(trying), " " + " ".join(trying)
        outcome.notes.append(f"poolctl keeps trying to start {listed}; poolctl stop{names} ends that")
    if result.gateway is not None and result.items:
        outcome.message = f"{outcome.message}\n{serves_line(result.gateway)}".rstrip()
    return outcome
