"""The plan of a reload as lines for people."""

from __future__ import annotations

import sys

from poolctl.cli.plural import servers
from poolctl.cli.render import coloured, paint, printable
from poolctl.exit_codes import DONE, NOT_AS_DESIRED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from poolctl.cli.outcome import Outcome

# Sign, colour and the word of the summary, by the kind of a change; first what happens to processes.
KINDS = {
    "add": ("+", "32", "added"),
    "remove": ("-", "31", "removed"),
    "restart": ("~", "33", "restarted"),
    "update": ("=", "36", "updated in place"),
    "override": ("!", "35", "reset to the file"),
}


def change_lines(verb: str, outcome: Outcome) -> list[str]:
    """The outcome of a detected change: the plan of a reload, or `~ users: code`."""
    if verb == "reload":
        return plan_text(outcome).splitlines()
    return [f"~ {item.get('name')}: code" for item in outcome.items if item.get("ready")]


def plan_text(outcome: Outcome, *, dry_run: bool = False) -> str:
    """The plan, a line for each change, and its summary."""
    if outcome.exit_code not in (DONE, NOT_AS_DESIRED) and "changes" not in outcome.extra:
        return ""
    changes = outcome.extra.get("changes") or []
    lines = list(plan_lines(changes, coloured(sys.stdout)))
    if outcome.exit_code not in (DONE, NOT_AS_DESIRED):
        return "\n".join([*lines, "not everything could be applied"])
    return "\n".join([*lines, _summary(changes, dry_run=dry_run)])


def plan_lines(changes: Iterable[Mapping[str, Any]], colours: bool = False) -> Iterable[str]:
    """`+ orders 127.0.0.1:8082`, `~ users: env.A, app`: one line for each change."""
    for change in changes:
        sign, colour, _ = KINDS.get(str(change.get("change")), ("?", "0", ""))
        text = printable(f"{sign} {change.get('name')}{_detail(change)}")
        yield paint(text, colour) if colours else text


def _detail(change: Mapping[str, Any]) -> str:
    kind = change.get("change")
    if kind in ("add", "remove"):
        return f" {change.get('bind')}"
    if kind == "override":
        return f": {change.get('message') or 'a live change ends'}"
    keys = ", ".join(map(str, change.get("keys") or ()))
    return f": {keys or change.get('message') or 'changed'}"


def _summary(changes: Iterable[Mapping[str, Any]], *, dry_run: bool) -> str:
    counts: dict[str, int] = {}
    names = set()  # a server may have more than one of them
    for change in changes:
        kind = str(change.get("change"))
        counts[kind] = counts.get(kind, 0) + 1
        names.add(change.get("name"))
    if not counts:
        return "nothing to do" if dry_run else "nothing has changed"
    words = [f"{counts[kind]} {word}" for kind, (_, _, word) in KINDS.items() if kind in counts]
    would = f"{servers(len(names))} would change: " if dry_run else ""
    return would + ", ".join(words)
