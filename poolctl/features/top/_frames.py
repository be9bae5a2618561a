"""Frames: the lines shown on the screen, or printed without a terminal.

The screen's width decides which columns a table has; their cells hold figures and sparklines. A log can be searched,
and filtered by level.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from poolctl.cli.log_rendering import record_lines, terminal_text
from poolctl.cli.render import coloured, duration, printable, server_count_text
from poolctl.control.gateway_answers import GatewayStatus
from poolctl.control.server_answers import MeasuredServer
from poolctl.logs.line_filter import LineFilter, canonical_level, level_place, without_control
from poolctl.logs.log_line import LogLine, local_clock_time, parse_record
from poolctl.logs.log_tail import Follower
from poolctl.routing.route_health import ERROR, NAPPING, STARTING, UNHEALTHY
from poolctl.routing.route_report import HTTP, STREAM

from ._boards import Board, RouteBoard, RouteRow, ServerBoard

_UNKNOWN = "-"
BARS = "▁▂▃▄▅▆▇"  # without the full block, so that bars of adjacent rows stay separate
# The smallest span of a chart that does not begin at 0 (memory), as a share of its maximum: hides noise.
_MIN_SPAN = 0.2
MAX_CHART_LENGTH = 30
_MIN_NAME_LENGTH, _MAX_NAME_LENGTH = 8, 32
STATES = {
    "running": ("●", "green"),
    "starting": ("◐", "yellow"),
    "stopping": ("◑", "yellow"),
    "draining": ("◒", "yellow"),
    "backoff": ("↻", "yellow"),
    "failed": ("✗", "bold red"),
    "sleeping": ("◌", "cyan"),
    "completed": ("✓", "green"),
    "ended": ("◇", "yellow"),
    "stopped": ("○", "bright_black"),
    "disabled": ("⊘", "bright_black"),
}
HEALTH = {"ok": "green", "warn": "yellow", "ko": "bold red"}
FAINT = "bright_black"


def format_count(number: float | None) -> str:
    """A number without a unit: "0", "4.2", "847", "12.3k", "1.2M"; "-" for None."""
    return _UNKNOWN if number is None else _with_suffix(number, 1000, ("", "k", "M"))


def format_seconds(number: float | None) -> str:
    """A short time: "850µs", "4.2ms", "320ms", "1.2s", "95s"; "-" for None."""
    if number is None:
        return _UNKNOWN
    if number < 0.0009995:
        return f"{number * 1e6:.0f}µs" if number > 0 else "0"
    if number < 0.9995:
        return f"{_digits(number * 1000)}ms"
    return f"{_digits(number)}s"


def format_size(number: float | None) -> str:
    """An amount of memory in bytes: "640K", "23.4M", "1.2G"; "-" for None."""
    return _UNKNOWN if number is None else _with_suffix(number / 1024, 1024, ("K", "M"))


def format_percent(number: float | None) -> str:
    """A percentage: "0.4%", "12%"; "-" for None."""
    return _UNKNOWN if number is None else f"{_digits(number, short=True)}%"


def _with_suffix(number: float, step: int, suffixes: Sequence[str]) -> str:
    for suffix in suffixes:
        if number < 999.5:
            return _digits(number) + suffix
        number /= step
    return _digits(number) + "G"


def _digits(number: float, *, short: bool = False) -> str:
    if number == int(number) or number >= 99.95 or (short and number >= 9.95):
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 0.995 or short else f"{number:.2f}"


def sparkline(values: Sequence[float | None], width: int, *, from_zero: bool = True) -> str:
    """Bars for the newest values, right-aligned, one per column; a space for an unknown value.

    With `from_zero` the lowest bar stands for 0; otherwise for the least value, except that values that differ little
    get bars of middle height.
    """
    shown = list(values)[-width:] if width > 0 else []
    numbers = [value for value in shown if value is not None]
    top = max(numbers, default=0.0)
    bottom = 0.0 if from_zero else min(numbers, default=0.0)
    span = top if from_zero else max(top - bottom, top * _MIN_SPAN)
    base = (top + bottom - span) / 2
    bars = "".join(" " if value is None else _bar_character(value - base, span) for value in shown)
    return bars.rjust(width)


def _bar_character(value: float, span: float) -> str:
    if span <= 0 or value <= 0:
        return BARS[0]
    return BARS[min(len(BARS) - 1, int(value / span * (len(BARS) - 1) + 0.5))]


Styled = tuple[str, str]  # a text, and its style


class Column(NamedTuple):
    """A column of the table. Columns with a lower `priority` get space first, and charts share the space left.

    `sort` is the sort order for which the heading is highlighted, "" for none; a chart's heading shows its time span.
    """

    title: str
    sort: str
    width: int
    priority: int
    cell: Callable[[Any, int], Styled]  # draws a row's cell in this width
    right: bool = False
    chart: bool = False


def _figure_column(
    title: str,
    sort: str,
    width: int,
    priority: int,
    value: Callable[[Any], float | None],
    form: Callable[[float | None], str] = format_count,
    style: str = "",
) -> Column:
    def cell(row: Any, width: int) -> Styled:
        number = value(row)
        return form(number), style if number else FAINT

    return Column(title, sort, width, priority, cell, right=True)


def _chart_column(title: str, priority: int, series: str, style: str, *, from_zero: bool = True) -> Column:
    def cell(row: MeasuredServer, width: int) -> Styled:
        values = getattr(row.stats.history, series)
        return sparkline(values, width, from_zero=from_zero), style if any(values) else FAINT

    return Column(title, "", 8, priority, cell, chart=True)


def _faint_text_column(
    title: str, sort: str, width: int, priority: int, text: Callable[[Any], str]
) -> Column:
    return Column(title, sort, width, priority, lambda row, width: (printable(text(row)), FAINT))


def _state(row: MeasuredServer, width: int) -> Styled:
    sign, style = STATES.get(row.shown_state, ("?", ""))
    return f"{sign} {row.shown_state}", "yellow" if row.state == "running" and not row.ready else style


def _workers(row: MeasuredServer, width: int) -> Styled:
    count = len(row.pids)
    if count == row.workers:
        return str(count), ""
    return f"{count}/{row.workers}", "yellow" if count else FAINT


def _none_without_pids(row: MeasuredServer, used: float | None) -> float | None:
    return used if used or row.pids else None


SERVER_COLUMNS = (
    Column(
        "NAME", "name", 0, 0, lambda row, _: (printable(row.name), "bold" if row.state == "failed" else "")
    ),
    Column("STATE", "state", 10, 0, _state),
    Column(
        "HEALTH", "health", 6, 1,
        lambda row, _: (row.health, HEALTH.get(row.health, ""))
        if row.health not in ("", "unknown") else (_UNKNOWN, FAINT),
    ),
    _faint_text_column("ADDRESS", "file", 21, 10, lambda row: row.address or row.bind),
    Column("WORK", "", 4, 9, _workers, right=True),
    _figure_column("REQ/S", "requests", 6, 1, lambda row: row.stats.requests_per_second, style="green"),
    _chart_column("REQ", 2, "requests_per_second", "green"),
    _figure_column("ERR/S", "errors", 6, 5, lambda row: row.stats.errors_per_second, style="bold red"),
    _figure_column("P99", "latency", 6, 1, lambda row: row.stats.latency_p99_seconds, format_seconds, "yellow"),
    _chart_column("P99", 7, "latency_p99_seconds", "yellow"),
    _figure_column(
        "MEM", "memory", 5, 1, lambda row: _none_without_pids(row, row.stats.memory_bytes), format_size, "blue"
    ),
    _chart_column("MEM", 8, "memory_bytes", "blue", from_zero=False),
    _figure_column("CPU", "cpu", 5, 4, lambda row: _none_without_pids(row, row.stats.cpu_percent), format_percent),
    _figure_column("BUSY", "", 4, 11, lambda row: row.stats.in_flight),
    _figure_column("CONN", "", 5, 12, lambda row: row.stats.connections),
    _figure_column("UP", "uptime", 6, 3, lambda row: row.uptime_seconds, lambda seconds: duration(seconds or None)),
    _figure_column("RST", "restarts", 3, 6, lambda row: row.restarts, str),
)  # fmt: skip

_ROUTE_STATES = {"healthy": "green", STARTING: "yellow", NAPPING: "cyan", UNHEALTHY: "red", ERROR: "bold red"}
_WAYS = {HTTP: "green", STREAM: "cyan"}


def _alias(row: RouteRow, width: int) -> Styled:
    style = _ROUTE_STATES.get(row.report.state, "")
    return printable(row.report.alias), "" if row.report.state == "healthy" else style


ROUTE_COLUMNS = (
    Column("ROUTE", "name", 0, 0, _alias),
    _faint_text_column("HOST/PATH", "file", 22, 3, lambda row: row.report.host + row.report.path),
    _faint_text_column("TO", "", 22, 5, lambda row: ", ".join(row.report.to)),
    Column("STATE", "", 9, 6, lambda row, _: (row.report.state, _ROUTE_STATES.get(row.report.state, FAINT))),
    Column("WAY", "", 8, 0, lambda row, _: (row.report.way, _WAYS.get(row.report.way, FAINT))),
    _figure_column("REQ/S", "requests", 6, 1, lambda row: row.requests_per_second, style="green"),
    _figure_column("REQUESTS", "", 8, 2, lambda row: row.report.requests),
    _figure_column("WAITING", "waiting", 8, 4, lambda row: row.report.waiting, style="yellow"),
    _figure_column("ERR/S", "errors", 6, 4, lambda row: row.errors_per_second, style="bold red"),
    _figure_column("ERR", "errors", 5, 1, lambda row: row.report.errors, style="bold red"),
    _figure_column("P50", "", 6, 7, lambda row: row.report.p50_seconds, format_seconds, "yellow"),
    _figure_column("P99", "latency", 6, 1, lambda row: row.report.p99_seconds, format_seconds, "yellow"),
)


def fit_columns(width: int, names: int, all_columns: Sequence[Column]) -> list[tuple[Column, int]]:
    """Choose the columns that fit on a screen of this width, and their widths.

    The first column holds the names; `names` is the width of the longest.
    """
    longest = min(max(names, _MIN_NAME_LENGTH), _MAX_NAME_LENGTH)
    name = min(longest, max(_MIN_NAME_LENGTH, width // 4))
    widths = {column: column.width for column in all_columns}
    chosen: set[Column] = set()
    remaining = width - name
    for column in sorted(all_columns, key=lambda column: column.priority):
        needed = column.width + 1 if column.width else 0
        if needed <= remaining:
            chosen.add(column)
            remaining -= needed
    extra = min(remaining, longest - name)
    widths[all_columns[0]] = name + extra
    remaining -= extra
    charts = [column for column in all_columns if column in chosen and column.chart]
    for column in charts:
        widths[column] += min(remaining // len(charts), MAX_CHART_LENGTH - column.width)
    return [(column, widths[column]) for column in all_columns if column in chosen]


def table_lines(
    board: Board[Any], width: int, all_columns: Sequence[Column], *, is_printed: bool = False
) -> list[Text]:
    """The header, and all rows if `is_printed`, else the rows on the screen with the selection highlighted."""
    rows = board.shown if is_printed else board.visible
    longest = max((cell_len(row.name) for row in board.rows), default=0)
    columns = fit_columns(width, longest, all_columns)
    selected = None if is_printed else board.selected
    return [_head(columns, board), *(_line(columns, row, row is selected, width) for row in rows)]


def _head(columns: Iterable[tuple[Column, int]], board: Board[Any]) -> Text:
    cells = []
    for column, width in columns:
        title = column.title
        if column.chart and board.sample_seconds:
            title += f" {width * board.sample_seconds:.0f}s"
        is_sorted = column.sort == board.sort and column.sort not in ("file", "problems")
        if is_sorted:
            title += "▾" if board.falling else "▴"
        cells.append(_cell(title, "bold cyan" if is_sorted else "bold bright_black", column, width))
    return Text(" ").join(cells)


def _line(columns: Iterable[tuple[Column, int]], row: object, selected: bool, screen: int) -> Text:
    cells = [_cell(*column.cell(row, width), column, width) for column, width in columns]
    if not selected:
        return Text(" ").join(cells)
    # Coloured cells would interrupt the highlight of the selected row.
    line = Text(" ".join(cell.plain for cell in cells), "reverse")
    line.pad_right(screen - line.cell_len)
    return line


def _cell(text: str, style: str, column: Column, width: int) -> Text:
    """The text in exactly `width` cells; a longer text is cut and ends with "…"."""
    cell = Text(text, style)
    cell.truncate(width, overflow="ellipsis")
    cell.align("right" if column.right else "left", width)
    return cell


_MIN_WIDE_WIDTH = 100


def head_lines(board: ServerBoard, gateway: GatewayStatus | None, pool: str, width: int) -> list[Text]:
    """A line with the servers' states, a line with their figures, and a line for the gateway, if any."""
    lines = [_states(board.rows, pool, width), _totals(board.rows, width)]
    return lines if gateway is None else [*lines, _gateway(gateway, width)]


