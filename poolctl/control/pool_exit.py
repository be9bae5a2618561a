"""Why a pool has ended without a command: a record for the `poolctl run` that waits for it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from poolctl.control.pool_paths import read_table
from poolctl.json_form import from_json, to_json

STATUS = "status.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolExit:
    """Why a pool has ended without a command, its exit status, and the process that exits last."""

    status: int
    reason: str
    keeper_pid: int


def write_exit(directory: str, end: PoolExit) -> None:
    """Record why the pool ends without a command, for a `poolctl run` that waits for it."""
    try:
        with open(f"{directory}/{STATUS}", "w", encoding="utf-8") as file:
            file.write(json.dumps(to_json(end)))
    except OSError:
        pass  # the log has it


def read_exit(directory: str) -> PoolExit | None:
    """The exit of a pool that ended without a command; None when a command ended it, or it still runs."""
    table = read_table(f"{directory}/{STATUS}")
    return from_json(PoolExit, table) if table else None


def clear_exit(directory: str) -> None:
    """Remove the record of an earlier pool: a new one starts."""
    try:
        os.unlink(f"{directory}/{STATUS}")
    except OSError:
        pass
