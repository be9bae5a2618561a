"""`poolctl logs`: what the selected servers have written, merged in the order of time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence

from poolctl.cli.command import FOLLOW, OBSERVE, SELECTION, SINCE, Command, Option, flag, output
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.log_rendering import PrefixedLines, log_paths, terminal_text
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import coloured, stdout_fd
from poolctl.cli.supervisor_requests import ask, ask_for
from poolctl.control import pool_paths
from poolctl.control.answers import Described, Details, ShowResult
from poolctl.control.client import NoSupervisor
from poolctl.exit_codes import FAILED, INTERRUPTED, NOTHING_MATCHED
from poolctl.frozen_value import Table
from poolctl.logs.log_line import LogLine

GATEWAY = "gateway"  # unless a server has this name
# As they are shown; no server has such a name.
_OF_GATEWAY = ("[gateway]", "[access]")
_SELECTING = ("targets", "name", "bind", "expose", "tag", "state", "health", "invert")

COMMAND = Command(
    "Show the servers' output.",
    SELECTION,
    output("json prints JSON lines.", "json", "jsonl"),
    FOLLOW,
    Option("lines", "-n", "--lines", metavar="N", help="The last N lines of each server (default 100)."),
    SINCE,
    flag("raw", "--raw", help="Print lines unchanged, without the servers' names."),
    flag(
        "gateway", "--gateway", help="The gateway's own log and its access log; of no server unless selected."
    ),
    flag("reopen", "--reopen", help="Reopen log files (after logrotate)."),
    section=OBSERVE,
    examples=(
        "poolctl logs -f               of all servers, merged",
        "poolctl logs users --since 10m",
        "poolctl logs -f --gateway     what the gateway reports, and its access log",
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
    paths = _paths(request, pool)
    text_of = _form(request, list(paths))
    if request.get("follow"):
        return _follow(paths, text_of, lines, since)
    from poolctl.logs.log_tail import merged_tail

    found = merged_tail(paths, lines, since=since)
    for line in found:
        sys.stdout.write(text_of(line))
    outcome = Outcome.of_stream()
    if not found and paths.keys() == set(_OF_GATEWAY) and not since:
        outcome.notes.append("no output yet; `access_log = true` in [gateway] logs each proxied request")
    return outcome


def _paths(request: CommandRequest, pool: PoolRef) -> dict[str, str]:
    """The log files of what is selected, by the names that are shown."""
    try:
        return _selected_paths(request, pool)
    except Failure as failure:
        targets = request.get("targets") or []
        if (
            failure.outcome.exit_code != NOTHING_MATCHED
            or GATEWAY not in targets
            or not _has_gateway(request, pool)
        ):
            raise
    # No server has that name.
    values = {**request.values, "targets": [each for each in targets if each != GATEWAY], "gateway": True}
    return _selected_paths(CommandRequest(request.verb, values), pool)


def _selected_paths(request: CommandRequest, pool: PoolRef) -> dict[str, str]:
    gateway = bool(request.get("gateway"))
    if gateway and not _has_gateway(request, pool):
        hint = "a [gateway] or a [[route]] in the file adds one"
        raise Failure(Outcome.failed(NOTHING_MATCHED, "the pool has no gateway", hint))
    servers = not gateway or not request.selector().selects_all
    paths = log_paths(_described(request, pool), pool) if servers else {}
    if gateway:
        state = pool_paths.state_dir(os.environ, pool.key)
        files = f"{pool.directory}/{pool_paths.GATEWAY_LOG}", f"{state}/{pool_paths.GATEWAY_ACCESS_LOG}"
        paths |= dict(zip(_OF_GATEWAY, files, strict=True))
    return paths


def _has_gateway(request: CommandRequest, pool: PoolRef) -> bool:
    """Whether the pool has a gateway, by its supervisor or else by its files."""
    whole = CommandRequest(request.verb, {**request.values, **dict.fromkeys(_SELECTING)})
    try:
        return ask(whole, pool, "list").gateway is not None
    except NoSupervisor:
        if not pool.files:
            raise
        from poolctl.cli.offline import load

        return load(pool, allow_empty=True).tables.gateway is not None


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
