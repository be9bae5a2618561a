"""`poolctl completion SHELL`: the script that makes a shell complete poolctl's words."""

from __future__ import annotations

import os

from poolctl.cli.command import SETUP, Command, Option
from poolctl.cli.completions import SHELLS, script
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.request import Request, one_of

COMMAND = Command(
    "Print the completion script of a shell.",
    Option("shell", metavar="SHELL", words=SHELLS, help="bash, zsh or fish; default: $SHELL."),
    section=SETUP,
    examples=("poolctl completion bash >> ~/.bashrc",),
)


def perform(request: Request) -> Outcome:
    """The script as text."""
    shell = request.get("shell") or os.path.basename(os.environ.get("SHELL", ""))
    if not shell:
        raise UsageError("which shell?", hint=f"one of: {', '.join(SHELLS)}")
    return Outcome(text=script(one_of("SHELL", shell, SHELLS)))
