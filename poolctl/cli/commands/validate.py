"""`poolctl validate`: every problem of every file in one run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from poolctl.cli.counting import servers
from poolctl.cli.exit_codes import INVALID_CONFIGURATION
from poolctl.cli.local import no_server, servers_of
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import find_place
from poolctl.control.messages import item

if TYPE_CHECKING:
    from poolctl.cli.request import Request
    from poolctl.errors import ServerError


def perform(request: Request) -> Outcome:
    """`N servers, ok`, or the problems: of the files, of what they refer to, and with --import of the apps."""
    place = find_place(request)
    from poolctl.config.load import load

    config = load(place.files, os.environ)
    problems: list[ServerError] = [
        *config.problems,
        *config.outside(import_apps=bool(request.get("import_apps"))),
    ]
    items = [item(server) for server in servers_of(config, place)] if request.output else []
    outcome = Outcome(items, warnings=[str(warning) for warning in config.warnings])
    outcome.errors_are_result = True
    if problems:
        outcome.errors = [problem.to_dict() for problem in problems]
        outcome.exit_code = INVALID_CONFIGURATION
    elif not len(config) and not request.get("allow_empty"):
        outcome.errors = [no_server(place)]
        outcome.exit_code = INVALID_CONFIGURATION
    else:
        outcome.message = f"{servers(len(config))}, ok"
    return outcome
