"""`poolctl doctor`: finds problems of this machine and pool, and suggests fixes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, with_options
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.output import command_annotations
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import printable, styled
from poolctl.config import ConfigNotFound
from poolctl.errors import ControlError
from poolctl.exit_codes import DONE, FAILED

from ._check import OK, PROBLEM, WARNING, CheckContext, CheckResult, ok, problem, warning

_STYLES = {OK: "green", WARNING: "yellow", PROBLEM: "red"}

Check = Callable[[CheckContext], Iterable[CheckResult]]

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand)
@with_options
def doctor(
    place: Place,
    output: Form = None,
    notify: Annotated[
        bool, typer.Option("--notify", help="Also send a test notification to each receiver.")
    ] = False,
) -> Outcome:
    """Diagnose this machine and pool, and suggest fixes.

    Exits with 1 if there is a problem. With --quiet only warnings and problems are printed.
    """
    from . import _check_isolation, _check_machine, _check_pool

    pool, results = _pool(place)
    context = CheckContext(pool, os.environ)
    checks = (*_check_pool.CHECKS, *_check_isolation.CHECKS, *_check_machine.CHECKS)
    findings = [*results, *(finding for check in checks for finding in run_check(check, context))]
    if notify:
        findings += _notification_results(place, pool)
    problems = sum(finding.status == PROBLEM for finding in findings)
    shown = [finding for finding in findings if not (place.quiet and finding.status == OK)]
    for finding in shown:
        if finding.status != OK:
            level = "error" if finding.status == PROBLEM else "warning"
            command_annotations.write_located(level, printable(f"{finding.message}; {finding.fix}"))
    outcome = Outcome(shown, exit_code=FAILED if problems else DONE)
    if output in (None, "table", "wide"):
        outcome.text = _table(shown)
        outcome.message = ""
    return outcome


def _notification_results(place: Place, pool: PoolRef | None) -> Iterable[CheckResult]:
    """Send a test notification to each receiver, with a result for each."""
    from poolctl.features.notify.trial import send_test_notifications

    if pool is None:
        yield problem("notify", "no pool was found", "poolctl -c FILE doctor --notify")
        return
    try:
        sent = send_test_notifications(place, pool)
    except (ControlError, Failure) as error:
        errors = error.outcome.errors if isinstance(error, Failure) else [error]
        yield from (problem("notify", error.message, error.hint or "poolctl validate") for error in errors)
        return
    for receiver in sent.receivers or ():
        if receiver.ok:
            yield ok("notify", f"{receiver.name}: sent")
        else:
            yield problem(
                "notify",
                f"{receiver.name}: {receiver.message}",
                "fix that receiver, or remove its [[notify]]",
            )
    if sent.receivers is None:
        yield from (problem("notify", error.message, error.hint) for error in sent.errors)


def _pool(place: Place) -> tuple[PoolRef | None, list[CheckResult]]:
    """Return (pool, []), or (None, [problem]); (None, []) if no configuration was named and none was found."""
    try:
        return find_pool(place, missing_ok=True), []
    except ConfigNotFound as missing:
        named = place.config or os.environ.get("POOLCTL_CONFIG")
        return None, [problem("pool", missing.message, missing.hint or "poolctl init")] if named else []
    except ControlError as error:
        return None, [problem("pool", error.message, error.hint or "poolctl pools lists the running ones")]


def run_check(check: Check, context: CheckContext) -> list[CheckResult]:
    """The results of the check; if it fails itself, a warning."""
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
        status = styled(status, _STYLES[finding.status], sys.stdout)
        lines.append(f"{status}  {finding.check.ljust(width)}  {printable(finding.message)}")
        if finding.fix and (following is None or following.fix != finding.fix):
            lines.append(f"{' ' * (len(PROBLEM) + width + 4)}→ {printable(finding.fix)}")
    return "".join(f"{line}\n" for line in lines)
