"""`poolctl completion SHELL`: the script that makes a shell complete poolctl's words."""

from __future__ import annotations

import os

from poolctl.cli.command import MACHINE, Command, Option
from poolctl.cli.command_line import CommandRequest, one_of
from poolctl.cli.completions.scripts import SHELLS, script
from poolctl.cli.outcome import Outcome, UsageError

COMMAND = Command(
    "Print the completion script of a shell.",
    Option("shell", metavar="SHELL", words=SHELLS, help="bash, zsh or fish; default: $SHELL."),
    section=MACHINE,
    examples=("poolctl completion bash >> ~/.bashrc",),
)


def perform(request: CommandRequest) -> Outcome:
    """The script as text."""
    shell = request.get("shell") or os.path.basename(os.environ.get("SHELL", ""))
    if not shell:
        raise UsageError("no shell is given, and $SHELL is not set", hint=f"one of: {', '.join(SHELLS)}")
    return Outcome(text=script(one_of("SHELL", shell, SHELLS)))
