"""`poolctl disable`: stops servers, and keeps them stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.live_change import change_servers, count_text
from poolctl.cli.options import ExplicitSelection, Form, Save, Wait, examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.render import dependents_text

if TYPE_CHECKING:
    from poolctl.control.answers import Result

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand, epilog=examples("poolctl disable users --save  also after the next start"))
@with_options
def disable(
    place: Place, selection: ExplicitSelection, wait: Wait, save: Save, output: Form = None
) -> Outcome:
    """Stop servers, and keep them stopped until enabled."""

    def report(result: Result) -> str:
        line = count_text([each.state == "disabled" for each in result.items], "disabled")
        return line + dependents_text(result, "stopped")

    return change_servers(
        "disable",
        place,
        selection,
        report,
        lambda files, names: files.set_disabled_in_draft(names, True),
        timeout=wait.timeout,
        save=save,
        options={"wait": not wait.no_wait},
    )
