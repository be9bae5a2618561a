"""Frames: the lines that the screen shows, or that are printed without a terminal."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from poolctl.cli.render import coloured, duration

from .board import ServerBoard, ServerRow
from .log_pane import LogPane
from .table import STATES, format_count, format_percent, format_seconds, format_size, sparkline, table_lines

_NARROW = 100


def head_lines(board: ServerBoard, pool: str, width: int) -> list[Text]:
    """One line of the servers' states, and one of their figures."""
    rows = list(board.rows.values())
    return [_states(rows, pool, width), _totals(rows, width)]


def _states(rows: Sequence[ServerRow], pool: str, width: int) -> Text:
    for words in (True, False):
        line = _counts(rows, pool, words)
        if line.cell_len <= width:
            break
    longest = max((float(row.item.get("uptime_seconds") or 0) for row in rows), default=0.0)
    if longest:
        _at_right(line, Text(f"up {duration(longest)} ", _FAINT), width)
    return line


def _counts(rows: Sequence[ServerRow], pool: str, words: bool) -> Text:
    """How many servers are in each state, in words or only by its sign."""
    counts: dict[str, int] = {}
    for row in rows:
        state = str(row.item.get("state"))
        counts[state] = counts.get(state, 0) + 1
    line = Text(no_wrap=True, end="").append(f" {pool} ", "bold reverse")
    line.append(f"  {len(rows)} server{'s' if len(rows) != 1 else ''}", "bold")
    for state, (sign, style) in STATES.items():
        if counts.get(state):
            line.append(f"  {sign} {counts[state]}{f' {state}' if words else ''}", style)
    unhealthy = sum(row.item.get("health") in ("warn", "ko") for row in rows)
    if unhealthy:
        line.append(f"  ! {unhealthy}{' unhealthy' if words else ''}", "bold red")
    return line


def _totals(rows: Sequence[ServerRow], width: int) -> Text:
    wide = width >= _NARROW
    chart = 24 if width >= 140 else 12 if wide else 8
    line = Text(" ", no_wrap=True, end="")
    rates = _summed(row.history.get("requests_per_second") or () for row in rows)
    _figure(line, "req/s", format_count(_total(rows, "requests_per_second")))
    line.append(" " + sparkline(rates, chart), "green")
    slowest = max((row.number("latency_p99_seconds") or 0.0 for row in rows), default=0.0) or None
    _figure(line, "p99", format_seconds(slowest))
    memory = _summed(row.history.get("memory_bytes") or () for row in rows)
    _figure(line, "mem", format_size(_total(rows, "memory_bytes")))
    if wide:
        line.append(" " + sparkline(memory, chart, from_zero=False), "blue")
    _figure(line, "cpu", format_percent(_total(rows, "cpu_percent")))
    _figure(line, "busy", format_count(_total(rows, "in_flight")))
    if wide:
        _figure(line, "conn", format_count(_total(rows, "connections")))
    errors = _total(rows, "errors_total")
    _figure(line, "errors", format_count(errors), "bold red" if errors else "bold")
    return line


def _figure(line: Text, title: str, value: str, style: str = "bold") -> None:
    line.append(f"{'  ' if len(line) > 1 else ''}{title} ", _FAINT)
    line.append(value, style)


def _at_right(line: Text, more: Text, width: int) -> None:
    room = width - line.cell_len - more.cell_len
    if room > 1:
        line.append(" " * room)
        line.append_text(more)


def _total(rows: Iterable[ServerRow], key: str) -> float:
    return sum(row.number(key) or 0.0 for row in rows)


def _summed(series: Iterable[Sequence[float | None]]) -> list[float | None]:
    """The sum of several histories, of which the last values belong together."""
    total: list[float | None] = []
    for values in series:
        newest_first = list(values)[::-1]
        total += [None] * (len(newest_first) - len(total))
        for at, value in enumerate(newest_first):
            if value is not None:
                total[at] = (total[at] or 0.0) + value
    return total[::-1]


Hints = Sequence[tuple[str, str]]

_LOW = 10  # a screen of fewer lines is for the table
_FAINT = "bright_black"
_HINTS = (
    ("/", "filter"), ("l", "logs"), ("r", "restart"), ("s", "stop"), ("<>", "sort"), ("d", "drain"),
    ("+-", "workers"), ("Space", "pause"), ("↑↓", "select"),
)  # fmt: skip
_ALWAYS = (("?", "help"), ("q", "quit"))


class Notice:
    """A message in the last line instead of the hints."""

    __slots__ = ("style", "text")

    def __init__(self, text: str, style: str = "") -> None:
        self.text = text
        self.style = style


