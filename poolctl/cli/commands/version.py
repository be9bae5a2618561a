"""`poolctl version`."""

from __future__ import annotations

import platform
import sys

from poolctl import __version__
from poolctl.cli.command import OUTPUT, SETUP, Command
from poolctl.cli.command_request import CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.errors import ControlError

COMMAND = Command("Print the version.", OUTPUT, section=SETUP)


def perform(request: CommandRequest) -> Outcome:
    """The version; with --verbose what it runs on, and the version of the running supervisor."""
    extra = {"version": __version__}
    if request.verbose or request.output:
        extra["python"] = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
        extra["platform"] = platform.platform()
        extra["supervisor"] = _of_supervisor(request)
    lines = [f"poolctl {extra['version']}"]
    if request.verbose:
        lines += [f"{key} {value}" for key, value in extra.items() if key != "version" and value]
    return Outcome(text="\n".join(lines) + "\n", extra=extra)


def _of_supervisor(request: CommandRequest) -> str:
    from poolctl.config import ConfigNotFound
    from poolctl.control.client import Client

    try:
        return str(
            Client(find_pool(request, missing_ok=True).socket, silence_seconds=1.0).ping().get("version", "")
        )
    except (ControlError, ConfigNotFound):
        return ""
