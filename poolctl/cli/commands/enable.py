"""`poolctl enable`: enables servers and starts them."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.live_change import change_servers
from poolctl.cli.options import ExplicitSelection, Form, Save, Wait, examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.render import dependents_text, server_count_text
from poolctl.control.answers import Result

app = typer.Typer(add_completion=False)

# Maximum number of servers named in a suggested command.
_MAX_NAMES = 10


@app.command(cls=PoolCommand, epilog=examples("poolctl enable --all          every disabled server"))
@with_options
def enable(
    place: Place, selection: ExplicitSelection, wait: Wait, save: Save, output: Form = None
) -> Outcome:
    """Enable servers and start them."""

    def report(result: Result) -> str:
        return "\n".join(_enabled_lines(result))

    return change_servers(
        "enable",
        place,
        selection,
        wait,
        report,
        save=save,
        write=lambda files, names: files.set_disabled_in_draft(names, False),
    )


def _enabled_lines(result: Result) -> Iterator[str]:
    already_enabled, dependents = set(result.unchanged or ()), set(result.dependents or ())
    if enabled := [item for item in result.items if item.name not in already_enabled | dependents]:
        ready = f", {sum(server.ready for server in enabled)} ready"
        if all(server.state == "stopped" for server in enabled):
            ready = ""  # the pool has no supervisor
        yield f"{server_count_text(len(enabled))} enabled{ready}{dependents_text(result, 'started')}"
    unchanged = [item for item in result.items if item.name in already_enabled]
    resting = [server for server in unchanged if server.state in ("stopped", "failed") and not server.ready]
    if others := len(unchanged) - len(resting):
        yield f"{server_count_text(others)} enabled already"
    if len(resting) == 1:
        (single,) = resting
        yield f"{single.name} is enabled already, and {single.state}: `poolctl start {single.name}` starts it"
    elif resting:
        names = " ".join(server.name for server in resting) if len(resting) <= _MAX_NAMES else "NAME..."
        yield f"{server_count_text(len(resting))} enabled already, and not running: `poolctl start {names}` starts them"
