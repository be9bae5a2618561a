"""`poolctl version`: prints versions."""

from __future__ import annotations

import platform
import sys

from poolctl import __version__
from poolctl.cli.command_line import OUTPUT, Command, CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.config import ConfigNotFound
from poolctl.control.client import Client
from poolctl.errors import ControlError

COMMAND = Command("Print the version.", OUTPUT, section="Machine")


def perform(request: CommandRequest) -> Outcome:
    """The version; with --verbose also interpreter, platform and running supervisor."""
    if not (request.verbose or request.output):
        return Outcome(text=f"poolctl {__version__}\n", extra={"version": __version__})
    python = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    versions = {
        "version": __version__,
        "python": python,
        "platform": platform.platform(),
        "supervisor": _supervisor_version(request),
    }
    lines = [f"poolctl {__version__}"]
    if request.verbose:
        lines += [f"{key} {value}" for key, value in versions.items() if key != "version" and value]
    return Outcome(text="\n".join(lines) + "\n", extra=versions)


def _supervisor_version(request: CommandRequest) -> str:
    try:
        return str(Client(find_pool(request, missing_ok=True).socket, silence_seconds=1.0).ping().version)
    except (ControlError, ConfigNotFound):
        return ""
