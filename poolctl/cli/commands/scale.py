"""`poolctl scale`: changes the number of workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from poolctl.cli import completion
from poolctl.cli.group import PoolCommand
from poolctl.cli.live_change import change_servers
from poolctl.cli.options import ExplicitSelection, Form, Save, Wait, examples, names_from_input, with_options
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.render import server_count_text
from poolctl.config import MAX_WORKERS
from poolctl.control.answers import Result

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Scaled(ExplicitSelection):
    """Which servers to scale; their number follows as the last word."""

    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]... [N]",
            help="Names or addresses, then the number.",
            show_default=False,
            autocompletion=completion.targets,
        ),
    ] = None


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl scale users 4         until the next reload",
        "poolctl scale --tag api 4 --save",
        "poolctl scale users --auto    as scale.triggers say",
    ),
)
@with_options
def scale(
    place: Place,
    selection: Scaled,
    wait: Wait,
    save: Save,
    output: Form = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Let the server's triggers set the number again.")
    ] = False,
) -> Outcome:
    """Change the number of workers."""
    words = selection.targets or []
    workers = 0
    if auto and save.save:
        raise UsageError(
            "scale: --auto changes no file", hint="leave out --save: a reload returns to the triggers, too"
        )
    if not auto:
        *words, last = words or [""]
        workers = _worker_count(last)
    selection = replace(selection, targets=names_from_input(words, "scale"))

    def report(result: Result) -> str:
        if auto:
            return f"{server_count_text(len(result.items))} scaled by triggers"
        scaled = sum(item.workers == workers for item in result.items)
        return (
            f"{server_count_text(scaled, len(result.items))} scaled to {workers} worker{'s' * (workers > 1)}"
        )

    return change_servers(
        "scale",
        place,
        selection,
        wait,
        report,
        save=save,
        write=None if auto else lambda files, names: files.scale_in_draft(names, workers),
        works_offline=False,
        options={"auto": True} if auto else {"workers": workers},
    )


def _worker_count(word: str) -> int:
    if not word:
        raise UsageError("scale: the number of workers is missing", hint="poolctl scale web 4")
    if not (word.isascii() and word.isdigit() and 1 <= int(word[:9]) <= MAX_WORKERS):
        hint = "the last word is the number: poolctl scale web 4"
        if word == "0":
            hint = "use poolctl stop to stop all workers"
        raise UsageError(f"scale: {word!r} is not a number from 1 to {MAX_WORKERS}", hint=hint)
    return int(word)
