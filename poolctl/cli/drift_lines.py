"""The lines that say that the files have changed since the pool read them."""

from __future__ import annotations

from poolctl.cli.render import error_lines, from_here
from poolctl.control.drift_answer import ChangedFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.frozen_value import Table

_SHOWN_FILES = 3


def drift_line(table: Table) -> str:
    """`pool.toml has changed since the pool read it; …`, of an answer's `changed`."""
    found = ChangedFiles.from_json(table)
    names = [from_here(path) for path in found.files]
    more = len(names) - _SHOWN_FILES
    words = [*names[:_SHOWN_FILES], *([f"{more} more"] if more > 0 else [])]
    many = len(words) > 1
    what = f"{', '.join(words[:-1])} and {words[-1]}" if many else words[0]
    has, it = ("have", "them") if many else ("has", "it")
    changed = f"{what} {has} changed since the pool read {it}"
    if found.problem is not None:
        place = next(iter(error_lines(found.problem))).removeprefix("error: ")
        others = (found.problems or 1) - 1
        rest = f" (and {others} more: poolctl validate)" if others else ""
        return f"{changed}, and {'are' if many else 'is'} not valid: {place}{rest}"
    counts = _counts(found)
    if found.applied:
        return f"{what} {has} changed and no server was running: the pool has read {it} again{counts}"
    return f"{changed}; `poolctl reload` applies {it}{counts}"


def _counts(found: ChangedFiles) -> str:
    if found.added is None:
        return ""
    numbers = (("+", found.added), ("~", found.changed), ("-", found.removed))
    return f" ({' '.join(f'{sign}{number}' for sign, number in numbers if number) or 'no difference'})"
