"""`poolctl scale`: changes the number of workers."""

from __future__ import annotations

from poolctl.cli.command_line import (
    EXPLICIT_SELECTION,
    SAVED_CHANGE,
    Command,
    CommandRequest,
    flag,
    saves,
    targets,
)
from poolctl.cli.live_change import change
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.render import servers
from poolctl.config import MOST_WORKERS
from poolctl.control.answers import Result

COMMAND = Command(
    "Change the number of workers: scale web 4.",
    targets("TARGET... N", "Names or addresses, then the number."),
    EXPLICIT_SELECTION[1:],
    flag("auto", "--auto", help="Let the server's triggers set the number again."),
    SAVED_CHANGE,
    section="Change",
    examples=(
        "poolctl scale users 4         until the next reload",
        "poolctl scale --tag api 4 --save",
        "poolctl scale users --auto    as scale.triggers say",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Set the number of workers of the selected servers."""
    if request.get("auto"):
        return _automatic(request)
    saves(request)
    *words, last = request.get("targets") or [""]
    workers = _number(last)

    def scaled_line(result: Result) -> str:
        scaled = sum(each.workers == workers for each in result.items)
        return f"{servers(scaled, len(result.items))} scaled to {workers} worker{'s' * (workers > 1)}"

    return change(
        CommandRequest("scale", {**request.values, "targets": words}),
        scaled_line,
        lambda files, names: files.scale(names, workers),
        options={"workers": workers},
    )


def _automatic(request: CommandRequest) -> Outcome:
    """Let the triggers of the selected servers control their numbers of workers."""
    if saves(request):
        raise UsageError(
            "scale: --auto changes no file", hint="leave out --save: a reload returns to the triggers, too"
        )
    return change(
        request, lambda result: f"{servers(len(result.items))} scaled by triggers", options={"auto": True}
    )


def _number(word: str) -> int:
    """The last word as a number of workers. UsageError for anything else."""
    if not word:
        raise UsageError("scale: the number of workers is missing", hint="poolctl scale web 4")
    if not (word.isascii() and word.isdigit() and 1 <= int(word[:9]) <= MOST_WORKERS):
        hint = "the last word is the number: poolctl scale web 4"
        if word == "0":
            hint = "use poolctl stop to stop all workers"
        raise UsageError(f"scale: {word!r} is not a number from 1 to {MOST_WORKERS}", hint=hint)
    return int(word)
