"""Decides whether a pool has finished: its last server has ended by itself, and nothing can start one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poolctl.control.answers import Item
from poolctl.exit_codes import DONE, FAILED

# Processes of the pool that listen: a request to them may start a server.
_WITH_ADDRESS = {"gateway", "web"}


def has_finished(items: Sequence[Item], processes: Sequence[str]) -> bool:
    """Whether servers have run, none is running now, and nothing can start one.

    `processes` names the pool's own processes.
    """
    if _WITH_ADDRESS & set(processes) or any(map(_may_run, items)):
        return False
    return any(item.ended or item.state in ("completed", "failed") for item in items)


def status_of_servers(items: Sequence[Item], exits: Mapping[str, tuple[object, object]]) -> int:
    """The exit status of `run` when the pool has finished: 0, or the status of the first server that failed.

    `exits` has (status, signal) of the last worker of each server that ended by itself.
    """
    for item in items:
        if item.state == "failed":
            return status_of(*exits.get(item.name, (None, None)))
    return DONE


def status_of(status: object, number: object) -> int:
    """The exit status of a worker as in a shell: 128 + N after signal N; FAILED if unknown."""
    return 128 + number if isinstance(number, int) else status if isinstance(status, int) else FAILED


def _may_run(item: Item) -> bool:
    """Whether the server runs or may start. This includes a server that a command has stopped."""
    if item.on_demand or item.next_run_at:
        return True
    return not item.ended and item.state not in ("completed", "failed", "disabled")
