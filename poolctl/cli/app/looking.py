"""The commands that look at servers, or go through them: their options and their help."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import FILTERS, METRICS, OUTPUT, SELECTION, Perform, Reveal, command

_FIELD = typer.Option("--field", metavar="FIELD", help="Print this field of each server, one a line.")
_FILTER_FIELD = typer.Argument(metavar="FIELD", help="name, bind or expose.", show_default=False)
_FILTER_PATTERN = typer.Argument(
    metavar="PATTERN", help="Equals the field, ignoring case.", show_default=False
)
_REGEX = typer.Option("--regex", metavar="RE", help="Is found in the field.")
_TARGET = typer.Option("--target", metavar="FIELD", help="Print this field of each match, one a line.")
_HEALTHCHECK = typer.Option("--healthcheck", help="Exit with 1 instead of 3, as containers want it.")
_JOBS = typer.Option("-j", "--jobs", metavar="N", help="Run this many at once (default 1).")
_FAIL_FAST = typer.Option("--fail-fast", help="Start no other once one has failed.")


def add_commands(app: typer.Typer, perform: Perform) -> None:
    """Give `app` list, filter, walk, status, show, routes, dashboard, metrics and hosts."""
    field = (Annotated[str | None, _FIELD], None)
    command(app, "list", "List servers.", perform, SELECTION, OUTPUT, field=field)
    command(
        app,
        "filter",
        "List servers by a field: equal to a pattern, or with a match.",
        perform,
        OUTPUT,
        FILTERS,
        filter_field=(Annotated[str, _FILTER_FIELD], ...),
        pattern=(Annotated[str | None, _FILTER_PATTERN], None),
        regex=(Annotated[str | None, _REGEX], None),
        target=(Annotated[str | None, _TARGET], None),
    )
    command(
        app,
        "walk",
        "Run a command once for each server: walk [SELECTOR] -- CMD…",
        perform,
        SELECTION,
        OUTPUT,
        jobs=(Annotated[str | None, _JOBS], None),
        fail_fast=(Annotated[bool, _FAIL_FAST], False),
    )
    command(
        app,
        "status",
        "Say whether all that should run is ready (0) or not (3).",
        perform,
        SELECTION,
        OUTPUT,
        healthcheck=(Annotated[bool, _HEALTHCHECK], False),
    )
    command(app, "show", "Show everything about servers.", perform, SELECTION, OUTPUT, reveal=(Reveal, False))
    command(app, "routes", "List the gateway's routes.", perform, OUTPUT)
    command(app, "dashboard", "Print the link to the pool's page, token included.", perform, OUTPUT)
    command(app, "metrics", "Print the pool's metrics for Prometheus.", perform, SELECTION, OUTPUT, METRICS)
    command(app, "hosts", "List the gateway's backends and their breakers.", perform, OUTPUT)
