"""`poolctl filter`: lists servers with a field that equals a pattern, or contains a match of an expression."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Filters, Form, examples, with_options
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import field_text
from poolctl.cli.supervisor_requests import selected
from poolctl.control.answers import Item
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.selection.field_filter import Field, value_test
from poolctl.selection.selector import check_expressions, matching_values, select

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl filter name users     exact match, ignoring case",
        "poolctl filter bind --regex '^127\\.' --target expose",
    ),
)
@with_options
def filter_servers(
    place: Place,
    filters: Filters,
    field: Annotated[Field, typer.Argument(metavar="FIELD", help="name, bind or expose.")],
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="The field's exact value, ignoring case.")
    ] = None,
    output: Form = None,
    regex: Annotated[
        str | None,
        typer.Option("--regex", metavar="RE", help="Regular expression that the field must match."),
    ] = None,
    target: Annotated[
        Field | None,
        typer.Option("--target", metavar="FIELD", help="Print this field of each match, one per line."),
    ] = None,
) -> Outcome:
    """List servers whose name, bind or expose matches a pattern."""
    if target is not None and output is not None:
        raise UsageError("--target and -o cannot be combined", hint=f"-o {target} prints that field too")
    if pattern is None and regex is None:
        hint = f"poolctl filter {field} PATTERN, or poolctl filter {field} --regex RE; poolctl list lists all servers"
        raise UsageError("filter: the pattern is missing", hint=hint)
    pattern, expressions = pattern or "", [] if regex is None else [regex]
    check_expressions("--regex", expressions)
    selector = replace(filters, invert=False, allow_empty=True).selector()
    whole = Filters(allow_empty=filters.allow_empty)
    servers = selected(place, whole, find_pool(place), command="filter").items
    candidates = select(servers, selector)
    matched = matching_values("--regex", expressions, {field_text(item, field) for item in candidates})
    matches = value_test(field, pattern, matched)
    items = [item for item in candidates if matches(field_text(item, field))]
    if filters.invert:
        items = [item for item in servers if item not in items]
    if not items and not filters.allow_empty:
        return Outcome.failed(
            NOTHING_MATCHED, f"no server's {field} matches", _suggestion(field, pattern, servers)
        )
    return Outcome(items, form=target or "table")


def _suggestion(field: str, pattern: str, items: Sequence[Item]) -> str:
    import difflib

    if "*" in pattern or "?" in pattern:
        by_expression = "PATTERN is the whole value; an expression needs --regex RE"
        if field == Field.NAME:
            return f"{by_expression}, and wildcards work in poolctl list {shlex.quote(pattern)}"
        return f"{by_expression}: poolctl filter {field} --regex RE"
    values = [field_text(item, field) for item in items]
    near = difflib.get_close_matches(pattern, values, n=1) if pattern else []
    return f"did you mean {near[0]!r}?" if near else "use --allow-empty to accept no match"
