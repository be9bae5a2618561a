"""The changes that a reload makes, as printed lines: the plan, and its summary."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from poolctl.cli.render import coloured, paint, printable, servers
from poolctl.control.answers import PlannedChange, ReloadResult, Result
from poolctl.exit_codes import DONE, NOT_AS_DESIRED

# Sign, colour and the word of the summary, by the kind of a change; first what happens to processes.
KINDS = {
    "add": ("+", "32", "added"),
    "remove": ("-", "31", "removed"),
    "restart": ("~", "33", "restarted"),
    "update": ("=", "36", "updated in place"),
    "override": ("!", "35", "reset to the file"),
}


def change_lines(result: Result) -> list[str]:
    """The lines about a detected change: the plan of a reload, or `~ users: code`."""
    if isinstance(result, ReloadResult):
        return plan_text(result).splitlines()
    return [f"~ {item.name}: code" for item in result.items if item.ready]


def plan_text(result: ReloadResult, *, dry_run: bool = False) -> str:
    """The plan, a line for each change, and its summary."""
    if result.exit_code not in (DONE, NOT_AS_DESIRED) and result.changes is None:
        return ""
    changes = result.changes or ()
    lines = list(plan_lines(changes, coloured(sys.stdout)))
    if result.exit_code not in (DONE, NOT_AS_DESIRED):
        return "\n".join([*lines, "not everything could be applied"])
    return "\n".join([*lines, _summary(changes, dry_run=dry_run)])


def plan_lines(changes: Iterable[PlannedChange], colours: bool = False) -> Iterable[str]:
    """`+ orders 127.0.0.1:8082`, `~ users: env.A, app`: one line for each change."""
    for change in changes:
        sign, colour, _ = KINDS.get(change.change, ("?", "0", ""))
        text = printable(f"{sign} {change.name}{_detail(change)}")
        yield paint(text, colour) if colours else text


def _detail(change: PlannedChange) -> str:
    kind = change.change
    if kind in ("add", "remove"):
        return f" {change.bind}"
    if kind == "override":
        return f": {change.message or 'a live change ends'}"
    return f": {', '.join(change.keys) or change.message or 'changed'}"


def _summary(changes: Iterable[PlannedChange], *, dry_run: bool) -> str:
    counts: dict[str, int] = {}
    names = set()  # a server may have more than one of them
    for change in changes:
        counts[change.change] = counts.get(change.change, 0) + 1
        names.add(change.name)
    if not counts:
        return "nothing to do" if dry_run else "nothing has changed"
    words = [f"{counts[kind]} {word}" for kind, (_, _, word) in KINDS.items() if kind in counts]
    would = f"{servers(len(names))} would change: " if dry_run else ""
    return would + ", ".join(words)
