"""Which part of what is written down a command line asks for: -n and --since."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from time import time

from poolctl.cli.command_request import CommandRequest
from poolctl.cli.outcome import UsageError
from poolctl.logs.log_line import stamp

DEFAULT_LINES = 100
_MOST_DIGITS = 9


def lines_of(request: CommandRequest) -> int | None:
    """How many lines -n asks for, None for all: with --since unless both are given."""
    text = request.get("lines")
    if text is None:
        return None if request.get("since") else DEFAULT_LINES
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS:
        raise UsageError(f"-n: {text!r} is not a number of lines", hint='a number, or "all"')
    return int(text)


def since_of(request: CommandRequest) -> str:
    """The moment as log files write it, so that times compare as text; "" when it was not given."""
    text = request.get("since")
    if text is None:
        return ""
    if re.match(r"\d{4}-", text):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(
                f"--since: {text!r} is not a time", hint="2026-01-31T12:00:00Z, or 10m"
            ) from None
        # a time without a zone is the user's own
        return stamp(moment.astimezone(UTC).timestamp())
    try:
        return stamp(time() - (request.seconds("since") or 0.0))
    except UsageError:
        hint = '"10m" is ten minutes ago; or a time: 2026-01-31T12:00:00Z'
        raise UsageError(f"--since: {text!r} is not a time", hint=hint) from None
