"""`poolctl schema`: prints the JSON Schema of the configuration, for editors."""

from __future__ import annotations

import json

from poolctl.cli.command_line import Command, CommandRequest
from poolctl.cli.outcome import Outcome

COMMAND = Command(
    "Print the JSON Schema of the configuration.",
    section="Files",
    examples=("poolctl schema > pool.schema.json",),
)


def perform(request: CommandRequest) -> Outcome:
    """The JSON Schema as text, not wrapped in the document that other commands print."""
    from poolctl.config import json_schema

    return Outcome(text=json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
