"""`poolctl signal`: sends a signal to the processes of servers."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from signal import Signals, valid_signals
from typing import Annotated

import typer

from poolctl.cli import completion
from poolctl.cli.group import PoolCommand
from poolctl.cli.live_change import change_servers
from poolctl.cli.options import ExplicitSelection, Form, Wait, examples, names_from_input, with_options
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.render import server_count_text
from poolctl.control.answers import Result

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Signalled(ExplicitSelection):
    """Which servers get the signal; it follows as the last word."""

    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]... SIG",
            help="Names or addresses, then the signal: USR1, SIGUSR1 or 10.",
            show_default=False,
            autocompletion=completion.targets,
        ),
    ] = None


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl signal queue USR1", "poolctl signal --tag nginx HUP", "poolctl signal --all SIGUSR1"
    ),
)
@with_options
def send_signal(place: Place, selection: Signalled, output: Form = None) -> Outcome:
    """Send a signal to the workers of servers.

    A worker's children do not get it.

    A worker that ends by it, or soon after TERM, INT, QUIT or KILL, is replaced, and this is no failure; a job is not
    run again. To an application go only the signals that it handles, TERM, INT and KILL.
    """
    *words, last = selection.targets or [""]
    number = _signal_number(last)
    selection = replace(selection, targets=names_from_input(words, "signal"))

    def report(result: Result) -> str:
        count = len(result.items)
        return f"signal sent to {server_count_text(count - len(result.errors), count)}"

    return change_servers(
        "signal", place, selection, Wait(), report, works_offline=False, options={"signal": number}
    )


def _signal_number(word: str) -> int:
    if word.isascii() and word.isdigit() and int(word[:9]) in valid_signals():
        return int(word)
    name, names = f"SIG{word.upper().removeprefix('SIG')}", [signal.name for signal in Signals]
    if name in names:
        return Signals[name]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else "the last word is the signal: poolctl signal web USR1"
    raise UsageError(
        f"signal: {word!r} is not a signal" if word else "signal: the signal is missing", hint=hint
    )
