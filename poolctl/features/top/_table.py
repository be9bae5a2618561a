"""The table: its columns, their selection by width, and the figures and sparklines in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from poolctl.cli.render import duration, printable
from poolctl.control.statistics_answers import Measured, Stats, StatsHistory

from ._board import Board

_UNKNOWN = "-"
BARS = "▁▂▃▄▅▆▇"  # without the full block, so that bars of adjacent rows stay separate
# A slowly changing value (memory) is scaled to show changes, but not noise.
_LEAST_SPAN = 0.2
GAP = 1
LONGEST_CHART = 30
_SHORTEST_NAME, _LONGEST_NAME = 8, 32
STATES = {
    "running": ("●", "green"),
    "starting": ("◐", "yellow"),
    "stopping": ("◑", "yellow"),
    "draining": ("◒", "yellow"),
    "backoff": ("↻", "yellow"),
    "failed": ("✗", "bold red"),
    "sleeping": ("◌", "cyan"),
    "completed": ("✓", "green"),
    "stopped": ("○", "bright_black"),
    "disabled": ("⊘", "bright_black"),
}
HEALTH = {"ok": "green", "warn": "yellow", "ko": "bold red"}
FAINT = "bright_black"


def format_count(number: float | None) -> str:
    """A number without a unit: "0", "4.2", "847", "12.3k", "1.2M"."""
    if number is None:
        return _UNKNOWN
    for suffix in ("", "k", "M"):
        if number < 999.5:
            return _digits(number) + suffix
        number /= 1000
    return _digits(number) + "G"


def format_seconds(number: float | None) -> str:
    """A short time: "850µs", "4.2ms", "320ms", "1.2s", "95s"."""
    if number is None:
        return _UNKNOWN
    if number < 0.0009995:
        return f"{number * 1e6:.0f}µs" if number > 0 else "0"
    if number < 0.9995:
        return f"{_digits(number * 1000)}ms"
    return f"{_digits(number)}s"


def format_size(number: float | None) -> str:
    """An amount of memory: "640K", "23.4M", "1.2G"."""
    if number is None:
        return _UNKNOWN
    number /= 1024
    for suffix in ("K", "M"):
        if number < 999.5:
            return _digits(number) + suffix
        number /= 1024
    return _digits(number) + "G"


def format_percent(number: float | None) -> str:
    """A share: "0.4%", "12%"."""
    return _UNKNOWN if number is None else f"{_digits(number, 2)}%"


def _digits(number: float, most: int = 3) -> str:
    if number == int(number) or number >= 99.95 or (most < 3 and number >= 9.95):
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 0.995 or most < 3 else f"{number:.2f}"


def sparkline(values: Sequence[float | None], width: int, *, from_zero: bool = True) -> str:
    """The newest values, right-aligned, one per column; a space for an unknown value.

    With `from_zero` the lowest bar is 0; otherwise bars are centred.
    """
    shown = list(values)[-width:] if width > 0 else []
    known = [value for value in shown if value is not None]
    top = max(known, default=0.0)
    least = 0.0 if from_zero else min(known, default=0.0)
    span = top if from_zero else max(top - least, top * _LEAST_SPAN)
    base = (top + least - span) / 2
    bars = "".join(" " if value is None else _bar(value - base, span) for value in shown)
    return bars.rjust(width)


def _bar(value: float, span: float) -> str:
    if span <= 0 or value <= 0:
        return BARS[0]
    return BARS[min(len(BARS) - 1, int(value / span * (len(BARS) - 1) + 0.5))]


# The text of a cell with a given width, and its style.
Cell = Callable[[Any, int], tuple[str, str]]


class Column(NamedTuple):
    """Columns with lower `priority` are placed first. A chart fills free space; its heading shows its time span."""

    title: str
    sort: str
    width: int
    priority: int
    cell: Cell
    right: bool = False
    chart: bool = False


class Placed(NamedTuple):
    """A column with its width on this screen."""

    column: Column
    width: int


def _figure(
    value: Callable[[Stats], float | None],
    form: Callable[[float | None], str],
    style: str = "",
    *,
    of_processes: bool = False,
) -> Cell:
    def cell(row: Measured, width: int) -> tuple[str, str]:
        number = value(row.stats)
        if of_processes and not (number or row.pids):
            number = None
        return form(number), style if number else FAINT

    return cell


def _chart(
    series: Callable[[StatsHistory], Sequence[float | None]], style: str, *, from_zero: bool = True
) -> Cell:
    def cell(row: Measured, width: int) -> tuple[str, str]:
        values = series(row.stats.history)
        return sparkline(values, width, from_zero=from_zero), style if any(values) else FAINT

    return cell


def _name(row: Measured, width: int) -> tuple[str, str]:
    return printable(row.name), "bold" if row.state == "failed" else ""


def _state(row: Measured, width: int) -> tuple[str, str]:
    sign, style = STATES.get(row.state, ("?", ""))
    return f"{sign} {row.state}", "yellow" if row.state == "running" and not row.ready else style


def _health(row: Measured, width: int) -> tuple[str, str]:
    known = row.health not in ("", "unknown")
    return (row.health, HEALTH.get(row.health, "")) if known else (_UNKNOWN, FAINT)


def _address(row: Measured, width: int) -> tuple[str, str]:
    return printable(row.address or row.bind), FAINT


def _workers(row: Measured, width: int) -> tuple[str, str]:
    there = len(row.pids)
    if there == row.workers:
        return str(there), ""
    return f"{there}/{row.workers}", "yellow" if there else FAINT


def _uptime(row: Measured, width: int) -> tuple[str, str]:
    return (duration(row.uptime_seconds), "") if row.uptime_seconds else (_UNKNOWN, FAINT)


def _restarts(row: Measured, width: int) -> tuple[str, str]:
    return str(row.restarts), "" if row.restarts else FAINT


_requests = _figure(lambda stats: stats.requests_per_second, format_count, "green")
_requests_chart = _chart(lambda history: history.requests_per_second, "green")
_errors = _figure(lambda stats: stats.errors_per_second, format_count, "bold red")
_latency = _figure(lambda stats: stats.latency_p99_seconds, format_seconds, "yellow")
_latency_chart = _chart(lambda history: history.latency_p99_seconds, "yellow")
_memory = _figure(lambda stats: stats.memory_bytes, format_size, "blue", of_processes=True)
_memory_chart = _chart(lambda history: history.memory_bytes, "blue", from_zero=False)
_cpu = _figure(lambda stats: stats.cpu_percent, format_percent, of_processes=True)

COLUMNS = (
    Column("NAME", "name", 0, 0, _name),
    Column("STATE", "state", 10, 0, _state),
    Column("HEALTH", "health", 6, 1, _health),
    Column("ADDRESS", "file", 21, 10, _address),
    Column("WORK", "", 4, 9, _workers, right=True),
    Column("REQ/S", "requests", 6, 1, _requests, right=True),
    Column("REQ", "", 8, 2, _requests_chart, chart=True),
    Column("ERR/S", "errors", 6, 5, _errors, right=True),
    Column("P99", "latency", 6, 1, _latency, right=True),
    Column("P99", "", 8, 7, _latency_chart, chart=True),
    Column("MEM", "memory", 5, 1, _memory, right=True),
    Column("MEM", "", 8, 8, _memory_chart, chart=True),
    Column("CPU", "cpu", 5, 4, _cpu, right=True),
    Column("BUSY", "", 4, 11, _figure(lambda stats: stats.in_flight, format_count), right=True),
    Column("CONN", "", 5, 12, _figure(lambda stats: stats.connections, format_count), right=True),
    Column("UP", "uptime", 6, 3, _uptime, right=True),
    Column("RST", "restarts", 3, 6, _restarts, right=True),
)


def place(width: int, names: int, all_columns: Sequence[Column]) -> list[Placed]:
    """The columns for a screen of this width; the first has names, of at most `names` cells."""
    longest = min(max(names, _SHORTEST_NAME), _LONGEST_NAME)
    name = min(longest, max(_SHORTEST_NAME, width // 4))
    widths = {column: column.width for column in all_columns}
    taken: set[Column] = set()
    left = width - name
    for column in sorted(all_columns, key=lambda each: each.priority):
        needed = column.width + GAP if column.width else 0
        if needed <= left:
            taken.add(column)
            left -= needed
    more = min(left, longest - name)
    widths[all_columns[0]] = name + more
    left -= more
    charts = [column for column in all_columns if column in taken and column.chart]
    for column in charts:
        widths[column] += min(left // len(charts), LONGEST_CHART - column.width)
    return [Placed(column, widths[column]) for column in all_columns if column in taken]


def table_lines(
    board: Board[Any],
    width: int,
    all_columns: Sequence[Column] = COLUMNS,
    *,
    cursor: bool = True,
    all_rows: bool = False,
) -> list[Text]:
    """The header and the visible rows; with `cursor` the selected row is highlighted."""
    rows = board.shown if all_rows else board.visible
    longest = max((cell_len(row.name) for row in board.rows), default=0)
    columns = place(width, longest, all_columns)
    selected = board.selected if cursor else None
    return [_head(columns, board), *(_line(columns, row, row is selected, width) for row in rows)]


def _head(columns: Iterable[Placed], board: Board[Any]) -> Text:
    line = Text(no_wrap=True, end="", overflow="crop")
    for column, width in columns:
        _gap(line)
        title = column.title
        if column.chart and board.sample_seconds:
            title += f" {width * board.sample_seconds:.0f}s"
        sorted_by = (
            bool(column.sort) and column.sort == board.sort and column.sort not in ("file", "problems")
        )
        if sorted_by:
            title += "▾" if board.falling else "▴"
        line.append(_fitted(title, width, column.right), "bold cyan" if sorted_by else "bold bright_black")
    return line


def _line(columns: Iterable[Placed], row: object, selected: bool, screen: int) -> Text:
    line = Text(no_wrap=True, end="", overflow="crop")
    for column, width in columns:
        _gap(line)
        text, style = column.cell(row, width)
        # Coloured cells would interrupt the highlight of the selected row.
        line.append(_fitted(text, width, column.right), "" if selected else style)
    if selected:
        line.append(" " * (screen - line.cell_len))
        line.stylize("reverse")
    return line


def _gap(line: Text) -> None:
    if line:
        line.append(" " * GAP)


def _fitted(text: str, width: int, right: bool) -> str:
    """The text in exactly `width` cells; a longer text is cut and ends with "…"."""
    cells = cell_len(text)
    if cells > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    room = " " * (width - cells)
    return room + text if right else text + room
