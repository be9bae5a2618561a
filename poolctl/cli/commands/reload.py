"""`poolctl reload`: applies the changes of the files to the running pool; --dry-run prints them."""

from __future__ import annotations

import sys
from time import time

from poolctl.cli.command_line import (
    ALLOW_EXPIRED,
    CALLER_ENV,
    WAIT_OPTIONS,
    WATCH,
    Command,
    CommandRequest,
    flag,
)
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.reload_plan import change_lines, plan_text
from poolctl.cli.render import coloured, relative_to_cwd, show
from poolctl.cli.supervisor_requests import ask_for
from poolctl.control.answers import ReloadResult
from poolctl.control.client import Client
from poolctl.exit_codes import INTERRUPTED

COMMAND = Command(
    "Apply the changed file: start, stop, restart what differs.",
    WAIT_OPTIONS,
    flag("--dry-run", "Print the difference, change nothing; exit 3 if there is one."),
    WATCH,
    CALLER_ENV,
    ALLOW_EXPIRED,
    section="Change",
    examples=(
        "poolctl reload --dry-run      print the changes; exit 3 if there are any",
        "poolctl reload                apply them",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Apply or, with --dry-run, print the changes of the files since the pool read them."""
    dry_run = bool(request.get("dry_run"))
    if request.get("watch") and dry_run:
        raise UsageError("--watch and --dry-run cannot be combined", hint="a dry run changes nothing")
    pool = find_pool(request)
    if request.get("watch"):
        return _watch(request, pool)
    result = ask_for(ReloadResult, request, pool, more={"dry_run": dry_run})
    outcome = Outcome.of(result, plan_text(result, coloured(sys.stdout), dry_run=dry_run))
    outcome.painted = True
    outcome.warnings += _started_with_other_files_warnings(request, pool)
    return outcome


def _started_with_other_files_warnings(request: CommandRequest, pool: PoolRef) -> list[str]:
    """Return a warning if several -c options are given and the pool's supervisor has read other files; otherwise []."""
    if len(request.get("config") or ()) < 2:
        return []
    files = Client(pool.socket).ping().files or pool.files
    if list(files) == pool.files:
        return []
    names = ", ".join(relative_to_cwd(file) for file in files)
    return [
        f"this pool was started with {names} and reloads those; to change its files, stop it and start it with others"
    ]


def _watch(request: CommandRequest, pool: PoolRef) -> Outcome:
    """Reload now and on every change, until Ctrl-C or the end of the pool."""
    from poolctl.cli.reload_on_change import PoolWatcher

    ended = Outcome(message="the pool has been stopped")

    def say(line: str) -> None:
        if not request.quiet:
            print(line, file=sys.stderr)

    try:
        for result in PoolWatcher(request, pool, say, time()).apply_changes(now=True):
            lines = change_lines(result, coloured(sys.stdout))
            outcome = Outcome.of(result, "\n".join(lines), form=request.output)
            outcome.painted = True
            outcome.quiet = request.quiet
            show(outcome)
            sys.stdout.flush()
    except KeyboardInterrupt:
        ended = Outcome(exit_code=INTERRUPTED)
    ended.streamed = bool(request.output)
    return ended