def _states(rows: Sequence[MeasuredServer], pool: str, width: int) -> Text:
    for words in (True, False):
        line = _counts(rows, pool, words)
        if line.cell_len <= width:
            break
    if longest := max((row.uptime_seconds for row in rows), default=0.0):
        up = Text(f"up {duration(longest)} ", FAINT)
        if (room := width - line.cell_len - up.cell_len) > 1:
            line.append(" " * room).append_text(up)
    return line


def _counts(rows: Sequence[MeasuredServer], pool: str, words: bool) -> Text:
    """The number of servers in each state; with `words` the state is named, else only its sign is shown."""
    counts = Counter(row.shown_state for row in rows)
    line = Text().append(f" {pool} ", "bold reverse")
    line.append(f"  {server_count_text(len(rows))}", "bold")
    for state, (sign, style) in STATES.items():
        if counts[state]:
            line.append(f"  {sign} {counts[state]}{f' {state}' if words else ''}", style)
    if unhealthy := sum(row.health in ("warn", "ko") for row in rows):
        line.append(f"  ! {unhealthy}{' unhealthy' if words else ''}", "bold red")
    return line


def _totals(rows: Sequence[MeasuredServer], width: int) -> Text:
    wide = width >= _MIN_WIDE_WIDTH
    chart = 24 if width >= 140 else 12 if wide else 8

    def total(figure: str) -> float | None:
        return _sum(getattr(row.stats, figure) for row in rows)

    def charted(figure: str, *, from_zero: bool = True) -> str:
        # The histories are aligned at their last values.
        series = (reversed(getattr(row.stats.history, figure)) for row in rows)
        values = [_sum(at_once) for at_once in zip_longest(*series, fillvalue=0.0)]
        return " " + sparkline(values[::-1], chart, from_zero=from_zero)

    line = Text(" ")
    _add(line, "req/s", format_count(total("requests_per_second")))
    line.append(charted("requests_per_second"), "green")
    slowest = max((row.stats.latency_p99_seconds or 0.0 for row in rows), default=0.0)
    _add(line, "p99", format_seconds(slowest or None))
    _add(line, "mem", format_size(total("memory_bytes")))
    if wide:
        line.append(charted("memory_bytes", from_zero=False), "blue")
    _add(line, "cpu", format_percent(total("cpu_percent")))
    _add(line, "busy", format_count(total("in_flight")))
    if wide:
        _add(line, "conn", format_count(total("connections")))
    rate = total("errors_per_second")
    _add(line, "err/s", format_count(rate), "bold red" if rate else "bold")
    longer = line.copy()
    _add(longer, "errors", format_count(total("errors_total")))
    return longer if longer.cell_len <= width else line


