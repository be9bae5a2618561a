"""The totals above the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from poolctl.cli.render import duration

from . import figures
from .board import ServerBoard, ServerRow
from .columns import STATES
from .figures import sparkline

_FAINT = "bright_black"
_NARROW = 100


def head_lines(board: ServerBoard, pool: str, width: int) -> list[Text]:
    """One line of the servers' states, and one of their figures if there are any."""
    rows = board.rows.all()
    lines = [_states(rows, pool, width)]
    if board.rows.measured:
        lines.append(_figures(rows, width))
    return lines


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


def _figures(rows: Sequence[ServerRow], width: int) -> Text:
    wide = width >= _NARROW
    chart = 24 if width >= 140 else 12 if wide else 8
    line = Text(" ", no_wrap=True, end="")
    rates = _summed(row.history.get("requests_per_second") or () for row in rows)
    _figure(line, "req/s", figures.count(_total(rows, "requests_per_second")))
    line.append(" " + sparkline(rates, chart), "green")
    slowest = max((row.number("latency_p99_seconds") or 0.0 for row in rows), default=0.0) or None
    _figure(line, "p99", figures.seconds(slowest))
    memory = _summed(row.history.get("memory_bytes") or () for row in rows)
    _figure(line, "mem", figures.size(_total(rows, "memory_bytes")))
    if wide:
        line.append(" " + sparkline(memory, chart, from_zero=False), "blue")
    _figure(line, "cpu", figures.percent(_total(rows, "cpu_percent")))
    _figure(line, "busy", figures.count(_total(rows, "in_flight")))
    if wide:
        _figure(line, "conn", figures.count(_total(rows, "connections")))
    errors = _total(rows, "errors_total")
    _figure(line, "errors", figures.count(errors), "bold red" if errors else "bold")
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