def servers_frame(
    board: ServerBoard, pool: str, size: tuple[int, int], *, notice: Notice | None, typing: bool, trouble: str
) -> list[Text]:
    """The totals, the table, and the last line. Gives the board the number of rows that there is room for."""
    width, height = size
    head = head_lines(board, pool, width)
    if trouble:
        head = [head[0], Text(f" ! {trouble}", "bold red")]
    elif height < _LOW:
        del head[1:]
    if height >= _LOW or board.filter or typing:
        head.append(_filter_line(board, typing))
    board.resize(height - len(head) - 2)
    table = table_lines(board, width)
    lines = [*head, *table]
    lines += [Text()] * (height - 1 - len(lines))
    return [*lines, _last_line(board, notice, typing, width)]


def log_frame(pane: LogPane, size: tuple[int, int]) -> list[Text]:
    """The log of a server."""
    width, height = size
    title = Text.assemble((f" {pane.name} ", "bold reverse"), "  ", (pane.path, _FAINT))
    body = pane.visible(width, height - 2) or [Text("no output yet", _FAINT)]
    body += [Text()] * (height - 2 - len(body))
    state = f"{pane.back} lines below" if pane.back else "following"
    hints = [("↑↓", "scroll"), ("End", "follow"), ("Esc", "back")]
    return [title, *body, _hinted(hints, state, width)]


def help_frame(size: tuple[int, int], start: int) -> list[Text]:
    """The explanation of the keys."""
    width, height = size
    lines = help_lines()[start : start + height - 2]
    lines += [Text()] * (height - 2 - len(lines))
    title = Text.assemble((" Keys ", "bold reverse"))
    return [title, *lines, _hinted([("↑↓", "scroll"), ("any other key", "back")], "", width)]


def _filter_line(board: ServerBoard, typing: bool) -> Text:
    if not (board.filter or typing):
        return Text()
    found = f"  {len(board.shown)} of {len(board.rows)}"
    cursor = ("_", "blink") if typing else ""
    return Text.assemble((" filter ", "bold cyan"), board.filter, cursor, (found, _FAINT))


def _last_line(board: ServerBoard, notice: Notice | None, typing: bool, width: int) -> Text:
    if notice is not None:
        return Text(f" {notice.text}", notice.style or "bold")
    if typing:
        return _hinted([("Enter", "keep the filter"), ("Esc", "show all"), ("↑↓", "select")], "", width)
    place = f"{board.position}/{len(board.shown)}" if len(board.shown) > board.height else ""
    return _hinted(_HINTS, place, width, _ALWAYS)


def _hinted(hints: Hints, at_right: str, width: int, always: Hints = ()) -> Text:
    """Keys and what they do, as many as fit; `always` are those that stand at the end in any case."""
    left = width - len(at_right) - 2 - sum(map(_hint_width, always))
    shown = []
    for hint in hints:
        left -= _hint_width(hint)
        if left < 0:
            break
        shown.append(hint)
    line = Text(" ")
    for keys, meaning in (*shown, *always):
        line.append(keys, "bold")
        line.append(f" {meaning}  ", _FAINT)
    line.append(" " * max(0, width - line.cell_len - len(at_right) - 1))
    return line.append(at_right, _FAINT)


def _hint_width(hint: tuple[str, str]) -> int:
    return len(hint[0]) + len(hint[1]) + 3


_KEYS = (
    ("Look", ""),
    ("↑ ↓  j k", "select a server; Page Up, Page Down, Home, End"),
    ("/", "filter by words in name, address, state, health, tags;"),
    ("", "Esc clears the filter"),
    ("< >  ← →", "sort by the previous or next column"),
    ("N S H R L M C U X", "sort by name, state, health, requests, latency, memory,"),
    ("", "CPU, uptime, restarts; press again to reverse;"),
    ("", "F: file order"),
    ("Enter  l", "show the log of the selected server"),
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
    ("MEM  CPU", "of all its processes; shared memory is divided (PSS)"),
    ("BUSY  CONN", "requests being answered, connections open"),
    ("UP  RST", "uptime, and number of restarts"),
    ("", ""),
    ("q", "quit; the servers keep running"),
)
_WIDTH = 19


def help_lines() -> list[Text]:
    """The page."""
    lines = []
    for keys, meaning in _KEYS:
        if keys and not meaning:
            lines.append(Text(f" {keys}", "bold cyan"))
        else:
            lines.append(Text.assemble("  ", (keys.ljust(_WIDTH), "bold"), meaning))
    return lines


_TEXT_WIDTH = 120


def frame_text(board: ServerBoard, pool: str) -> str:
    """The totals and the whole table; in colours only for a terminal."""
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
    lines = [*head_lines(board, pool, width), *table_lines(board, width, cursor=False, all_rows=True)]
    console.print(*lines, sep="\n", no_wrap=True, crop=True, overflow="crop")
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))
