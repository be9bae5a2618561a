"""What Typer makes of a command line, without performing it."""

from __future__ import annotations

from poolctl.cli.command_line import CommandRequest
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.typer_app import perform_args


def slow(args: list[str]) -> CommandRequest | str:
    """The request that Typer makes of a command line, or its complaint."""
    requests: list[CommandRequest] = []

    def note(request: CommandRequest) -> Outcome:
        requests.append(request)
        return Outcome()

    try:
        perform_args(args, note)
    except UsageError as wrong:
        return wrong.message
    return requests[0]