# Parts of the gateway's line omitted on a narrow screen, in this order.
_DISPENSABLE = ("mem", "cpu", "conn")


def _gateway(gateway: GatewayStatus, width: int) -> Text:
    """Return one line: the gateway's state, then its problem if there is one, otherwise its figures if known."""
    sign, style = STATES.get(gateway.state, ("?", ""))
    start = Text(" ").append(f"{sign} gateway", style)
    if gateway.problem:
        return start.append(f"  {printable(gateway.problem)}", "bold red")
    if (stats := gateway.stats) is None:
        return start.append(f"  {gateway.state}", FAINT)
    figures = {
        "req/s": format_count(stats.requests_per_second),
        "err/s": format_count(stats.errors_per_second),
        "mem": format_size(stats.memory_bytes),
        "cpu": format_percent(stats.cpu_percent),
        "conn": format_count(stats.connections),
    }
    for omitted in ("", *_DISPENSABLE):
        figures.pop(omitted, None)
        line = start.copy()
        for title, value in figures.items():
            failing = title == "err/s" and stats.errors_per_second
            _add(line, title, value, "bold red" if failing else "bold")
        if line.cell_len <= width:
            break
    return line


def _add(line: Text, title: str, value: str, style: str = "bold") -> None:
    line.append(f"{'  ' if len(line) > 1 else ''}{title} ", FAINT)
    line.append(value, style)


