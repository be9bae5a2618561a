"""`poolctl logs`: prints the output of the selected servers, merged in the order of time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from poolctl.cli import log_rendering
from poolctl.cli.group import PoolCommand
from poolctl.cli.offline import load
from poolctl.cli.options import (
    BadValue,
    Follow,
    LineForm,
    Selection,
    Since,
    examples,
    line_count,
    line_limit,
    near_or_all,
    one_of,
    timestamp,
    with_options,
)
from poolctl.cli.outcome import Failure, Outcome, UsageError, error
from poolctl.cli.output import json_without_commands
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import coloured, print_diagnostics, stdout_fd
from poolctl.cli.supervisor_requests import Request, ask, ask_or_read_files
from poolctl.control import pool_paths
from poolctl.control.client import NoSupervisor
from poolctl.exit_codes import FAILED, INTERRUPTED, NOTHING_MATCHED
from poolctl.json_form import Table
from poolctl.logs import log_tail
from poolctl.logs.line_filter import LEVELS, LineFilter, canonical_level
from poolctl.logs.log_line import LogLine, parse_record
from poolctl.selection.selector import expression_error

GATEWAY = "gateway"  # unless a server has the same name
# Names shown for other logs; a server cannot have such a name.
_GATEWAY_LOGS = ("[gateway]", "[access]")

app = typer.Typer(add_completion=False)


def _level(text: str) -> str:
    if (level := canonical_level(text)) not in LEVELS:
        raise BadValue(f"unknown value {text!r}", near_or_all(level, LEVELS))
    return level


@dataclass(frozen=True)
class WantedLines:
    """Which lines to print."""

    lines: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--lines",
            "--tail",
            metavar="N",
            parser=line_count,
            help='The last N lines of each server (default 100), or "all".',
        ),
    ] = None
    since: Since = None
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME", parser=timestamp, help="Nothing newer: 03:00, yesterday, 10m, …"
        ),
    ] = None
    grep: Annotated[
        list[str] | None,
        typer.Option("--grep", metavar="RE", help="Only lines in which this regular expression matches."),
    ] = None
    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            metavar="LEVEL",
            help="Only lines of at least this level: debug, info, warning, error, critical.",
            parser=_level,
            autocompletion=one_of(LEVELS)["autocompletion"],
        ),
    ] = None

    def line_filter(self, *, levels: bool) -> LineFilter:
        """What a line must match. Raises SelectorError for an invalid expression of --grep."""
        grep = _line_search("--grep", self.grep) if self.grep else None
        return LineFilter(until=self.until or "", least=self.level or "", matches=grep, levels=levels)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl logs -f               of all servers, merged",
        "poolctl logs users --since 10m",
        "poolctl logs --level error --grep timeout",
        "poolctl logs -f --gateway     what the gateway reports, and its access log",
    ),
)
@with_options
def logs(
    place: Place,
    selection: Selection,
    wanted: WantedLines,
    output: LineForm = None,
    follow: Follow = False,
    timestamps: Annotated[
        bool, typer.Option("-t", "--timestamps", help="Show the time of each line (default on a terminal).")
    ] = False,
    no_timestamps: Annotated[
        bool, typer.Option("--no-timestamps", help="Do not show times, even on a terminal.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Print lines unchanged, without the servers' names.")
    ] = False,
    gateway: Annotated[
        bool,
        typer.Option("--gateway", help="The gateway's own log and access log; no servers unless selected."),
    ] = False,
) -> Outcome:
    """Show the servers' output."""
    if raw and output:
        raise UsageError("--raw and -o cannot be combined", hint="--raw prints lines as servers wrote them")
    if timestamps and (no_timestamps or raw):
        raise UsageError(f"--timestamps and {'--raw' if raw else '--no-timestamps'} cannot be combined")
    if follow and wanted.until:
        raise UsageError("--until and --follow cannot be combined", hint="--until ends before new lines")
    is_wide = place.verbose or output == "wide"
    times = log_rendering.SHORT_TIMES if sys.stdout.isatty() else log_rendering.NO_TIMES
    if timestamps or is_wide:
        times = log_rendering.STAMPS
    if no_timestamps:
        times = log_rendering.NO_TIMES
    lines, since = line_limit(wanted.lines, wanted.since), wanted.since or ""
    line_filter = wanted.line_filter(levels=(output or "").startswith("json"))
    pool = find_pool(place)
    paths, request_ids = _log_files(place, selection, pool, gateway=gateway)
    text_of = _line_formatter(output, raw, times, list(paths), paths.keys() if is_wide else request_ids)
    if _GATEWAY_LOGS[0] in paths:
        text_of = _without_keys_of_gateway(text_of)

    outcome = Outcome.of_stream()

    def report(name: str, failure: OSError) -> None:
        outcome.exit_code = FAILED
        errors = [error(FAILED, f"{paths[name]} cannot be read: {failure.strerror}", name=name)]
        print_diagnostics(Outcome(errors=errors))  # at once: -f does not end

    if follow:
        try:
            for line in log_tail.follow(
                paths, lines=lines, since=since, wanted=line_filter, unreadable=report, reader=stdout_fd()
            ):
                sys.stdout.write(text_of(line))
                sys.stdout.flush()
        except KeyboardInterrupt:
            return Outcome.of_stream(INTERRUPTED)
    tail = log_tail.merged_tails(paths, lines, since=since, wanted=line_filter, unreadable=report)
    for line in tail:
        sys.stdout.write(text_of(line))
    has_filter = bool(since or wanted.until or wanted.level or wanted.grep)
    if not tail and paths.keys() == set(_GATEWAY_LOGS) and not has_filter:
        outcome.notes.append("no output yet; `access_log = true` in [gateway] logs each proxied request")
    elif not tail and sys.stdout.isatty():
        outcome.notes.append("no line matches" if has_filter else "no output yet")
    return outcome


