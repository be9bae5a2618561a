"""`poolctl remove`: stops servers, and takes them out of the pool."""

from __future__ import annotations

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.live_change import change_servers
from poolctl.cli.options import ExplicitSelection, Form, NoDeps, Save, Wait, examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.control.answers import Result

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand, epilog=examples("poolctl remove docs --save    from the running pool and from its file")
)
@with_options
def remove(
    place: Place,
    selection: ExplicitSelection,
    wait: Wait,
    save: Save,
    output: Form = None,
    no_deps: NoDeps = False,
) -> Outcome:
    """Stop servers, and take them out of the pool."""

    def report(result: Result) -> str:
        return "\n".join(f"removed {item.name} {item.bind}" for item in result.items)

    return change_servers(
        "remove",
        place,
        selection,
        wait,
        report,
        save=save,
        write=lambda files, names: files.remove_in_draft(names),
        options={"deps": not no_deps},
        removes=True,
    )
