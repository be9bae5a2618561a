"""`poolctl scale`, `drain`, `undrain`, `enable`, `disable` and `remove`: live changes of the selected servers."""

from __future__ import annotations

from typing import Any

from poolctl.cli.counting import servers
from poolctl.cli.outcome import Item, Outcome, UsageError
from poolctl.cli.place import find_place
from poolctl.cli.remote import ask
from poolctl.cli.request import Request
from poolctl.config.normalise import MOST_WORKERS


def perform(request: Request) -> Outcome:
    """Change the selected servers; returns when the change has been made."""
    more: dict[str, Any] = {}
    if request.verb == "scale":
        request, more["workers"] = _scaled(request)
    outcome = ask(request, find_place(request), more=more)
    outcome.message = _line(request, outcome, more.get("workers", 0))
    return outcome


def _scaled(request: Request) -> tuple[Request, int]:
    """The request without its last word, which is the number. UsageError for what is none."""
    *targets, last = request.get("targets") or [""]
    if not last:
        raise UsageError("scale: how many workers?", hint="poolctl scale web 4")
    if not (last.isascii() and last.isdigit() and 1 <= int(last[:9]) <= MOST_WORKERS):
        hint = (
            "poolctl stop ends all of them"
            if last == "0"
            else "the last word is the number: poolctl scale web 4"
        )
        raise UsageError(f"scale: {last!r} is not a number from 1 to {MOST_WORKERS}", hint=hint)
    return Request("scale", {**request.values, "targets": targets}), int(last)


def _line(request: Request, outcome: Outcome, workers: int) -> str:
    items = outcome.items
    if not items:
        return "" if outcome.exit_code else "no server selected"
    if request.verb == "remove":
        return "\n".join(f"removed {item.get('name')} {item.get('bind')}" for item in items)
    if request.verb == "scale":
        return f"{servers(len(items))} scaled to {workers} worker{'s' * (workers > 1)}"
    if request.verb == "enable":
        return f"{servers(len(items))} enabled, {_count(items, 'ready')} ready"
    if request.verb == "disable":
        done = sum(item.get("state") == "disabled" for item in items)
        return f"{servers(done, len(items))} disabled"
    if request.verb == "drain":
        done = sum(item.get("state") == "draining" for item in items)
        return f"{servers(done, len(items))} out of rotation"
    return f"{servers(_count(items, 'ready'), len(items))} in rotation"


def _count(items: list[Item], key: str) -> int:
    return sum(bool(item.get(key)) for item in items)
