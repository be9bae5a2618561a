"""Prints the outcomes of commands, and formats lines that several commands print. Standard library only.

Results go to standard output, everything else to standard error. The errors are part of every JSON result.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, TextIO, TypeGuard

from poolctl.cli.outcome import Outcome, as_json
from poolctl.cli.output import (
    command_annotations,
    is_github,
    json_without_commands,
    lines_without_commands,
    without_commands,
)
from poolctl.control.protocol import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from poolctl.control.answers import ErrorEntry, Item, Result
    from poolctl.control.server_answers import MeasuredServer, ServerDescription
    from poolctl.json_form import Table


TABLE = ("name", "state", "ready", "health", "bind", "pids", "uptime", "restarts")
WIDE = (*TABLE[:5], "expose", "pids", "workers", "uptime", "restarts", "tags")
FIGURES = ("cpu", "memory")  # figures of the processes, after the workers in a wide table if measured
WIDE_COLUMNS = 120  # the terminal width that `-o wide` needs
# Columns omitted on a narrow terminal, in this order: those implied by others, or least important.
DISPENSABLE = ("ready", "pids", "uptime", "next_run", "kept", "health", "restarts")
RIGHT = frozenset((
    "workers", "cpu", "memory", "uptime", "restarts", "conn", "in_flight", "waiting", "requests",
    "refused", "errors", "p50", "p99",
))  # fmt: skip
# Columns shown if a server is a job with a schedule; the second only in a wide table.
NEXT_RUN, LAST_RUN = "next_run", "last_run"
KEPT = "kept"  # a column shown if a window keeps a server awake or asleep
STYLES = {
    **dict.fromkeys(("running", "ok", "yes", "true", "completed", "active"), "green"),
    **dict.fromkeys(("starting", "stopping", "draining", "backoff", "warn", "half-open"), "yellow"),
    **dict.fromkeys(("failed", "ko", "open"), "red"),
    **dict.fromkeys(("disabled", "stopped"), "dim"),
    "sleeping": "cyan",
    "ended": "yellow",
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def is_rich(stream: TextIO) -> bool:
    """Whether to print for people: to a terminal, or as if to one by FORCE_COLOR."""
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def coloured(stream: TextIO) -> bool:
    """Whether to write colors: the terminal supports them, and the user has not disabled them."""
    return is_rich(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(stream: TextIO) -> Console:
    """Rich's console for a terminal. What servers print is never markup."""
    from rich.console import Console

    return Console(
        file=stream,
        color_system="auto" if coloured(stream) else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def in_style(text: str, style: str) -> str:
    """The text in a style of Rich, such as "bold red"."""
    from rich.style import Style

    return Style.parse(style).render(text)


def styled(text: str, style: str, stream: TextIO) -> str:
    """The text in a style of Rich if the stream shows colors."""
    return in_style(text, style) if coloured(stream) else text


def show(outcome: Outcome) -> int:
    """Print the outcome's result, warnings and errors, and return the outcome's exit code.

    The result is `items` in the format `form`, or `message` if `form` is "". Except in JSON and JSON lines, `text`
    replaces both.
    """
    outcome.items = [
        replace(item, expose=with_masked_password(item.expose))
        if is_server(item) and "@" in item.expose
        else item
        for item in outcome.items
    ]
    if outcome.streamed:
        pass
    elif outcome.form == "json":
        sys.stdout.write(json_without_commands(outcome.document()) + "\n")
    elif outcome.form == "jsonl":
        lines = [as_json(entry) for entry in (*outcome.items, *outcome.errors)]
        if outcome.text is not None and not outcome.items:  # such as a version
            lines.insert(0, outcome.extra)
        sys.stdout.writelines(json_without_commands({"schema": SCHEMA, **line}) + "\n" for line in lines)
    elif outcome.text is not None:
        text = for_terminal(outcome.text) if sys.stdout.isatty() else outcome.text
        sys.stdout.write(text if outcome.is_file else lines_without_commands(text))
    elif outcome.form:
        sys.stdout.write(lines_without_commands(text_of(outcome.items, outcome.form)))
        if outcome.footer and outcome.form in ("table", "wide") and sys.stdout.isatty():
            sys.stdout.write(f"\n{printable(outcome.footer, keep_lines=True)}\n")
    elif outcome.message and not outcome.quiet:
        message = (
            for_terminal(outcome.message) if outcome.painted else printable(outcome.message, keep_lines=True)
        )
        sys.stdout.write(f"{message}\n")
    print_diagnostics(outcome)
    return outcome.exit_code


def terminal_width_or_zero(stream: TextIO) -> int:
    """The width of the terminal in columns; 0, for no limit, if `stream` is not a terminal."""
    if not stream.isatty():
        return 0
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):
        return 0


