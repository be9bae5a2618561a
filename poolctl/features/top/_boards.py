"""The rows of the view, which are servers or routes of the gateway, with their order, filter and selection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from poolctl.control.client import Client
from poolctl.control.gateway_answers import GatewayStatus
from poolctl.control.server_answers import MeasuredServer, StatsResult
from poolctl.json_form import from_json
from poolctl.routing.route_health import ERROR, STARTING, UNHEALTHY
from poolctl.routing.route_report import STREAM, RouteReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from poolctl.cli.pool_ref import PoolRef


class RouteRow(NamedTuple):
    """A route with its requests and errors per second since the previous result, None if there is no such result."""

    report: RouteReport
    requests_per_second: float | None = None
    errors_per_second: float | None = None

    @property
    def name(self) -> str:
        """The row's name, which distinguishes a stream from a route with the same alias."""
        return f"{self.report.alias} (stream)" if self.report.way == STREAM else self.report.alias


class Order(NamedTuple):
    """An order of the rows: its key on the keyboard, the compared figure, and whether the largest value comes first."""

    key: str
    figure: Callable[[Any], float | None] = lambda row: None
    falling: bool = False


Row = TypeVar("Row", MeasuredServer, RouteRow)


class Board(Generic[Row]):
    """The sorted and filtered rows, the selected row, and the part on the screen.

    The selection stays on its row while rows are added and removed. `height` is the number of rows on the screen.
    """

    orders: ClassVar[Mapping[str, Order]]
    sample_seconds = 0.0  # seconds between two values of a chart; 0: unknown

    def __init__(self, *, sort: str = "problems") -> None:
        self.rows: Sequence[Row] = ()  # in file order
        self.is_known = False  # a result has arrived
        self.shown: list[Row] = []
        self.height = 1
        self.top = 0
        self.filter = ""
        self.sort = sort
        self.reverse = False
        self._at = 0

    def filter_text(self, row: Row) -> str:
        raise NotImplementedError

    @property
    def selected(self) -> Row | None:
        """The row that keys act on; None if no row is shown."""
        return self.shown[self._at] if self.shown else None

    @property
    def visible(self) -> list[Row]:
        return self.shown[self.top : self.top + self.height]

    @property
    def position(self) -> int:
        """The position of the selected row among the shown rows, from 1; 0 for none."""
        return self._at + 1 if self.shown else 0

    @property
    def falling(self) -> bool:
        """Whether the largest value comes first."""
        return self.orders[self.sort].falling is not self.reverse

    def update(self, rows: Sequence[Row]) -> None:
        self.rows, self.is_known = rows, True
        self._arrange()

    def move(self, rows: int) -> None:
        """Select the row this many rows below, or above if negative; at most the last or the first row."""
        self._select(self._at + rows)

    def resize(self, height: int) -> None:
        self.height = max(1, height)
        self._select(self._at)

    def set_filter(self, text: str) -> None:
        """Show only rows that contain all words of `text`, ignoring case."""
        self.filter = text
        self._arrange()

    def toggle_sort(self, sort: str) -> None:
        """Sort by an order, or reverse it if it is the current one, and select the first row."""
        self.reverse = self.sort == sort and not self.reverse
        self.sort = sort
        self._arrange()
        self._select(0)

    def sort_next(self, step: int) -> None:
        orders = list(self.orders)
        self.toggle_sort(orders[(orders.index(self.sort) + step) % len(orders)])

    def _arrange(self) -> None:
        previous = self.selected
        words = self.filter.lower().split()
        matches = [row for row in self.rows if all(word in self.filter_text(row).lower() for word in words)]
        self.shown = self._in_order(matches)
        names = [row.name for row in self.shown]
        self._select(
            names.index(previous.name) if previous is not None and previous.name in names else self._at
        )

    def _select(self, at: int) -> None:
        self._at = max(0, min(at, len(self.shown) - 1))
        last_top = max(0, len(self.shown) - self.height)
        self.top = min(max(self.top, self._at - self.height + 1), self._at, last_top)

    def _in_order(self, rows: list[Row]) -> list[Row]:
        """Return the rows sorted as `self.sort` says, rows with unknown figures last.

        Rows with equal figures are sorted by name; if `self.sort` is "problems", they stay as in the file.
        """
        figure = self.orders[self.sort].figure
        if self.sort == "problems":
            return sorted(rows, key=lambda row: figure(row) or 0.0, reverse=self.reverse)
        if self.sort == "file":
            return rows[::-1] if self.reverse else rows
        by_name = sorted(rows, key=lambda row: row.name, reverse=self.sort == "name" and self.reverse)
        rows_with_figure = [row for row in by_name if figure(row) is not None]
        rows_with_figure.sort(key=lambda row: figure(row) or 0.0, reverse=self.falling)
        return rows_with_figure + [row for row in by_name if figure(row) is None]


# States that need attention come first.
_STATES = (
    "failed", "backoff", "starting", "stopping", "draining", "running", "sleeping", "completed", "ended", "stopped",
    "disabled",
)  # fmt: skip
_HEALTH = ("ko", "warn", "unknown", "ok")


