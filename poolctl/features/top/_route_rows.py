"""The gateway's routes as rows, and the columns of their table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from poolctl.cli.render import printable
from poolctl.routing.route_health import ERROR, NAPPING, STARTING, UNHEALTHY
from poolctl.routing.route_report import PASS, PROXY, STREAM, RouteReport

from ._board import Board
from ._table import FAINT, Cell, Column, format_count, format_seconds

_STATES = {STARTING: "yellow", NAPPING: "cyan", UNHEALTHY: "red", ERROR: "bold red"}
_PROBLEMS = {ERROR: 0.0, UNHEALTHY: 0.0, STARTING: 1.0}  # states that are not problems have rank 2
_WAYS = {PASS: "green", PROXY: "yellow", STREAM: "cyan"}


class RouteRow(NamedTuple):
    """A route, with requests and errors per second since the last result (None at first)."""

    report: RouteReport
    requests_per_second: float | None = None
    errors_per_second: float | None = None

    @property
    def name(self) -> str:
        """The row's name, which distinguishes a stream from a route with the same alias."""
        return f"{self.report.alias} (stream)" if self.report.way == STREAM else self.report.alias


class RouteBoard(Board[RouteRow]):
    """The routes as rows; filters search alias, host, path, targets, way and state."""

    orders, keys = ("problems", "name", "requests", "waiting", "errors", "latency", "file"), "PNRWELF"
    largest_first = ("requests", "waiting", "errors", "latency")

    def __init__(self, *, sort: str = "problems") -> None:
        super().__init__(sort=sort)
        self._at_seconds = 0.0
        self._counts: dict[str, tuple[int, int]] = {}  # requests and errors by row name

    def receive(self, reports: Iterable[RouteReport], now: float) -> None:
        """Take the newest result, received at this time in seconds."""
        seconds, before = now - self._at_seconds, self._counts
        rows = []
        for report in reports:
            row = RouteRow(report)
            if row.name in before and seconds > 0:
                requests, errors = before[row.name]
                row = RouteRow(
                    report,
                    max(0.0, (report.requests - requests) / seconds),
                    max(0.0, (report.errors - errors) / seconds),
                )
            rows.append(row)
        self._at_seconds = now
        self._counts = {row.name: (row.report.requests, row.report.errors) for row in rows}
        self.update(rows)

    def figure(self, row: RouteRow) -> float | None:
        """See Board."""
        if self.sort == "problems":
            return _PROBLEMS.get(row.report.state, 2.0)
        if self.sort == "requests":
            return row.report.requests if row.requests_per_second is None else row.requests_per_second
        if self.sort == "waiting":
            return row.report.waiting
        if self.sort == "errors":
            return row.report.errors if row.errors_per_second is None else row.errors_per_second
        return row.report.p99_seconds

    def words(self, row: RouteRow) -> str:
        """See Board."""
        report = row.report
        return " ".join([report.alias, report.host, report.path, *report.to, report.way, report.state])


def _name(row: RouteRow, width: int) -> tuple[str, str]:
    return printable(row.report.alias), _STATES.get(row.report.state, "")


def _place(row: RouteRow, width: int) -> tuple[str, str]:
    return printable(f"{row.report.host}{row.report.path}"), FAINT


def _targets(row: RouteRow, width: int) -> tuple[str, str]:
    return printable(", ".join(row.report.to)), FAINT


def _way(row: RouteRow, width: int) -> tuple[str, str]:
    return row.report.way, _WAYS.get(row.report.way, FAINT)


def _state(row: RouteRow, width: int) -> tuple[str, str]:
    return row.report.state, _STATES.get(
        row.report.state, "green" if row.report.state == "healthy" else FAINT
    )


def _rate(row: RouteRow, width: int) -> tuple[str, str]:
    rate = row.requests_per_second
    return format_count(rate), "green" if rate else FAINT


def _error_rate(row: RouteRow, width: int) -> tuple[str, str]:
    rate = row.errors_per_second
    return format_count(rate), "bold red" if rate else FAINT


def _count(name: str, style: str = "") -> Cell:
    def cell(row: RouteRow, width: int) -> tuple[str, str]:
        number = getattr(row.report, name)
        return format_count(number), style if number else FAINT

    return cell


def _latency(name: str) -> Cell:
    def cell(row: RouteRow, width: int) -> tuple[str, str]:
        seconds = getattr(row.report, name)
        return format_seconds(seconds), "yellow" if seconds else FAINT

    return cell


ROUTE_COLUMNS = (
    Column("ROUTE", "name", 0, 0, _name),
    Column("HOST/PATH", "file", 22, 3, _place),
    Column("TO", "", 22, 5, _targets),
    Column("STATE", "", 9, 6, _state),
    Column("WAY", "", 8, 0, _way),
    Column("REQ/S", "requests", 6, 1, _rate, right=True),
    Column("PASSED", "", 6, 2, _count("passed"), right=True),
    Column("PROXIED", "", 7, 2, _count("proxied"), right=True),
    Column("WAITING", "waiting", 8, 4, _count("waiting", "yellow"), right=True),
    Column("ERR/S", "errors", 6, 4, _error_rate, right=True),
    Column("ERR", "errors", 5, 1, _count("errors", "bold red"), right=True),
    Column("P50", "", 6, 7, _latency("p50_seconds"), right=True),
    Column("P99", "latency", 6, 1, _latency("p99_seconds"), right=True),
)
