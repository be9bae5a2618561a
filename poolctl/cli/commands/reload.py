"""`poolctl reload`: the changed file takes effect, exactly the difference; --dry-run prints it."""

from __future__ import annotations

import sys

from poolctl.cli.command import (
    CALLER_ENV,
    CHANGES,
    FORCE_CERTIFICATES,
    NO_WAIT,
    OUTPUT,
    TIMEOUT,
    WATCH,
    Command,
    flag,
)
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.plural import servers
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.remote import ask
from poolctl.cli.render import coloured, from_here, paint, printable, show
from poolctl.control.client import Client
from poolctl.exit_codes import DONE, INTERRUPTED, NOT_AS_DESIRED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from poolctl.cli.command_request import CommandRequest
    from poolctl.cli.pool_ref import PoolRef

# Sign, colour and the word of the summary, by the kind of a change; first what happens to processes.
KINDS = {
    "add": ("+", "32", "added"),
    "remove": ("-", "31", "removed"),
    "restart": ("~", "33", "restarted"),
    "update": ("=", "36", "updated in place"),
    "override": ("!", "35", "reset to the file"),
}

COMMAND = Command(
    "Apply the changed file: start, stop, restart what differs.",
    OUTPUT,
    TIMEOUT,
    NO_WAIT,
    flag("dry_run", "--dry-run", help="Print the difference, change nothing; exit 3 if there is one."),
    WATCH,
    CALLER_ENV,
    FORCE_CERTIFICATES,
    section=CHANGES,
    examples=(
        "poolctl reload --dry-run      print the changes; exit 3 if there are any",
        "poolctl reload                apply them",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Apply the difference between what runs and what is written, or print it."""
    dry_run = bool(request.get("dry_run"))
    if request.get("watch") and dry_run:
        raise UsageError("--watch and --dry-run cannot be combined", hint="a dry run changes nothing")
    pool = find_pool(request)
    if request.get("watch"):
        return _watch(request, pool)
    outcome = ask(request, pool, more={"dry_run": dry_run})
    outcome.message = said(outcome, dry_run=dry_run)
    outcome.warnings += _other_files(request, pool)
    return outcome


def _other_files(request: CommandRequest, pool: PoolRef) -> list[str]:
    """A warning for files that were named and are not those that the pool was started with."""
    if len(request.get("config") or ()) < 2:
        return []
    files = Client(pool.socket).ping().get("files") or pool.files
    if list(files) == pool.files:
        return []
    names = ", ".join(from_here(str(file)) for file in files)
    return [
        f"this pool was started with {names} and reloads those; to change its files, stop it and start it with others"
    ]


def _watch(request: CommandRequest, pool: PoolRef) -> Outcome:
    """Reload now, and whenever something changes, until Ctrl-C or the end of the pool."""
    from poolctl.cli.watch_mode import PoolWatcher

    def tell(verb: str, outcome: Outcome) -> None:
        outcome.form, outcome.quiet = request.output, request.quiet
        outcome.message = "\n".join(told(verb, outcome))
        show(outcome)
        sys.stdout.flush()

    ended = Outcome(message="the pool has been stopped")
    try:
        watcher = PoolWatcher(request, pool, tell)
        watcher.apply_now()
        watcher.run()
    except KeyboardInterrupt:
        ended = Outcome(exit_code=INTERRUPTED)
    ended.streamed = bool(request.output)
    return ended


def told(verb: str, outcome: Outcome) -> list[str]:
    """What a change that was seen has come to: the plan of a reload, or `~ users: code`."""
    if verb == "reload":
        return said(outcome).splitlines()
    return [f"~ {item.get('name')}: code" for item in outcome.items if item.get("ready")]


def said(outcome: Outcome, *, dry_run: bool = False) -> str:
    """The plan, a line for each change, and its summary."""
    if outcome.exit_code not in (DONE, NOT_AS_DESIRED) and "changes" not in outcome.extra:
        return ""
    changes = outcome.extra.get("changes") or []
    lines = list(plan(changes, coloured(sys.stdout)))
    if outcome.exit_code not in (DONE, NOT_AS_DESIRED):
        return "\n".join([*lines, "not everything could be applied"])
    return "\n".join([*lines, _summary(changes, dry_run=dry_run)])


def plan(changes: Iterable[Mapping[str, Any]], colours: bool = False) -> Iterable[str]:
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
