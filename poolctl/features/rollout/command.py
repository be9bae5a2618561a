"""`poolctl rollout`: tries new code or configuration with a share of a server's traffic."""

from __future__ import annotations

from types import SimpleNamespace

from poolctl.cli.command_line import NO_WAIT, OUTPUT, Command, CommandRequest, Option, flag
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import printable, set_table_text
from poolctl.cli.supervisor_requests import ask_for
from poolctl.json_form import field_names

from ._verdict import FIGURES, GenerationFigures, RolloutReport, RolloutResult

ACTIONS = ("status", "promote", "abort", "pause", "resume")
COLUMNS = ("name", "state", "share", "time", "requests", "errors", "p99", "memory", "reason")

COMMAND = Command(
    "Try new code or configuration on a share of the traffic.",
    Option(
        "words",
        "[ACTION] [NAME]",
        f"The server; or one of {', '.join(ACTIONS)}, and the server of the rollout.",
        kind="list",
        completes="servers",
    ),
    Option("--canary", "SHARE", 'Its share of the traffic. Default: "10%".'),
    Option("--promote-after", "DURATION", 'When it replaces the others. Default: "5m".', key="duration"),
    Option(
        "--abort-on",
        "CONDITION",
        'Withdraw it when this is so: "errors > 1%", "p99 > 2 × before". Repeatable.',
        kind="list",
    ),
    Option("--min-requests", "N", "Minimum requests before a verdict. Default: 100."),
    flag("--pause", "Never promote automatically; use `rollout promote`."),
    flag("--allow-larger-share", "Accept more than twice the requested share.", key="force"),
    NO_WAIT,
    OUTPUT,
    section="Lifecycle",
    fields=tuple(field_names(RolloutReport)),
    examples=(
        "poolctl rollout web --canary 10% --promote-after 5m",
        "poolctl rollout web --abort-on 'errors>1%' --abort-on 'p99>2×before'",
        "poolctl rollout web --pause --no-wait    then: poolctl rollout promote web",
    ),
    notes=(
        "New workers get their share of the requests: exactly through the gateway, else",
        "that of whole workers. When the time is over the others are replaced, too;",
        "when a condition is met, or a new one fails, the new ones end.",
        "It tries the changed configuration of the server, or else its code.",
        "Without --abort-on: errors > before + 1%, p99 > 2 × before,",
        "memory > 1.5 × before.",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Begin, change or show rollouts; the outcome has their reports. Raises NoSupervisor."""
    first, *rest = request.get("words") or [""]
    action, names = (first, rest) if first in ACTIONS else ("begin", [first, *rest])
    if action == "status":
        result = ask_for(RolloutResult, _request_for(request, names), find_pool(request), "rollouts", {})
        return _shown(request, result)
    if action == "begin" and (len(names) != 1 or not names[0]):
        raise UsageError(
            "rollout: which server?", hint="poolctl rollout NAME --canary 10% --promote-after 5m"
        )
    options = {"op": action, "wait": not request.get("no_wait"), **_begin_options(request, action)}
    result = ask_for(RolloutResult, _request_for(request, names), find_pool(request), "rollout", options)
    if request.output:
        return _shown(request, result)
    # The outcomes of other rollouts are among the errors.
    failed = {error.name for error in result.errors}
    return Outcome.of(result, "\n".join(_sentence(each) for each in result.items if each.name not in failed))


def _request_for(request: CommandRequest, names: list[str]) -> CommandRequest:
    return CommandRequest("rollout", {**request.values, "targets": names})


def _begin_options(request: CommandRequest, action: str) -> dict[str, object]:
    given = {
        key: request.get(key) for key in ("canary", "duration", "abort_on", "min_requests", "pause", "force")
    }
    if action != "begin":
        if any(given.values()):
            raise UsageError(
                f"rollout {action} takes no option of a new rollout", hint="poolctl rollout --help"
            )
        return {}
    options: dict[str, object] = {"pause": bool(given["pause"]), "force": bool(given["force"])}
    if given["canary"] is not None:
        options["share"] = _share(given["canary"])
    if given["duration"] is not None:
        options["seconds"] = request.seconds("duration", "--promote-after")
    if given["min_requests"] is not None:
        options["min_requests"] = _count(given["min_requests"])
    if given["abort_on"]:
        options["abort_on"] = given["abort_on"]
    return options


def _share(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(f"--canary: {text!r} is not a share", hint="write 10%") from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"--min-requests: {text!r} is not a number of requests", hint="write 100")
    return int(text)


def _shown(request: CommandRequest, result: RolloutResult) -> Outcome:
    lines = [_status_row(each) for each in result.items]
    return set_table_text(request, Outcome.of(result), lines, COLUMNS, (each.name for each in result.items))


def _status_row(rollout: RolloutReport) -> SimpleNamespace:
    """Return the row for `rollout status`, with each figure of the canary and of the other workers, as in "3 / 20"."""
    both = rollout.canary, rollout.before

    def pair(of: str) -> str:
        return " / ".join(_metric_text(each, of) for each in both)

    elapsed = f"{rollout.elapsed_seconds:.0f} of {rollout.for_seconds:.0f} s"
    return SimpleNamespace(
        name=rollout.name, state=rollout.state, share=f"{100 * rollout.share:.3g} %", time=elapsed,
        requests=pair("requests"), errors=pair("errors"), p99=pair("p99"), memory=pair("memory"),
        reason=rollout.reason,
    )  # fmt: skip


def _metric_text(figures: GenerationFigures, of: str) -> str:
    if of in ("requests", "errors"):
        return str(getattr(figures, of))
    figure = FIGURES[of]
    value = figure.of(figures)
    return "-" if value is None else figure.shown(value)


def _sentence(rollout: RolloutReport) -> str:
    name, state = printable(rollout.name), rollout.state
    if rollout.is_over:
        return f"{name}: {state}: {rollout.reason}"
    line = _status_row(rollout)
    return f"{name}: {state}, {line.share} of the traffic; `poolctl rollout status` shows it"
