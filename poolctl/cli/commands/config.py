"""`poolctl config`: prints the effective configuration, with files merged and defaults filled in, or its schema."""

from __future__ import annotations

import json
import os
from dataclasses import replace

from poolctl.cli.command_line import FORMATS, REVEAL, SELECTION, Command, CommandRequest, flag, output
from poolctl.cli.offline import choose, described, load, servers_with_chosen_ports
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.supervisor_requests import ask
from poolctl.config import MASK, escaped, masked, server_table, table_text, values_to_mask
from poolctl.errors import ControlError
from poolctl.json_form import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.control.server_answers import ServerDescription

# Fields that are not part of the configuration.
STATE = ("state", "ready", "health", "pids", "uptime_seconds", "restarts")

COMMAND = Command(
    "Print the effective configuration.",
    SELECTION,
    output("toml (default), table, wide, json, jsonl, name, FIELD…", "toml", *FORMATS),
    REVEAL,
    flag("--schema", "Print the JSON Schema of the files instead, for editors."),
    section="Files",
    examples=("poolctl config users -o toml", "poolctl config --schema > pool.schema.json"),
)


def perform(request: CommandRequest) -> Outcome:
    """The selected servers' configuration as TOML that can be loaded again, or as JSON; or the JSON Schema of files."""
    if request.get("schema"):
        from poolctl.config import json_schema

        return Outcome(text=json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
    pool = find_pool(request)
    config = load(pool, allow_empty=bool(request.get("allow_empty")))
    servers = servers_with_chosen_ports(config, pool)
    items = choose(_with_running_state([described(server) for server in servers], request, pool), request)
    settings: Table = config.settings.to_dict()
    tables = config.tables.to_dict()
    note = ""
    if not request.get("reveal"):
        hidden = values_to_mask(config.secret_variable_names, os.environ)
        items = [replace(each, config=masked(each.config, hidden=hidden)) for each in items]
        tables = masked(tables, hidden=hidden)
        shown = repr(([each.config for each in items], tables))
        note = f"# {MASK} stands for secrets, which --reveal shows\n" if MASK in shown else ""
    outcome = Outcome(items, warnings=[str(warning) for warning in config.warnings])
    if request.output in ("", "toml"):
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
    elif request.output == "json":
        outcome.extra = {"pool": settings, **tables}
    return outcome


def _table_as_toml(name: str, table: Table | list[Table]) -> str:
    """A table (`[name]`) or a list of tables (`[[name]]`) as TOML; URLs in a list keep their `${…}` references."""
    if not isinstance(table, list):
        return table_text(f"[{name}]", escaped(table))
    urls = [{"url": each["url"]} if "${" in str(each.get("url", "")) else {} for each in table]
    return "\n".join(
        table_text(f"[[{name}]]", escaped(each) | url) for each, url in zip(table, urls, strict=True)
    )


def _with_running_state(
    items: list[ServerDescription], request: CommandRequest, pool: PoolRef
) -> list[ServerDescription]:
    """Return `items` with the state that the supervisor reports; unchanged if the supervisor does not answer.

    The supervisor is not asked if the state has no use: for TOML output without the options --state and --health.
    """
    if request.output in ("", "toml") and not (request.get("state") or request.get("health")):
        return items
    try:
        running = {item.name: item for item in ask(CommandRequest("list", {}), pool).items}
    except ControlError:
        return items
    return [
        replace(item, **{key: getattr(running[item.name], key) for key in STATE})
        if item.name in running
        else item
        for item in items
    ]