def _sum(figures: Iterable[float | None]) -> float | None:
    """The sum of the known values; None if all are unknown, 0 if there are no values."""
    values = list(figures)
    numbers = [figure for figure in values if figure is not None]
    return sum(numbers) if numbers or not values else None


Hints = Sequence[tuple[str, str]]

_MIN_HEIGHT_FOR_HEAD = 10  # on a screen with fewer lines, the head is one line
_FILTER, _SORT, _PAUSE, _SELECT = ("/", "filter"), ("<>", "sort"), ("Space", "pause"), ("↑↓", "select")
HINTS = (
    _FILTER, ("l", "logs"), ("r", "restart"), ("s", "stop"), _SORT, ("d", "drain"), ("+-", "workers"), _PAUSE, _SELECT,
)  # fmt: skip
_ROUTE_HINTS = (("Tab", "servers"), _FILTER, _SORT, _PAUSE, _SELECT)
_TYPING_HINTS = (("Enter", "keep the filter"), ("Esc", "show all"), _SELECT)
ALWAYS = (("?", "help"), ("q", "quit"))


class Notice(NamedTuple):
    """A message that replaces the key hints on the last line of the screen."""

    text: str
    style: str = ""


def table_frame(
    servers: ServerBoard,
    pool: str,
    size: tuple[int, int],
    *,
    notice: Notice | None,
    typing: bool,
    trouble: str,
    gateway: GatewayStatus | None = None,
    routes: RouteBoard | None = None,
) -> list[Text]:
    """Draw the totals, the table of servers or, if given, of `routes`, and a last line with a notice or key hints.

    As many rows of the table are shown as fit on the screen.
    """
    width, height = size
    board: Board[Any] = servers if routes is None else routes
    head = head_lines(servers, gateway, pool, width)
    if trouble:
        head[1] = Text(f" ! {trouble}", "bold red")
    elif height < _MIN_HEIGHT_FOR_HEAD:
        del head[1:]
    if height >= _MIN_HEIGHT_FOR_HEAD or board.filter or typing:
        if board.filter or typing:
            count = f"  {len(board.shown)} of {len(board.rows)}"
            cursor = ("_", "blink") if typing else ""
            line = Text.assemble((" filter ", "bold cyan"), board.filter, cursor, (count, FAINT))
        elif routes is None and (selected := servers.selected) is not None and selected.ended:
            line = _end_line(selected)
        else:
            line = Text()
        head.append(line)
    board.resize(height - len(head) - 2)
    table = table_lines(board, width, SERVER_COLUMNS if routes is None else ROUTE_COLUMNS)
    lines = [*head, *table]
    if not board.is_known:
        lines.append(Text(" loading …", FAINT))
    lines += [Text()] * (height - 1 - len(lines))
    hints = _ROUTE_HINTS if routes is not None else HINTS if gateway is None else (("Tab", "routes"), *HINTS)
    if notice is not None:
        last = Text(f" {notice.text}", notice.style or "bold")
    elif typing:
        last = hints_line(_TYPING_HINTS, "", width)
    else:
        position = f"{board.position}/{len(board.shown)}" if len(board.shown) > board.height else ""
        last = hints_line(hints, position, width, ALWAYS)
    return [*lines, last]


