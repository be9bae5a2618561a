"""`poolctl reload`: applies the changes of the files to the running pool; --dry-run prints them."""

from __future__ import annotations

import sys
from dataclasses import replace
from time import time
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import (
    CallerEnv,
    Form,
    Selection,
    Wait,
    Watch,
    caller_env,
    examples,
    with_options,
)
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.reload_plan import change_lines, plan_text
from poolctl.cli.render import relative_to_cwd, show
from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.control.answers import ReloadResult
from poolctl.control.client import Client
from poolctl.exit_codes import INTERRUPTED

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl reload --dry-run      print the changes; exit 3 if there are any",
        "poolctl reload                apply them",
        "poolctl reload web            apply those of one server (or its reload_signal)",
    ),
)
@with_options
def reload(
    place: Place,
    selection: Selection,
    wait: Wait,
    output: Form = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the difference, change nothing; exit 3 if there is one.")
    ] = False,
    watch: Watch = False,
    env: CallerEnv = False,
) -> Outcome:
    """Apply the changed file: start, stop, restart what differs.

    A selection limits this to its servers. Those of them that are unchanged get their reload_signal.
    """
    if watch and not selection.selector().selects_all:
        raise UsageError("--watch and a selection cannot be combined", hint="--watch is about the whole pool")
    if watch and dry_run:
        raise UsageError("--watch and --dry-run cannot be combined", hint="a dry run changes nothing")
    pool = find_pool(place)
    options = {"wait": not wait.no_wait, **caller_env(env)}
    request = Request("reload", place, selection, options, wait.timeout)
    if watch:
        return _watch(request, pool, output)
    result = ask_for(ReloadResult, replace(request, options={**options, "dry_run": dry_run}), pool)
    outcome = Outcome.of(result, plan_text(result, sys.stdout, dry_run=dry_run))
    outcome.painted = True
    outcome.warnings += _started_with_other_files_warnings(place, pool)
    return outcome


def _started_with_other_files_warnings(place: Place, pool: PoolRef) -> list[str]:
    """Return a warning if several -c options are given and the pool's supervisor has read other files; otherwise []."""
    if len(place.config or ()) < 2:
        return []
    files = Client(pool.socket).ping().files or pool.files
    if list(files) == pool.files:
        return []
    names = ", ".join(relative_to_cwd(file) for file in files)
    return [
        f"this pool was started with {names} and reloads those; to change its files, stop it and start it with others"
    ]


def _watch(request: Request, pool: PoolRef, output: str | None) -> Outcome:
    """Reload now and on every change, until Ctrl-C or the end of the pool."""
    from poolctl.cli.reload_on_change import PoolWatcher

    ended = Outcome(message="the pool has been stopped")

    def say(line: str) -> None:
        if not request.place.quiet:
            print(line, file=sys.stderr)

    try:
        for result in PoolWatcher(request, pool, say, time()).apply_changes(now=True):
            lines = change_lines(result, sys.stdout)
            outcome = Outcome.of(result, "\n".join(lines), form=output or "")
            outcome.painted = True
            outcome.quiet = request.place.quiet
            show(outcome)
            sys.stdout.flush()
    except KeyboardInterrupt:
        ended = Outcome(exit_code=INTERRUPTED)
    ended.streamed = bool(output)
    return ended
