"""`poolctl serve NAME`: runs one server as one process, without a pool: the main process of a container."""

from __future__ import annotations

from poolctl.cli.command_line import Command, Option, targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from poolctl.cli.command_line import CommandRequest

COMMAND = Command(
    "Run one server as one process, for a container: no supervisor, no restarts.",
    targets("NAME", "The server; not needed if the file has only one."),
    Option("--listen", "ADDRESS", "Listen on this address instead of the server's bind.", key="listen_on"),
    Option(
        "--health",
        "ADDRESS",
        "Answer /health and /health/live on this address, such as 0.0.0.0:9000.",
        key="health_address",
    ),
    Option(
        "--stop-delay",
        "DURATION",
        "After SIGTERM, serve on for this time before draining; /health answers 503.",
    ),
    section="Lifecycle",
    examples=(
        "poolctl serve web                 until SIGTERM or Ctrl-C",
        "poolctl serve web --listen 0.0.0.0:8000 --health 0.0.0.0:9000",
    ),
    notes=(
        "There is one worker. What runs the container restarts it: workers, scale,",
        "restart and limits.memory do not apply. A command is run as a child.",
    ),
)


def perform(request: CommandRequest) -> NoReturn:
    """Replace this process by the selected server. Raises Failure, and UsageError for options it does not support."""
    from ._launch import become_server

    become_server(request)
