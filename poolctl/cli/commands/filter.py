"""`poolctl filter`: lists servers with a field that equals a pattern, or contains a match of an expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolctl.cli.command_line import FILTERS, OUTPUT, Command, CommandRequest, Option, validate_choice
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import field_text
from poolctl.cli.supervisor_requests import selected
from poolctl.control.answers import Item
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.selection.field_filter import Field, value_test
from poolctl.selection.selector import check_expressions, matching_values, select

if TYPE_CHECKING:
    from collections.abc import Sequence


_PLACE = ("config", "pool", "quiet", "verbose")

FIELDS = tuple(field.value for field in Field)
COMMAND = Command(
    "List servers whose name, bind or expose matches a pattern.",
    Option("filter_field", "FIELD", "name, bind or expose.", words=FIELDS, required=True),
    Option("pattern", "PATTERN", "The field's exact value, ignoring case."),
    OUTPUT,
    FILTERS,
    Option("--regex", "RE", "Regular expression that the field must match."),
    Option("--target", "FIELD", "Print this field of each match, one per line.", words=FIELDS),
    section="Look",
    examples=(
        "poolctl filter name users     exact match, ignoring case",
        "poolctl filter bind --regex '^127\\.' --target expose",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """The matching servers, or with --target one field of each. Selector options narrow the result further."""
    field = validate_choice("FIELD", request.get("filter_field"), FIELDS)
    target = request.get("target")
    if target is not None:
        validate_choice("--target", target, FIELDS)
        if request.get("output") is not None:
            raise UsageError("--target and -o cannot be combined", hint=f"-o {target} prints that field too")
    pattern, regex = request.get("pattern"), request.get("regex")
    if pattern is None and regex is None:
        hint = f"poolctl filter {field} PATTERN, or poolctl filter {field} --regex RE; poolctl list lists all servers"
        raise UsageError("filter: the pattern is missing", hint=hint)
    pattern, expressions = pattern or "", [] if regex is None else [regex]
    check_expressions("--regex", expressions)
    selector = CommandRequest("list", {**request.values, "invert": False, "allow_empty": True}).selector()
    whole = CommandRequest("list", {key: request.get(key) for key in (*_PLACE, "allow_empty")})
    everything = selected(whole, find_pool(request)).items
    narrowed = select(everything, selector)
    matched = matching_values("--regex", expressions, {field_text(item, field) for item in narrowed})
    matches = value_test(Field(field), pattern, matched)
    found = [item for item in narrowed if matches(field_text(item, field))]
    if request.get("invert"):
        found = [item for item in everything if item not in found]
    if not found and not request.get("allow_empty"):
        return Outcome.failed(
            NOTHING_MATCHED, f"no server's {field} matches", _suggestion(field, pattern, everything)
        )
    return Outcome(found, form=target or "table")


def _suggestion(field: str, pattern: str, items: Sequence[Item]) -> str:
    import difflib

    values = [field_text(item, field) for item in items]
    near = difflib.get_close_matches(pattern, values, n=1) if pattern else []
    return f"did you mean {near[0]!r}?" if near else "use --allow-empty to accept no match"
