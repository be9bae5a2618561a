"""`poolctl list`: lists the selected servers, from the supervisor or else from the files."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import FIELDS, UPTIME, Selection, examples, forms, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import FIGURES, footer_of, terminal_width_or_zero
from poolctl.cli.supervisor_requests import selected

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl list -o wide",
        "poolctl list --state failed --state backoff -o name",
        "poolctl list -o json          for scripts; other commands take -o json too",
    ),
)
@with_options
def list_servers(
    place: Place,
    selection: Selection,
    output: Annotated[str | None, forms(fields=(*FIELDS, UPTIME, *FIGURES))] = None,
) -> Outcome:
    """List servers."""
    pool = find_pool(place)
    measured = output == "wide" or not {*FIGURES}.isdisjoint((output or "").split(","))
    result = selected(place, selection, pool, command="list", measured=measured)
    outcome, gateway = Outcome.of(result, form="table"), result.gateway
    if not outcome.items and output not in ("json", "jsonl"):
        outcome.notes.append(
            "the pool has no servers" if selection.selector().selects_all else "no server matches"
        )
    if gateway is not None:
        outcome.extra["gateway"] = gateway
        if sys.stdout.isatty():
            outcome.footer = footer_of(gateway, terminal_width_or_zero(sys.stdout))
    return outcome