def _end_line(server: MeasuredServer) -> Text:
    """How the server has ended by itself."""
    return Text(f" {printable(f'{server.name} {server.end_text}')}", "yellow")


def hints_line(hints: Hints, at_right: str, width: int, always: Hints = ()) -> Text:
    """A line with as many of the `hints` as fit, all of `always`, and the text `at_right`."""
    remaining = width - len(at_right) - 2 - sum(map(_hint_width, always))
    shown = []
    for hint in hints:
        remaining -= _hint_width(hint)
        if remaining < 0:
            break
        shown.append(hint)
    line = Text(" ")
    for keys, meaning in (*shown, *always):
        line.append(keys, "bold")
        line.append(f" {meaning}  ", FAINT)
    line.append(" " * max(0, width - line.cell_len - len(at_right) - 1))
    return line.append(at_right, FAINT)


def _hint_width(hint: tuple[str, str]) -> int:
    return len(hint[0]) + len(hint[1]) + 3


_KEYS = (
    ("Look", ""),
    ("↑ ↓  j k", "select a server; Page Up, Page Down, Home, End"),
    ("/", "filter by words in name, address, state, health, tags;"),
    ("", "Esc clears the filter"),
    ("< >  ← →", "sort by the previous or next column"),
    ("P", "problems first, as at the beginning; F: file order"),
    ("N S H R E L M C U X", "sort by name, state, health, requests, errors, latency,"),
    ("", "memory, CPU, uptime, restarts; press again to reverse;"),
    ("", "of routes also W: waiting"),
    ("Enter  l", "show the log of the selected server; there / searches,"),
    ("", "n N find older or newer lines, L narrows by level"),
    ("Tab", "show the gateway's routes, or the servers again"),
    ("Space", "pause, resume"),
    ("", ""),
    ("Act on the selected server", ""),
    ("r", "restart: the new process is ready before the old one ends"),
    ("s", "stop it (asks first), or start it"),
    ("d", "drain it (asks first), or undrain it"),
    ("+ -", "add a worker, or remove one (asks first)"),
    ("", ""),
    ("Columns", ""),
    ("REQ/S  P99", "requests per second; 99 % are answered within this time"),
    ("ERR/S", "per second: 5xx responses, and those broken off"),
    ("MEM  CPU", "of all its processes; shared memory is divided (PSS)"),
    ("BUSY  CONN", "requests being answered, connections open"),
    ("UP  RST", "uptime, and number of restarts"),
    ("WAITING", "of a route: requests in the queue of its limit now"),
    ("", ""),
    ("q", "quit; the servers keep running"),
)
_KEYS_WIDTH = 21


