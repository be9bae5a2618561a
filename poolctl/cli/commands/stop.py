"""`poolctl stop`: stops the selected servers; without a selection the supervisor as well."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Sequence

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, NoDeps, Selection, Wait, examples, with_options
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import abbreviated_list, dependents_text, server_count_text
from poolctl.cli.supervisor_requests import Request, ask
from poolctl.control.answers import Item, Result
from poolctl.control.client import NoSupervisor, SupervisorFailed, wait_for_exit
from poolctl.errors import ControlError, PoolError
from poolctl.states import ENDED

_MAX_NAMES = 5

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl stop                  everything, and the supervisor",
        "poolctl stop users            only this server and its dependents",
    ),
)
@with_options
def stop(
    place: Place, selection: Selection, wait: Wait, output: Form = None, no_deps: NoDeps = False
) -> Outcome:
    """Stop servers; without a selection the supervisor too."""
    pool = find_pool(place)
    options = {"wait": not wait.no_wait, "deps": not no_deps}
    try:
        result = ask(Request("stop", place, selection, options, wait.timeout), pool)
    except NoSupervisor:
        return _stop_without_supervisor(selection, pool, wait.timeout, listed=bool(output))
    except SupervisorFailed as failed:
        if not selection.selector().selects_all:
            raise
        # The keeper stops the servers by itself.
        os.kill(failed.keeper_pid, signal.SIGTERM)
        if not wait_for_exit(failed.keeper_pid):
            raise
        outcome = _stop_without_supervisor(selection, pool, wait.timeout, listed=bool(output))
        outcome.message = "the keeper has stopped all servers, and has ended"
        outcome.warnings.append(failed.message)
        return outcome
    if result.exit_code and not result.items:
        return Outcome.of(result)
    message = _stopped_line(result, waited=not wait.no_wait)
    left, warnings = _end_left_overs(pool, None, wait.timeout) if result.ended else ("", [])
    message = "\n".join(filter(None, (message, left)))
    with contextlib.suppress(ControlError):  # an unsafe state directory is reported by the next start
        if result.ended and os.path.isdir(pool.logs_directory):
            message += f"\nlogs: {pool.logs_directory}"
    outcome = Outcome.of(result, message)
    outcome.warnings += warnings
    return outcome


def _stopped_line(result: Result, *, waited: bool) -> str:
    """A message such as `2 servers stopped: users, orders`; omits servers that were neither running nor starting."""
    active = [item for item in result.items if item.name not in (result.unchanged or ())]
    if not (active or result.dependents):
        return "no server was running: the supervisor has ended" if result.ended else "nothing was running"
    stopped = [item.name for item in active if not waited or item.state in ENDED]
    line = f"{server_count_text(len(stopped), len(active))} {'stopped' if waited else 'stopping'}"
    names = abbreviated_list([*stopped, *(result.dependents or ())], _MAX_NAMES)
    return f"{line}{dependents_text(result)}{names and ': '}{names}"


def _from_files(selection: Selection, pool: PoolRef) -> tuple[Sequence[Item], list[str]]:
    """Return the selected servers, as read from the files, and warnings.

    Invalid files must not prevent a stop of everything: without a selection, return no servers and a warning. With a
    selection, raise the errors of `select_from_files`.
    """
    from poolctl.cli.offline import select_from_files, warning_of_unusable_files

    try:
        return select_from_files(selection, pool), []
    except (Failure, PoolError) as failure:
        if selection.selector().selects_all:
            return [], [warning_of_unusable_files(failure, "servers that do not run are not listed")]
        raise


def _stop_without_supervisor(
    selection: Selection, pool: PoolRef, timeout: float | None, *, listed: bool
) -> Outcome:
    """End the leftover processes of a killed pool: of the selected servers, or without a selection all."""
    from poolctl.supervisor.launch import forget_servers_to_run, remove_stale_files

    everything = selection.selector().selects_all
    # Without a selection the servers are only printed with -o: no file has to be read.
    items, warnings = ([], []) if everything and not listed else _from_files(selection, pool)
    names = None if everything else {item.name for item in items}
    forget_servers_to_run(pool.directory, names)
    message, more_warnings = _end_left_overs(pool, names, timeout)
    if everything:
        remove_stale_files(pool.directory)
    return Outcome(items, warnings=[*warnings, *more_warnings], message=message or "nothing is running")


def _end_left_overs(
    pool: PoolRef, names: Collection[str] | None, timeout: float | None
) -> tuple[str, list[str]]:
    """End a killed pool's processes of these servers, or all. Return a message ("" if there were none) and warnings.

    Blocks until all have ended.
    """
    from poolctl.control.pool_lock import user_locks
    from poolctl.keeper import pool_files

    if not os.path.exists(f"{pool.directory}/{pool_files.PROCESSES}") or user_locks().is_held(pool.directory):
        return "", []
    # Imported late, because most pools leave nothing behind.
    from poolctl.runners.left_overs import end_left_overs, forget_ended, left_over_text, left_overs

    left = [
        left_over for left_over in left_overs(pool.directory) if names is None or left_over.server in names
    ]
    ended = end_left_overs(left, limit_seconds=timeout)
    forget_ended(pool.directory)
    warnings = [warning for result in ended for warning in result.warnings]
    labels = [result.note.label for result in ended if result.is_ours]
    return f"{left_over_text(labels)}; ended" if labels else "", warnings
