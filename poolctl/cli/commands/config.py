"""`poolctl config`: prints the effective configuration, with files merged and defaults filled in, or its schema."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.offline import choose, described, load, servers_with_chosen_ports
from poolctl.cli.options import FORMATS, Reveal, Selection, examples, forms, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.supervisor_requests import Request, ask
from poolctl.config import MASK, escaped, masked, server_table, table_text, values_to_mask
from poolctl.control.server_answers import ServerDescription
from poolctl.errors import ControlError
from poolctl.json_form import Table

# Fields that are not part of the configuration.
STATE = ("state", "ready", "health", "pids", "uptime_seconds", "restarts")

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples("poolctl config users -o toml", "poolctl config --schema > pool.schema.json"),
)
@with_options
def config(
    place: Place,
    selection: Selection,
    output: Annotated[
        str | None, forms("toml", *FORMATS, help="toml (default), table, wide, json, jsonl, name, FIELD…")
    ] = None,
    reveal: Reveal = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the files instead, for editors.")
    ] = False,
) -> Outcome:
    """Print the effective configuration."""
    if schema:
        from poolctl.config import json_schema

        schema_text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
        return Outcome(text=f"{schema_text}\n", is_file=True)
    pool = find_pool(place)
    loaded = load(pool, allow_empty=selection.allow_empty)
    servers = servers_with_chosen_ports(loaded, pool)
    items = [described(server, loaded) for server in servers]
    if (
        output not in (None, "toml") or selection.state or selection.health
    ):  # otherwise the state is not needed
        items = _with_running_state(items, pool)
    items = choose(items, selection)
    settings: Table = loaded.settings.to_dict()
    tables = loaded.tables.to_dict()
    note = ""
    if not reveal:
        hidden = values_to_mask(loaded.secret_variable_names, os.environ)
        items = [replace(item, config=masked(item.config, hidden=hidden)) for item in items]
        tables = masked(tables, hidden=hidden)
        shown = repr(([item.config for item in items], tables))
        note = f"# {MASK} stands for secrets, which --reveal shows\n" if MASK in shown else ""
    outcome = Outcome(items, warnings=[str(warning) for warning in loaded.warnings])
    if output in (None, "toml"):
        outcome.is_file = True
        limited = {server.name for server in servers if server.restart.is_limited}
        outcome.text = note + "\n".join(
            [
                table_text("[pool]", escaped(settings)),
                *(_table_as_toml(name, table) for name, table in tables.items()),
                *(
                    table_text("[[server]]", server_table(item.config, is_limited=item.name in limited))
                    for item in items
                ),
            ]
        )
    elif output == "json":
        outcome.extra = {"pool": settings, **tables}
    return outcome


def _table_as_toml(name: str, table: Table | list[Table]) -> str:
    """A table (`[name]`) or a list of tables (`[[name]]`) as TOML; URLs in a list keep their `${…}` references."""
    if not isinstance(table, list):
        return table_text(f"[{name}]", escaped(table))
    urls = [{"url": entry["url"]} if "${" in str(entry.get("url", "")) else {} for entry in table]
    return "\n".join(
        table_text(f"[[{name}]]", escaped(entry) | url) for entry, url in zip(table, urls, strict=True)
    )


def _with_running_state(items: list[ServerDescription], pool: PoolRef) -> list[ServerDescription]:
    """Return `items` with the state that the supervisor reports; unchanged if the supervisor does not answer."""
    try:
        running = {item.name: item for item in ask(Request("list"), pool).items}
    except ControlError:
        return items
    return [
        replace(item, **{key: getattr(running[item.name], key) for key in STATE})
        if item.name in running
        else item
        for item in items
    ]