def help_frame(size: tuple[int, int], start: int) -> list[Text]:
    """The explanation of the keys, scrolled down by `start` lines."""
    width, height = size
    lines = []
    for keys, meaning in _KEYS[start : start + height - 2]:
        if keys and not meaning:
            lines.append(Text(f" {keys}", "bold cyan"))
        else:
            lines.append(Text.assemble("  ", (keys.ljust(_KEYS_WIDTH), "bold"), meaning))
    lines += [Text()] * (height - 2 - len(lines))
    title = Text.assemble((" Keys ", "bold reverse"))
    return [title, *lines, hints_line([("↑↓", "scroll"), ("any other key", "back")], "", width)]


_TEXT_WIDTH = 120


def frame_text(
    board: ServerBoard, pool: str, gateway: GatewayStatus | None = None, routes: RouteBoard | None = None
) -> str:
    """The totals and the whole table of servers (or routes, if given); colored only for a terminal."""
    width = shutil.get_terminal_size((_TEXT_WIDTH, 24)).columns
    colours = coloured(sys.stdout)
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colours,
        color_system="auto" if colours else None,
        highlight=False,
    )
    rows, columns = (board, SERVER_COLUMNS) if routes is None else (routes, ROUTE_COLUMNS)
    table = table_lines(rows, width, columns, is_printed=True)
    table += [_end_line(row) for row in board.shown if row.ended and routes is None]
    console.print(
        *head_lines(board, gateway, pool, width), *table, sep="\n", no_wrap=True, crop=True, overflow="crop"
    )
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


