"""The report about failed servers at the end of `run -- CMD`: their deaths, and the last lines of their logs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import time

from poolctl.cli import log_rendering, render
from poolctl.cli.output import is_github, without_commands
from poolctl.cli.pool_ref import PoolRef
from poolctl.config import masked_text
from poolctl.control.client import AsyncClient
from poolctl.control.server_answers import ShowResult
from poolctl.errors import ControlError
from poolctl.logs.line_filter import LineFilter
from poolctl.logs.log_line import LogLine, stamp
from poolctl.logs.log_tail import merged_tails

from ._pool_events import Death

_LINES = 20
_MAX_SERVERS = 10


async def find_logs(client: AsyncClient, pool: PoolRef, names: Iterable[str]) -> dict[str, str]:
    """The log files of the first ten of these servers, by server name. The pool may have ended."""
    chosen = list(dict.fromkeys(names))[:_MAX_SERVERS]
    try:
        items = (await client.ask(ShowResult, "show")).items
    except ControlError:
        paths = {name: f"{pool.logs_directory}/{name}.log" for name in chosen}
    else:
        paths = log_rendering.log_paths(items, pool.logs_directory)
    return {name: paths[name] for name in chosen if name in paths}


def last_lines(
    paths: Mapping[str, str], died: Mapping[str, Sequence[Death]], begun: float, *, objects: bool
) -> dict[str, list[LogLine]]:
    """The last lines of each log since the penultimate exit, or since the pool started at `begun`. Blocks.

    With `objects` each line has its level. Unreadable logs have no lines.
    """
    wanted = LineFilter(levels=True) if objects else None
    return {
        name: merged_tails(
            {name: path},
            _LINES,
            since=deaths[-2].time if len(deaths := died.get(name, ())) > 1 else stamp(begun),
            wanted=wanted,
            unreadable=lambda name, error: None,
        )
        for name, path in paths.items()
    }


def death_lines(
    died: Mapping[str, Sequence[Death]], command: str, logs: Mapping[str, Sequence[LogLine]]
) -> Iterator[str]:
    """Yield one line for each server that died while `command` ran, with the reason for its last exit.

    Output that the reason quotes is omitted if it is in `logs`, which are printed below.
    """
    for name, deaths in died.items():
        times = f" {len(deaths)} times" if len(deaths) > 1 else ""
        reason = deaths[-1].reason
        if any(reason.endswith(f": {line.text.strip()}") for line in logs.get(name, ())):
            reason = reason.partition(": ")[0]
        yield render.printable(f"{name} died{times} while {command} ran: {reason}")


def lines_beside(reason: str, lines: Sequence[LogLine]) -> list[LogLine]:
    """The log lines without those that the failure's reason, printed above, already quotes; [] if all are blank."""
    first, *more = reason.split("\n")
    quoted = {line.strip() for line in more}
    others = []
    for line in lines:
        text = masked_text(line.text.strip())
        if not (text in quoted or first.endswith(f": {text}")):
            others.append(line)
    return others if any(line.text.strip() for line in others) else []


def log_sections(
    logs: Mapping[str, Sequence[LogLine]],
    *,
    objects: bool,
    which: str = "last",
) -> str:
    """The lines of each log that has any, under a heading that GitHub and GitLab can fold: `which` lines these are.

    With `objects` they are JSON lines, without headings.
    """
    texts: list[str] = []
    for name, lines in logs.items():
        if lines:
            texts += (
                map(log_rendering.json_line, lines) if objects else _foldable_log_section(name, lines, which)
            )
    return "".join(texts)


def _foldable_log_section(name: str, lines: Sequence[LogLine], which: str) -> Iterator[str]:
    count = len(lines)
    head = f"{which} {count} lines of {name}" if count > 1 else f"{which} line of {name}"
    before, after = f"{head}:\n", ""
    if is_github():
        before, after = f"::group::{head}\n", "::endgroup::\n"
    elif os.environ.get("GITLAB_CI") == "true":
        moment, section = int(time()), f"poolctl_{name}"
        before = f"\x1b[0Ksection_start:{moment}:{section}[collapsed=true]\r\x1b[0K{head}\n"
        after = f"\x1b[0Ksection_end:{moment}:{section}\r\x1b[0K\n"
    yield before
    for line in lines:
        yield without_commands(f"{name} | {log_rendering.terminal_text(line.text, colours=False)}\n")
    yield after
