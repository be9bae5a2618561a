"""The table: its columns, which of them find room, and the figures and sparklines in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from poolctl.cli.render import duration, printable

from .board import SORTS, ServerBoard, ServerRow

_UNKNOWN = "-"
BARS = "▁▂▃▄▅▆▇"  # without the full one, so that rows do not grow together
# Of a value that hardly changes (memory) the change is shown, but a ripple is not to look like a wave.
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
    "stopped": ("○", "bright_black"),
    "disabled": ("⊘", "bright_black"),
}
HEALTH = {"ok": "green", "warn": "yellow", "ko": "bold red"}
_FAINT = "bright_black"
_STYLES = {"requests_per_second": "green", "latency_p99_seconds": "yellow", "memory_bytes": "blue"}


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
    """The newest values, right-aligned, one a column; a space where none is known.

    With `from_zero` the lowest bar is 0; otherwise they move around the middle.
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


class Column(NamedTuple):
    """`priority`: the lower, the sooner it finds room. `kind` is text, number, usage (of its processes) or chart.

    A chart grows where there is room. `key` names a figure of the statistics, or a text.
    """

    title: str
    sort: str
    width: int
    priority: int
    kind: str
    key: str
    right: bool = False


class Placed(NamedTuple):
    """A column with its width on this screen."""

    column: Column
    width: int


def _cell(column: Column, row: ServerRow, width: int) -> tuple[str, str]:
    """The text of a row's cell, and its style."""
    if column.kind == "text":
        return _TEXTS[column.key](row)
    number = row.number(column.key)
    style = _STYLES.get(column.key, "")
    if column.kind == "chart":
        values = row.history.get(column.key) or ()
        text = sparkline(values, width, from_zero=column.key != "memory_bytes")
        return text, style if any(values) else _FAINT
    if column.kind == "usage" and not (number or row.item.get("pids")):
        number = None  # of no process
    return _FORMATS[column.key](number), "" if number else _FAINT


def _name(row: ServerRow) -> tuple[str, str]:
    return printable(row.name), "bold" if row.item.get("state") == "failed" else ""


def _state(row: ServerRow) -> tuple[str, str]:
    state = str(row.item.get("state", ""))
    sign, style = STATES.get(state, ("?", ""))
    if state == "running" and not row.item.get("ready"):
        style = "yellow"
    return f"{sign} {state}", style


def _health(row: ServerRow) -> tuple[str, str]:
    health = str(row.item.get("health") or "unknown")
    return ("-", _FAINT) if health == "unknown" else (health, HEALTH.get(health, ""))


def _address(row: ServerRow) -> tuple[str, str]:
    return printable(str(row.item.get("address") or row.item.get("bind") or "")), _FAINT


def _workers(row: ServerRow) -> tuple[str, str]:
    there, wanted = len(row.item.get("pids") or ()), row.item.get("workers")
    return (str(there), "") if there == wanted else (f"{there}/{wanted}", "yellow" if there else _FAINT)


def _uptime(row: ServerRow) -> tuple[str, str]:
    seconds = row.item.get("uptime_seconds")
    return (duration(seconds), "") if seconds else ("-", _FAINT)


def _restarts(row: ServerRow) -> tuple[str, str]:
    restarts = int(row.item.get("restarts") or 0)
    return str(restarts), "" if restarts else _FAINT


_TEXTS = {
    "name": _name, "state": _state, "health": _health, "address": _address, "workers": _workers, "uptime": _uptime,
    "restarts": _restarts,
}  # fmt: skip
_FORMATS = {
    "requests_per_second": format_count, "latency_p99_seconds": format_seconds, "memory_bytes": format_size,
    "cpu_percent": format_percent, "in_flight": format_count, "connections": format_count,
}  # fmt: skip

COLUMNS = (
    Column("NAME", "name", 0, 0, "text", "name"),
    Column("STATE", "state", 10, 0, "text", "state"),
    Column("HEALTH", "health", 6, 1, "text", "health"),
    Column("ADDRESS", "file", 21, 9, "text", "address"),
    Column("WORK", "", 4, 8, "text", "workers", right=True),
    Column("REQ/S", "requests", 6, 1, "number", "requests_per_second", right=True),
    Column("", "", 8, 2, "chart", "requests_per_second"),
    Column("P99", "latency", 6, 1, "number", "latency_p99_seconds", right=True),
    Column("", "", 8, 6, "chart", "latency_p99_seconds"),
    Column("MEM", "memory", 5, 1, "usage", "memory_bytes", right=True),
    Column("", "", 8, 7, "chart", "memory_bytes"),
    Column("CPU", "cpu", 5, 4, "usage", "cpu_percent", right=True),
    Column("BUSY", "", 4, 10, "number", "in_flight", right=True),
    Column("CONN", "", 5, 11, "number", "connections", right=True),
    Column("UP", "uptime", 6, 3, "text", "uptime", right=True),
    Column("RST", "restarts", 3, 5, "text", "restarts", right=True),
)


def place(width: int, names: int) -> list[Placed]:
    """The columns for a screen so wide, on which the longest name takes `names` cells."""
    longest = min(max(names, _SHORTEST_NAME), _LONGEST_NAME)
    name = min(longest, max(_SHORTEST_NAME, width // 4))
    widths = {column: column.width for column in COLUMNS}
    taken: set[Column] = set()
    left = width - name
    for column in sorted(COLUMNS, key=lambda each: each.priority):
        needed = column.width + GAP if column.width else 0
        if needed <= left:
            taken.add(column)
            left -= needed
    more = min(left, longest - name)
    widths[COLUMNS[0]] = name + more
    left -= more
    charts = [column for column in COLUMNS if column in taken and column.kind == "chart"]
    for column in charts:
        widths[column] += min(left // len(charts), LONGEST_CHART - column.width)
    return [Placed(column, widths[column]) for column in COLUMNS if column in taken]


def table_lines(board: ServerBoard, width: int, *, cursor: bool = True, all_rows: bool = False) -> list[Text]:
    """The head and the visible rows; with `cursor` the selected one stands out."""
    rows = board.shown if all_rows else board.visible
    longest = max((cell_len(name) for name in board.rows), default=0)
    columns = place(width, longest)
    selected = board.selected if cursor else None
    return [_head(columns, board), *(_line(columns, row, row is selected, width) for row in rows)]


def _head(columns: Iterable[Placed], board: ServerBoard) -> Text:
    line = Text(no_wrap=True, end="", overflow="crop")
    for column, width in columns:
        _gap(line)
        title = column.title
        sorted_by = bool(column.sort) and column.sort == board.sort and column.sort != "file"
        if sorted_by:
            title += "▾" if SORTS[board.sort] is not board.reverse else "▴"
        line.append(_fitted(title, width, column.right), "bold cyan" if sorted_by else "bold bright_black")
    return line


def _line(columns: Iterable[Placed], row: ServerRow, selected: bool, screen: int) -> Text:
    line = Text(no_wrap=True, end="", overflow="crop")
    for column, width in columns:
        _gap(line)
        text, style = _cell(column, row, width)
        # Colours of their own would make patches of the selected row.
        line.append(_fitted(text, width, column.right), "" if selected else style)
    if selected:
        line.append(" " * (screen - line.cell_len))
        line.stylize("reverse")
    return line


def _gap(line: Text) -> None:
    if line:
        line.append(" " * GAP)


def _fitted(text: str, width: int, right: bool) -> str:
    """The text in exactly so many cells; what does not fit ends with "…"."""
    cells = cell_len(text)
    if cells > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    room = " " * (width - cells)
    return room + text if right else text + room