def stdout_fd() -> int:
    """The descriptor of standard output; -1 if it was replaced by an object without one."""
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return -1


def is_server(item: object) -> TypeGuard[Item]:
    """Whether `item` is a server: an Item, or an object with the same members."""
    return hasattr(item, "pids")


def _is_measured(item: object) -> TypeGuard[MeasuredServer]:
    return is_server(item) and getattr(item, "stats", None) is not None


def text_of(items: Sequence[object], output: str) -> str:
    """The items as text in the form `output`: table, wide, or fields separated by tabs.

    If a table does not fit the terminal, columns that say least are left out; a wide table keeps all.
    """
    if output == "table" or output == "wide":
        servers = [item for item in items if is_server(item)]
        is_shown = {
            KEPT: any(item.kept for item in servers),
            NEXT_RUN: any(item.next_run_at for item in servers),
            LAST_RUN: output == "wide" and any(item.last_run for item in servers),
        }
        optional_columns = tuple(column for column, is_there in is_shown.items() if is_there)
        if output == "wide":
            at = WIDE.index("workers") + 1
            figures = FIGURES if any(_is_measured(item) for item in items) else ()
            columns = (*WIDE[:at], *figures, *WIDE[at:], *optional_columns)
            return table(items, columns, wide=True)
        return table(items, TABLE + optional_columns, DISPENSABLE)
    fields = output.split(",")
    return "".join("\t".join(field_text(item, field) for field in fields) + "\n" for item in items)


def set_table_text(
    outcome: Outcome,
    output: str | None,
    lines: Sequence[object],
    columns: Sequence[str],
    names: Iterable[str],
    dispensable: Sequence[str] = (),
) -> Outcome:
    """Set the outcome's `text` to a table of `lines`, or with -o name to the `names`, and return the outcome.

    If the table is too wide for the terminal, empty and then `dispensable` columns are left out; -o wide keeps all.
    An outcome with errors, or for another output format, is returned unchanged.
    """
    if outcome.errors:
        return outcome
    if output in (None, "table", "wide"):
        header = "  ".join(columns).replace("_", " ").upper() + "\n"
        if output == "wide":
            dispensable = ()
        elif dispensable:
            empty = [column for column in columns if all(getattr(line, column) == "" for line in lines)]
            dispensable = [*dict.fromkeys([*empty, *dispensable])]
        outcome.text = table(lines, columns, dispensable, wide=output == "wide") or header
    elif output == "name":
        outcome.text = "".join(f"{printable(name)}\n" for name in names)
    return outcome


_SHORT = 16  # columns are left out before cells become shorter than this


