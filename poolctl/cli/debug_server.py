"""`poolctl run --debug NAME`: runs a server in this process, so that breakpoints work."""

from __future__ import annotations

import sys
from typing import NoReturn

from poolctl.cli.command_line import CommandRequest
from poolctl.cli.foreground_server import ForegroundServer, only_server
from poolctl.cli.outcome import UsageError
from poolctl.cli.pool_ref import find_pool
from poolctl.config import ServerConfig

# Options about a pool, or about waiting for one.
_NOT_WITH = {
    "command": "a command", "watch": "--watch", "output": "-o", "log_format": "--log-format",
    "stop_timeout": "--stop-timeout", "timeout": "--timeout", "no_wait": "--no-wait", "no_deps": "--no-deps",
}  # fmt: skip


def perform(request: CommandRequest) -> NoReturn:
    """Run the selected server in this process, as its user and with its environment, until Ctrl-C.

    No supervisor is involved, dependencies are not started, and there is one worker. Raises Failure with the reason.
    """
    for option, said in _NOT_WITH.items():
        if request.get(option):
            raise UsageError(f"--debug and {said} cannot be combined", hint="poolctl run --debug NAME")
    server = only_server(request, find_pool(request), "poolctl run --debug")
    foreground = ForegroundServer.prepare(server)
    # Developers want to see requests, in uvicorn's own format.
    foreground.spec["uvicorn"]["access_log"] = not request.get("no_access_log")
    if not request.quiet:
        print(_announcement(server), file=sys.stderr, flush=True)
    foreground.become("worker", "debug")


def _announcement(server: ServerConfig) -> str:
    where = f" on {server.expose}" if server.expose else ""
    needed = ", ".join(each.name for each in server.depends_on)
    alone = f"; dependencies not started: {needed}" if needed else ""
    return f"{server.name}{where} runs in this terminal, Ctrl-C stops it{alone}"
