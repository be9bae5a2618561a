"""`poolctl logs`: prints the output of the selected servers, merged in the order of time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence, Set

from poolctl.cli import log_rendering
from poolctl.cli.command_line import (
    FOLLOW,
    LINES_OUTPUT,
    SELECTION,
    SINCE,
    Command,
    CommandRequest,
    Option,
    check_line_format,
    flag,
    validate_choice,
)
from poolctl.cli.offline import load
from poolctl.cli.outcome import Failure, Outcome, UsageError, error
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import coloured, print_diagnostics, stdout_fd
from poolctl.cli.supervisor_requests import ask, ask_or_read_files
from poolctl.control import pool_paths
from poolctl.control.client import NoSupervisor
from poolctl.exit_codes import FAILED, INTERRUPTED, NOTHING_MATCHED
from poolctl.json_form import Table
from poolctl.logs.line_filter import LEVELS, LineFilter, canonical_level
from poolctl.logs.log_line import LogLine, parse_record
from poolctl.logs.log_tail import follow, merged_tails
from poolctl.selection.selector import LISTS, expression_error

GATEWAY = "gateway"  # unless a server has the same name
# Names shown for other logs; a server cannot have such a name.
_OF_GATEWAY = ("[gateway]", "[access]")

COMMAND = Command(
    "Show the servers' output.",
    SELECTION,
    LINES_OUTPUT,
    FOLLOW,
    Option("-n, --lines, --tail", "N", 'The last N lines of each server (default 100), or "all".'),
    SINCE,
    Option("--until", "TIME", 'Nothing newer than this: "10m", or an ISO 8601 time.'),
    Option("--grep", "RE", "Only lines in which this regular expression matches.", kind="list"),
    Option(
        "--level",
        "LEVEL",
        "Only lines of at least this level: debug, info, warning, error, critical.",
        words=LEVELS,
    ),
    flag("-t, --timestamps", "Show the time of each line (default on a terminal)."),
    flag("--no-timestamps", "Do not show times, even on a terminal."),
    flag("--raw", "Print lines unchanged, without the servers' names."),
    flag("--gateway", "The gateway's own log and access log; no servers unless selected."),
    flag("--reopen", "Reopen log files (after logrotate)."),
    section="Look",
    examples=(
        "poolctl logs -f               of all servers, merged",
        "poolctl logs users --since 10m",
        "poolctl logs --level error --grep timeout",
        "poolctl logs -f --gateway     what the gateway reports, and its access log",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Print the last lines, and with -f new ones until interrupted. `-o json` prints JSON lines."""
    check_line_format(request)
    _check_options(request)
    if request.get("reopen"):
        return _reopen(request)
    lines, since = request.line_limit(), request.log_timestamp("since")
    wanted = _filter(request)
    pool = find_pool(request)
    paths, request_ids = _log_files_and_names_with_ids(request, pool)
    text_of = _line_formatter(request, list(paths), request_ids)
    if _OF_GATEWAY[0] in paths:
        text_of = _without_keys_of_gateway(text_of)

    outcome = Outcome.of_stream()

    def report(name: str, failure: OSError) -> None:
        outcome.exit_code = FAILED
        errors = [error(FAILED, f"{paths[name]} cannot be read: {failure.strerror}", name=name)]
        print_diagnostics(Outcome(errors=errors))  # at once: -f does not end

    if request.get("follow"):
        try:
            for line in follow(
                paths, lines=lines, since=since, wanted=wanted, unreadable=report, reader=stdout_fd()
            ):
                sys.stdout.write(text_of(line))
                sys.stdout.flush()
        except KeyboardInterrupt:
            return Outcome.of_stream(INTERRUPTED)
    found = merged_tails(paths, lines, since=since, wanted=wanted, unreadable=report)
    for line in found:
        sys.stdout.write(text_of(line))
    selects = bool(since) or any(request.get(each) for each in ("until", "level", "grep"))
    if not found and paths.keys() == set(_OF_GATEWAY) and not selects:
        outcome.notes.append("no output yet; `access_log = true` in [gateway] logs each proxied request")
    elif not found and sys.stdout.isatty():
        outcome.notes.append("no line matches" if selects else "no output yet")
    return outcome


def _check_options(request: CommandRequest) -> None:
    if request.get("raw") and request.output:
        raise UsageError("--raw and -o cannot be combined", hint="--raw prints lines as servers wrote them")
    if request.get("timestamps") and (request.get("no_timestamps") or request.get("raw")):
        other = "--raw" if request.get("raw") else "--no-timestamps"
        raise UsageError(f"--timestamps and {other} cannot be combined")
    if request.get("follow") and request.get("until"):
        raise UsageError("--until and --follow cannot be combined", hint="--until ends before new lines")


def _filter(request: CommandRequest) -> LineFilter:
    until, word = request.log_timestamp("until"), request.get("level")
    least = validate_choice("--level", canonical_level(word), LEVELS) if word is not None else ""
    expressions = request.get("grep")
    grep = _line_search("--grep", expressions) if expressions else None
    return LineFilter(until=until, least=least, matches=grep, levels=request.output.startswith("json"))


