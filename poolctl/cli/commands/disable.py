"""`poolctl disable`: stops servers, and keeps them stopped."""

from __future__ import annotations

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.live_change import change_servers, count_text
from poolctl.cli.options import ExplicitSelection, Form, Save, Wait, examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.render import dependents_text
from poolctl.control.answers import Result

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand, epilog=examples("poolctl disable users --save  also after the next start"))
@with_options
def disable(
    place: Place, selection: ExplicitSelection, wait: Wait, save: Save, output: Form = None
) -> Outcome:
    """Stop servers, and keep them stopped until enabled."""

    def report(result: Result) -> str:
        line = count_text([item.state == "disabled" for item in result.items], "disabled")
        return line + dependents_text(result, "stopped")

    return change_servers(
        "disable",
        place,
        selection,
        wait,
        report,
        save=save,
        write=lambda files, names: files.set_disabled_in_draft(names, True),
    )
