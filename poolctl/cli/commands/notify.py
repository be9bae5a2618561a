"""`poolctl notify test`: a test notification to each receiver, and whether it arrived."""

from __future__ import annotations

import os
from typing import NamedTuple

from poolctl.cli.command import LIST, OBSERVE, OUTPUT, Command, Option
from poolctl.cli.command_request import CommandRequest
from poolctl.cli.outcome import Failure, Outcome, UsageError, error
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.remote import ask
from poolctl.control.client import NoSupervisor
from poolctl.exit_codes import DONE, FAILED, NOTHING_MATCHED

COMMAND = Command(
    "Send a test notification.",
    Option("words", metavar="test [NAME]", kind=LIST, help="Names of receivers; default: all."),
    OUTPUT,
    section=OBSERVE,
)


class Delivery(NamedTuple):
    """The result of a test notification to one receiver; `message` is the reason of a failure."""

    name: str
    ok: bool
    message: str


def perform(request: CommandRequest) -> Outcome:
    """Send it by the supervisor, with its environment; without one by this command, with its own."""
    action, *names = request.get("words") or [""]
    if action != "test":
        raise UsageError(f"notify: {action!r} is not understood", hint="poolctl notify test [NAME…]")
    pool = find_pool(request)
    try:
        outcome = ask(request, pool, more={"receivers": names})
    except NoSupervisor:
        outcome = _alone(pool, names)
    receivers = outcome.extra.get("receivers") or []
    if not outcome.errors or receivers:
        outcome.message = "\n".join(f"{each['name']}: sent" for each in receivers if each["ok"])
    return outcome


def _alone(pool: PoolRef, names: list[str]) -> Outcome:
    import asyncio

    from poolctl.cli.offline import load
    from poolctl.monitor.notify.notifier import FixedFacts, send_test

    config = load(pool, allow_empty=True)
    configured = config.tables.notify
    unknown = [name for name in names if name not in [each.label for each in configured]]
    if unknown or not configured:
        what = f"no receiver is named {unknown[0]!r}" if unknown else "no [[notify]] receivers are configured"
        known = ", ".join(each.label for each in configured)
        hint = f"receivers: {known}" if known else "add a [[notify]] table to the file"
        raise Failure(Outcome.failed(NOTHING_MATCHED, what, hint))
    chosen = [each for each in configured if not names or each.label in names]
    name = config.settings.name or os.path.basename(os.path.dirname(pool.files[0]))
    found = asyncio.run(send_test(chosen, FixedFacts(name, os.environ, os.path.dirname(pool.files[0]))))
    receivers = [Delivery(label, not problem, problem) for label, problem in found.items()]
    return Outcome(
        errors=[error(FAILED, f"{each.name}: {each.message}") for each in receivers if not each.ok],
        exit_code=DONE if all(each.ok for each in receivers) else FAILED,
        extra={"receivers": [each._asdict() for each in receivers]},
    )
