"""`poolctl status`: the pool in one line, and what is not as it should be."""

from __future__ import annotations

from poolctl.cli.command import INSPECT, OUTPUT, SELECTION, Command, flag
from poolctl.cli.outcome import Outcome
from poolctl.cli.plural import servers
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.remote import CRASH_LOOP, ask
from poolctl.cli.render import duration
from poolctl.control.client import NoSupervisor
from poolctl.exit_codes import DONE, NOT_AS_DESIRED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from poolctl.cli.command_request import CommandRequest

# Of Docker's HEALTHCHECK; it knows no other than this and 0.
UNHEALTHY = 1
_AT_REST = ("stopped", "disabled", "sleeping")

COMMAND = Command(
    "Show whether every enabled server is ready (exit 0) or not (3).",
    SELECTION,
    OUTPUT,
    flag("healthcheck", "--healthcheck", help="Exit with 1 instead of 3, as container health checks expect."),
    section=INSPECT,
    notes=("Exit 0: all servers that should run are ready; 3: not all, or no supervisor.",),
    examples=("poolctl status && echo all is well",),
)


def perform(request: CommandRequest) -> Outcome:
    """The summary of the selected servers; exit 0 when all that should run is ready, else 3 (a health check: 1)."""
    if not request.get("healthcheck"):
        return _status(request)
    from poolctl.cli.outcome import outcome_of

    try:
        outcome = _status(request)
    except Exception as error:
        outcome = outcome_of(error) or Outcome.failed(UNHEALTHY, str(error))
    outcome.exit_code = min(outcome.exit_code, UNHEALTHY)
    return outcome


def _status(request: CommandRequest) -> Outcome:
    pool = find_pool(request)
    try:
        outcome = ask(request, pool)
    except NoSupervisor:
        from poolctl.cli.offline import select_from_files, summary_of

        items = select_from_files(request, pool)
        return Outcome(
            items,
            exit_code=NOT_AS_DESIRED,
            message=_without_supervisor(items),
            extra={"summary": summary_of(items, pool)._asdict()},
        )
    outcome.extra["summary"] = _summary(outcome)
    if outcome.exit_code not in (DONE, NOT_AS_DESIRED):
        return outcome
    outcome.message = "\n".join(_lines(outcome))
    if outcome.extra["summary"].get("calm"):
        outcome.warnings.append(CRASH_LOOP)
    if problem := outcome.extra["summary"].get("keeper_problem"):
        outcome.warnings.append(str(problem))
    return outcome


def _without_supervisor(items: list[dict[str, Any]]) -> str:
    serving = sum(item.get("state") != "stopped" and bool(item.get("pids")) for item in items)
    if serving:
        rest = f"{servers(serving)} are" if serving > 1 else "1 server is"
        return f"no supervisor is running, but {rest} still serving; `poolctl start` adopts them"
    return f"no supervisor is running, {servers(len(items))} stopped"


def _summary(outcome: Outcome) -> dict[str, Any]:
    given = outcome.extra.get("summary")
    ready = sum(bool(item.get("ready")) for item in outcome.items)
    ours = {"servers": len(outcome.items), "ready": ready, "states": _counts(outcome.items, "state")}
    return {**ours, **given} if isinstance(given, dict) else ours


def _counts(items: list[dict[str, Any]], key: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        value = str(item.get(key, ""))
        counts[value] = counts.get(value, 0) + 1
    return counts


def _lines(outcome: Outcome) -> list[str]:
    items = outcome.items
    summary = outcome.extra["summary"]
    name = summary.get("name") or summary.get("pool")
    resting = {
        state: sum(item.get("state") == state and not item.get("ready") for item in items)
        for state in _AT_REST
    }
    ready = sum(bool(item.get("ready")) for item in items)
    active = sum(item.get("state") not in _AT_REST or bool(item.get("ready")) for item in items)
    words = [f"{servers(ready, active)} ready", *(f"{n} {state}" for state, n in resting.items() if n)]
    uptime = max((item.get("uptime_seconds") or 0 for item in items), default=0)
    if uptime:
        words.append(f"up {duration(uptime)}")
    lines = [f"{name}: {', '.join(words)}" if name else ", ".join(words)]
    late = [item for item in items if not item.get("ready") and item.get("state") not in _AT_REST]
    width = max((len(str(item.get("name"))) for item in late), default=0)
    for item in late:
        why = item.get("message") or item.get("error") or ""
        lines.append(f"  {str(item.get('name')).ljust(width)}  {item.get('state')}  {why}".rstrip())
    return lines
