"""`poolctl upgrade`: upgrades a running pool to this version of poolctl without touching its servers."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from poolctl import __version__
from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, Selection, Timeout, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import server_count_text
from poolctl.cli.supervisor_requests import Progress, Request, ask
from poolctl.control.answers import Result
from poolctl.control.client import Client, SupervisorFailed

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand)
@with_options
def upgrade(
    place: Place,
    output: Form = None,
    timeout: Timeout = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Also replace the servers' workers, as restart does.")
    ] = False,
    same_version: Annotated[
        bool,
        typer.Option(
            "--allow-same-version", help="Replace keeper and supervisor even if they are of this build."
        ),
    ] = False,
) -> Outcome:
    """Upgrade a running pool to this version of poolctl."""
    pool = find_pool(place)
    client = Client(pool.socket)
    old = None
    with contextlib.suppress(SupervisorFailed):
        old = client.ping()
    with Progress("upgrade", quiet=place.quiet):
        upgraded = client.upgrade(force=False)
        same_build = not upgraded.exit_code and upgraded.upgraded_from is None
        if same_build and same_version:
            upgraded = client.upgrade(force=True)
    result: Result = upgraded
    if result.exit_code:
        return Outcome.of(result)
    if old is None:
        message = f"the pool, whose supervisor had failed, runs poolctl {__version__}"
    elif upgraded.upgraded_from is None:
        message = f"the pool already runs poolctl {old.version}"
        if not restart:
            return Outcome.of(
                result, f"{message}, this build; upgrade --allow-same-version replaces its processes"
            )
    elif same_build:
        message = f"poolctl {__version__}, the same build, in new processes"
    else:
        build = ", another build" if old.version == __version__ else ""
        message = f"poolctl {old.version} → {__version__}{build}"
    # A running job must not be started again.
    running = [item.name for item in result.items if item.pids and not item.bind.startswith("job:")]
    whose = "its" if len(running) == 1 else "their"
    effect = (
        f"{server_count_text(len(running))} kept {whose} workers; poolctl upgrade --restart replaces them"
    )
    if restart and running:
        result = ask(Request("restart", place, Selection(targets=running), timeout=timeout), pool)
        failed = {error.name for error in result.errors}
        effect = (
            f"{server_count_text(sum(name not in failed for name in running), of=len(running))} restarted"
        )
    return Outcome.of(result, f"{message}: {effect}")
