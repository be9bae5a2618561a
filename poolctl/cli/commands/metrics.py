"""`poolctl metrics`: prints the pool's metrics in the format of Prometheus."""

from __future__ import annotations

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, Selection, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.control.server_answers import MetricsResult, StatsResult

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand)
@with_options
def metrics(
    place: Place,
    selection: Selection,
    output: Form = None,
) -> Outcome:
    """Print the pool's metrics for Prometheus."""
    pool = find_pool(place)
    if output:
        return Outcome.of(ask_for(StatsResult, Request("stats", place, selection, command="metrics"), pool))
    result = ask_for(MetricsResult, Request("metrics", place, selection), pool)
    return Outcome.of(result, text=None if result.exit_code else result.text)