_KEPT_LINES = 2000
_LEVEL_STYLES = {
    "error": "red", "critical": "bold red", "warning": "yellow", "debug": "bright_black", "trace": "bright_black",
}  # fmt: skip
# Minimum levels that a key cycles through; "" shows all lines.
_LEVELS = ("", "info", "warning", "error")
_MATCH_STYLE = "black on yellow"


class LogPane:
    """The log of one server on the screen: the last lines of its file and the lines added later.

    `back` is the number of lines scrolled up, `least` the minimum level of the shown lines, `words` the search text.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.back = 0
        self.least = ""
        self.words = ""
        self.typing = False
        self._follower = Follower({name: path}, lines=_KEPT_LINES)
        self._kept: deque[LogLine] = deque(maxlen=_KEPT_LINES)
        self._filter = LineFilter()
        self._lines: deque[Text] = deque(maxlen=_KEPT_LINES)
        self._take(self._follower.first)

    def __repr__(self) -> str:
        return f"<LogPane {self.path}, {len(self._lines)} lines>"

    def fileno(self) -> int:
        """A descriptor that is readable when there may be new lines; -1 if the caller has to poll."""
        return self._follower.fileno()

    def read(self) -> bool:
        """Read new lines of the server's log; return whether any of the new lines are shown."""
        return self._take(self._follower.read()) > 0

    def close(self) -> None:
        self._follower.close()

    def press(self, key: str, page: int) -> bool:
        """Handle a key; returns False for a key that closes the log. `page` is the number of lines on the screen."""
        if self.typing:
            self._type(key)
            return True
        steps = {"up": 1, "k": 1, "down": -1, "j": -1, "page up": page, "page down": -page, " ": -page}
        if key in steps:
            self.scroll(steps[key])
        elif key in ("home", "g"):
            self.scroll(_KEPT_LINES)
        elif key in ("end", "G"):
            self.scroll(-self.back)
        elif key == "/":
            self.typing, self.words = True, ""
        elif key in ("n", "N"):
            self.scroll_to_match(1 if key == "n" else -1)
        elif key == "L":
            self.show_level(_LEVELS[(_LEVELS.index(self.least) + 1) % len(_LEVELS)])
        elif key == "escape" and self.words:
            self.words = ""
        else:
            return key not in ("escape", "q", "l", "enter", "left", "backspace")
        return True

    def scroll(self, lines: int) -> None:
        """Scroll up by `lines`, or down if negative; at the end new lines are followed."""
        self.back = max(0, min(self.back + lines, len(self._lines) - 1))

    def show_level(self, least: str) -> None:
        """Show only lines of at least level `least`, scrolled to the newest line. The level "" shows all lines."""
        self.least, self.back = least, 0
        self._filter = LineFilter(least=least)
        self._lines.clear()
        self._show(self._kept)

    def scroll_to_match(self, step: int, *, here: bool = False) -> None:
        """Scroll up (`step` is 1) or down (-1) from the lowest shown line to the next match; `here` tries it first."""
        lines = list(self._lines)
        at = len(lines) - 1 - self.back - (0 if here else step)
        while 0 <= at < len(lines):
            if self._matches(lines[at]):
                self.back = len(lines) - 1 - at
                return
            at -= step

    @property
    def found(self) -> int:
        """The number of lines that match the search; 0 without a search."""
        return sum(self._matches(line) for line in self._lines) if self.words else 0

    def visible(self, width: int, height: int) -> list[Text]:
        """The lines for a screen of this size; long lines are wrapped."""
        rows: list[Text] = []
        for line in list(self._lines)[: len(self._lines) - self.back][::-1]:
            if self.words:
                line = line.copy()
                line.highlight_regex(f"(?i){re.escape(self.words)}", _MATCH_STYLE)
            rows += _wrapped(line, width)[::-1]
            if len(rows) >= height:
                break
        return rows[:height][::-1]

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.typing = False
            self.words = self.words if key == "enter" else ""
        elif key == "backspace":
            self.words = self.words[:-1]
        elif key == "clear":
            self.words = ""
        elif len(key) == 1:
            self.words += key
        if self.words:
            self.scroll_to_match(1, here=True)

    def _matches(self, line: Text) -> bool:
        return bool(self.words) and self.words.lower() in line.plain.lower()

    def _take(self, lines: list[LogLine]) -> int:
        self._kept.extend(lines)
        return self._show(lines)

    def _show(self, lines: Iterable[LogLine]) -> int:
        texts = [text for line in self._filter.filter_forwards(lines) for text in _rendered(line)]
        self._lines.extend(texts)
        if self.back:  # scrolled lines stay in place
            self.scroll(len(texts))
        return len(texts)


