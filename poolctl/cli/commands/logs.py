"""`poolctl logs`: what the selected servers have written, merged in the order of time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from poolctl.cli.command import FOLLOW, OBSERVE, SELECTION, SINCE, Command, Option, flag, output
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.log_rendering import PrefixedLines, log_paths, terminal_text
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import coloured, stdout_fd
from poolctl.cli.supervisor_requests import ask, ask_for
from poolctl.control.answers import Described, Details, ShowResult
from poolctl.control.client import NoSupervisor
from poolctl.exit_codes import FAILED, INTERRUPTED
from poolctl.frozen_value import Table
from poolctl.logs.log_line import LogLine

COMMAND = Command(
    "Show the servers' output.",
    SELECTION,
    output("json prints JSON lines.", "json", "jsonl"),
    FOLLOW,
    Option("lines", "-n", "--lines", metavar="N", help="The last N lines of each server (default 100)."),
    SINCE,
    flag("raw", "--raw", help="Print lines unchanged, without the servers' names."),
    flag("reopen", "--reopen", help="Reopen log files (after logrotate)."),
    section=OBSERVE,
    examples=(
        "poolctl logs -f               of all servers, merged",
        "poolctl logs users --since 10m",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Print the last lines, and with -f those that come, until interrupted. `-o json` prints JSON lines."""
    if request.output not in ("", "json", "jsonl"):
        raise UsageError(f"logs -o: unknown form {request.output!r}", hint="-o json prints JSON lines")
    if request.get("raw") and request.output:
        raise UsageError("--raw and -o cannot be combined", hint="--raw prints lines as servers wrote them")
    if request.get("reopen"):
        return _reopen(request)
    lines, since = request.lines(), request.since()
    pool = find_pool(request)
    paths = log_paths(_described(request, pool), pool)
    text_of = _form(request, list(paths))
    if request.get("follow"):
        return _follow(paths, text_of, lines, since)
    from poolctl.logs.log_tail import merged_tail

    for line in merged_tail(paths, lines, since=since):
        sys.stdout.write(text_of(line))
    return Outcome.of_stream()


def _form(request: CommandRequest, names: list[str]) -> Callable[[LogLine], str]:
    """The function that formats a line."""
    if request.output:
        return _document
    if request.get("raw"):
        if not sys.stdout.isatty():
            return lambda line: f"{line.text}\n"
        colours = coloured(sys.stdout)
        return lambda line: f"{terminal_text(line.text, colours=colours)}\n"
    return PrefixedLines(names, times=request.verbose, records=True).line


def _reopen(request: CommandRequest) -> Outcome:
    """Have every log file reopened after another program has moved them; return when that is done."""
    try:
        result = ask(request, find_pool(request), "reopen")
    except NoSupervisor:
        return Outcome(message="nothing is running")
    return Outcome.of(result, "" if result.exit_code else "log files reopened")


def _follow(
    paths: dict[str, str], text_of: Callable[[LogLine], str], lines: int | None, since: str
) -> Outcome:
    from poolctl.logs.follow import follow

    try:
        for line in follow(paths, lines=lines, since=since, reader=stdout_fd()):
            sys.stdout.write(text_of(line))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return Outcome.of_stream(INTERRUPTED)
    return Outcome.of_stream()


def _described(request: CommandRequest, pool: PoolRef) -> Sequence[Details | Described]:
    """The selected servers with their configuration. Failure for a selection that matches nothing."""
    try:
        result = ask_for(ShowResult, request, pool, "show")
    except NoSupervisor:
        if not pool.files:
            raise
        from poolctl.cli.offline import described_from_files

        return described_from_files(request, pool)
    if result.exit_code:
        raise Failure(Outcome.of(result))
    for item in result.items:
        if item.log_files is False:
            places = sorted({worker.where for worker in item.worker_list if worker.where})
            hint = (
                f"read its output where it runs ({', '.join(places)})"
                if places
                else "start it, and read it there"
            )
            message = f"{item.name}: its runner keeps no log files on this machine"
            raise Failure(Outcome.failed(FAILED, message, hint))
    return result.items


def _document(line: LogLine) -> str:
    document: Table = {"time": line.time, "name": line.name, "pid": line.pid, "line": line.text}
    if line.text.startswith("{"):
        from poolctl.logs.log_line import parse_record

        record = parse_record(line.text)
        if record is not None:
            document["record"] = record.fields
    return json.dumps(document) + "\n"
