"""Frames: the lines shown on the screen, or printed without a terminal."""

from __future__ import annotations

import io
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from poolctl.cli.render import coloured, duration, printable, servers

from ._board import Board
from ._route_rows import ROUTE_COLUMNS, RouteBoard
from ._server_rows import ServerBoard
from ._table import (
    COLUMNS,
    FAINT,
    STATES,
    format_count,
    format_percent,
    format_seconds,
    format_size,
    sparkline,
    table_lines,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.control.gateway_status import GatewayStatus
    from poolctl.control.statistics_answers import Measured

_NARROW = 100


def head_lines(board: ServerBoard, gateway: GatewayStatus | None, pool: str, width: int) -> list[Text]:
    """A line with the servers' states, a line with their figures, and a line for the gateway, if any."""
    lines = [_states(board.rows, pool, width), _totals(board.rows, width)]
    return lines if gateway is None else [*lines, _gateway(gateway, width)]


def _states(rows: Sequence[Measured], pool: str, width: int) -> Text:
    for words in (True, False):
        line = _counts(rows, pool, words)
        if line.cell_len <= width:
            break
    if longest := max((row.uptime_seconds for row in rows), default=0.0):
        up = Text(f"up {duration(longest)} ", FAINT)
        if (room := width - line.cell_len - up.cell_len) > 1:
            line.append(" " * room).append_text(up)
    return line


def _counts(rows: Sequence[Measured], pool: str, words: bool) -> Text:
    """The number of servers in each state, with its name or only its sign."""
    counts = Counter(row.state for row in rows)
    line = Text(no_wrap=True, end="").append(f" {pool} ", "bold reverse")
    line.append(f"  {servers(len(rows))}", "bold")
    for state, (sign, style) in STATES.items():
        if counts[state]:
            line.append(f"  {sign} {counts[state]}{f' {state}' if words else ''}", style)
    if unhealthy := sum(row.health in ("warn", "ko") for row in rows):
        line.append(f"  ! {unhealthy}{' unhealthy' if words else ''}", "bold red")
    return line


def _totals(rows: Sequence[Measured], width: int) -> Text:
    wide = width >= _NARROW
    chart = 24 if width >= 140 else 12 if wide else 8
    all_stats = [row.stats for row in rows]
    line = Text(" ", no_wrap=True, end="")
    _figure(line, "req/s", format_count(_sum(stats.requests_per_second for stats in all_stats)))
    rates = _summed([stats.history.requests_per_second for stats in all_stats])
    line.append(" " + sparkline(rates, chart), "green")
    slowest = max((stats.latency_p99_seconds or 0.0 for stats in all_stats), default=0.0)
    _figure(line, "p99", format_seconds(slowest or None))
    _figure(line, "mem", format_size(_sum(stats.memory_bytes for stats in all_stats)))
    if wide:
        memory = _summed([stats.history.memory_bytes for stats in all_stats])
        line.append(" " + sparkline(memory, chart, from_zero=False), "blue")
    _figure(line, "cpu", format_percent(_sum(stats.cpu_percent for stats in all_stats)))
    _figure(line, "busy", format_count(_sum(stats.in_flight for stats in all_stats)))
    if wide:
        _figure(line, "conn", format_count(_sum(stats.connections for stats in all_stats)))
    rate = _sum(stats.errors_per_second for stats in all_stats)
    _figure(line, "err/s", format_count(rate), "bold red" if rate else "bold")
    total = line.copy()
    _figure(total, "errors", format_count(_sum(stats.errors_total for stats in all_stats)))
    return total if total.cell_len <= width else line


# Parts of the gateway's line omitted on a narrow screen, in this order.
_DISPENSABLE = ("p50", "mem", "cpu", "conn")


def _gateway(gateway: GatewayStatus, width: int) -> Text:
    """The gateway's state, and its figures or its problem."""
    sign, style = STATES.get(gateway.state, ("?", ""))
    start = Text(" ", no_wrap=True, end="").append(f"{sign} gateway", style)
    if gateway.problem:
        return start.append(f"  {printable(gateway.problem)}", "bold red")
    if (stats := gateway.stats) is None:
        return start.append(f"  {gateway.state}", FAINT)
    figures = {
        "req/s": format_count(stats.requests_per_second),
        "err/s": format_count(stats.errors_per_second),
        "p50": format_seconds(stats.latency_p50_seconds),
        "p99": format_seconds(stats.latency_p99_seconds),
        "mem": format_size(stats.memory_bytes),
        "cpu": format_percent(stats.cpu_percent),
        "conn": format_count(stats.connections),
    }
    omitted = 0
    while True:
        line = start.copy()
        for title, value in figures.items():
            if title not in _DISPENSABLE[:omitted]:
                failing = title == "err/s" and stats.errors_per_second
                _figure(line, title, value, "bold red" if failing else "bold")
        if line.cell_len <= width or omitted == len(_DISPENSABLE):
            return line
        omitted += 1


def _figure(line: Text, title: str, value: str, style: str = "bold") -> None:
    line.append(f"{'  ' if len(line) > 1 else ''}{title} ", FAINT)
    line.append(value, style)


def _sum(figures: Iterable[float | None]) -> float | None:
    """The sum of the known values; None if all are unknown."""
    found = list(figures)
    known = [figure for figure in found if figure is not None]
    return sum(known) if known or not found else None


def _summed(series: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The sum of several histories, aligned at their last values."""
    newest_first = zip_longest(*(reversed(values) for values in series), fillvalue=0.0)
    return [_sum(values) for values in newest_first][::-1]


Hints = Sequence[tuple[str, str]]

_LOW = 10  # a screen with fewer lines shows only the table
_FILTER, _SORT, _PAUSE, _SELECT = ("/", "filter"), ("<>", "sort"), ("Space", "pause"), ("↑↓", "select")
_HINTS = (
    _FILTER, ("l", "logs"), ("r", "restart"), ("s", "stop"), _SORT, ("d", "drain"), ("+-", "workers"), _PAUSE, _SELECT,
)  # fmt: skip
_ROUTE_HINTS = (("Tab", "servers"), _FILTER, _SORT, _PAUSE, _SELECT)
_ALWAYS = (("?", "help"), ("q", "quit"))


class Notice(NamedTuple):
    """A message on the last line, in place of the hints."""

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
    """The totals, the table of servers (or routes, if given), and the last line.

    Sets the number of rows of the table's board to the available space.
    """
    width, height = size
    board: Board[Any] = servers if routes is None else routes
    head = head_lines(servers, gateway, pool, width)
    if trouble:
        head[1] = Text(f" ! {trouble}", "bold red")
    elif height < _LOW:
        del head[1:]
    if height >= _LOW or board.filter or typing:
        head.append(_filter_line(board, typing))
    board.resize(height - len(head) - 2)
    table = table_lines(board, width, COLUMNS if routes is None else ROUTE_COLUMNS)
    lines = [*head, *table]
    if not board.is_known:
        lines.append(Text(" loading …", FAINT))
    lines += [Text()] * (height - 1 - len(lines))
    hints = (
        _ROUTE_HINTS if routes is not None else _HINTS if gateway is None else (("Tab", "routes"), *_HINTS)
    )
    return [*lines, _last_line(board, hints, notice, typing, width)]


def help_frame(size: tuple[int, int], start: int) -> list[Text]:
    """The explanation of the keys."""
    width, height = size
    lines = help_lines()[start : start + height - 2]
    lines += [Text()] * (height - 2 - len(lines))
    title = Text.assemble((" Keys ", "bold reverse"))
    return [title, *lines, hinted([("↑↓", "scroll"), ("any other key", "back")], "", width)]


def _filter_line(board: Board[Any], typing: bool) -> Text:
    if not (board.filter or typing):
        return Text()
    found = f"  {len(board.shown)} of {len(board.rows)}"
    cursor = ("_", "blink") if typing else ""
    return Text.assemble((" filter ", "bold cyan"), board.filter, cursor, (found, FAINT))


def _last_line(board: Board[Any], hints: Hints, notice: Notice | None, typing: bool, width: int) -> Text:
    if notice is not None:
        return Text(f" {notice.text}", notice.style or "bold")
    if typing:
        return hinted([("Enter", "keep the filter"), ("Esc", "show all"), ("↑↓", "select")], "", width)
    place = f"{board.position}/{len(board.shown)}" if len(board.shown) > board.height else ""
    return hinted(hints, place, width, _ALWAYS)


def hinted(hints: Hints, at_right: str, width: int, always: Hints = ()) -> Text:
    """As many key hints as fit, followed by the hints in `always`."""
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
_WIDTH = 21


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


def frame_text(
    board: ServerBoard, pool: str, gateway: GatewayStatus | None = None, routes: RouteBoard | None = None
) -> str:
    """The totals and the whole table of servers (or routes, if given); coloured only for a terminal."""
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
    table = (
        table_lines(board, width, cursor=False, all_rows=True)
        if routes is None
        else table_lines(routes, width, ROUTE_COLUMNS, cursor=False, all_rows=True)
    )
    console.print(
        *head_lines(board, gateway, pool, width), *table, sep="\n", no_wrap=True, crop=True, overflow="crop"
    )
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))
