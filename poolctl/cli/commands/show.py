"""`poolctl show`: everything about the selected servers, with the origin of each value."""

from __future__ import annotations

from typing import Any

from poolctl.cli.command import INSPECT, OUTPUT, REVEAL, SELECTION, Command
from poolctl.cli.command_request import CommandRequest
from poolctl.cli.outcome import Failure, Item, Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.remote import ask
from poolctl.cli.render import coloured, duration, field_text, from_here, paint, printable
from poolctl.config import masked, value_text
from poolctl.control.client import NoSupervisor

_RUNNING = ("bind", "expose", "state", "ready", "health", "pids", "workers", "uptime", "restarts", "tags")
_DEFAULT = "default"

COMMAND = Command(
    "Show everything about servers.",
    SELECTION,
    OUTPUT,
    REVEAL,
    section=INSPECT,
    examples=("poolctl show users            each configured value with its origin",),
)


def perform(request: CommandRequest) -> Outcome:
    """The servers with what runs of them and what is configured."""
    pool = find_pool(request)
    try:
        outcome = ask(request, pool)
        if outcome.exit_code:
            raise Failure(outcome)
    except NoSupervisor:
        if not pool.files:
            raise
        from poolctl.cli.offline import described_from_files

        outcome = Outcome(described_from_files(request, pool))
    if not request.get("reveal"):
        # Also what an older supervisor says, or the files.
        outcome.items = [{**item, "config": masked(item.get("config"))} for item in outcome.items]
    if not request.output:
        import sys

        outcome.text = "\n".join(_text(item, coloured(sys.stdout)) for item in outcome.items)
    return outcome


def _text(item: Item, colours: bool) -> str:
    name = printable(str(item["name"]))
    lines = [paint(name, "1") if colours else name]
    rows = [(key, _fact(item, key)) for key in _RUNNING]
    if item.get("endpoints"):
        rows.append(("endpoints", field_text(item, "endpoints")))
    if item.get("preload_problem"):
        rows.append(("preload", f"has no effect: {printable(str(item['preload_problem']))}"))
    if item.get("complaint"):
        rows.append(("complaint", printable(str(item["complaint"]))))
    failure = item.get("failure")
    if isinstance(failure, dict):
        message = printable(str(failure.get("message", "")), keep_lines=True)
        rows.append(("failure", message.replace("\n", "\n" + " " * 13)))
    lines += [f"  {key.ljust(10)} {text}".rstrip() for key, text in rows]
    config = item.get("config")
    if isinstance(config, dict):
        lines += ["  configuration", *_configuration(config, item.get("origin") or {})]
    return "\n".join(lines) + "\n"


def _fact(item: Item, key: str) -> str:
    if key == "uptime":
        return duration(item.get("uptime_seconds") or None)
    return field_text(item, key) or "-"


def _configuration(config: dict[str, Any], origin: dict[str, str]) -> list[str]:
    rows = [
        (printable(key), printable(value_text(value)), _origin(key, origin)) for key, value in _leaves(config)
    ]
    width = max((len(f"{key} = {text}") for key, text, _ in rows if len(text) < 60), default=0)
    return [f"    {f'{key} = {text}'.ljust(width)}  # {where}" for key, text, where in rows]


def _leaves(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        elif value is not None and value != {}:
            found.append((prefix + key, value))
    return found


def _origin(key: str, origin: dict[str, str]) -> str:
    """The place of the value itself, or of the nearest table around it that is given as a whole."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        where = origin.get(".".join(parts[:end]))
        if where:
            return printable(from_here(str(where)))
    return _DEFAULT
