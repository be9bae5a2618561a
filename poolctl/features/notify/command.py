"""`poolctl notify test`: sends a test notification to each receiver, and reports whether it arrived."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from poolctl.cli.command_line import OUTPUT, Command, CommandRequest, Option
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.supervisor_requests import ask_for
from poolctl.config import directory_of
from poolctl.control.client import NoSupervisor

if TYPE_CHECKING:
    from ._send import NotifyResult

COMMAND = Command(
    "Send a test notification.",
    Option("words", "test [NAME…]", "Names of the receivers; default: all.", kind="list"),
    OUTPUT,
    section="Machine",
)


def perform(request: CommandRequest) -> Outcome:
    """Have the supervisor send test notifications; if none runs, send them with this command's environment."""
    action, *names = request.get("words") or [""]
    if action != "test":
        problem = f"unknown action {action!r}" if action else "the action is missing"
        raise UsageError(f"notify: {problem}", hint="poolctl notify test [NAME…]")
    from ._send import NotifyResult

    pool = find_pool(request)
    try:
        result = ask_for(NotifyResult, request, pool, more={"receivers": names})
    except NoSupervisor:
        result = _send_without_supervisor(pool, names)
    return Outcome.of(result, "\n".join(f"{each.name}: sent" for each in result.receivers or () if each.ok))


def _send_without_supervisor(pool: PoolRef, names: list[str]) -> NotifyResult:
    import asyncio

    from poolctl.cli.offline import load

    from ._problem_tracker import NotificationContext
    from ._send import send_test
    from .table import Notify

    config = load(pool, allow_empty=True)
    directory = directory_of(pool.files[0])
    facts = NotificationContext(config.settings.name or os.path.basename(directory), os.environ, directory)
    return asyncio.run(send_test(config.tables.all(Notify), names, facts))
