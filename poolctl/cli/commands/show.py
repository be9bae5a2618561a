"""`poolctl show`: prints all details of the selected servers, with the origin of each value."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, Reveal, Selection, examples, flags, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import (
    dependency_lines,
    field_text,
    is_rich,
    local_time,
    next_run,
    printable,
    relative_to_cwd,
    stack_lines,
    styled,
    window_end_text,
)
from poolctl.cli.supervisor_requests import Request, ask_or_read_files
from poolctl.config import masked, value_text
from poolctl.config.origins import DEFAULT, configured_values
from poolctl.control.server_answers import ServerDescription, ServerDetails
from poolctl.json_form import Table

_RUNNING = ("bind", "expose", "state", "ready", "health", "pids", "workers", "uptime", "restarts", "tags")
_CONTINUATION = "\n" + " " * 13
_WIDTH = 78  # the width of the line that lists the keys with default values

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl show users            each configured value with its origin",
        "poolctl show users --full     the defaults of the others, too",
    ),
)
@with_options
def show(
    place: Place,
    selection: Selection,
    output: Form = None,
    full: Annotated[bool, typer.Option("--full", help="Show values at their defaults as well.")] = False,
    reveal: Reveal = False,
) -> Outcome:
    """Show everything about servers."""
    items, answer = ask_or_read_files(
        Request("show", place, selection, flags(reveal=reveal)), find_pool(place)
    )
    if not reveal:
        items = [replace(item, config=masked(item.config)) for item in items]
    text = None
    if not output:
        servers = _with_dependencies(items, place) if is_rich(sys.stdout) else {}
        text = "\n".join(_text(item, servers, full=full) for item in items)
    outcome = Outcome(items, warnings=answer.warnings if answer else (), text=text)
    outcome.changed = answer.changed if answer else None
    return outcome


def _with_dependencies(items: Iterable[ServerDescription], place: Place) -> Mapping[str, ServerDescription]:
    """The servers by name, plus the whole pool if one of them depends on a server that was not selected."""
    servers = {item.name: item for item in items}
    if {entry["name"] for item in items for entry in item.config.get("depends_on") or ()} <= servers.keys():
        return servers
    return {item.name: item for item in ask_or_read_files(Request("show", place), find_pool(place))[0]}


def _text(item: ServerDescription, servers: Mapping[str, ServerDescription], *, full: bool) -> str:
    name = printable(item.name)
    lines = [styled(name, "bold", sys.stdout)]
    rows = [(key, field_text(item, key) or "-") for key in _RUNNING]
    if item.kept:
        rows.insert(_RUNNING.index("state") + 1, ("kept", f"{item.kept} {window_end_text(item)}".rstrip()))
    if item.flapping:
        rows.append(("flapping", "its workers die soon after they are ready"))
    if item.next_run_at:
        rows.append(("next run", next_run(item)))
    if item.last_run is not None:
        rows.append(("last run", _last_run(item.last_run)))
    if isinstance(item, ServerDetails):
        if item.endpoints:
            rows.append(("endpoints", field_text(item, "endpoints")))
        if item.preload_problem:
            rows.append(("preload", f"has no effect: {printable(item.preload_problem)}"))
        if item.complaint:
            rows.append(("complaint", printable(item.complaint)))
        if item.failure is not None:
            message = printable(item.failure.message, keep_lines=True).replace("\n", _CONTINUATION)
            rows.append(("failure", f"earlier: {message}" if item.ready else message))
        if item.stacks is not None:
            rows.append(("hung", _CONTINUATION.join(stack_lines(item.stacks))))
    if item.routes is not None:
        routes = [
            f"{route.alias}: {route.protocol}://{route.host or '*'}{route.path}" for route in item.routes
        ]
        rows.append(("routes", _CONTINUATION.join(map(printable, routes)) or "-"))
    lines += [f"  {key.ljust(10)} {text}".rstrip() for key, text in rows]
    if servers and item.config.get("depends_on"):
        lines += dependency_lines(item, servers)
    lines += ["  configuration", *_configuration(item.config, item.origin, full=full)]
    return "\n".join(lines) + "\n"


def _last_run(run: Table) -> str:
    """A run such as `failed: exited with status 3 (2026-11-22 03:00:00 to 03:00:02 CET)`, in local time."""
    began = local_time(run["started_at"], "%Y-%m-%d %H:%M:%S")
    same_day = local_time(run["ended_at"], "%Y-%m-%d") == began[:10]
    ended = local_time(run["ended_at"], "%H:%M:%S %Z" if same_day else "%Y-%m-%d %H:%M:%S %Z")
    what = run["result"] if run["result"] == "succeeded" else f"{run['result']}: {run['message']}"
    return f"{printable(what)} ({began} to {ended})"


def _configuration(config: Table, origin: Mapping[str, str] | None, *, full: bool) -> list[str]:
    """Return a line for each value, with its place in the files from `origin`. Without `full`, omit default values."""
    all_rows = [
        (printable(key), printable(value_text(value)), printable(relative_to_cwd(where)))
        for key, value, where in configured_values(config, origin)
    ]
    rows = all_rows if full else [row for row in all_rows if row[2] != DEFAULT]
    width = max((len(f"{key} = {text}") for key, text, _ in rows if len(text) < 60), default=0)
    lines = [
        f"    {f'{key} = {text}'.ljust(width)}  {where and f'# {where}'}".rstrip()
        for key, text, where in rows
    ]
    return (
        lines
        if full
        else [*lines, *_default_keys_comment(key for key, _, where in all_rows if where == DEFAULT)]
    )


def _default_keys_comment(keys: Iterable[str]) -> list[str]:
    """Comment lines that list the keys with default values; keys such as `env.A` appear as their table, `env`, once."""
    lines = ["    # at their defaults (shown by --full):"]
    for key in dict.fromkeys(key.partition(".")[0] for key in keys):
        if len(lines[-1]) + len(key) > _WIDTH:
            lines.append("    #")
        lines[-1] += f" {key}"
    return lines if len(lines) > 1 or not lines[0].endswith(":") else []
