"""`poolctl notify test`: sends a test notification to each receiver, and reports whether it arrived."""

from __future__ import annotations

import os

from poolctl.cli.command_line import LIST, OUTPUT, Command, CommandRequest, Option
from poolctl.cli.outcome import Failure, Outcome, UsageError, error
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.supervisor_requests import ask_for
from poolctl.control.client import NoSupervisor
from poolctl.exit_codes import DONE, FAILED, NOTHING_MATCHED

from ._answers import NotifyResult, ReceiverResult

COMMAND = Command(
    "Send a test notification.",
    Option("words", metavar="test [NAME…]", kind=LIST, help="Names of the receivers; default: all."),
    OUTPUT,
    section="Machine",
)


def perform(request: CommandRequest) -> Outcome:
    """Send through the supervisor with its environment, or without one from this command with its own."""
    action, *names = request.get("words") or [""]
    if action != "test":
        problem = f"unknown action {action!r}" if action else "the action is missing"
        raise UsageError(f"notify: {problem}", hint="poolctl notify test [NAME…]")
    pool = find_pool(request)
    try:
        result = ask_for(NotifyResult, request, pool, more={"receivers": names})
    except NoSupervisor:
        result = _alone(pool, names)
    return Outcome.of(result, "\n".join(f"{each.name}: sent" for each in result.receivers or () if each.ok))


def _alone(pool: PoolRef, names: list[str]) -> NotifyResult:
    import asyncio

    from poolctl.cli.offline import load

    from ._send import FixedFacts, send_test
    from .table import Notify

    config = load(pool, allow_empty=True)
    configured = config.tables.all(Notify)
    unknown = [name for name in names if name not in [each.label for each in configured]]
    if unknown or not configured:
        what = f"no receiver is named {unknown[0]!r}" if unknown else "no [[notify]] receivers are configured"
        known = ", ".join(each.label for each in configured)
        hint = f"receivers: {known}" if known else "add a [[notify]] table to the file"
        raise Failure(Outcome.failed(NOTHING_MATCHED, what, hint))
    chosen = [each for each in configured if not names or each.label in names]
    name = config.settings.name or os.path.basename(os.path.dirname(pool.files[0]))
    found = asyncio.run(send_test(chosen, FixedFacts(name, os.environ, os.path.dirname(pool.files[0]))))
    receivers = [
        ReceiverResult(name=label, ok=not problem, message=problem) for label, problem in found.items()
    ]
    return NotifyResult(
        errors=tuple(error(FAILED, f"{each.name}: {each.message}") for each in receivers if not each.ok),
        exit_code=DONE if all(each.ok for each in receivers) else FAILED,
        receivers=tuple(receivers),
    )
