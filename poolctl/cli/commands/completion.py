"""`poolctl completion SHELL`: prints or installs the completion script for a shell."""

from __future__ import annotations

import os

from poolctl.cli.command import MACHINE, Command, Option, flag
from poolctl.cli.command_line import CommandRequest, one_of
from poolctl.cli.completions.scripts import SCRIPTS
from poolctl.cli.outcome import Outcome, UsageError

COMMAND = Command(
    "Print, or install, the completion script of a shell.",
    Option("shell", metavar="SHELL", words=tuple(SCRIPTS), help="bash, zsh or fish; default: $SHELL."),
    flag("install", "--install", help="Write it where the shell of this user loads it."),
    section=MACHINE,
    examples=("poolctl completion --install", "poolctl completion zsh > _poolctl"),
)


def perform(request: CommandRequest) -> Outcome:
    """The script as text, or the files written."""
    shell = request.get("shell") or os.path.basename(os.environ.get("SHELL", ""))
    if not shell:
        raise UsageError("no shell is given, and $SHELL is not set", hint=f"one of: {', '.join(SCRIPTS)}")
    text = SCRIPTS[one_of("SHELL", shell, tuple(SCRIPTS))]
    if not request.get("install"):
        return Outcome(text=text)
    from poolctl.cli.completions.install import install

    written = install(shell, text, os.environ)
    if not written:
        return Outcome(message=f"the completion of {shell} is installed already")
    return Outcome(message=f"wrote {' and '.join(written)}; new shells complete poolctl")
