"""The columns of the table: what each shows, and which of them find room."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from poolctl.cli.render import duration, printable

from . import figures
from .board import ServerRow
from .figures import sparkline

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


class Column(NamedTuple):
    """`priority`: the lower, the sooner it finds room. A chart grows where there is room."""

    title: str
    sort: str
    width: int
    priority: int
    cell: Callable[[ServerRow, int], tuple[str, str]]
    right: bool = True
    measured: bool = True
    chart: bool = False


class Placed(NamedTuple):
    """A column with its width on this screen."""

    column: Column
    width: int


def _name(row: ServerRow, width: int) -> tuple[str, str]:
    return printable(row.name), "bold" if row.item.get("state") == "failed" else ""


def _state(row: ServerRow, width: int) -> tuple[str, str]:
    state = str(row.item.get("state", ""))
    sign, style = STATES.get(state, ("?", ""))
    if state == "running" and not row.item.get("ready"):
        style = "yellow"
    return f"{sign} {state}", style


def _health(row: ServerRow, width: int) -> tuple[str, str]:
    health = str(row.item.get("health") or "unknown")
    return ("-", _FAINT) if health == "unknown" else (health, HEALTH.get(health, ""))


def _bind(row: ServerRow, width: int) -> tuple[str, str]:
    return printable(str(row.item.get("address") or row.item.get("bind") or "")), _FAINT


def _workers(row: ServerRow, width: int) -> tuple[str, str]:
    there, wanted = len(row.item.get("pids") or ()), row.item.get("workers")
    return (str(there), "") if there == wanted else (f"{there}/{wanted}", "yellow" if there else _FAINT)


def _uptime(row: ServerRow, width: int) -> tuple[str, str]:
    seconds = row.item.get("uptime_seconds")
    return (duration(seconds), "") if seconds else ("-", _FAINT)


def _restarts(row: ServerRow, width: int) -> tuple[str, str]:
    restarts = int(row.item.get("restarts") or 0)
    return str(restarts), "" if restarts else _FAINT


def _figure(
    key: str, form: Callable[[float | None], str], style: str = ""
) -> Callable[[ServerRow, int], tuple[str, str]]:
    def cell(row: ServerRow, width: int) -> tuple[str, str]:
        number = row.number(key)
        return form(number), style if number else _FAINT

    return cell


def _usage(key: str, form: Callable[[float | None], str]) -> Callable[[ServerRow, int], tuple[str, str]]:
    """The usage of its processes; "-" for a server without any."""

    def cell(row: ServerRow, width: int) -> tuple[str, str]:
        number = row.number(key)
        return form(number if number or row.item.get("pids") else None), "" if number else _FAINT

    return cell


def _chart(key: str, style: str, *, from_zero: bool = True) -> Callable[[ServerRow, int], tuple[str, str]]:
    def cell(row: ServerRow, width: int) -> tuple[str, str]:
        values = row.history.get(key) or ()
        idle = not any(values)
        return sparkline(values, width, from_zero=from_zero), _FAINT if idle else style

    return cell


COLUMNS = (
    Column("NAME", "name", 0, 0, _name, right=False, measured=False),
    Column("STATE", "state", 10, 0, _state, right=False, measured=False),
    Column("HEALTH", "health", 6, 1, _health, right=False, measured=False),
    Column("ADDRESS", "file", 21, 9, _bind, right=False, measured=False),
    Column("WORK", "", 4, 8, _workers, measured=False),
    Column("REQ/S", "requests", 6, 1, _figure("requests_per_second", figures.count)),
    Column("", "", 8, 2, _chart("requests_per_second", "green"), right=False, chart=True),
    Column("P99", "latency", 6, 1, _figure("latency_p99_seconds", figures.seconds)),
    Column("", "", 8, 6, _chart("latency_p99_seconds", "yellow"), right=False, chart=True),
    Column("MEM", "memory", 5, 1, _usage("memory_bytes", figures.size)),
    Column("", "", 8, 7, _chart("memory_bytes", "blue", from_zero=False), right=False, chart=True),
    Column("CPU", "cpu", 5, 4, _usage("cpu_percent", figures.percent)),
    Column("BUSY", "", 4, 10, _figure("in_flight", figures.count)),
    Column("CONN", "", 5, 11, _figure("connections", figures.count)),
    Column("UP", "uptime", 6, 3, _uptime, measured=False),
    Column("RST", "restarts", 3, 5, _restarts, measured=False),
)


def place(width: int, names: int, *, measured: bool) -> list[Placed]:
    """The columns for a screen so wide, on which the longest name takes `names` cells."""
    longest = min(max(names, _SHORTEST_NAME), _LONGEST_NAME)
    name = min(longest, max(_SHORTEST_NAME, width // 4))
    offered = [column for column in COLUMNS if measured or not column.measured]
    widths = {column: column.width for column in offered}
    taken: set[Column] = set()
    left = width - name
    for column in sorted(offered, key=lambda each: each.priority):
        needed = column.width + GAP if column.width else 0
        if needed <= left:
            taken.add(column)
            left -= needed
    more = min(left, longest - name)
    widths[COLUMNS[0]] = name + more
    left -= more
    charts = [column for column in offered if column in taken and column.chart]
    for column in charts:
        widths[column] += min(left // len(charts), LONGEST_CHART - column.width)
    return [Placed(column, widths[column]) for column in offered if column in taken]