def _log_files_and_names_with_ids(request: CommandRequest, pool: PoolRef) -> tuple[dict[str, str], Set[str]]:
    """The log files by displayed name, and the names whose lines show request IDs."""
    try:
        return _files_and_names_with_ids(request, pool)
    except Failure as failure:
        targets = request.get("targets") or []
        missing = failure.outcome.exit_code == NOTHING_MATCHED and GATEWAY in targets
        if not missing or not _has_gateway(request, pool):
            raise
    # No server has this name.
    values = {**request.values, "targets": [each for each in targets if each != GATEWAY], "gateway": True}
    return _files_and_names_with_ids(CommandRequest(request.verb, values), pool)


def _files_and_names_with_ids(request: CommandRequest, pool: PoolRef) -> tuple[dict[str, str], Set[str]]:
    gateway = bool(request.get("gateway"))
    if gateway and not _has_gateway(request, pool):
        hint = "a [gateway] or a [[route]] in the file adds one"
        raise Failure(Outcome.failed(NOTHING_MATCHED, "the pool has no gateway", hint))
    servers = not gateway or not request.selector().selects_all
    items = ask_or_read_files(request, pool)[0] if servers else ()
    paths = log_rendering.log_paths(items, pool.logs_directory)
    if gateway:
        state = pool_paths.state_dir(os.environ, pool.key)
        files = f"{pool.directory}/{pool_paths.GATEWAY_LOG}", f"{state}/{pool_paths.GATEWAY_ACCESS_LOG}"
        paths |= dict(zip(_OF_GATEWAY, files, strict=True))
    shown = {each.name for each in items if (each.config.get("http") or {}).get("request_id")}
    return paths, paths.keys() if _is_wide(request) else shown


def _has_gateway(request: CommandRequest, pool: PoolRef) -> bool:
    """Whether the pool has a gateway, according to its supervisor or else its files."""
    whole = CommandRequest(request.verb, {**request.values, **dict.fromkeys((*LISTS, "invert"))})
    try:
        return ask(whole, pool, "list").gateway is not None
    except NoSupervisor:
        if not pool.files:
            raise
        return GATEWAY in load(pool, allow_empty=True).tables.by_name()


def _line_formatter(
    request: CommandRequest, names: list[str], request_ids: Set[str]
) -> Callable[[LogLine], str]:
    if request.output.startswith("json"):
        return _json_line
    if request.get("raw"):
        if not sys.stdout.isatty():
            return lambda line: f"{line.text}\n"
        colours = coloured(sys.stdout)
        return lambda line: f"{log_rendering.terminal_text(line.text, colours=colours)}\n"
    return log_rendering.PrefixedLineFormatter(
        names, times=_time_style(request), records=True, request_ids=request_ids
    ).line


def _without_keys_of_gateway(text_of: Callable[[LogLine], str]) -> Callable[[LogLine], str]:
    """The formatter `text_of`, for lines in which HAProxy names servers by a secret: it is left out."""
    from poolctl.routing.context import without_keys

    def shown(line: LogLine) -> str:
        if line.name == _OF_GATEWAY[0]:
            line.text = without_keys(line.text)
        return text_of(line)

    return shown


def _is_wide(request: CommandRequest) -> bool:
    return request.verbose or request.output == "wide"


def _time_style(request: CommandRequest) -> str:
    if request.get("no_timestamps"):
        return log_rendering.NO_TIMES
    if request.get("timestamps") or _is_wide(request):
        return log_rendering.STAMPS
    return log_rendering.SHORT_TIMES if sys.stdout.isatty() else log_rendering.NO_TIMES


def _reopen(request: CommandRequest) -> Outcome:
    """Have all log files reopened after another program has moved them; return when this is done."""
    try:
        result = ask(request, find_pool(request), "reopen")
    except NoSupervisor:
        return Outcome(message="nothing is running")
    return Outcome.of(result, "" if result.exit_code else "log files reopened")


def _json_line(line: LogLine) -> str:
    document: Table = {"time": line.time, "name": line.name, "pid": line.pid, "level": line.level or None}
    document["line"] = line.text
    if line.text.startswith("{"):
        record = parse_record(line.text)
        if record is not None:
            document["record"] = record.fields
    return json.dumps(document) + "\n"


def _line_search(option: str, expressions: Sequence[str]) -> Callable[[str], bool]:
    """A function that returns whether any of the regular expressions is found in a line.

    Raises SelectorError, which names `option`, for an invalid expression; the function raises it for one that takes too
    long.
    """
    from poolctl.selection.regular_expressions import BadExpression, Expression

    try:
        compiled = [Expression(each) for each in expressions]
    except BadExpression as bad:
        raise expression_error(option, bad) from None

    def is_found(line: str) -> bool:
        try:
            return any(each.is_found(line) for each in compiled)
        except BadExpression as bad:
            raise expression_error(option, bad) from None

    return is_found
