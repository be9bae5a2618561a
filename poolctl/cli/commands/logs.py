"""`poolctl logs`: what the selected servers have written, merged in the order of time."""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import UTC, datetime
from time import time
from typing import Any

from poolctl.cli.exit_codes import INTERRUPTED
from poolctl.cli.outcome import Item, Outcome, UsageError
from poolctl.cli.place import Place, find_place
from poolctl.cli.prefix import Prefixes
from poolctl.cli.request import Request
from poolctl.cli.selected import selected
from poolctl.control import directory
from poolctl.logs.line import Line, stamp

DEFAULT_LINES = 100
_MOST_DIGITS = 9


def perform(request: Request) -> Outcome:
    """Print the last lines, and with -f those that come, until interrupted. `-o json` prints JSON lines."""
    if request.output not in ("", "json", "jsonl"):
        raise UsageError(f"logs has no form {request.output!r}", hint="-o json prints JSON lines")
    lines, since = _lines(request), _since(request)
    place = find_place(request)
    paths = log_paths(selected(request, place, "show").items, place)
    prefixes = None if request.output else Prefixes(list(paths), times=request.verbose)
    if request.get("follow"):
        return _follow(paths, prefixes, lines, since)
    from poolctl.logs.read import merged_tail

    for line in merged_tail(paths, lines, since=since):
        _print(line, prefixes)
    return _streamed()


def _follow(paths: dict[str, str], prefixes: Prefixes | None, lines: int | None, since: str) -> Outcome:
    from poolctl.logs.follow import follow

    try:
        for line in follow(paths, lines=lines, since=since):
            _print(line, prefixes)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _streamed(INTERRUPTED)
    return _streamed()


def _streamed(exit_code: int = 0) -> Outcome:
    outcome = Outcome(exit_code=exit_code)
    outcome.streamed = True
    return outcome


def log_paths(items: list[Item], place: Place) -> dict[str, str]:
    """The log file of each server by its name: the configured one, else the one in the state directory."""
    state = directory.state_dir(os.environ, place.key)
    return {item["name"]: _configured(item) or f"{state}/logs/{item['name']}.log" for item in items}


def _configured(item: Item) -> str:
    path = item.get("log_path") or ((item.get("config") or {}).get("log") or {}).get("path")
    return str(path or "")


def _print(line: Line, prefixes: Prefixes | None) -> None:
    if prefixes is not None:
        sys.stdout.write(prefixes.line(line))
        return
    document: dict[str, Any] = {"time": line.time, "name": line.name, "pid": line.pid, "line": line.text}
    sys.stdout.write(json.dumps(document) + "\n")


def _lines(request: Request) -> int | None:
    text = request.get("lines")
    if text is None:
        return None if request.get("since") else DEFAULT_LINES
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS:
        raise UsageError(f"-n: {text!r} is not a number of lines", hint='a number, or "all"')
    return int(text)


def _since(request: Request) -> str:
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
    return stamp(time() - (request.seconds("since") or 0.0))
