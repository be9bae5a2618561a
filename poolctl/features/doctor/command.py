"""`poolctl doctor`: finds problems of this machine and pool, and suggests fixes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from itertools import zip_longest

from poolctl.cli.command_line import OUTPUT, Command, CommandRequest, flag
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import coloured, paint, printable
from poolctl.config import ConfigNotFound
from poolctl.errors import ControlError
from poolctl.exit_codes import DONE, FAILED

from ._check import OK, PROBLEM, WARNING, CheckContext, CheckResult, ok, problem, warning

_COLOURS = {OK: "32", WARNING: "33", PROBLEM: "31"}

Check = Callable[[CheckContext], Iterable[CheckResult]]

COMMAND = Command(
    "Diagnose this machine and pool, and suggest fixes.",
    OUTPUT,
    flag("--notify", "Also send a test notification to each [[notify]] receiver."),
    section="Machine",
)


def perform(request: CommandRequest) -> Outcome:
    """Print one line per check; exit 1 if there is a problem. With --quiet only warnings and problems."""
    from . import _check_isolation, _check_machine, _check_pool

    pool, found = _pool(request)
    context = CheckContext(pool, os.environ)
    checks = (*_check_pool.CHECKS, *_check_isolation.CHECKS, *_check_machine.CHECKS)
    findings = [*found, *(finding for check in checks for finding in _run_check(check, context))]
    if request.get("notify"):
        findings += _notification_results(request, pool)
    problems = sum(finding.status == PROBLEM for finding in findings)
    shown = [finding for finding in findings if not (request.quiet and finding.status == OK)]
    outcome = Outcome(shown, exit_code=FAILED if problems else DONE)
    if request.output in ("", "table", "wide"):
        outcome.text = _table(shown)
        outcome.message = ""
    return outcome


def _notification_results(request: CommandRequest, pool: PoolRef | None) -> Iterable[CheckResult]:
    """Send a test notification to each receiver; whether it has arrived is a result of its own."""
    from poolctl.features.notify.trial import send_test_notifications

    if pool is None:
        yield problem("notify", "no pool was found", "poolctl -c FILE doctor --notify")
        return
    try:
        sent = send_test_notifications(request, pool)
    except (ControlError, Failure) as error:
        errors = error.outcome.errors if isinstance(error, Failure) else [error]
        yield from (problem("notify", each.message, each.hint or "poolctl validate") for each in errors)
        return
    for each in sent.receivers or ():
        if each.ok:
            yield ok("notify", f"{each.name}: sent")
        else:
            yield problem(
                "notify", f"{each.name}: {each.message}", "fix that receiver, or take its [[notify]] out"
            )
    if sent.receivers is None:
        yield from (problem("notify", each.message, each.hint) for each in sent.errors)


def _pool(request: CommandRequest) -> tuple[PoolRef | None, list[CheckResult]]:
    """Return (pool, []), or (None, [problem]); (None, []) if no configuration was named and none was found."""
    try:
        return find_pool(request, missing_ok=True), []
    except ConfigNotFound as missing:
        named = request.get("config") or os.environ.get("POOLCTL_CONFIG")
        return None, [problem("pool", missing.message, missing.hint or "poolctl init")] if named else []
    except ControlError as error:
        return None, [problem("pool", error.message, error.hint or "poolctl pools lists the running ones")]


def _run_check(check: Check, context: CheckContext) -> list[CheckResult]:
    try:
        return list(check(context))
    except Exception as error:
        said = f"the check itself failed: {type(error).__name__}: {error}"
        return [warning(check.__name__, said, "run POOLCTL_DEBUG=1 poolctl doctor, and report its output")]


def _table(findings: list[CheckResult]) -> str:
    """One line per finding; a fix shared by consecutive findings is printed once, after the last of them."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding, following in zip_longest(findings, findings[1:]):
        status = finding.status.ljust(len(PROBLEM))
        if coloured(sys.stdout):
            status = paint(status, _COLOURS[finding.status])
        lines.append(f"{status}  {finding.check.ljust(width)}  {printable(finding.message)}")
        if finding.fix and (following is None or following.fix != finding.fix):
            lines.append(f"{' ' * (len(PROBLEM) + width + 4)}→ {printable(finding.fix)}")
    return "".join(f"{line}\n" for line in lines)
