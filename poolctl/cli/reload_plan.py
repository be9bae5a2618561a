"""Renders the changes made by a reload: the plan, its summary, and the note that a reload is due."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from poolctl.cli.render import (
    printable,
    problem_text,
    relative_to,
    relative_to_cwd,
    server_count_text,
    still_running_text,
    styled,
)
from poolctl.control.answers import ChangedFiles, PlannedChange, ReloadResult, Result
from poolctl.exit_codes import DONE, NOT_AS_DESIRED
from poolctl.json_form import Table, from_json

_SHOWN_FILES = 3
CODE_NOT_COMPARED = " (code is not compared: `poolctl restart` takes it)"
# Sign, style and summary word for each kind of change; changes of processes come first.
KINDS = {
    "add": ("+", "green", "added"),
    "remove": ("-", "red", "removed"),
    "restart": ("~", "yellow", "restarted"),
    "update": ("=", "cyan", "updated in place"),
    "signal": ("^", "cyan", "signalled"),
    "override": ("!", "magenta", "reset to the file"),
}


def change_lines(result: Result, stream: TextIO | None = None) -> list[str]:
    """Return the lines of `plan_text` for a reload; for a restart due to new code, `~ NAME: code` per ready server."""
    if isinstance(result, ReloadResult):
        return plan_text(result, stream, with_code=True).splitlines()
    return [f"~ {printable(item.name)}: code" for item in result.items if item.ready]


def plan_text(
    result: ReloadResult, stream: TextIO | None = None, *, dry_run: bool = False, with_code: bool = False
) -> str:
    """Return the changes of a reload, one per line, and a summary; "" if it failed before the changes were known.

    If nothing has changed, a note says that a reload does not compare application code. `with_code` means that the
    caller, such as `run --watch`, detects changes of code itself: the note is left out.
    """
    if result.exit_code not in (DONE, NOT_AS_DESIRED) and result.changes is None:
        return ""
    changes = result.changes or ()
    lines = list(plan_lines(changes, stream))
    if result.exit_code not in (DONE, NOT_AS_DESIRED):
        return "\n".join([*lines, f"not everything could be applied{still_running_text(result)}"])
    remark = "" if changes or with_code else CODE_NOT_COMPARED
    return "\n".join([*lines, _summary(changes, dry_run=dry_run) + remark])


def plan_lines(changes: Iterable[PlannedChange], stream: TextIO | None = None) -> Iterable[str]:
    """One line per change: `+ orders 127.0.0.1:8082`, `~ users: env.A, app`."""
    for change in changes:
        sign, style, _ = KINDS.get(change.change, ("?", "", ""))
        text = printable(f"{sign} {change.name}{_detail(change)}")
        yield styled(text, style, stream) if stream else text


def _detail(change: PlannedChange) -> str:
    kind = change.change
    if kind in ("add", "remove"):
        return f" {change.bind}"
    if kind == "override":
        return f": {change.message or 'a live change ends'}"
    return f": {', '.join(change.keys) or change.message or 'changed'}"


def _summary(changes: Iterable[PlannedChange], *, dry_run: bool) -> str:
    counts: dict[str, int] = {}
    names = set()  # a server may have several changes
    for change in changes:
        counts[change.change] = counts.get(change.change, 0) + 1
        names.add(change.name)
    if not counts:
        return "nothing to do" if dry_run else "nothing has changed"
    words = [f"{counts[kind]} {word}" for kind, (_, _, word) in KINDS.items() if kind in counts]
    would = f"{server_count_text(len(names))} would change: " if dry_run else ""
    return would + ", ".join(words)


def drift_line(table: Table) -> str:
    """Return a line such as `pool.toml has changed since the pool read it; …` for `table`, a ChangedFiles as JSON."""
    changes = from_json(ChangedFiles, table)
    place = problem_text(changes.problem) if changes.problem is not None else ""
    return _drift_line(changes, [relative_to_cwd(path) for path in changes.files], place)


def drift_line_without_values(table: Table, directory: str) -> str:
    """A line such as `pool.toml has changed since the pool read it; …`, which shows no value from the files.

    For an invalid file it has only path and line of the problem. Paths below `directory` are relative to it.
    """
    changes = from_json(ChangedFiles, table)
    place = ""
    if changes.problem is not None:
        file = changes.problem.file or changes.files[0]
        place = f"{relative_to(file, directory)}:{changes.problem.line or 1}"
    return _drift_line(changes, [relative_to(path, directory) for path in changes.files], place)


def _drift_line(changes: ChangedFiles, names: Sequence[str], place: str) -> str:
    more = len(names) - _SHOWN_FILES
    words = [*names[:_SHOWN_FILES], *([f"{more} more"] if more > 0 else [])]
    many = len(words) > 1
    what = f"{', '.join(words[:-1])} and {words[-1]}" if many else words[0]
    has, it = ("have", "them") if many else ("has", "it")
    changed = f"{what} {has} changed since the pool read {it}"
    if changes.problem is not None:
        others = (changes.problems or 1) - 1
        rest = f"and {others} more: poolctl validate" if others else "poolctl validate shows the fix"
        return f"{changed}, and {'are' if many else 'is'} not valid: {place} ({rest})"
    counts = _change_counts_text(changes)
    if changes.applied:
        return f"{what} {has} changed, and no server that differs was running: the pool has read {it} again{counts}"
    return f"{changed}; `poolctl reload` applies {it}{counts}"


def _change_counts_text(changes: ChangedFiles) -> str:
    if changes.added is None:
        return ""
    numbers = (("+", changes.added), ("~", changes.changed), ("-", changes.removed))
    return f" ({' '.join(f'{sign}{number}' for sign, number in numbers if number) or 'no difference'})"
