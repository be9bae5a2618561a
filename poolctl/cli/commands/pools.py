"""`poolctl pools`: lists this user's pools that have a supervisor, wherever their files are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import SimpleNamespace

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.render import count_ready_and_expected, relative_to_cwd, table
from poolctl.control import pool_paths
from poolctl.control.answers import StatusResult
from poolctl.control.client import Client, NoSupervisor
from poolctl.errors import ControlError
from poolctl.json_form import to_json

ANSWER_SECONDS = 2.0

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningPool:
    """One pool. If its supervisor does not answer, `servers` and `ready` are None and `message` says why."""

    name: str
    files: tuple[str, ...]
    pid: int | None
    keeper_pid: int | None
    version: str
    directory: str
    servers: int | None
    ready: int | None
    message: str | None = None


@app.command(cls=PoolCommand)
@with_options
def pools(place: Place, output: Form = None) -> Outcome:
    """List this user's running pools, wherever their files are."""
    running = [
        pool
        for path in pool_paths.existing_pool_directories(os.environ)
        if (pool := _query_pool(path)) is not None
    ]
    outcome = Outcome([pool for pool, _ in running])
    if not running and output not in ("json", "jsonl"):
        outcome.notes.append("no pool of this user is running")
    if output in (None, "table", "wide"):
        rows = [
            SimpleNamespace(
                name=pool.name, pid=pool.pid, ready=ready, files=" ".join(map(relative_to_cwd, pool.files))
            )
            for pool, ready in running
        ]
        outcome.text = table(rows, ("name", "pid", "ready", "files"))
    return outcome


def _query_pool(path: str) -> tuple[RunningPool, str] | None:
    """The pool in this directory, and a text with its ready and expected servers, `2/3`; None if no supervisor listens.

    If the supervisor does not answer, the pool is read from its info file, and the text is `?`.
    """
    client = Client(f"{path}/{pool_paths.SOCKET_NAME}", silence_seconds=ANSWER_SECONDS)
    info = pool_paths.read_info(path)
    servers = ready = message = None
    counted = "?"
    try:
        result = client.ask(StatusResult, "status", timeout=0.0)
        servers, ready = len(result.items), sum(item.ready for item in result.items)
        counted = "/".join(map(str, count_ready_and_expected(result.items)))
        info |= to_json(result, "summary").get("summary") or {}
    except NoSupervisor:
        return None
    except ControlError as silent:
        message = silent.message
    pool = RunningPool(
        name=info.get("name") or "",
        files=tuple(info.get("files") or ()),
        pid=info.get("supervisor_pid"),
        keeper_pid=info.get("keeper_pid"),
        version=info.get("version") or "",
        directory=path,
        servers=servers,
        ready=ready,
        message=message,
    )
    return pool, counted