def _problem_rank(row: MeasuredServer) -> float:
    """The server's rank by problems: 0 failed or unhealthy, 1 warning or not ready, 2 in transition, 3 otherwise."""
    if row.state in ("failed", "backoff") or row.health == "ko":
        return 0.0
    if (
        row.health == "warn"
        or (row.ended and not row.on_demand)
        or (row.state == "running" and not row.ready)
    ):
        return 1.0
    return 2.0 if row.state in ("starting", "stopping", "draining") else 3.0


def _index_in(order: Sequence[str], word: str) -> float:
    return order.index(word) if word in order else len(order)


SERVER_ORDERS: Mapping[str, Order] = {
    "problems": Order("P", _problem_rank),
    "name": Order("N"),
    "state": Order("S", lambda row: _index_in(_STATES, row.shown_state)),
    "health": Order("H", lambda row: _index_in(_HEALTH, row.health)),
    "requests": Order("R", lambda row: row.stats.requests_per_second, falling=True),
    "errors": Order("E", lambda row: row.stats.errors_per_second, falling=True),
    "latency": Order("L", lambda row: row.stats.latency_p99_seconds, falling=True),
    "memory": Order("M", lambda row: row.stats.memory_bytes, falling=True),
    "cpu": Order("C", lambda row: row.stats.cpu_percent, falling=True),
    "uptime": Order("U", lambda row: row.uptime_seconds, falling=True),
    "restarts": Order("X", lambda row: row.restarts, falling=True),
    "file": Order("F"),
}


class ServerBoard(Board[MeasuredServer]):
    """The servers as rows; filters search name, address, state, health and tags."""

    orders = SERVER_ORDERS

    def update(self, rows: Sequence[MeasuredServer]) -> None:
        self.sample_seconds = rows[0].stats.history.interval_seconds if rows else 0.0
        super().update(rows)

    def filter_text(self, row: MeasuredServer) -> str:
        return " ".join([row.name, row.bind, row.expose, row.shown_state, row.health, *row.tags])


_PROBLEMS = {ERROR: 0.0, UNHEALTHY: 0.0, STARTING: 1.0}  # states that are not problems have rank 2


ROUTE_ORDERS: Mapping[str, Order] = {
    "problems": Order("P", lambda row: _PROBLEMS.get(row.report.state, 2.0)),
    "name": Order("N"),
    "requests": Order("R", lambda row: _rate(row.requests_per_second, row.report.requests), falling=True),
    "waiting": Order("W", lambda row: row.report.waiting, falling=True),
    "errors": Order("E", lambda row: _rate(row.errors_per_second, row.report.errors), falling=True),
    "latency": Order("L", lambda row: row.report.p99_seconds, falling=True),
    "file": Order("F"),
}


class RouteBoard(Board[RouteRow]):
    """The routes as rows; filters search alias, host, path, targets, way (such as http or stream) and state."""

    orders = ROUTE_ORDERS

    def __init__(self, *, sort: str = "problems") -> None:
        super().__init__(sort=sort)
        self._received_at = 0.0

    def receive(self, reports: Iterable[RouteReport], now: float) -> None:
        """Show these reports, received at `now` in seconds, with the rates since the previous ones."""
        seconds = now - self._received_at
        previous_reports = {row.name: row.report for row in self.rows}
        rows = [RouteRow(report) for report in reports]
        for index, row in enumerate(rows):
            if (previous := previous_reports.get(row.name)) is not None and seconds > 0:
                requests, errors = (
                    row.report.requests - previous.requests,
                    row.report.errors - previous.errors,
                )
                rows[index] = RouteRow(row.report, max(0.0, requests / seconds), max(0.0, errors / seconds))
        self._received_at = now
        self.update(rows)

    def filter_text(self, row: RouteRow) -> str:
        report = row.report
        return " ".join([report.alias, report.host, report.path, *report.to, report.way, report.state])


def _rate(per_second: float | None, total: int) -> float:
    """The rate per second or, while that is unknown, the total count."""
    return total if per_second is None else per_second


class PoolView:
    """The view of a pool in `poolctl top`. The view lists routes if `routes` is not None, and otherwise servers.

    `gateway` is None if the pool has no gateway, or if only selected servers are shown.
    """

    def __init__(
        self, ref: PoolRef, selector: Mapping[str, object], interval_seconds: float, servers: ServerBoard
    ) -> None:
        self.ref = ref
        # For the verb `stats`; `errors` asks for figures that `-o json` does not print.
        self.request = {"selector": selector, "options": {"errors": True}}
        self.client = Client(ref.socket)
        self.pool = self.client.ping().name or "pool"
        self.interval_seconds = interval_seconds
        self.servers = servers
        self.routes: RouteBoard | None = None
        self.gateway: GatewayStatus | None = None

    def update(self, result: StatsResult) -> None:
        self.servers.update(result.items)
        self.gateway = None if result.gateway is None else from_json(GatewayStatus, result.gateway)
