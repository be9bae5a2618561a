"""`poolctl list`: lists the selected servers, from the supervisor or else from the files."""

from __future__ import annotations

import sys

from poolctl.cli.command import FIELDS, INSPECT, OPTIONAL_FIELDS, OUTPUT, SELECTION, UPTIME, Command, Option
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.outcome import Outcome, ServerRow
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import FIGURES, width_of
from poolctl.cli.supervisor_requests import ask_document, selected
from poolctl.control.client import NoSupervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.json_form import Table

COMMAND = Command(
    "List servers.",
    SELECTION,
    OUTPUT,
    Option(
        "field",
        "--field",
        metavar="FIELD",
        words=(*FIELDS, UPTIME),
        help="Print this field of each server, one per line.",
    ),
    section=INSPECT,
    fields=(*FIELDS, UPTIME, *FIGURES),
    examples=(
        "poolctl list -o wide",
        "poolctl list --state failed --state backoff -o name",
        "poolctl list -o json          for scripts; other commands take -o json too",
    ),
)


# The JSON types of the fields; a program without a port is exposed at null.
_TYPES: tuple[type | tuple[type, ...], ...] = (
    str,
    str,
    (str, type(None)),
    str,
    bool,
    str,
    list,
    int,
    (int, float),
    int,
    list,
)


def perform(request: CommandRequest) -> Outcome:
    """The current state of the selected servers; without a supervisor all are stopped."""
    pool = find_pool(request)
    measured = request.output == "wide" or not {*FIGURES}.isdisjoint(request.output.split(","))
    document = None if measured else _answer(request, pool)
    if document is not None:
        outcome = Outcome(_rows(document), warnings=document.get("warnings") or (), form="table")
        outcome.changed, gateway = document.get("changed"), document.get("gateway")
    else:
        result = selected(request, pool, measured=measured)
        outcome, gateway = Outcome.of(result, form="table"), result.gateway
    if not outcome.items and request.output not in ("json", "jsonl"):
        outcome.notes.append(
            "the pool has no servers" if request.selector().selects_all else "no server matches"
        )
    if gateway is not None:
        outcome.extra["gateway"] = gateway
        if sys.stdout.isatty():
            from poolctl.cli.gateway_line import footer_of

            outcome.footer = footer_of(gateway, width_of(sys.stdout))
    return outcome


def _answer(request: CommandRequest, pool: PoolRef) -> Table | None:
    """The supervisor's answer; None without a supervisor, or if the answer is more than complete servers."""
    try:
        found = ask_document(request, pool)
    except NoSupervisor:
        return None
    items = found.get("items")
    is_plain = isinstance(items, list) and all(map(_is_complete, items))
    return found if is_plain and not (found.get("errors") or found.get("exit_code")) else None


def _is_complete(server: object) -> bool:
    return isinstance(server, dict) and all(
        isinstance(server.get(name), types) for name, types in zip(FIELDS, _TYPES, strict=True)
    )


def _rows(document: Table) -> list[ServerRow]:
    """The servers, without members that a later version has added."""
    names = (*FIELDS, *OPTIONAL_FIELDS)
    return [ServerRow(**{name: each[name] for name in names if name in each}) for each in document["items"]]