def table(
    items: Sequence[object], columns: Sequence[str], dispensable: Iterable[str] = (), *, wide: bool = False
) -> str:
    """A table with a header: fitted to a terminal by Rich, otherwise plain text of any width.

    `dispensable` columns are left out in this order until the table fits, and a last line says so; a `wide` table has
    all columns. Without items the text is empty, for scripts.
    """
    if not items:
        return ""
    cells = {column: [_cell(item, column) for item in items] for column in columns}
    if is_rich(sys.stdout):
        return _rich_table(cells, dispensable, wide=wide)
    widths = {
        column: max(map(len, [_title(column), *column_cells])) for column, column_cells in cells.items()
    }
    rows = [[_title(column) for column in columns], *map(list, zip(*cells.values(), strict=True))]
    lines = [
        "  ".join(
            text.rjust(widths[column]) if column in RIGHT else text.ljust(widths[column])
            for column, text in zip(columns, row, strict=True)
        )
        for row in rows
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _title(column: str) -> str:
    return column.replace("_", " ").upper()


def _rich_table(cells: Mapping[str, Sequence[str]], dispensable: Iterable[str], *, wide: bool) -> str:
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    terminal = console(sys.stdout)
    if wide:
        terminal.width = max(terminal.width, WIDE_COLUMNS)

    def rich_table(shown: Mapping[str, Sequence[str]], max_width: int | None = None) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in shown:
            table.add_column(
                Text(_title(column), no_wrap=True, overflow="ellipsis"),
                justify="right" if column in RIGHT else "left",
                max_width=max_width,
            )
        for row in zip(*shown.values(), strict=True):
            table.add_row(
                *(Text(text, STYLES.get(text, ""), no_wrap=True, overflow="ellipsis") for text in row)
            )
        return table

    def fits(table: Table) -> bool:
        options = terminal.options.update_width(10_000)
        return Measurement.get(terminal, options, table).maximum <= terminal.width

    shown, left_out = dict(cells), []
    for column in dispensable if not fits(rich_table(shown)) else ():
        if column in shown and not fits(rich_table(shown, _SHORT)):
            del shown[column]
            left_out.append(_title(column))
    with terminal.capture() as captured:
        terminal.print(rich_table(shown))
        if left_out:
            text = f"{', '.join(left_out)} left out; -o wide shows all"
            terminal.print(Text(text, "dim"), soft_wrap=True)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def dependency_lines(item: ServerDescription, servers: Mapping[str, ServerDescription]) -> list[str]:
    """The tree of the server's dependencies with their states, for a terminal."""
    from rich.text import Text
    from rich.tree import Tree

    def grow(tree: Tree, server: ServerDescription) -> None:
        for dependency in server.config.get("depends_on") or ():
            label = Text(printable(dependency["name"]))
            if dependency["condition"] != "ready":
                label.append(f" ({dependency['condition']})")
            branch = tree.add(label)
            if (needed := servers.get(dependency["name"])) is not None:
                label.append(f" {needed.state}", STYLES.get(needed.state, ""))
                grow(branch, needed)

    tree = Tree("depends on")
    grow(tree, item)
    terminal = console(sys.stdout)
    with terminal.capture() as captured:
        terminal.print(tree, soft_wrap=True)
    return [f"  {line.rstrip()}" for line in captured.get().splitlines()]


def field_text(item: object, field: str) -> str:
    """A field of an item for scripts: lists are joined by commas, unknown values are empty."""
    if field == "uptime" and is_server(item):
        return duration(item.uptime_seconds) if item.uptime_seconds else ""
    if field in FIGURES and is_server(item):
        return _usage_text(item, field)
    value = getattr(item, field, None)
    if field == "state":
        value = getattr(item, "shown_state", value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return printable(str(value))


def _usage_text(item: object, field: str) -> str:
    """The server's CPU usage (`1.5%`) if `field` is "cpu", else its memory usage; "" if unknown or not running."""
    if not (_is_measured(item) and item.pids):
        return ""
    if field == "cpu":
        percent = item.stats.cpu_percent
        return "" if percent is None else f"{percent:.1f}%"
    from poolctl.units import format_size

    size = item.stats.memory_bytes
    return "" if size is None else format_size(size)


def print_diagnostics(outcome: Outcome) -> None:
    """Print warnings, notes and errors with their fixes to standard error; with --quiet only errors.

    In GitHub Actions errors, failed servers and warnings are annotations, too.
    """
    for word, style, texts in (("warning", "yellow", outcome.warnings), ("note", "cyan", outcome.notes)):
        if texts and not outcome.quiet:
            label = styled(f"{word}:", f"bold {style}", sys.stderr)
            _print_lines(sys.stderr, [f"{label} {printable(text)}" for text in texts])
    if outcome.errors:
        as_result = outcome.errors_are_result and outcome.form in ("", "table", "wide")
        stream = sys.stdout if as_result else sys.stderr
        _print_lines(stream, _lines_of_errors(outcome.errors, stream))
    if is_github():
        _annotate(outcome)


def _annotate(outcome: Outcome) -> None:
    from poolctl.config import Place

    for error in outcome.errors:
        place = Place(error.file, error.line or 0, error.column or 0) if error.file else None
        text = "; ".join(filter(None, [_subject_and_problem(error), printable(error.hint, keep_lines=True)]))
        command_annotations.write("error", text, server=error.name, place=place)
    for item in filter(is_server, outcome.items):
        if item.state in _FAILED_STATES or (item.ended and item.ended["status"]):
            text = printable(f"{item.name}: {item.end_text or item.state}")
            command_annotations.write("error", text, server=item.name)
    for warning in () if outcome.quiet else outcome.warnings:
        command_annotations.write_located("warning", printable(warning))


def _print_lines(stream: TextIO, lines: list[str]) -> None:
    sys.stdout.flush()
    stream.write("\n".join(lines) + "\n")


def _lines_of_errors(errors: Sequence[ErrorEntry], stream: TextIO) -> list[str]:
    """The errors in order; a hint shared by consecutive errors is printed once, after the last of them."""
    lines: list[str] = []
    for error, following in zip_longest(errors, errors[1:]):
        # An error with a place in a file keeps its hint on its line.
        is_repeated = (
            following is not None and following.hint == error.hint and not (error.file or following.file)
        )
        lines += error_lines(error, stream, with_hint=not is_repeated)
    return lines


def error_lines(error: ErrorEntry, stream: TextIO | None = None, *, with_hint: bool = True) -> Iterable[str]:
    """The lines of one error: its subject, the problem, and the fix; with the colors of the `stream`."""

    def shown(text: str, style: str) -> str:
        return styled(text, style, stream) if stream else text

    hint = error.hint if with_hint else ""
    if error.file:
        # FILE:LINE:COLUMN: as compilers print it, which editors recognise
        place = [relative_to_cwd(error.file), *(str(part) for part in (error.line, error.column) if part)]
        where = shown(printable(":".join(place)), "bold")
        yield f"{where}: {_subject_and_problem(error)}" + (f"; {printable(hint)}" if hint else "")
        return
    yield f"{shown('error:', 'bold red')} {_subject_and_problem(error)}"
    label = f"  {shown('hint:', 'cyan')} "
    for line in printable(hint, keep_lines=True).split("\n") if hint else ():
        yield label + line
        label = " " * len("  hint: ")  # further lines mark the place in an expression above


def _subject_and_problem(error: ErrorEntry) -> str:
    message = printable(error.message or "failed", keep_lines=True)
    if error.file:
        return f"{printable(error.key)}: {message}" if error.key else message
    who = printable(error.name or error.bind or "")
    return (
        f"{who}: {message}" if who and not message.startswith((f"{who}:", f"{who} ", f"{who}'")) else message
    )


def problem_text(error: ErrorEntry) -> str:
    """The problem in one line, with its place and without its fix: `pool.toml:7:1: server[1].binf: unknown key`."""
    line = next(iter(error_lines(replace(error, hint="")))).partition("\n")[0]
    return line.removeprefix("error: ")


def relative_to_cwd(path: str) -> str:
    """Return a path below the working directory relative to that directory, and any other path unchanged."""
    try:
        return relative_to(path, os.getcwd())
    except OSError:
        return path


def relative_to(path: str, directory: str) -> str:
    """The path, relative to the directory if it is below it."""
    here = directory.rstrip("/") + "/"
    return path[len(here) :] if here != "/" and path.startswith(here) else path


def duration(seconds: float | None) -> str:
    """A short duration for people: "4.2s", "3m12s", "5h07m", "12d04h"; "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def count_text(number: float) -> str:
    """A number, with one decimal place if it is small: "0", "4.2", "847"."""
    return f"{number:.1f}" if number < 10 and number != int(number) else f"{number:.0f}"


def latency(seconds: float | None) -> str:
    """A short time: "850µs", "4.2ms", "1.2s"; "" for None."""
    if seconds is None:
        return ""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}µs"
    return f"{seconds * 1e3:.1f}ms" if seconds < 1 else f"{seconds:.1f}s"


def window_end_text(item: Item) -> str:
    """`until 18:00`: when the time window ends that keeps the server running or asleep, in local time; "" if none."""
    if not item.kept_until:
        return ""
    import time
    from datetime import datetime

    from poolctl.time_windows import until_text

    return until_text(datetime.fromisoformat(item.kept_until).timestamp(), time.time())


def next_run(item: Item) -> str:
    """The next run of the job in local time: `2026-11-23 03:00 CET`; "" if none is planned."""
    return local_time(item.next_run_at, "%Y-%m-%d %H:%M %Z") if item.next_run_at else ""


def last_run(item: Item) -> str:
    """The last run of the job in local time: `failed 2026-11-22 03:00`; "" if it has not run yet."""
    run = item.last_run
    return f"{run['result']} {local_time(run['started_at'], '%Y-%m-%d %H:%M')}" if run else ""


def last_run_outcome_line(item: Item) -> str:
    """The outcome of the job's last run: `backup: succeeded after 1.2s`."""
    assert item.last_run is not None
    from datetime import datetime

    began, ended = (datetime.fromisoformat(item.last_run[key]) for key in ("started_at", "ended_at"))
    return f"{item.name}: {item.last_run['result']} after {duration((ended - began).total_seconds())}"


def local_time(text: str, form: str) -> str:
    """The ISO 8601 time formatted with strftime(3) in local time."""
    from datetime import datetime

    return datetime.fromisoformat(text).astimezone().strftime(form)


def printable(text: str, *, keep_lines: bool = False) -> str:
    """Escape control characters: text from files or apps must not control the terminal or the CI.

    With `keep_lines` line breaks and tabs stay.
    """
    if not text.isprintable():
        text = "".join(
            c
            if c.isprintable() or (keep_lines and c in "\n\t")
            else c.encode("unicode_escape").decode("ascii")
            for c in text
        )
    return without_commands(text)


def for_terminal(text: str) -> str:
    """The text as `printable` with its lines, and with the colors in it (ECMA-48 §8.3.117)."""
    if "\x1b" not in text:
        return printable(text, keep_lines=True)
    import re

    parts = re.split(r"(\x1b\[[0-9;:]*m)", text)
    return "".join(part if at % 2 else printable(part, keep_lines=True) for at, part in enumerate(parts))


def _cell(item: object, column: str) -> str:
    if is_server(item):
        if column == "pids" and item.pids:
            return abbreviated_list([*map(str, item.pids)], 1)
        if column == "workers" and len(item.pids) not in (0, item.workers):
            return f"{len(item.pids)}/{item.workers}"
        if column == KEPT and item.kept:
            return f"{item.kept} {window_end_text(item)}".rstrip()
        if column == NEXT_RUN:
            return next_run(item) or "-"
        if column == LAST_RUN:
            return last_run(item) or "-"
        if column == "bind" and item.address:
            # an inherited socket: its key does not contain its address
            return f"{field_text(item, column)} ({field_text(item, 'address')})"
    return field_text(item, column) or "-"


def server_count_text(count: int, of: int | None = None) -> str:
    """A count such as `3 servers`, `1 server`, `2 of 3 servers`."""
    if of is not None and count != of:
        return f"{count} of {of} server{'' if of == 1 else 's'}"
    return f"{count} server{'' if count == 1 else 's'}"


def abbreviated_list(words: Sequence[str], limit: int, noun: str = "") -> str:
    """The first `most` words, and the number of others: `a, b and 38 more`, with `noun` `a, b and 38 more files`."""
    more = f" and {len(words) - limit} more{noun and ' ' + noun}" if len(words) > limit else ""
    return f"{', '.join(words[:limit])}{more}"


def dependents_text(result: Result, done: str = "") -> str:
    """Return the end of a sentence about dependents, `, and 2 that depend on it stopped`; "" without dependents.

    `done` is the last word, "stopped" in the example.
    """
    count = len(result.dependents or ())
    if not count:
        return ""
    selected = len({item.name for item in result.items}.difference(result.dependents or ()))
    relation = f"{'depends' if count == 1 else 'depend'} on {'it' if selected == 1 else 'them'}"
    return f", and {count} that {relation}{done and ' ' + done}"


def with_masked_password(url: str) -> str:
    """The URL with its password masked."""
    if "@" not in url:
        return url
    from poolctl.config import masked_text

    return masked_text(url)


MAX_ADDRESSES = 10
NAMES_SHOWN = 3
MAX_STACK_LINES = 20
_UNREACHABLE = ("stopped", "stopping", "backoff", "failed", "disabled")
# Intended states of servers that are not ready.
_INTENDED_STATES = ("sleeping", "draining", "disabled")

# States of servers that did not start or restart.
_FAILED_STATES = ("backoff", "failed")
# States in which a server is not expected to be ready.
AT_REST = ("stopped", "disabled", "sleeping")


def count_ready_and_expected(items: Iterable[Item]) -> tuple[int, int]:
    """Return how many servers are ready, and how many are ready or neither stopped, disabled nor sleeping."""
    expected = [item for item in items if item.state not in AT_REST or item.ready]
    return sum(item.ready for item in expected), len(expected)


def rests_until_named(item: Item) -> bool:
    """Whether the server is stopped and starts only on demand."""
    return bool(item.on_demand) and item.state == "stopped"


def ready_line(result: Result, *, waited: bool, restarted: bool = False) -> str:
    """A line such as `3 servers ready (1 draining)` or, if `restarted`, `3 servers restarted`.

    `waited` is false if the command did not wait for readiness; the line then counts the starting servers. Without
    servers the line says that none was selected, or is "" if the request failed.
    """
    # A restart has a line of its own for each job with a schedule.
    items = [item for item in result.items if not (restarted and item.next_run_at)]
    if not items:
        serves = (result.gateway and serves_line(result.gateway)) or "the gateway serves"
        done = f"{serves}; the pool has no server" if result.without_servers else "no server selected"
        return "" if result.exit_code else done
    skipped = result.unchanged or ()
    acted_on = [item for item in items if not (rests_until_named(item) or item.name in skipped)]
    # A sleeping server that is ready is a job waiting for its time.
    counts_by_reason = {
        state: sum(item.state == state and not item.ready for item in acted_on) for state in _INTENDED_STATES
    }
    ready = sum(item.ready for item in acted_on)
    count = len(acted_on) - sum(counts_by_reason.values())
    counts_by_reason["on demand"] = len(items) - len(acted_on)
    line = f"{server_count_text(ready, count)} {'restarted' if restarted else 'ready'}"
    if not waited:  # the old processes of restarting servers are still ready
        line = (
            f"{server_count_text(count)} restarting"
            if restarted
            else f"{server_count_text(count)} starting, {ready} ready"
        )
    aside_text = ", ".join(f"{number} {state}" for state, number in counts_by_reason.items() if number)
    return f"{line} ({aside_text})" if aside_text else line


def still_running_text(result: Result) -> str:
    """An end of a line that reports failures: `; b, c still run`, the servers that failed but are ready; or ""."""
    failed = {error.name for error in result.errors}
    running = [item for item in result.items if item.ready and item.state != "sleeping"]
    names = [printable(item.name) for item in running if item.name in failed]
    return f"; {abbreviated_list(names, NAMES_SHOWN)} still run{'s' * (len(names) == 1)}" if names else ""


def address_lines(items: Iterable[object]) -> list[str]:
    """Return lines such as `users  http://localhost:8081` for the first ten reachable servers, and count the others."""
    addresses = [
        (printable(item.name), with_masked_password(printable(item.expose)))
        for item in items
        if is_server(item) and item.expose and item.state not in _UNREACHABLE
    ]
    shown = addresses[:MAX_ADDRESSES]
    width = max((len(name) for name, _ in shown), default=0)
    lines = [f"{name.ljust(width)}  {address}" for name, address in shown]
    return [*lines, f"and {more} more: poolctl list"] if (more := len(addresses) - len(shown)) else lines


def stack_lines(document: Table) -> list[str]:
    """A line with the worker's name and pid, and the first lines of its stacks, each stack's latest call first."""
    from itertools import islice

    from poolctl.json_form import from_json
    from poolctl.runners.stack_report import WorkerStacks

    stacks = from_json(WorkerStacks, document)
    head = f"worker {stacks.worker} (pid {stacks.pid})"
    return [*map(printable, [head, *islice(stacks.lines(), MAX_STACK_LINES)])]


_INDENT = "  "


def footer_of(gateway: Table, width: int) -> str:
    """The lines about the gateway below a table: `gateway_line` and, if some addresses are not served, the reason."""
    problem = f"\n{_INDENT}{gateway['problem']}" if gateway["problem"] else ""
    return gateway_line(gateway, width) + problem


def serves_line(gateway: Table) -> str:
    """The addresses at which the gateway serves clients; "" if it does not serve."""
    return f"the gateway serves {', '.join(gateway['addresses'])}" if gateway["state"] == "running" else ""


def gateway_line(gateway: Table, width: int = 0) -> str:
    """The gateway's state, addresses, routes and known figures, wrapped at this width (0: on one line)."""
    words = [f"[gateway] {gateway['state']}", *gateway["addresses"]]
    words.append(_counted(gateway["routes"], "route"))
    if gateway["pid"] is not None:
        words += [f"pid {gateway['pid']}", f"up {duration(gateway['uptime_seconds'])}"]
    if gateway["restarts"]:
        words.append(_counted(gateway["restarts"], "restart"))
    if (stats := gateway.get("stats")) is not None:
        if stats["requests_per_second"] is not None:
            words.append(f"{count_text(stats['requests_per_second'])} requests/s")
        words += [_counted(stats["requests_total"], "request"), _counted(stats["errors_total"], "error")]
        if stats["refused_total"]:
            words.append(f"{stats['refused_total']} refused")
        if replaced := stats.get("replaced_processes"):
            words.append("1 replaced process" if replaced == 1 else f"{replaced} replaced processes")
    lines = [words[0]]
    for word in words[1:]:
        if width and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += ","
            lines.append(_INDENT + word)
        else:
            lines[-1] += f", {word}"
    return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
