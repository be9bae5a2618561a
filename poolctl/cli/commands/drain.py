"""`poolctl drain`: takes servers out of rotation."""

from __future__ import annotations

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.live_change import change_servers, count_text
from poolctl.cli.options import ExplicitSelection, Form, Timeout, Wait, examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.control.answers import Result

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand, epilog=examples("poolctl drain users           then: poolctl undrain users"))
@with_options
def drain(
    place: Place, selection: ExplicitSelection, output: Form = None, timeout: Timeout = None
) -> Outcome:
    """Take servers out of rotation; they keep answering."""

    def report(result: Result) -> str:
        return count_text([item.state == "draining" for item in result.items], "out of rotation")

    return change_servers("drain", place, selection, Wait(timeout), report)