def _rendered(line: LogLine) -> list[Text]:
    time = local_clock_time(line.time, with_millis=False) if line.time else ""
    record = parse_record(line.text)
    if record is None:
        text = terminal_text(without_control(line.text.expandtabs(4)))
        level, begin, end = level_place(text)
        shown = Text(text)
        shown.stylize(_LEVEL_STYLES.get(level, ""), begin, end)
        return [Text.assemble((f"{time} ", FAINT), shown)]
    style = _LEVEL_STYLES.get(canonical_level(record.level), "")
    return [Text.assemble((f"{time} ", FAINT), (part, style)) for part in record_lines(record)]


def _wrapped(line: Text, width: int) -> list[Text]:
    if line.cell_len <= width:
        return [line]
    at, offsets = 0, []
    for piece in chop_cells(line.plain, width)[:-1]:
        at += len(piece)
        offsets.append(at)
    return list(line.divide(offsets))


_LOG_HINTS = (("/", "search"), ("L", "level"), ("↑↓", "scroll"), ("End", "follow"), ("Esc", "back"))
_SEARCH_HINTS = (("n", "older"), ("N", "newer"), ("/", "search"), ("L", "level"), ("Esc", "end the search"))


def log_frame(pane: LogPane, size: tuple[int, int]) -> list[Text]:
    width, height = size
    title = Text.assemble((f" {pane.name} ", "bold reverse"), "  ", (pane.path, FAINT))
    nothing = f"no lines of level {pane.least} or above" if pane.least else "no output yet"
    body = pane.visible(width, height - 2) or [Text(nothing, FAINT)]
    body += [Text()] * (height - 2 - len(body))
    if pane.typing:
        count = f"  {pane.found} found" if pane.words else ""
        search = Text.assemble((" search ", "bold cyan"), pane.words, ("_", "blink"), (count, FAINT))
        return [title, *body, search]
    parts = [
        f"{pane.least} and above" if pane.least else "",
        f"{pane.found} found" if pane.words else "",
        f"{pane.back} {'line' if pane.back == 1 else 'lines'} below" if pane.back else "following",
    ]
    state = ", ".join(part for part in parts if part)
    return [title, *body, hints_line(_SEARCH_HINTS if pane.words else _LOG_HINTS, state, width)]
