"""`poolctl undrain`: puts drained servers back into rotation."""

from __future__ import annotations

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.live_change import change_servers, count_text
from poolctl.cli.options import ExplicitSelection, Form, Timeout, Wait, examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.control.answers import Result

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand, epilog=examples("poolctl undrain --all         every drained server"))
@with_options
def undrain(
    place: Place, selection: ExplicitSelection, output: Form = None, timeout: Timeout = None
) -> Outcome:
    """Put drained servers back into rotation."""

    def report(result: Result) -> str:
        return count_text([item.ready for item in result.items], "in rotation")

    return change_servers("undrain", place, selection, Wait(timeout), report)