def _log_files(
    place: Place, selection: Selection, pool: PoolRef, *, gateway: bool
) -> tuple[dict[str, str], Set[str]]:
    """The log files by displayed name, and the names of logs that show request IDs."""
    try:
        return _files_and_names_with_ids(place, selection, pool, gateway=gateway)
    except Failure as failure:
        targets = selection.targets or []
        missing = failure.outcome.exit_code == NOTHING_MATCHED and GATEWAY in targets
        if not missing or not _has_gateway(place, pool):
            raise
    # No server has this name.
    selection = replace(selection, targets=[target for target in targets if target != GATEWAY])
    return _files_and_names_with_ids(place, selection, pool, gateway=True)


def _files_and_names_with_ids(
    place: Place, selection: Selection, pool: PoolRef, *, gateway: bool
) -> tuple[dict[str, str], Set[str]]:
    if gateway and not _has_gateway(place, pool):
        hint = "a [gateway] or a [[route]] in the file adds one"
        raise Failure(Outcome.failed(NOTHING_MATCHED, "the pool has no gateway", hint))
    servers = not gateway or not selection.selector().selects_all
    items = ask_or_read_files(Request("show", place, selection, command="logs"), pool)[0] if servers else ()
    paths = log_rendering.log_paths(items, pool.logs_directory)
    if gateway:
        state = pool_paths.state_dir(os.environ, pool.key)
        files = f"{pool.directory}/{pool_paths.GATEWAY_LOG}", f"{state}/{pool_paths.GATEWAY_ACCESS_LOG}"
        paths |= dict(zip(_GATEWAY_LOGS, files, strict=True))
    shown = {item.name for item in items if (item.config.get("http") or {}).get("request_id")}
    return paths, shown


def _has_gateway(place: Place, pool: PoolRef) -> bool:
    """Whether the pool has a gateway, according to its supervisor or else its files."""
    try:
        return ask(Request("list", place, command="logs"), pool).gateway is not None
    except NoSupervisor:
        if not pool.files:
            raise
        return GATEWAY in load(pool, allow_empty=True).tables.by_name()


def _line_formatter(
    output: str | None, raw: bool, times: str, names: list[str], request_ids: Set[str]
) -> Callable[[LogLine], str]:
    if (output or "").startswith("json"):
        return _json_line
    if raw:
        if not sys.stdout.isatty():
            return lambda line: f"{line.text}\n"
        colours = coloured(sys.stdout)
        return lambda line: f"{log_rendering.terminal_text(line.text, colours=colours)}\n"
    return log_rendering.PrefixedLineFormatter(names, times=times, records=True, request_ids=request_ids).line


def _without_keys_of_gateway(text_of: Callable[[LogLine], str]) -> Callable[[LogLine], str]:
    """Wrap the formatter `text_of` to remove secret server names from HAProxy's lines."""
    from poolctl.routing.context import without_keys

    def shown(line: LogLine) -> str:
        if line.name == _GATEWAY_LOGS[0]:
            line.text = without_keys(line.text)
        return text_of(line)

    return shown


def _json_line(line: LogLine) -> str:
    document: Table = {"time": line.time, "name": line.name}
    if line.pid is not None:
        document["pid"] = line.pid
    document |= {"level": line.level or None, "line": line.text}
    if line.text.startswith("{"):
        record = parse_record(line.text)
        if record is not None:
            document["record"] = record.fields
    return json_without_commands(document) + "\n"


def _line_search(option: str, expressions: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that tests whether a line contains a match of any of the expressions.

    Raises SelectorError, which names `option`, for an invalid expression; the function raises it if a match takes too
    long.
    """
    from poolctl.selection.regular_expressions import BadExpression, Expression

    try:
        compiled = [Expression(expression) for expression in expressions]
    except BadExpression as bad:
        raise expression_error(option, bad) from None

    def is_found(line: str) -> bool:
        try:
            return any(pattern.is_found(line) for pattern in compiled)
        except BadExpression as bad:
            raise expression_error(option, bad) from None

    return is_found
