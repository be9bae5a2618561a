"""`poolctl stop`: stops the selected servers; without a selection the supervisor as well."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from poolctl.cli.command_line import ENDED, NO_DEPS, SELECTION, WAIT_OPTIONS, Command, CommandRequest
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import abbreviated_list, dependents_text, server_count_text
from poolctl.cli.supervisor_requests import ask
from poolctl.control.answers import Item, Result
from poolctl.control.client import NoSupervisor, SupervisorFailed, wait_for_exit
from poolctl.errors import ControlError, PoolError
from poolctl.json_form import Table, from_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolctl.runners.local.takeover import LocalOrphan

_STOP_SECONDS = 10.0
_KILL_SECONDS = 5.0
_MOST_NAMES = 5
_ENDED: Table = {"state": "stopped", "ready": False, "health": "unknown", "pids": (), "uptime_seconds": 0.0}

COMMAND = Command(
    "Stop servers; without a selection the supervisor too.",
    SELECTION,
    WAIT_OPTIONS,
    NO_DEPS,
    section="Lifecycle",
    examples=(
        "poolctl stop                  everything, and the supervisor",
        "poolctl stop users            only this server and its dependents",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Stop the selected servers; returns when each has stopped or failed to stop, with the reason."""
    pool = find_pool(request)
    try:
        result = ask(request, pool)
    except NoSupervisor:
        return _stop_without_supervisor(request, pool)
    except SupervisorFailed as failed:
        if not request.selector().selects_all:
            raise
        # The keeper stops the servers by itself.
        os.kill(failed.keeper_pid, signal.SIGTERM)
        wait_for_exit(failed.keeper_pid)
        outcome = _stop_without_supervisor(request, pool)
        outcome.message = "the keeper has stopped all servers, and has ended"
        outcome.warnings.append(failed.message)
        return outcome
    if result.exit_code and not result.items:
        return Outcome.of(result)
    message = _stopped_line(result, waited=not request.get("no_wait"))
    with contextlib.suppress(ControlError):  # others can change the state directory: the next start says so
        if result.ended and os.path.isdir(pool.logs_directory):
            message += f"\nlogs: {pool.logs_directory}"
    return Outcome.of(result, message)


def _stopped_line(result: Result, *, waited: bool) -> str:
    """A message such as `2 servers stopped: users, orders`; omits servers that were neither running nor starting."""
    active = [item for item in result.items if item.name not in (result.unchanged or ())]
    if not (active or result.dependents):
        return "no server was running: the supervisor has ended" if result.ended else "nothing was running"
    stopped = [item.name for item in active if not waited or item.state in ENDED]
    line = f"{server_count_text(len(stopped), len(active))} {'stopped' if waited else 'stopping'}"
    names = abbreviated_list([*stopped, *(result.dependents or ())], _MOST_NAMES)
    return f"{line}{dependents_text(result)}{names and ': '}{names}"


def _from_files(
    request: CommandRequest, pool: PoolRef, otherwise: Sequence[Item]
) -> tuple[Sequence[Item], list[str]]:
    """Return the selected servers, as read from the files, and warnings.

    Invalid files must not prevent a stop of everything: without a selection, return `otherwise` and a warning. With a
    selection, raise the errors of `select_from_files`.
    """
    from poolctl.cli.offline import select_from_files, warning_of_unusable_files

    try:
        return select_from_files(request, pool), []
    except (Failure, PoolError) as failure:
        if request.selector().selects_all:
            return otherwise, [warning_of_unusable_files(failure, "servers that do not run are not listed")]
        raise


def _stop_without_supervisor(request: CommandRequest, pool: PoolRef) -> Outcome:
    """Stop selected servers whose workers still run; without a selection, all of them and the features' processes."""
    from poolctl.runners.local import has_orphans
    from poolctl.supervisor.launch import forget_servers_to_run, remove_stale_files

    if has_orphans(pool.directory):
        return _stop_orphans(request, pool)
    everything = request.selector().selects_all
    # Without a selection the servers are only printed with -o: no file has to be read.
    items, warnings = ([], []) if everything and not request.output else _from_files(request, pool, [])
    forget_servers_to_run(pool.directory, None if everything else {each.name for each in items})
    remove_stale_files(pool.directory)
    return Outcome(items, warnings=warnings, message="nothing is running")


def _stop_orphans(request: CommandRequest, pool: PoolRef) -> Outcome:
    # Apart from _without_supervisor, because this imports asyncio, and most pools leave nothing behind.
    from poolctl.feature import features
    from poolctl.runners.local import find_orphans
    from poolctl.supervisor.launch import forget_servers_to_run, remove_stale_files

    everything = request.selector().selects_all
    found = find_orphans(pool.directory)
    running = dict.fromkeys(str(each.said["server"]) for each in found)
    known = [from_json(Item, {"name": name}) for name in running if name]
    items, warnings = _from_files(request, pool, known)
    names = {each.name for each in items}
    forget_servers_to_run(pool.directory, None if everything else names)
    chosen = [each for each in found if everything or each.said["server"] in names]
    limit_seconds = request.seconds("timeout") or _STOP_SECONDS
    warnings += _stop_or_kill(chosen, limit_seconds)
    for orphan in found:
        orphan.close()
    # After the servers, which may still be answering requests that it forwards.
    others = []
    for feature in features() if everything else ():
        if (processes := feature.processes) is None:
            continue
        for pid, by_itself in feature.load(processes.end)(pool.directory, limit_seconds):
            others.append(processes.label)
            if not by_itself:
                warnings.append(f"{processes.label}: pid {pid} had to be killed")
    if everything:
        remove_stale_files(pool.directory)
    ended = {str(orphan.said["server"]) for orphan in chosen} - {""}
    items = [replace(each, **_ENDED) if each.name in ended else each for each in items]
    what = " and ".join([server_count_text(len(ended)), *dict.fromkeys(others)])
    message = f"{what} stopped, left over from a pool whose keeper and supervisor were killed"
    return Outcome(items, warnings=warnings, message=message)


def _stop_or_kill(chosen: list[LocalOrphan], limit_seconds: float) -> list[str]:
    """Ask the workers to stop, and kill those that exceed the limit; returns a warning for each killed one."""
    for orphan in chosen:
        orphan.ask_to_end()
    deadline = time.monotonic() + limit_seconds
    late = [each for each in chosen if not each.await_end(max(0.0, deadline - time.monotonic()))]
    for orphan in late:
        orphan.kill()
        orphan.await_end(_KILL_SECONDS)
    return [f"{each.said['server'] or 'unknown'}: pid {each.pid} had to be killed" for each in late]
